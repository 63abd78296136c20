"""One stage at work: packet in, packet out. The same code in the in-process pipeline and in a Ray actor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from torch import Tensor

from splitinfer import codecs
from splitinfer.codecs.block import TensorLike
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
class Accepted:
    """A request that a stage has looked at and not begun."""

    packet: Packet
    received_s: float
    """On the monotonic clock."""
    left_s: float
    """Seconds until it expires, from then on."""

    @property
    def rest_s(self) -> float:
        """Seconds until it expires, from now on."""
        return self.left_s - (time.monotonic() - self.received_s)


@dataclass(frozen=True)
class Step:
    """What a stage made of one request."""

    request: Packet
    """As it came."""
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

    def run(self, data: bytes, *, alone: bool = False, emit: Callable[[bytes], None] = _nowhere) -> Step:
        """One request, taken and worked on. Raises what `accept` and `work` raise."""
        return self.work(self.accept(data), alone=alone, emit=emit)

    def accept(self, data: bytes) -> Accepted:
        """Look at a request that arrives now. Raises PacketError for a damaged one, one without a deadline that can be kept,
        and one that was taken before; nothing is decoded for these.
        """
        packet = Packet.unpack(data, self.limits)
        if packet.kind is not Kind.REQUEST:
            raise PacketError(f"a stage takes requests; got a packet of kind {packet.kind.name}")
        accepted = Accepted(packet, time.monotonic(), _left_s(packet, self.limits))
        self._take_once(packet)
        return accepted

    def arriving(self, accepted: Accepted) -> list[Future[Tensor]]:
        """Its tensors that come in pieces: `work` waits for none of them once all are done. Raises PacketError where too many arrive."""
        return self.streams.arriving(accepted.packet, self.route.streamed, accepted.left_s)

    def work(self, accepted: Accepted, *, alone: bool = False, emit: Callable[[bytes], None] = _nowhere) -> Step:
        """Decode, compute, encode.

        `emit` takes the packets of what goes in pieces, each when it is made.
        `alone`: nobody behind can be asked, so the last exit here answers, sure or not. Raises PacketError for a tensor
        that cannot be read, RequestTimeout for a request that expired in the queue, and StageError for whatever fails inside.
        """
        packet = accepted.packet
        if accepted.rest_s < 0:
            raise RequestTimeout(f"the request expired in the queue of stage '{self.name}'; {accepted.left_s:.3f} s were left on arrival")
        recorder = Recorder(self.name, self.tier, self.slowdown)
        with recorder.span("decode"):
            tensors = {name: self._take(packet, name) for name in self.route.decodes if name not in self.route.streamed}
        if self.route.streamed:
            with recorder.span("transfer", stretch=False):  # its pieces were stretched one by one
                tensors |= {name: self._checked(name, self.streams.take(packet, name, accepted.rest_s)) for name in self.route.streamed}
        job = Job(packet.request_id, packet.attempt, accepted.received_s + accepted.left_s, recorder)
        outputs, taken = self._compute(tensors, packet, job, alone)
        with recorder.span("encode"):
            pieces = () if taken else self.route.streams
            frames = () if taken else self._encode(tensors | outputs, without=pieces)
            returns = {taken.output: taken.answer} if taken else {name: name for name in self.route.returns}
            results = tuple(Frame.encode(name, outputs[made], codecs.get("raw")) for name, made in returns.items())
        spans = recorder.finish()
        if taken:
            return Step(packet, None, results, spans, taken.layer, not _sure(taken, outputs))
        onward, since_s = None, time.perf_counter() if pieces else None
        for name in pieces:
            codec, source = self.route.sends[name], (tensors | outputs)[name]
            for made in packed_pieces(name, source, codec, packet.request_id, packet.attempt, accepted.rest_s, self.slowdown):
                emit(made)
        if not self.last:
            passed = tuple(packet.frame(name) for name in self.route.forwards)
            meta = {**packet.meta, "left_s": accepted.rest_s}
            onward = Packet(Kind.REQUEST, packet.request_id, frames + passed, packet.attempt, packet.sizes, meta).pack()
        return Step(packet, onward, results, spans, streaming_since_s=since_s)

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
        frame = packet.frame(name)
        try:
            self._check(name, frame.header(self.limits))  # before memory is taken for it
            return frame.decode(self.limits).to(self.device)
        except CodecError as error:
            raise PacketError(f"tensor '{name}': {error}") from error

    def _checked(self, name: str, tensor: Tensor) -> Tensor:
        self._check(name, tensor)
        return tensor.to(self.device)

    def _check(self, name: str, tensor: TensorLike) -> None:
        for part in (part for within in self.parts for part in within):
            if isinstance(part, Stage) and name in part.expects:
                check_input(part, name, tensor)

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


def _left_s(packet: Packet, limits: Limits) -> float:
    """Seconds until a request expires; what says nothing of that, or too much, would be waited for without end."""
    left_s = packet.meta.get("left_s")
    if not isinstance(left_s, int | float) or isinstance(left_s, bool) or left_s != left_s:
        raise PacketError(f"left_s is a number of seconds; got {left_s!r:.80}")
    if left_s > limits.held_s:
        raise PacketError(f"left_s is {left_s:g} s; the limit is {limits.held_s:g}. Give requests less time, or raise Limits.held_s")
    return left_s


def _sure(exit_: PlannedExit, outputs: Mapping[str, Tensor]) -> bool:
    """Whether every row is confident; NaN is not."""
    return bool((outputs[exit_.confidence] >= exit_.threshold).all())


def _synchronise(device: str) -> None:
    """Wait for the accelerator, so that its time is booked on compute."""
    import torch

    torch.get_device_module(device).synchronize()
