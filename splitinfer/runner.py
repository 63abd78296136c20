"""One stage at work: packet in, packet out. The same code in the in-process pipeline and in a Ray actor."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from splitinfer import codecs
from splitinfer.codecs.packet import Frame, Kind, Limits, Packet
from splitinfer.errors import CodecError, PacketError, RequestTimeout, StageError
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
    """The packet for the next stage; None behind the last one."""
    results: tuple[Frame, ...]
    """The stage's share of the answer, raw."""
    spans: tuple[Span, ...]


class StageRunner:
    """Decodes, computes and encodes for one stage.

    `slowdown` stretches the work of an emulated slower tier: it sleeps (slowdown - 1) times what the work just took.
    """

    def __init__(
        self, stage: Stage, route: Route, *, tier: str, last: bool, device: str = "cpu", slowdown: float = 1.0, limits: Limits = Limits()  # noqa: B008
    ) -> None:
        self.stage, self.route, self.tier, self.last = stage, route, tier, last
        self.device, self.slowdown, self.limits = device, slowdown, limits

    def run(self, data: bytes, received_s: float | None = None) -> Step:
        """One request, which arrived at `received_s` on the monotonic clock (default: now).

        Raises PacketError for a damaged packet, RequestTimeout for one that expired in the queue, and StageError for
        whatever fails inside.
        """
        received_s = time.monotonic() if received_s is None else received_s
        packet = Packet.unpack(data, self.limits)
        left_s = packet.meta.get("left_s", float("inf"))
        if not isinstance(left_s, int | float):
            raise PacketError(f"left_s is a number of seconds; got {left_s!r:.80}")
        if time.monotonic() - received_s > left_s:
            raise RequestTimeout(f"the request expired in the queue of stage '{self.stage.name}'; {left_s:.3f} s were left on arrival")
        if packet.kind is not Kind.REQUEST:
            raise PacketError(f"a stage takes requests; got a packet of kind {packet.kind.name}")
        recorder = Recorder(self.stage.name, self.tier, self.slowdown)
        with recorder.span("decode"):
            tensors = {name: self._take(packet, name) for name in self.route.decodes}
        with recorder.span("compute"):
            outputs = self._compute(tensors, packet)
        with recorder.span("encode"):
            frames = self._encode(tensors | outputs)
            results = tuple(Frame.encode(name, outputs[name], codecs.get("raw")) for name in self.route.returns)
        spans = recorder.finish()
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
        if name in self.stage.expects:
            check_input(self.stage, name, tensor)
        return tensor.to(self.device)

    def _compute(self, tensors: Mapping[str, Tensor], packet: Packet) -> dict[str, Tensor]:
        missing = [name for name in self.stage.sizes if name not in packet.sizes]
        if missing:
            raise StageError(self.stage.name, self.stage.layers[0], f"the packet lacks the size '{missing[0]}'")
        outputs = self.stage(tensors, packet.sizes)
        if self.device != "cpu":
            _synchronise(self.device)
        return outputs

    def _encode(self, tensors: Mapping[str, Tensor]) -> tuple[Frame, ...]:
        return tuple(Frame.encode(name, tensors[name], codecs.get(codec)) for name, codec in self.route.sends.items())


def _synchronise(device: str) -> None:
    """Wait for the accelerator, so that its time is booked on compute."""
    import torch

    torch.get_device_module(device).synchronize()

