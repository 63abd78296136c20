"""Time a stage layer by layer, and the codecs on its tensors. Knows no Graph and no Ray: it runs wherever a stage does.

Times are taken inside the running model, at the borders between layers, because layers timed alone in a loop add up to
20 to 40 % less than the model takes. The whole model in one piece is timed in turn with that, and the layers are
scaled to its median. A third run in each turn starts after a pause, as a served request does: on a small model that
alone can double the time.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from tqdm import tqdm

from splitinfer import codecs
from splitinfer.codecs.packet import Frame
from splitinfer.memory import keep_freed_memory
from splitinfer.overlap import Piece, median_piece
from splitinfer.profiles import Measurement
from splitinfer.stages import Stage
from splitinfer.streaming import pieces_of, timed_pieces

_WARM_UP = 3
_PAUSE_S = 0.1  # requests over a slow link come that far apart; a longer pause was measured to change little
_ROUNDS = 5
_NO_LIMIT = 1 << 62  # what this process has just encoded


Sent = Mapping[str, Mapping[str, int]]
"""Tensor -> codec -> bytes on the wire."""


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
) -> tuple[Measurement, Sent]:
    """Time a stage layer by layer, and the codecs on the tensors named in `crossing`.

    Returns the measurement, and tensor -> codec -> bytes on the wire.
    """
    keep_freed_memory()  # as in the process of a stage
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        arguments = [tensors[name].to(device) for name in stage.inputs] + [sizes[name] for name in stage.sizes]
        with torch.no_grad():
            passes = _CodecPasses(stage, arguments, crossing, codec_names)
            passes.once()
            probe = _CodecProbe(codec_names, passes.typical())
            laps = _Laps(stage, arguments, device, probe)
            # Layers and codecs in turn, so that a drift of the machine meets both and is spread over more time.
            for part in tqdm(range(_ROUNDS), desc=f"timing {len(stage.layers)} layers", disable=not progress, leave=False):
                if part:
                    passes.once()
                laps.run(-(-repeats // _ROUNDS), budget_s / _ROUNDS)
    finally:
        torch.set_num_threads(before)
    whole_s = statistics.median(laps.wholes)
    wake_s = max(0.0, statistics.median(one - other for one, other in zip(laps.woken, laps.wholes, strict=True)))
    medians = {name: statistics.median(times) for name, times in laps.layers.items()}
    scale = whole_s / (sum(medians.values()) or 1.0)
    seconds = {name: scale * median for name, median in medians.items()}
    spread = {name: _interquartile(times) for name, times in laps.layers.items()}
    codec_s = probe.corrected(passes.seconds())
    measured = Measurement(tier, _machine(), device, threads, whole_s, wake_s, seconds, spread, codec_s, passes.in_pieces())
    return measured, passes.sent


CodecTimes = dict[str, dict[str, tuple[float, float]]]
"""Tensor -> codec -> seconds to encode and to decode."""


class _CodecProbe:
    """What encoding and decoding take longer where a request does them: before and after the whole stage ran."""

    def __init__(self, names: Sequence[str], typical: tuple[str, Tensor]) -> None:
        self.names, self.name, self.tensor = names, *typical
        self.encoded = {name: codecs.get(name).encode(self.tensor) for name in names}
        self.seconds: dict[tuple[str, int], list[float]] = {}

    def encode(self, run: int) -> None:
        """Time one encode; the codecs take turns."""
        name = self.names[run % len(self.names)]
        start = time.perf_counter()
        codecs.get(name).encode(self.tensor)
        self.seconds.setdefault((name, 0), []).append(time.perf_counter() - start)

    def decode(self, run: int) -> None:
        """Time one decode; the codecs take turns."""
        name = self.names[run % len(self.names)]
        start = time.perf_counter()
        codecs.get(name).decode(self.encoded[name], limit_nbytes=_NO_LIMIT, copy=False)
        self.seconds.setdefault((name, 1), []).append(time.perf_counter() - start)

    def corrected(self, times: CodecTimes) -> CodecTimes:
        """The times with each codec's surcharge, measured on one tensor, added for all."""
        if self.name not in times:
            return times
        extra = {
            key: max(0.0, statistics.median(seconds) - times[self.name][key[0]][key[1]]) for key, seconds in self.seconds.items()
        }
        return {
            tensor: {codec: (e + extra.get((codec, 0), 0.0), d + extra.get((codec, 1), 0.0)) for codec, (e, d) in rows.items()}
            for tensor, rows in times.items()
        }


