"""Measure on the user's samples what each codec does to each tensor, and what that does to the model's answers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from tqdm import tqdm

from splitinfer import codecs
from splitinfer.calibrations import Calibration, Measured
from splitinfer.codecs.packet import Frame
from splitinfer.errors import UsageError
from splitinfer.graph import Graph, TensorSpec
from splitinfer.learn.metrics import Metric, Score, relative_error
from splitinfer.pipeline import whole
from splitinfer.plans import INPUT
from splitinfer.profiles import Profile
from splitinfer.sizes import sizes_at

IMAGES = ("uint8", "dct90")
"""Codecs for inputs (batch, 1 or 3, height, width): exact where the pixels had 8 bits, and like JPEG at quality 90."""

Call = tuple[tuple[Any, ...], dict[str, Any]]


def calibrate(
    graph: Graph,
    samples: Iterable[Any],
    profile: Profile | None = None,
    *,
    labels: Sequence[int] | None = None,
    codec_names: Iterable[str] | None = None,
    tensors: Iterable[str] | None = None,
    metric: str | Metric = "auto",
    budget_s: float | None = None,
    threads: int = 1,
    progress: bool = False,
) -> Calibration:
    """Try each codec on each tensor, one at a time, over all samples.

    A sample is a tensor, a tuple of arguments, a dictionary of keyword arguments, or (arguments, keyword arguments); it
    must fit the graph. `codec_names`: default ``codecs.suggested()``, and on inputs that look like images also those of
    `IMAGES`, so that "send the compressed input" is a fair rival. `tensors`: default all that a cut can send. The loss is
    the `metric` against the unsplit model (see ``learn.metrics``), or the accuracy lost where `labels` are given. Codecs
    whose times the `profile` holds keep them, as measured inside the model. With `budget_s` the tensors that compress
    best come first and the rest is left out when time is up; the planner then sends those without loss. `threads` of torch,
    as in a profile.

    Every tensor is replayed from where it is made, not from the start: O(tensors x codecs x samples) half models. Raises
    UsageError for no samples, an unknown tensor or a model that keeps state.
    """
    calls = [as_call(sample) for sample in samples]
    chosen = _chosen(graph, tensors)
    names = {name: tuple(codec_names) if codec_names is not None else _suggested(graph.tensors[name]) for name in chosen}
    if not all(names.values()):
        raise UsageError("calibration needs at least one codec to try")
    if not calls:
        raise UsageError("calibration needs at least one sample; accuracies need hundreds")
    if graph.stateful:
        raise UsageError(f"{graph.name} changes its own buffers when called, so its answers to one sample differ; it cannot be calibrated")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _table(graph, calls, profile, labels, names, chosen, metric, budget_s, progress)
    finally:
        torch.set_num_threads(before)


def _table(
    graph: Graph, calls: Sequence[Call], profile: Profile | None, labels: Sequence[int] | None, names: Mapping[str, Sequence[str]],
    chosen: list[str], metric: str | Metric, budget_s: float | None, progress: bool,
) -> Calibration:  # fmt: skip
    runs = [_Replay(graph, call) for call in calls]
    score = Score(metric, [run.answer for run in runs], labels)
    # What compresses best matters most: first by the bytes of the smallest codec on the first sample.
    chosen.sort(key=lambda name: min(len(codecs.get(codec).encode(runs[0].values[name])) for codec in names[name]))
    rows: dict[str, dict[str, Measured]] = {}
    begun = time.monotonic()
    for name in tqdm(chosen, desc="tensors", disable=not progress, leave=False):
        if budget_s is not None and rows and time.monotonic() - begun > budget_s:
            break
        rows[name] = {codec: _try(runs, score, name, codec, profile) for codec in names[name]}
    tried = dict.fromkeys(codec for row in names.values() for codec in row)
    lossless = tuple(name for name in tried if codecs.get(name).lossless)
    return Calibration(graph.name, graph.fingerprint, score.name, len(calls), lossless, rows)


def _suggested(spec: TensorSpec) -> tuple[str, ...]:
    shape = spec.sample_shape
    image = spec.producer == INPUT and spec.dtype.startswith("float") and len(shape) == 4 and shape[1] in (1, 3)
    return (*codecs.suggested(), *IMAGES) if image else codecs.suggested()


def as_call(sample: Any) -> Call:
    """A sample as (arguments, keyword arguments)."""
    if isinstance(sample, Tensor):
        return (sample,), {}
    if isinstance(sample, dict):
        return (), sample
    if isinstance(sample, tuple) and len(sample) == 2 and isinstance(sample[0], tuple) and isinstance(sample[1], dict):
        return sample
    if isinstance(sample, tuple | list):
        return tuple(sample), {}
    raise UsageError(f"a sample is a tensor, a tuple of arguments or a dictionary of keyword arguments; got {type(sample).__name__}")


def _chosen(graph: Graph, tensors: Iterable[str] | None) -> list[str]:
    if tensors is None:
        return [spec.name for spec in graph.tensors.values() if spec.consumers and spec.nbytes]
    found = list(tensors)
    unknown = [name for name in found if name not in graph.tensors]
    if unknown:
        raise UsageError(f"{graph.name} has no tensor '{unknown[0]}'; its tensors are {', '.join(list(graph.tensors)[:8])} ...")
    return found


def _try(runs: Sequence[_Replay], score: Score, tensor: str, codec_name: str, profile: Profile | None) -> Measured:
    codec = codecs.get(codec_name)
    sizes, encode, decode, errors, answers = [], [], [], [], []
    for run in runs:
        value = run.values[tensor]
        start = time.perf_counter()
        data = codec.encode(value)
        middle = time.perf_counter()
        back = codec.decode(data)
        end = time.perf_counter()
        sizes.append(Frame(tensor, codec_name, (data,)).wire_nbytes)
        encode.append(middle - start)
        decode.append(end - middle)
        same = codec.lossless or torch.equal(back, value)
        errors.append(0.0 if same else relative_error(back, value))
        answers.append(run.answer if same else run.again(tensor, back))
    times = (statistics.median(encode), statistics.median(decode))
    if profile is not None and profile.measurements:
        times = profile.measurements[0].codec_s.get(tensor, {}).get(codec_name, times)
    return Measured(statistics.fmean(sizes), *times, statistics.fmean(errors), score.drop(answers))


class _Replay(fx.Interpreter):
    """One sample's run, every value kept; `again` runs only what a changed tensor changes."""

    def __init__(self, graph: Graph, call: Call) -> None:
        stage = whole(graph)
        super().__init__(stage.module, garbage_collect_values=False)
        self.graph_, self.outputs = graph, stage.outputs
        tensors, dimensions = graph.bind(*call)
        sizes = sizes_at(graph, stage.sizes, dimensions)
        self.arguments = [tensors[name] for name in stage.inputs] + [sizes[name] for name in stage.sizes]
        with torch.no_grad():
            self.answer = self._named(self.run(*self.arguments))
        self.kept = dict(self.env)
        # fx renames what would shadow a builtin ('input' becomes 'input_1'): inputs are known by their place.
        placeholders = [node for node in stage.module.graph.nodes if node.op == "placeholder"]
        renamed = dict(zip(placeholders, (*stage.inputs, *stage.sizes), strict=True))
        self.nodes = {renamed.get(node, node.name): node for node in stage.module.graph.nodes}
        self.values = {name: self.kept[node] for name, node in self.nodes.items() if isinstance(self.kept.get(node), Tensor)}

    def again(self, tensor: str, value: Tensor) -> Any:
        """The answer with another value for one tensor."""
        node = self.nodes[tensor]
        stale, pending = set[fx.Node](), [node]
        while pending:
            for user in pending.pop().users:
                if user not in stale:
                    stale.add(user)
                    pending.append(user)
        env = {held: kept for held, kept in self.kept.items() if held not in stale} | {node: value}
        with torch.no_grad():
            return self._named(self.run(*self.arguments, initial_env=env))

    def _named(self, results: tuple[Tensor, ...]) -> list[Tensor]:
        """The tensors that the caller gets, in the order of the model's answer."""
        found = dict(zip(self.outputs, results, strict=True))
        return [found[leaf.name] for leaf in self.graph_.outputs if leaf.kind == "tensor" and leaf.name in found]
