"""Does the split model equal the whole one? Compared with the user's own eager module, bit for bit."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from tqdm import tqdm

from splitinfer import codecs
from splitinfer.errors import CutError
from splitinfer.flops import layer_flops
from splitinfer.graph import Graph
from splitinfer.pipeline import Pipeline
from splitinfer.plans import Plan

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Verdict:
    """The outcome of one comparison."""

    exact: bool
    """Every output tensor equal bit for bit, NaN equal to NaN, on every call."""
    stages: int
    max_abs_difference: float
    """Largest over all outputs and calls; infinity where shapes, dtypes or NaNs differ."""
    calls: int
    """Calls compared: the sample and fresh inputs."""
    note: str = ""
    """A known reason for a difference, and what to do about it."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def __str__(self) -> str:
        verdict = "exact: every output equal bit for bit" if self.exact else f"differs by up to {self.max_abs_difference:.3g}"
        note = f"\n  {self.note}" if self.note else ""
        return f"{verdict} ({self.stages} stages, {self.calls} calls){note}"


def verify_split(graph: Graph, model: nn.Module, plan: Plan, *, calls: Sequence[Call] | None = None, fresh: int = 2) -> Verdict:
    """Run the plan's stages in this process beside the eager module, on the sample and `fresh` other inputs.

    A stateful model is compared with a copy of the module over the same sequence of calls.
    """
    chosen = list(calls) if calls is not None else [graph.example, *fresh_calls(graph, fresh)]
    eager = copy.deepcopy(model) if graph.stateful else model
    pipeline = Pipeline.local(graph, plan)
    worst = 0.0
    exact = True
    for args, kwargs in chosen:
        with torch.no_grad():
            expected = pytree.tree_leaves(eager(*args, **kwargs))
        got = pytree.tree_leaves(pipeline(*args, **kwargs))
        difference, same = compare(expected, got)
        worst, exact = max(worst, difference), exact and same
    return Verdict(exact, len(plan.stages), worst, len(chosen), "" if exact else _known_reason(model, plan))


def verify_all_cuts(graph: Graph, model: nn.Module, *, progress: bool = False) -> Verdict:
    """Two stages at every possible cut, on the sample; the worst of them."""
    order = list(graph.layers)
    places = [index for index, cut in enumerate(graph.cuts()) if cut.possible]
    if not places:
        raise CutError(f"{graph.name} has no place to cut")
    verdicts = []
    for place in tqdm(places, desc="cuts", disable=not progress, leave=False):
        plan = Plan.by_hand(graph, [order[: place + 1], order[place + 1 :]])
        verdicts.append(verify_split(graph, model, plan, fresh=0))
    worst = max(verdict.max_abs_difference for verdict in verdicts)
    notes = {verdict.note for verdict in verdicts if verdict.note}
    return Verdict(all(v.exact for v in verdicts), 2, worst, sum(v.calls for v in verdicts), "; ".join(sorted(notes)))


def as_module(graph: Graph) -> nn.Module:
    """The graph in one piece as a module: what to compare with where learned layers make it more than the user's own."""
    return _Whole(Pipeline.local(graph, Plan.by_hand(graph, [list(graph.layers)])))


class _Whole(nn.Module):
    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.pipeline = pipeline

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.pipeline(*args, **kwargs)


def _known_reason(model: nn.Module, plan: Plan) -> str:
    lossy = sorted({crossing.codec for crossing in plan.crossings if not codecs.get(crossing.codec).lossless})
    if lossy:
        return f"the plan sends tensors as {', '.join(lossy)}, which loses bits on purpose"
    for name, module in model.named_modules():
        if isinstance(module, nn.TransformerEncoderLayer | nn.MultiheadAttention):
            return (
                f"'{name}' is a {type(module).__name__}, whose eager module takes a fused path without gradients that torch.export "
                f"does not see; torch.backends.mha.set_fastpath_enabled(False) makes both take the same one"
            )
    return ""


