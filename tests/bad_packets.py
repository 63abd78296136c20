"""What bad_requests.py and bad_neighbours.py throw, and at what.

Packets with right checksums and wrong contents; stages that run somewhere, and their doors.
"""

from __future__ import annotations

import os
import pickle
import struct
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import msgpack
import torch
import xxhash
from torch import Tensor

from cluster.topology import Topology
from splitinfer import Pipeline, capture, codecs, zoo
from splitinfer.codecs.block import Header
from splitinfer.codecs.packet import Frame, Kind, Limits, Packet
from splitinfer.front import Front
from splitinfer.graph import Graph
from splitinfer.plans import Plan, PlannedBlock
from splitinfer.runtime.errors import raised
from splitinfer.runtime.shipment import Cargo

LIMITS = Limits(packet_nbytes=1 << 20, header_nbytes=1 << 13, tensor_nbytes=1 << 18, frames=16, held=8, held_nbytes=4 << 20, held_s=30.0)
"""Small, so that what exceeds them is soon made."""
TOPOLOGY = Topology.loads("""
version: 2
tiers:
  - {name: device, compute: measured}
  - {name: edge, compute: measured}
  - {name: cloud, compute: measured, peers: [{name: helper, compute: measured, up: 1 Gbps, latency: 1 ms}]}
links: [{between: [device, edge], preset: LAN}, {between: [edge, cloud], preset: LAN}]
""")
STREAMED, SHAPE = "conv2d", (1, 32, 8, 8)
"""What stage 0 sends to stage 1, in pieces."""
SOON_S = 0.2
"""A deadline that nobody has to wait for long."""
GIANT = (1, 1, 8, 1 << 40)


def digits() -> tuple[Graph, Plan, Tensor, Tensor]:
    """Three stages, a tensor in pieces between the first two, and a helper that shares layers of the third; an input and its answer."""
    model, (x,), _ = zoo.digits()
    graph = capture(model, (x,))
    layers = list(graph.layers)
    plan = Plan.by_hand(graph, [layers[:1], layers[1:3], layers[3:]], ("device", "edge", "cloud"))
    shared = tuple(layers[3:8])  # two convolutions: the machines wait for each other between them
    block = PlannedBlock(shared, "rows", (2, 2), ("cloud", "helper"), exchange_after={layers[6]: (2, 2)})
    streamed = tuple(replace(crossing, streamed=crossing.tensor == STREAMED) for crossing in plan.crossings)
    plan = replace(plan, stages=(*plan.stages[:2], replace(plan.stages[2], blocks=(block,))), crossings=streamed)
    answer = Pipeline.local(graph, plan)(x)
    with torch.no_grad():
        assert torch.allclose(answer, model(x), atol=1e-5)  # sums over divided rows come in another order
    return graph, plan, x, answer


class Stages(Protocol):
    """Stages of `digits` that run somewhere."""

    front: Front
    limits: Limits
    cargo: Cargo
    """Of stage 0."""

    def call(self, actor: str, method: str, *args: object, timeout_s: float = 20.0) -> Any:
        """What a method of "stage0", "stage1", "stage2" or "worker" returns."""

    def calls(self, actor: str, method: str, many: list[tuple[object, ...]], timeout_s: float = 20.0) -> list[Any]:
        """Many calls of a method at once, and what each returns."""

    def ask(self, left_s: float) -> Tensor:
        """The answer to a good request; raises what its caller would see."""

    def impostor(self, answer: object) -> AbstractContextManager[None]:
        """Within it, stage 0 is followed by somebody who answers so; None: never."""


@dataclass(frozen=True)
class Bad:
    """One kind of bad input."""

    name: str
    where: str
    throw: Callable[[Stages], str]
    """Puts it there and gives the answer's text."""
    answer: str
    """A pattern of the text."""


# -- what packets are made of


class Mark:
    """Where this is unpickled, a file appears."""

    path = Path("/tmp") / f"splitinfer-unpickled-{os.getpid()}"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


PICKLE = pickle.dumps(Mark())


def sealed(
    header: object, payload: bytes = b"", *, kind: int = 1, version: int = 1, reserved: int = 0, declared: int | None = None
) -> bytes:
    """A packet with a right checksum, whatever is in it."""
    packed = header if isinstance(header, bytes) else msgpack.packb(header)
    prefix = struct.pack("<4sBBHIQI", b"SPLI", version, kind, reserved, len(packed), len(payload) if declared is None else declared, 0)
    rest = packed + bytes(-len(packed) % 16) + payload
    return prefix + struct.pack("<Q", xxhash.xxh3_64_intdigest(prefix + rest)) + rest


def fields(**changes: object) -> dict[str, object]:
    """A header's."""
    return {"id": uuid.uuid4().hex, "try": 0, "sizes": {}, "frames": [], "meta": {"left_s": 5.0}} | changes


def nested(depth: int) -> object:
    """A list in a list in a list."""
    made: list[object] = []
    for _ in range(depth):
        made = [made]
    return made


def framed(codec: str, tensor: Tensor, shape: tuple[int, ...] | None = None, name: str = "images") -> Frame:
    """A tensor whose header says that it has another shape."""
    data = codecs.get(codec).encode(tensor)
    header, body = Header.unpack(data, 1 << 40)
    return Frame(name, codec, (replace(header, shape=shape or header.shape).pack(), body))


def holding(good: Packet, frame: Frame) -> bytes:
    """The request with this in the place of its tensor."""
    return replace(good, frames=(frame,)).pack()


def swollen(good: Packet, codec: str) -> bytes:
    """The request with a tensor of the right shape, and more in its body."""
    return holding(good, framed(codec, torch.rand(1, 1, 8, 1 << 12), (1, 1, 8, 8)))


def left(good: Packet, left_s: object) -> bytes:
    """The request with this deadline."""
    return replace(good, meta={"left_s": left_s}).pack()


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def good_request(stages: Stages) -> Packet:
    """A new one."""
    graph = stages.front.graph
    return Packet.unpack(stages.front.request(*graph.example, left_s=20.0).data)


def told(answer: object) -> str:
    """What a packet, or a pair of a packet and spans, says."""
    data = answer[0] if isinstance(answer, tuple | list) else answer
    if not isinstance(data, bytes) or not data:
        return "ignored"
    packet = Packet.unpack(data)
    return str(raised(packet)) if packet.kind is Kind.ERROR else "answered"
