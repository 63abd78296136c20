"""Measure a captured model: seconds in context, FLOPs, bytes, and what each codec makes of each tensor.

Times are taken inside the running model, at the borders between layers, because layers timed alone in a loop add up to
20 to 40 % less than the model takes. The whole model in one piece is timed in turn with that, and the layers are
scaled to its median.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from tqdm import tqdm

from splitinfer import codecs
from splitinfer.codecs.packet import Frame, Kind, Packet
from splitinfer.flops import layer_flops
from splitinfer.graph import Graph
from splitinfer.pipeline import whole
from splitinfer.profiles import LayerProfile, Measurement, Profile, TensorProfile
from splitinfer.sizes import sizes_at
from splitinfer.stages import Stage

if TYPE_CHECKING:
    from cluster.launch import LocalCluster
    from cluster.topology import Topology

_WARM_UP = 3
_PAUSE_S = 0.004  # a served request finds caches that other work has used; a tight loop would not
_CODEC_BUDGET_S = 0.03  # per tensor and codec: three repeats of anything that a link would carry
_MIN_REPEATS = 5


def profile(
    graph: Graph,
    topology: Topology | None = None,
    *,
    cluster: LocalCluster | None = None,
    codec_names: Iterable[str] | None = None,
    repeats: int = 30,
    budget_s: float = 10.0,
    threads: int | None = None,
    progress: bool = False,
) -> Profile:
    """Measure a model for planning.

    Without a topology, here: in this process, with `threads` torch threads (default 1) on the CPU. With one, each tier
    that has a Ray node of its own is measured there, the others once in a process of their own on this machine for each
    number of threads; that needs a `cluster` or a connection to Ray, and also measures what a call between stages costs.
    At most `repeats` runs or `budget_s` seconds for each machine. Raises CodecError for an unknown codec.
    """
    names = tuple(codec_names) if codec_names is not None else codecs.names()
    for name in names:
        codecs.get(name)
    skeleton = _skeleton(graph)
    if topology is None:
        stage = whole(graph)
        measured = measure(stage, *example(graph, stage), list(graph.tensors), names, repeats=repeats, budget_s=budget_s,
                           threads=threads or 1, progress=progress)  # fmt: skip
        return assemble(skeleton, [measured])
    from splitinfer.runtime.measure import measure_tiers

    return measure_tiers(graph, skeleton, topology, cluster, names, repeats=repeats, budget_s=budget_s, progress=progress)


def example(graph: Graph, stage: Stage) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The sample's tensors and dynamic dimensions by name."""
    tensors, dimensions = graph.bind(*graph.example)
    return tensors, sizes_at(graph, stage.sizes, dimensions)


def _skeleton(graph: Graph) -> Profile:
    """All that needs no clock."""
    flops, peaks = layer_flops(graph), _peaks(graph)
    outputs = dict.fromkeys(graph.layers, 0)
    for tensor in graph.tensors.values():
        if tensor.producer in outputs:
            outputs[tensor.producer] += tensor.nbytes
    layers = tuple(
        LayerProfile(name, flops[name], layer.weight_nbytes, outputs[name], peaks[name]) for name, layer in graph.layers.items()
    )
    tensors = tuple(
        TensorProfile(t.name, t.producer, t.consumers, t.shape, t.dtype, t.nbytes, t.returned) for t in graph.tensors.values()
    )
    together = tuple((tuple(sorted(group.layers)), group.reason) for group in graph.together)
    sizes = {name: 1 for name in whole(graph).sizes}
    empty = Packet(Kind.REQUEST, "0" * 32, sizes=sizes, meta={"left_s": 1.0})
    return Profile(graph.name, graph.fingerprint, graph.stateful, layers, tensors, together, (), len(empty.pack()))


def _peaks(graph: Graph) -> dict[str, int]:
    """Bytes of the tensors between layers that are alive while each layer runs."""
    order = {name: index for index, name in enumerate(graph.layers)}
    alive = dict.fromkeys(graph.layers, 0)
    names = list(order)
    for tensor in graph.tensors.values():
        first = order.get(tensor.producer, 0)
        last = len(names) - 1 if tensor.returned else max((order[c] for c in tensor.consumers), default=first)
        for name in names[first : last + 1]:
            alive[name] += tensor.nbytes
    return alive


def assemble(skeleton: Profile, measured: Sequence[tuple[Measurement, Mapping[str, Mapping[str, int]]]]) -> Profile:
    """The profile from its measurements; encoded sizes are those of the first."""
    sent = measured[0][1]
    tensors = tuple(replace(tensor, sent_nbytes=dict(sent.get(tensor.name, {}))) for tensor in skeleton.tensors)
    return replace(skeleton, tensors=tensors, measurements=tuple(one for one, _ in measured))


# -- the clock; knows no Graph and no Ray, so that it runs wherever a stage does


