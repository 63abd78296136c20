"""The Plan: which layers run on which tier, what crosses between them and how, and what that should cost.

A plan is plain data. The in-process pipeline, the simulator and the Ray runtime all execute the same plan, so that
prediction and measurement can be laid side by side. Its file is JSON (docs/plan-format.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitinfer.errors import PlanError
from splitinfer.reading import Malformed, document, read, text_of

if TYPE_CHECKING:
    from splitinfer.graph import Graph

VERSION = 3
"""2 knows no tensors in pieces and no layers shared by several machines, 1 also no limits, accuracy and exits."""
INPUT = "<input>"
"""The producer of the model's inputs, where a layer's name would stand."""


@dataclass(frozen=True)
class PlannedBlock:
    """Layers inside a stage that several machines share: a vertical split."""

    layers: tuple[str, ...]
    axis: str
    """``rows``, ``channels`` or ``heads``."""
    shares: tuple[int, ...]
    """Units of the axis for each machine: the tier's own first, then its peers in the order of the topology."""
    workers: tuple[str, ...]
    """The names of these machines."""
    exchange_after: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Layers behind which neighbours exchange halo rows, where elsewhere rows are computed twice -> shares of the rows there."""
    inner_shares: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Layers that open an axis of their own, the columns of an MLP for example -> its shares; else in proportion."""
    codec: str = "raw"
    """Of all messages between the machines."""


@dataclass(frozen=True)
class PlannedStage:
    """Layers that run together on one tier."""

    name: str
    tier: str
    layers: tuple[str, ...]
    seconds: float = 0.0
    """Predicted compute time of one request, waking up included."""
    weight_nbytes: int = 0
    blocks: tuple[PlannedBlock, ...] = ()
    """In the order of the data; what is in none runs whole on the tier's own machine."""


@dataclass(frozen=True)
class Crossing:
    """A tensor that leaves its tier."""

    tensor: str
    producer: str
    """Layer name, or ``<input>``."""
    codec: str
    links: tuple[int, ...]
    """The links that it crosses, counted from the device."""
    raw_nbytes: int
    nbytes: float
    """Encoded bytes, as measured by the profile."""
    streamed: bool = False
    """Whether it travels in pieces, so that encoding, wire and decoding overlap."""


@dataclass(frozen=True)
class PlannedExit:
    """An early exit: where its head is sure, its answer is the model's, and nothing behind it runs."""

    layer: str
    """The head."""
    answer: str
    """The tensor that stands for the model's output."""
    confidence: str
    """The tensor with one number for each row; the least of them counts."""
    output: str
    """The model's output that it stands for."""
    threshold: float
    """Taken where the confidence is at least this."""
    reach: float = 1.0
    """Share of all requests that go on behind it, as recorded."""


@dataclass(frozen=True)
class Cost:
    """Predicted seconds of one request, by kind of work."""

    latency_s: float
    compute_s: float = 0.0
    encode_s: float = 0.0
    wire_s: float = 0.0
    """Bytes over bandwidth, and one latency for each link used."""
    decode_s: float = 0.0
    return_s: float = 0.0
    """The way back of the results."""
    framework_s: float = 0.0
    """Calls between processes, as the profile measured them; 0 where it did not."""
    up_nbytes: float = 0.0
    """Bytes over all links towards the cloud."""
    return_nbytes: float = 0.0
    interval_s: float = 0.0
    """The largest load among tiers and links: seconds between results in steady state."""
    critical_path_s: float = 0.0
    """Latency if branches overlapped and nothing waited."""
    energy_j: float = 0.0
    """Modelled from the watts and joules per byte that the topology declares."""
    money: float = 0.0
    """Modelled from the prices that the topology declares."""
    error: float = 0.0
    """Sum of the errors of the codecs used, as far as they were measured."""
    exchange_s: float = 0.0
    """Between the machines that share layers: scatter, exchange and gather."""
    transfer_s: float = 0.0
    """Encoding, wire and decoding of what travels in pieces, where the three overlap."""


