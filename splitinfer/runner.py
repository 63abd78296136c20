"""One stage at work: packet in, packet out. The same code in the in-process pipeline and in a Ray actor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from splitinfer import codecs
from splitinfer.codecs.packet import Frame, Kind, Limits, Packet
from splitinfer.errors import CodecError, PacketError, RequestTimeout, StageError
from splitinfer.groups import BlockPart, Job, LocalBlock, Worker
from splitinfer.plans import PlannedExit
from splitinfer.routing import Route
from splitinfer.shards.program import Sizes
from splitinfer.stages import Stage, check_input
from splitinfer.streaming import Streams, packed_pieces
from splitinfer.tracing import Recorder, Span


@dataclass(frozen=True)
class Step:
    """What a stage made of one request."""

    request: Packet
    """As it came."""
    left_s: float
    """Seconds until the request expires, counted from its arrival."""
    onward: bytes | None
    """The packet for the next stage; None behind the last one, and where the request ends here."""
    results: tuple[Frame, ...]
    """The stage's share of the answer, raw."""
    spans: tuple[Span, ...]
    exit: str = ""
    """The head whose answer ends the request here."""
    degraded: bool = False
    """Whether that head was asked to answer although it was not sure."""
    streaming_since_s: float | None = None
    """When the first tensor that goes in pieces began to be encoded, on the clock of the spans; None where there is none."""


_MOST_TAKEN = 1 << 16
"""Attempts that a stage remembers: more than can wait anywhere at once, and some 10 MB."""


def _nowhere(data: bytes) -> None:
    """The default of a stage that sends nothing in pieces."""
    raise PacketError(f"a piece of {len(data)} bytes has nowhere to go")