def measure(
    stage: Stage,
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, Any],
    crossing: Sequence[str],
    codec_names: Sequence[str],
    *,
    repeats: int = 30,
    budget_s: float = 10.0,
    threads: int = 1,
    device: str = "cpu",
    tier: str | None = None,
    progress: bool = False,
) -> tuple[Measurement, dict[str, dict[str, int]]]:
    """Time a stage layer by layer, and the codecs on the tensors named in `crossing`.

    Returns the measurement, and tensor -> codec -> bytes on the wire.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        arguments = [tensors[name].to(device) for name in stage.inputs] + [sizes[name] for name in stage.sizes]
        with torch.no_grad():
            laps, wholes = _laps(stage, arguments, repeats, budget_s, device, progress)
            codec_s, sent = _codecs(stage, arguments, crossing, codec_names, progress)
    finally:
        torch.set_num_threads(before)
    whole_s = statistics.median(wholes)
    medians = {name: statistics.median(times) for name, times in laps.items()}
    scale = whole_s / (sum(medians.values()) or 1.0)
    seconds = {name: scale * median for name, median in medians.items()}
    spread = {name: _interquartile(times) for name, times in laps.items()}
    return Measurement(tier, _machine(), device, threads, whole_s, seconds, spread, codec_s), sent


def _laps(
    stage: Stage, arguments: list[Any], repeats: int, budget_s: float, device: str, progress: bool
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of each layer in each run, and seconds of the whole stage, taken in turn."""
    clock = _clock(device)
    marked, marks, order = _instrumented(stage, clock)
    for _ in range(_WARM_UP):
        stage.module(*arguments)
        marked(*arguments)
    laps: dict[str, list[float]] = {name: [] for name in stage.layers}
    wholes: list[float] = []
    end = time.perf_counter() + budget_s
    for run in tqdm(range(repeats), desc=f"timing {len(order)} layers", disable=not progress, leave=False):
        if run >= _MIN_REPEATS and time.perf_counter() > end:
            break
        time.sleep(_PAUSE_S)
        start = clock()
        stage.module(*arguments)
        wholes.append(clock() - start)
        time.sleep(_PAUSE_S)
        marks.clear()
        marked(*arguments)
        marks.append(clock())
        spent = dict.fromkeys(stage.layers, 0.0)
        for name, begin, finish in zip(order, marks, marks[1:], strict=False):
            spent[name] += finish - begin
        for name, seconds in spent.items():
            laps[name].append(seconds)
    return laps, wholes


def _clock(device: str) -> Callable[[], float]:
    if device == "cpu":
        return time.perf_counter
    module = torch.get_device_module(device)

    def synchronised() -> float:
        module.synchronize()
        return time.perf_counter()

    return synchronised


def _instrumented(stage: Stage, clock: Callable[[], float]) -> tuple[fx.GraphModule, list[float], list[str]]:
    """The stage with the clock read where one layer ends and the next begins, the readings, and whose they are."""
    marks: list[float] = []
    order: list[str] = []

    def mark() -> None:
        marks.append(clock())

    graph, copies = fx.Graph(), {}
    for node in stage.module.graph.nodes:
        layer = stage.layer_of.get(node.name)
        if layer is not None and (not order or order[-1] != layer):
            graph.call_function(mark)
            order.append(layer)
        copies[node] = graph.node_copy(node, copies.__getitem__)
    return fx.GraphModule(stage.module, graph, class_name="Marked"), marks, order


class _EachValue(fx.Interpreter):
    """Runs a stage and shows each tensor to a visitor while it is alive."""

    def __init__(self, module: fx.GraphModule, visit: Callable[[str, Tensor], None]) -> None:
        super().__init__(module)
        self.visit = visit

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.visit(n.name, result)
        return result


def _codecs(
    stage: Stage, arguments: list[Any], crossing: Sequence[str], codec_names: Sequence[str], progress: bool
) -> tuple[dict[str, dict[str, tuple[float, float]]], dict[str, dict[str, int]]]:
    """Tensor -> codec -> seconds to encode and decode, and -> bytes on the wire."""
    seconds: dict[str, dict[str, tuple[float, float]]] = {}
    sent: dict[str, dict[str, int]] = {}
    wanted = set(crossing)
    with tqdm(total=len(wanted), desc="encoding tensors", disable=not progress, leave=False) as bar:

        def visit(name: str, tensor: Tensor) -> None:
            if name not in wanted:
                return
            bar.update()
            seconds[name], sent[name] = {}, {}
            for codec in codec_names:
                seconds[name][codec], sent[name][codec] = _codec(name, tensor, codec)

        _EachValue(stage.module, visit).run(*arguments)
    return seconds, sent


def _codec(name: str, tensor: Tensor, codec_name: str) -> tuple[tuple[float, float], int]:
    codec = codecs.get(codec_name)
    encode, decode = [], []
    end = time.perf_counter() + _CODEC_BUDGET_S
    while len(encode) < 3 or (len(encode) < _MIN_REPEATS and time.perf_counter() < end):
        start = time.perf_counter()
        data = codec.encode(tensor)
        middle = time.perf_counter()
        codec.decode(data, limit_nbytes=1 << 40, copy=False).to(tensor.device)
        encode.append(middle - start)
        decode.append(time.perf_counter() - middle)
    return (statistics.median(encode), statistics.median(decode)), Frame(name, codec_name, (data,)).wire_nbytes


def _interquartile(times: Sequence[float]) -> float:
    quarters = statistics.quantiles(times, n=4) if len(times) > 1 else [0.0, 0.0, 0.0]
    return quarters[2] - quarters[0]


def _machine() -> str:
    """The processor, as people name it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - a kernel file, read once
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.machine()} x{os.cpu_count()}"
