"""One stage at work: packet in, packet out. The same code in the in-process pipeline and in a Ray actor."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from splitinfer import codecs
from splitinfer.codecs.packet import Frame, Kind, Limits, Packet
from splitinfer.errors import CodecError, PacketError, RequestTimeout, StageError
from splitinfer.plans import PlannedExit
from splitinfer.routing import Route
from splitinfer.stages import Stage, check_input
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


class StageRunner:
    """Decodes, computes and encodes for one stage.

    `parts` are the stage, divided behind its early exits. A batch leaves at an exit only if all its rows are sure.
    `slowdown` stretches the work of an emulated slower tier: it sleeps (slowdown - 1) times what the work just took.
    """

    def __init__(
        self,
        parts: Sequence[Stage],
        route: Route,
        *,
        tier: str,
        last: bool,
        device: str = "cpu",
        slowdown: float = 1.0,
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> None:
        self.parts, self.route, self.tier, self.last = tuple(parts), route, tier, last
        self.name = self.parts[0].name
        self.device, self.slowdown, self.limits = device, slowdown, limits

    def run(self, data: bytes, received_s: float | None = None, *, alone: bool = False) -> Step:
        """One request, which arrived at `received_s` on the monotonic clock (default: now).

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
        recorder = Recorder(self.name, self.tier, self.slowdown)
        with recorder.span("decode"):
            tensors = {name: self._take(packet, name) for name in self.route.decodes}
        with recorder.span("compute"):
            outputs, taken = self._compute(tensors, packet, alone)
        with recorder.span("encode"):
            frames = () if taken else self._encode(tensors | outputs)
            returns = {taken.output: taken.answer} if taken else {name: name for name in self.route.returns}
            results = tuple(Frame.encode(name, outputs[made], codecs.get("raw")) for name, made in returns.items())
        spans = recorder.finish()
        if taken:
            return Step(packet, left_s, None, results, spans, taken.layer, not _sure(taken, outputs))
        onward = None
        if not self.last:
            passed = tuple(packet.frame(name) for name in self.route.forwards)
            meta = {**packet.meta, "left_s": left_s - (time.monotonic() - received_s)}
            onward = Packet(Kind.REQUEST, packet.request_id, frames + passed, packet.attempt, packet.sizes, meta).pack()
        return Step(packet, left_s, onward, results, spans)

    def _take(self, packet: Packet, name: str) -> Tensor:
        try:
            tensor = packet.frame(name).decode(self.limits)
        except CodecError as error:
            raise PacketError(f"tensor '{name}': {error}") from error
        for part in self.parts:
            if name in part.expects:
                check_input(part, name, tensor)
        return tensor.to(self.device)

    def _compute(self, tensors: Mapping[str, Tensor], packet: Packet, alone: bool) -> tuple[dict[str, Tensor], PlannedExit | None]:
        """The outputs, and the exit that was taken: nothing behind it ran."""
        outputs: dict[str, Tensor] = {}
        taken = None
        for index, part in enumerate(self.parts):
            missing = [name for name in part.sizes if name not in packet.sizes]
            if missing:
                raise StageError(part.name, part.layers[0], f"the packet lacks the size '{missing[0]}'")
            outputs |= part({**tensors, **outputs}, packet.sizes)
            if index < len(self.route.exits):
                exit_ = self.route.exits[index]
                if _sure(exit_, outputs) or (alone and exit_ is self.route.exits[-1]):
                    taken = exit_
                    break
        if self.device != "cpu":
            _synchronise(self.device)
        return outputs, taken

    def _encode(self, tensors: Mapping[str, Tensor]) -> tuple[Frame, ...]:
        return tuple(Frame.encode(name, tensors[name], codecs.get(codec)) for name, codec in self.route.sends.items())


def _sure(exit_: PlannedExit, outputs: Mapping[str, Tensor]) -> bool:
    """Whether every row is confident; NaN is not."""
    return bool((outputs[exit_.confidence] >= exit_.threshold).all())


def _synchronise(device: str) -> None:
    """Wait for the accelerator, so that its time is booked on compute."""
    import torch

    torch.get_device_module(device).synchronize()