@dataclass(frozen=True)
class Accuracy:
    """What the whole plan loses, added up, and measured end to end on samples that nothing was learned or calibrated from."""

    metric: str
    budget: float
    """The largest loss allowed, in units of the metric."""
    predicted: float
    """Sum of the losses of the codecs, exits and bottlenecks used, each measured alone."""
    measured: float | None = None
    """None: only added up, because no samples were given."""
    samples: int = 0
    repairs: int = 0
    """Plans thrown away because they lost more than the budget."""
    ended: Mapping[str, float] = field(default_factory=dict)
    """Share of the samples that ended at each early exit, by its layer."""

    def __str__(self) -> str:
        """One line."""
        if self.measured is None:
            return f"{self.metric}: {self.predicted:.2%} lost by adding up, {self.budget:.2%} allowed; not measured, for want of samples"
        again = f"; plans replaced because they lost more: {self.repairs}" if self.repairs else ""
        early = f"; {sum(self.ended.values()):.1%} end at an early exit" if self.ended else ""
        return (
            f"{self.metric}: loses {self.measured:.2%} on {self.samples} held-out samples, {self.predicted:.2%} predicted,"
            f" {self.budget:.2%} allowed{early}{again}"
        )


@dataclass(frozen=True)
class Candidate:
    """A plan that was weighed: an honest baseline."""

    name: str
    cost: Cost | None
    """None where it is not possible."""
    why_not: str = ""


@dataclass(frozen=True)
class Plan:
    """Where each layer runs, what crosses and how, and the predicted cost."""

    model: str
    fingerprint: str
    """Of the graph that it was made for."""
    tiers: tuple[str, ...]
    """The line of tiers, the data's birthplace first."""
    stages: tuple[PlannedStage, ...]
    crossings: tuple[Crossing, ...] = ()
    objective: str = "latency"
    cost: Cost | None = None
    """None for a plan made by hand."""
    baselines: tuple[Candidate, ...] = ()
    certificate: Mapping[str, Any] = field(default_factory=dict)
    """Strategy, status ("optimal", "within", "feasible"), bound in units of the objective and relative gap."""
    times_from: Mapping[str, str] = field(default_factory=dict)
    """Tier -> where its times come from."""
    stateful: bool = False
    """Whether a call changes a buffer: requests then run one at a time and cannot be repeated."""
    topology: Mapping[str, Any] | None = None
    """The tiers and links that it was made for, as ``Topology.to_dict`` gives them; None for a plan made by hand."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """Limits on costs that it was made under, by field of `Cost`."""
    kept_layers: int = 0
    """Layers, from the first, that were kept on the device so that the input stays there."""
    accuracy: Accuracy | None = None
    """None where no accuracy budget was given."""
    exits: tuple[PlannedExit, ...] = ()
    """Early exits, in the order in which a request meets them."""

    @staticmethod
    def by_hand(
        graph: Graph, stages: Sequence[Sequence[str]], tiers: Sequence[str] | None = None, codecs: Mapping[str, str] | None = None
    ) -> Plan:
        """A plan from lists of layers. `tiers` names each stage's tier, `codecs` a codec by tensor (default raw).

        Raises CutError where the stages are not possible.
        """
        graph.check_stages(stages)
        names = list(tiers) if tiers is not None else [f"tier{index}" for index in range(len(stages))]
        if len(names) != len(stages):
            raise PlanError(f"{len(stages)} stages and {len(names)} tiers; each stage needs one")
        line = tuple(dict.fromkeys(names))
        planned = tuple(
            PlannedStage(f"stage{index}", tier, tuple(name for name in graph.layers if name in set(layers)))
            for index, (tier, layers) in enumerate(zip(names, stages, strict=True))
        )
        home = {INPUT: 0} | {layer: line.index(stage.tier) for stage in planned for layer in stage.layers}
        crossings = []
        for spec in graph.tensors.values():
            furthest = max((home[consumer] for consumer in spec.consumers), default=0)
            if furthest > home[spec.producer]:
                links = tuple(range(home[spec.producer], furthest))
                codec = (codecs or {}).get(spec.name, "raw")
                crossings.append(Crossing(spec.name, spec.producer, codec, links, spec.nbytes, spec.nbytes))
        return Plan(graph.name, graph.fingerprint, line, planned, tuple(crossings), objective="by hand", stateful=graph.stateful)

    def codec_of(self, tensor: str) -> str:
        """The codec in which a tensor leaves its tier."""
        return next((crossing.codec for crossing in self.crossings if crossing.tensor == tensor), "raw")

    def streams(self, tensor: str) -> bool:
        """Whether a tensor travels in pieces."""
        return any(crossing.tensor == tensor and crossing.streamed for crossing in self.crossings)

    def check(self, graph: Graph) -> None:
        """Raise PlanError or CutError unless the plan fits the graph."""
        if self.fingerprint != graph.fingerprint:
            raise PlanError(
                f"the plan was made for {self.model} {self.fingerprint}; this model is {graph.name} {graph.fingerprint}. Plan again."
            )
        graph.check_stages([stage.layers for stage in self.stages])

    def to_json(self) -> str:
        """The plan's file."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1)

    def save(self, path: str | Path) -> None:
        """Write the plan's file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan's file. Raises PlanError, which names the field, for one that is malformed."""
        return Plan.from_json(text_of(path, "plan", PlanError))

    @staticmethod
    def from_json(text: str) -> Plan:
        """A plan from its file's text. Raises PlanError, which names the field, for one that is malformed."""
        plan = document(Plan, text, "plan", (1, 2, VERSION), PlanError)  # 1 lacks keys that have defaults
        try:
            _check(plan)
        except Malformed as error:
            raise PlanError(f"malformed plan: {error}") from error
        return plan

    def __str__(self) -> str:
        from splitinfer.plan_tables import as_text  # here: it needs tabulate, and running a plan needs none

        return as_text(self)


