"""What the actors of a plan are told and given, as plain data: made where the model is (packing.py), unpacked where Ray is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from splitinfer.codecs.packet import Limits
from splitinfer.routing import Route

Rate = tuple[float, float]
"""Bytes per second and one-way latency in seconds of an emulated link."""


@dataclass(frozen=True)
class Member:
    """One machine of a group, as the others know it."""

    name: str
    out: Rate | None
    """The emulated link from the host to it; None where the link is real, and for the host itself."""
    back: Rate | None


@dataclass(frozen=True)
class GroupConfig:
    """A group of machines that share layers, and which of them this is."""

    stage: str
    index: int
    members: tuple[Member, ...]
    """By worker; the host is the first."""
    codec: str


@dataclass(frozen=True)
class Cargo:
    """Layers on their way to an actor: what its parts are, and their files (parts.py)."""

    data: bytes
    files: tuple[bytes, ...]


@dataclass(frozen=True)
class StageConfig:
    """What an actor needs beside its stage."""

    name: str
    tier: str
    route: Route
    last: bool
    device: str
    threads: int
    slowdown: float
    up: tuple[Rate, ...]
    """Emulated links to the next stage; empty where the link is real or the tier the same."""
    down: tuple[Rate, ...]
    """Emulated links back to the previous stage or the caller."""
    limits: Limits
    group: GroupConfig | None = None
    """The machines that share some of its layers, where there are any."""


@dataclass(frozen=True)
class WorkerShipment:
    """A machine that shares layers of a stage."""

    config: GroupConfig
    tier: str
    device: str
    threads: int
    slowdown: float
    labels: Mapping[str, str]
    """Of the Ray node that it runs on."""
    cargo: Cargo


@dataclass(frozen=True)
class StageShipment:
    """A stage, and the machines that share its layers, by their number in the group."""

    config: StageConfig
    labels: Mapping[str, str]
    cargo: Cargo
    workers: Mapping[int, WorkerShipment] = field(default_factory=dict)


@dataclass(frozen=True)
class Shipment:
    """A plan, ready to be placed."""

    model: str
    stages: tuple[StageShipment, ...]
    source: str
    """The caller's tier."""
    up: tuple[Rate, ...]
    """Emulated links from the caller to the first stage."""
    limits: Limits