class StageRunner:
    """Decodes, computes and encodes for one stage.

    `parts` are the stage, divided behind its early exits, and there into whole runs of layers and blocks that `host`
    shares with other machines. A batch leaves at an exit only if all its rows are sure.
    `slowdown` stretches the work of an emulated slower tier: it sleeps (slowdown - 1) times what the work just took.
    What `feed` takes are tensors that arrive in pieces ahead of their request.
    """

    def __init__(
        self,
        parts: Sequence[Sequence[Stage | BlockPart | LocalBlock]],
        route: Route,
        *,
        name: str,
        tier: str,
        last: bool,
        device: str = "cpu",
        slowdown: float = 1.0,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        threads: int = 1,
        host: Worker | None = None,
    ) -> None:
        self.streams = Streams(limits, threads, slowdown)
        self.name, self.route, self.tier, self.last, self.host = name, route, tier, last, host
        self.parts = [tuple(within) for within in parts]
        self.device, self.slowdown, self.limits = device, slowdown, limits
        self._taken: dict[tuple[str, int], None] = {}

    @property
    def weight_nbytes(self) -> int:
        """Bytes of the weights held here."""
        return sum(part.weight_nbytes for within in self.parts for part in within)

    def feed(self, data: bytes) -> bool:
        """One piece of a tensor whose request follows; whether it must be passed on to the next stage. Raises PacketError."""
        packet = Packet.unpack(data, self.limits)
        names = {frame.name for frame in packet.frames}
        if names & set(self.route.streamed):
            self.streams.put(packet)
        return bool(names & set(self.route.passes))

    def run(self, data: bytes, received_s: float | None = None, *, alone: bool = False, emit: Callable[[bytes], None] = _nowhere) -> Step:
        """One request, which arrived at `received_s` on the monotonic clock (default: now).

        `emit` takes the packets of what goes in pieces, each when it is made.
        `alone`: nobody behind can be asked, so the last exit here answers, sure or not. Raises PacketError for a damaged
        packet, RequestTimeout for one that expired in the queue, and StageError for whatever fails inside.
        """
        received_s = time.monotonic() if received_s is None else received_s
        packet = Packet.unpack(data, self.limits)
        left_s = packet.meta.get("left_s", float("inf"))
        if not isinstance(left_s, int | float):
            raise PacketError(f"left_s is a number of seconds; got {left_s!r:.80}")
        if time.monotonic() - received_s > left_s:
            raise RequestTimeout(f"the request expired in the queue of stage '{self.name}'; {left_s:.3f} s were left on arrival")
        if packet.kind is not Kind.REQUEST:
            raise PacketError(f"a stage takes requests; got a packet of kind {packet.kind.name}")
        self._take_once(packet)
        recorder = Recorder(self.name, self.tier, self.slowdown)
        with recorder.span("decode"):
            tensors = {name: self._take(packet, name) for name in self.route.decodes if name not in self.route.streamed}
        if self.route.streamed:
            with recorder.span("transfer", stretch=False):  # its pieces were stretched one by one
                tensors |= {name: self._checked(name, self.streams.take(packet, name, left_s)) for name in self.route.streamed}
        job = Job(packet.request_id, packet.attempt, received_s + left_s, recorder)
        outputs, taken = self._compute(tensors, packet, job, alone)
        with recorder.span("encode"):
            pieces = () if taken else self.route.streams
            frames = () if taken else self._encode(tensors | outputs, without=pieces)
            returns = {taken.output: taken.answer} if taken else {name: name for name in self.route.returns}
            results = tuple(Frame.encode(name, outputs[made], codecs.get("raw")) for name, made in returns.items())
        spans = recorder.finish()
        if taken:
            return Step(packet, left_s, None, results, spans, taken.layer, not _sure(taken, outputs))
        onward, since_s = None, time.perf_counter() if pieces else None
        for name in pieces:
            rest_s = left_s - (time.monotonic() - received_s)
            codec = self.route.sends[name]
            for made in packed_pieces(name, (tensors | outputs)[name], codec, packet.request_id, packet.attempt, rest_s, self.slowdown):
                emit(made)
        if not self.last:
            passed = tuple(packet.frame(name) for name in self.route.forwards)
            meta = {**packet.meta, "left_s": left_s - (time.monotonic() - received_s)}
            onward = Packet(Kind.REQUEST, packet.request_id, frames + passed, packet.attempt, packet.sizes, meta).pack()
        return Step(packet, left_s, onward, results, spans, streaming_since_s=since_s)

    def _take_once(self, packet: Packet) -> None:
        """Raise PacketError for an attempt that was taken before: each is answered once."""
        key = packet.request_id, packet.attempt
        if key in self._taken:
            raise PacketError(
                f"attempt {packet.attempt} of request {packet.request_id:.40} was taken before; a new attempt needs a new number"
            )
        if len(self._taken) >= _MOST_TAKEN:
            del self._taken[next(iter(self._taken))]
        self._taken[key] = None

    def _take(self, packet: Packet, name: str) -> Tensor:
        try:
            tensor = packet.frame(name).decode(self.limits)
        except CodecError as error:
            raise PacketError(f"tensor '{name}': {error}") from error
        return self._checked(name, tensor)

    def _checked(self, name: str, tensor: Tensor) -> Tensor:
        for part in (part for within in self.parts for part in within):
            if isinstance(part, Stage) and name in part.expects:
                check_input(part, name, tensor)
        return tensor.to(self.device)

    def _compute(
        self, tensors: Mapping[str, Tensor], packet: Packet, job: Job, alone: bool
    ) -> tuple[dict[str, Tensor], PlannedExit | None]:
        """The outputs, and the exit that was taken: nothing behind it ran."""
        outputs: dict[str, Tensor] = {}
        for index, within in enumerate(self.parts):
            for part in within:
                outputs |= self._run(part, {**tensors, **outputs}, packet.sizes, job)
            if index < len(self.route.exits):
                exit_ = self.route.exits[index]
                if _sure(exit_, outputs) or (alone and exit_ is self.route.exits[-1]):
                    return outputs, exit_
        return outputs, None

    def _run(self, part: Stage | BlockPart | LocalBlock, tensors: Mapping[str, Tensor], sizes: Sizes, job: Job) -> dict[str, Tensor]:
        missing = [name for name in part.sizes if name not in sizes]
        if missing:
            raise StageError(self.name, part.layers[0], f"the packet lacks the size '{missing[0]}'")
        if isinstance(part, LocalBlock):
            return part.run(tensors, sizes, job)
        if isinstance(part, BlockPart):
            assert self.host is not None
            return part.run(tensors, sizes, job, self.host)
        with job.recorder.span("compute"):
            outputs = part(tensors, sizes)
            if self.device != "cpu":
                _synchronise(self.device)
        return outputs

    def _encode(self, tensors: Mapping[str, Tensor], without: Sequence[str]) -> tuple[Frame, ...]:
        sends = ((name, codec) for name, codec in self.route.sends.items() if name not in without)
        return tuple(Frame.encode(name, tensors[name], codecs.get(codec)) for name, codec in sends)


def _sure(exit_: PlannedExit, outputs: Mapping[str, Tensor]) -> bool:
    """Whether every row is confident; NaN is not."""
    return bool((outputs[exit_.confidence] >= exit_.threshold).all())


def _synchronise(device: str) -> None:
    """Wait for the accelerator, so that its time is booked on compute."""
    import torch

    torch.get_device_module(device).synchronize()