class _Laps:
    """Taken in turn: seconds of each layer, of the whole stage, and of the whole stage after a pause.

    The run after the pause stands between a decode and an encode, as it does in a request.
    """

    def __init__(self, stage: Stage, arguments: list[Any], device: str, probe: _CodecProbe) -> None:
        self.stage, self.arguments, self.probe, self.clock = stage, arguments, probe, _clock(device)
        self.marked, self.marks, self.order = _instrumented(stage, self.clock)
        self.layers: dict[str, list[float]] = {name: [] for name in stage.layers}
        self.wholes: list[float] = []
        self.woken: list[float] = []
        for _ in range(_WARM_UP):
            stage.module(*arguments)
            self.marked(*arguments)

    def run(self, repeats: int, budget_s: float) -> None:
        """Another `repeats` turns, fewer where `budget_s` passes, one at least."""
        end = time.perf_counter() + budget_s
        for turn in range(repeats):
            if turn and time.perf_counter() > end:
                break
            time.sleep(_PAUSE_S)
            self.probe.decode(len(self.woken))
            self.woken.append(self._whole())
            self.probe.encode(len(self.wholes))
            self.wholes.append(self._whole())
            self._lap()

    def _whole(self) -> float:
        start = self.clock()
        self.stage.module(*self.arguments)
        return self.clock() - start

    def _lap(self) -> None:
        self.marks.clear()
        self.marked(*self.arguments)
        self.marks.append(self.clock())
        spent = dict.fromkeys(self.stage.layers, 0.0)
        for name, begin, finish in zip(self.order, self.marks, self.marks[1:], strict=False):
            spent[name] += finish - begin
        for name, seconds in spent.items():
            self.layers[name].append(seconds)


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

    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
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


class _CodecPasses:
    """Each codec on each tensor, once a pass: between two tensors the model uses the caches, as it does in a stage."""

    def __init__(self, stage: Stage, arguments: list[Any], crossing: Sequence[str], names: Sequence[str]) -> None:
        self.module, self.arguments, self.names = stage.module, arguments, names
        placeholders = [node.name for node in stage.module.graph.nodes if node.op == "placeholder"]
        self.input_of = dict(zip(placeholders, stage.inputs, strict=False))  # fx renames an input called "input", for one
        self.sent: dict[str, dict[str, int]] = {name: {} for name in crossing}
        self.times: dict[tuple[str, str], list[tuple[float, float]]] = {}
        self.pieces: dict[tuple[str, str], list[tuple[Piece, ...]]] = {}
        self.kept: dict[int, tuple[str, Tensor]] = {}

    def once(self) -> None:
        """One more pass."""
        _EachValue(self.module, self._visit).run(*self.arguments)

    def _visit(self, node: str, tensor: Tensor) -> None:
        name = self.input_of.get(node, node)
        if name not in self.sent:
            return
        if tensor.is_floating_point() and tensor.nbytes not in self.kept:
            self.kept[tensor.nbytes] = name, tensor.clone()
        for codec in self.names:
            pair, self.sent[name][codec] = _codec(name, tensor, codec)
            self.times.setdefault((name, codec), []).append(pair)
            if codecs.get(codec).divisible and len(pieces_of(tensor)[1]) > 1:
                self.pieces.setdefault((name, codec), []).append(timed_pieces(name, tensor, codec))

    def typical(self) -> tuple[str, Tensor]:
        """A tensor of the middle size, by name."""
        sizes = sorted(self.kept)
        return self.kept[sizes[len(sizes) // 2]] if sizes else ("", torch.zeros(0))

    def seconds(self) -> CodecTimes:
        """Medians over the passes."""
        found: CodecTimes = {}
        for (name, codec), pairs in self.times.items():
            found.setdefault(name, {})[codec] = (statistics.median(e for e, _ in pairs), statistics.median(d for _, d in pairs))
        return found


    def in_pieces(self) -> dict[str, dict[str, tuple[Piece, ...]]]:
        """Medians over the passes, of what has more than one piece."""
        found: dict[str, dict[str, tuple[Piece, ...]]] = {}
        for (name, codec), runs in self.pieces.items():
            found.setdefault(name, {})[codec] = median_piece(runs)
        return found


def _codec(name: str, tensor: Tensor, codec_name: str) -> tuple[tuple[float, float], int]:
    codec = codecs.get(codec_name)
    start = time.perf_counter()
    data = codec.encode(tensor)
    middle = time.perf_counter()
    codec.decode(data, limit_nbytes=_NO_LIMIT, copy=False).to(tensor.device)
    end = time.perf_counter()
    return (middle - start, end - middle), Frame(name, codec_name, (data,)).wire_nbytes


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