@dataclass(frozen=True)
class _Certificate:
    """The keys of `Plan.certificate`, where it is not empty."""

    strategy: str
    status: str
    bound: float | None
    gap: float | None


def _check(plan: Plan) -> None:
    """What types alone do not say. Raises Malformed."""
    if not plan.stages:
        raise Malformed("'stages' is empty; a plan needs one")
    for place, stage in enumerate(plan.stages):
        if not stage.layers:
            raise Malformed(f"'stages[{place}].layers' is empty; a stage needs a layer")
        if stage.tier not in plan.tiers:
            raise Malformed(f"a stage runs on '{stage.tier}', which is not among its tiers {list(plan.tiers)}")
    for place, crossing in enumerate(plan.crossings):
        first, last = min(crossing.links, default=0), max(crossing.links, default=-1)
        if crossing.links != tuple(range(first, last + 1)) or not 0 <= first <= last < len(plan.tiers) - 1:
            links = f"links that follow each other, of the {len(plan.tiers) - 1} between its tiers"
            raise Malformed(f"'crossings[{place}].links' is {list(crossing.links)}; it must be {links}")
    for place, stage in enumerate(plan.stages):
        for number, block in enumerate(stage.blocks):
            where = f"'stages[{place}].blocks[{number}]"
            outside = sorted(set(block.layers) - set(stage.layers))
            if outside or not block.layers:
                raise Malformed(f"{where}.layers' " + (f"names '{outside[0]}', which is not in the stage" if outside else "is empty"))
            if len(block.shares) != len(block.workers) or min(block.shares, default=0) < 0 or not any(block.shares):
                shares = f"is {list(block.shares)} for {len(block.workers)} workers"
                raise Malformed(f"{where}.shares' {shares}; give one each, 0 or more, and one above 0")
            for layer, inner in [*block.exchange_after.items(), *block.inner_shares.items()]:
                if layer not in block.layers or len(inner) != len(block.shares) or min(inner) < 0 or not any(inner):
                    raise Malformed(f"{where}' gives '{layer}' {list(inner)}; a layer of the block, and one share each")
            if block.axis not in ("rows", "channels", "heads"):
                raise Malformed(f"{where}.axis' is '{block.axis}'; it is rows, channels or heads")
    unknown = sorted(set(plan.limits) - {spec.name for spec in fields(Cost)})
    if unknown:
        raise Malformed(f"'limits' has an unknown key '{unknown[0]}'")
    if plan.certificate:
        read(_Certificate, dict(plan.certificate), "certificate")