def compare(expected: Sequence[Any], got: Sequence[Any]) -> tuple[float, bool]:
    """Largest absolute difference, and whether everything is the same."""
    if len(expected) != len(got):
        return float("inf"), False
    worst, exact = 0.0, True
    for one, two in zip(expected, got, strict=True):
        if not isinstance(one, Tensor) or not isinstance(two, Tensor):
            same = type(one) is type(two) and bool(one == two)
            worst, exact = (worst, exact) if same else (float("inf"), False)
            continue
        difference = _difference(one, two)
        worst, exact = max(worst, difference), exact and difference == 0
    return worst, exact


def _difference(one: Tensor, two: Tensor) -> float:
    if one.shape != two.shape or one.dtype != two.dtype:
        return float("inf")
    if torch.equal(one, two) or one.numel() == 0:
        return 0.0
    if not (one.is_floating_point() or one.is_complex()):
        return float((one.double() - two.double()).abs().max())
    if not torch.equal(one.isnan(), two.isnan()):
        return float("inf")
    apart = torch.where(one == two, torch.zeros_like(one), one - two).abs()  # equal infinities differ by nothing
    return float(torch.nan_to_num(apart, nan=0.0, posinf=float("inf")).max())


def fresh_calls(graph: Graph, count: int, seed: int = 0) -> list[Call]:
    """Other inputs like the sample; a dynamic batch also takes other sizes where all inputs share one dimension 0."""
    generator = torch.Generator().manual_seed(seed)
    symbols = {spec.shape[0] for spec in graph.input_tensors if spec.shape}
    varies = len(symbols) == 1 and isinstance(next(iter(symbols)), str)

    def fresh(leaf: Any, repeat: int) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if repeat > 1 and leaf.dim():
            leaf = torch.cat([leaf] * repeat)
        return resampled(leaf, generator)

    return [pytree.tree_map(lambda leaf, repeat=index + 2 if varies else 1: fresh(leaf, repeat), graph.example) for index in range(count)]


def resampled(sample: Tensor, generator: torch.Generator) -> Tensor:
    """Floats with the sample's mean and spread; integers and booleans drawn from the sample's own values."""
    if sample.numel() == 0:
        return sample.clone()
    if sample.is_floating_point():
        spread = sample.double().std().item() if sample.numel() > 1 else 1.0
        noise = torch.randn(sample.shape, generator=generator, dtype=torch.float64)
        return (noise * (spread or 1.0) + sample.double().mean().item()).to(sample.dtype)
    picks = torch.randint(0, sample.numel(), sample.shape, generator=generator)
    return sample.reshape(-1)[picks]


def balanced_stages(graph: Graph, count: int, flops: Mapping[str, int] | None = None) -> list[list[str]]:
    """`count` stages cut nearest to equal FLOPs, each with some work of its own.

    Raises CutError where the graph has fewer possible cuts with work on both sides.
    """
    flops = flops if flops is not None else layer_flops(graph)
    order = list(graph.layers)
    total = sum(flops.values())
    done, sums = 0, []
    for name in order:
        done += flops[name]
        sums.append(done)
    places = [index for index, cut in enumerate(graph.cuts()) if cut.possible]
    cuts: list[int] = []
    for step in range(1, count):
        floor = sums[cuts[-1]] if cuts else 0
        # Leave work for the stages that follow: each needs another place with a larger sum behind it.
        usable = [place for place in places if floor < sums[place] and _later(sums, places, place, total) >= count - step - 1]
        usable = [place for place in usable if sums[place] < total]
        if not usable:
            most = len({sums[place] for place in places if 0 < sums[place] < total}) + 1
            raise CutError(f"{graph.name} can be cut into at most {most} stages with work in each; asked for {count}")
        cuts.append(min(usable, key=lambda place: abs(sums[place] - total * step / count)))
    edges = [-1, *cuts, len(order) - 1]
    return [order[start + 1 : end + 1] for start, end in itertools.pairwise(edges)]


def _later(sums: Sequence[int], places: Sequence[int], place: int, total: int) -> int:
    """How many further cuts with work between them fit behind a place."""
    return len({sums[other] for other in places if sums[place] < sums[other] < total})
