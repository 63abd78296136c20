"""What the nodes of a cluster are and how the links between them behave, measured by an actor on each.

Needs a connection to Ray (client.connect). Nodes report plain values; nothing of torch or of a model is loaded.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import stat
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import psutil

from cluster.errors import ClusterError
from cluster.launch import RAY_SETTINGS

PACKAGES = ("ray", "torch", "splitinfer")
_TIMEOUT_S = 60.0  # a first worker on a small board
_ROUNDS = 9
_PAYLOADS = (1 << 15, 1 << 18, 1 << 21, 1 << 23)  # each is tried only while the one before took little time
_ENOUGH_S = 0.2
_KNOCK_S = 2.0


@dataclass(frozen=True)
class Facts:
    """One node, as it sees itself."""

    tier: str
    address: str
    versions: Mapping[str, str]
    """"python" and PACKAGES; empty for what is not installed."""
    settings: Mapping[str, str]
    """The RAY_ settings that matter, as a worker there sees them."""
    token_mode: int | None
    """Permissions of the token's file; None where the node cannot see it."""
    skew_s: float
    """Its clock less that of this process."""
    skew_error_s: float
    """How far off that may be: half of the question's round trip."""
    load: float
    """Processes that wanted to run, averaged over a minute."""
    cpus: int
    memory_nbytes: int
    memory_used_nbytes: int
    unreachable: tuple[str, ...]
    """Ports of other nodes, "host:port", that it could not open."""


@dataclass(frozen=True)
class Rate:
    """One way between two nodes."""

    source: str
    """Tier."""
    target: str
    round_trip_s: float
    """Median of an empty call from actor to actor."""
    bytes_per_s: float


@dataclass(frozen=True)
class Actor:
    """An actor that lives on a node: a stage, or what else runs there."""

    tier: str
    name: str
    """Its own up to a '#', behind which it is drawn by lot; else that of its class."""


class Prober:
    """Runs on a node, wrapped by ``ray.remote``."""

    def __init__(self) -> None:
        self._about = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}

    def facts(self) -> dict[str, Any]:
        """What needs no other node."""
        memory = psutil.virtual_memory()
        names = (*RAY_SETTINGS, "RAY_AUTH_MODE", "RAY_USE_TLS")
        return {
            "versions": self._about,
            "settings": {name: os.environ.get(name, "") for name in names},
            "token_mode": _mode(os.environ.get("RAY_AUTH_TOKEN_PATH", "")),
            "load": os.getloadavg()[0],
            "cpus": os.cpu_count() or 1,
            "memory_nbytes": memory.total,
            "memory_used_nbytes": memory.total - memory.available,
        }

    def now_s(self) -> float:
        """The wall clock."""
        return time.time()

    def knock(self, doors: Sequence[tuple[str, int]]) -> list[str]:
        """Those of "host:port" that do not open."""
        closed = []
        for host, port in doors:
            try:
                socket.create_connection((host, port), timeout=_KNOCK_S).close()
            except OSError:
                closed.append(f"{host}:{port}")
        return closed

    def take(self, data: bytes) -> int:
        """How much arrived."""
        return len(data)

    def measure(self, other: Any) -> tuple[float, float]:
        """(round trip in seconds, bytes per second) to another node's prober."""
        import ray

        def call_s(data: bytes) -> float:
            start = time.perf_counter()
            ray.get(other.take.remote(data), timeout=_TIMEOUT_S)
            return time.perf_counter() - start

        call_s(b"")  # the connection is made by the first call
        round_trip_s = statistics.median(call_s(b"") for _ in range(_ROUNDS))
        bytes_per_s = 0.0
        for nbytes in _PAYLOADS:
            data = os.urandom(nbytes)  # nothing on the way can compress it
            sent_s = max(min(call_s(data) for _ in range(2)) - round_trip_s, 1e-6)
            bytes_per_s = nbytes / sent_s
            if sent_s > _ENOUGH_S:
                break
        return round_trip_s, bytes_per_s


class Probes:
    """A prober on the live node of each tier that has one; `open_probes` makes them."""

    def __init__(self, nodes: Mapping[str, Mapping[str, Any]], actors: Mapping[str, Any]) -> None:
        self.nodes, self.actors = nodes, actors

    def facts(self) -> list[Facts]:
        """Of every node, in the order of the tiers. Raises ClusterError that names the one which does not answer."""
        return [self._facts(tier) for tier in self.nodes]

    def rates(self) -> list[Rate]:
        """Up and down between neighbours in the line of tiers, one after the other, so that none disturbs another."""
        found = []
        for source, target in [way for low, high in pairwise(self.nodes) for way in ((low, high), (high, low))]:
            measured = self._ask(self.actors[source].measure.remote(self.actors[target]), f"{source} to {target}")
            found.append(Rate(source, target, *measured))
        return found

    def _facts(self, tier: str) -> Facts:
        node, actor = self.nodes[tier], self.actors[tier]
        told = self._ask(actor.facts.remote(), tier)
        skew_s, error_s = self._skew_s(actor, tier)
        others = [each for each in self.nodes.values() if each is not node]
        doors = [(each["NodeManagerAddress"], each[port]) for each in others for port in ("NodeManagerPort", "ObjectManagerPort")]
        closed = self._ask(actor.knock.remote(doors), tier)
        return Facts(tier, node["NodeManagerAddress"], **told, skew_s=skew_s, skew_error_s=error_s, unreachable=tuple(closed))

    def _skew_s(self, actor: Any, tier: str) -> tuple[float, float]:
        """By the quickest of a few questions, as NTP does: the answer was written halfway, or off by half at most."""
        tries = []
        for _ in range(_ROUNDS):
            before_s = time.time()
            there_s = self._ask(actor.now_s.remote(), tier)
            half_s = (time.time() - before_s) / 2
            tries.append((half_s, there_s - before_s - half_s))
        error_s, skew_s = min(tries)
        return skew_s, error_s

    def _ask(self, reference: Any, who: str) -> Any:
        import ray

        try:
            return ray.get(reference, timeout=_TIMEOUT_S)
        except Exception as error:  # Ray's own kinds, and what the actor raised
            raise ClusterError(f"{who} does not answer the probe: {str(error).strip().splitlines()[-1]:.200}") from error


@contextlib.contextmanager
def open_probes(labels: Mapping[str, Mapping[str, str]]) -> Iterator[Probes]:
    """A prober on the live node of each tier, told by its labels; ended at the end."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = _nodes(labels)
    factory = cast("Any", ray.remote(Prober))
    placed = {tier: NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for tier, node in nodes.items()}
    probers = {tier: factory.options(num_cpus=0, scheduling_strategy=each).remote() for tier, each in placed.items()}
    try:
        yield Probes(nodes, probers)
    finally:
        for prober in probers.values():
            with contextlib.suppress(Exception):  # it died, or its node did
                ray.kill(prober)


def actors(labels: Mapping[str, Mapping[str, str]]) -> list[Actor]:
    """What lives on the tiers' nodes, probers left out."""
    from ray._private.state import actors as all_actors  # the public listing needs Ray's dashboard

    tier_of = {node["NodeID"]: tier for tier, node in _nodes(labels).items()}
    alive = [each for each in all_actors(actor_state_name="ALIVE").values() if each["ActorClassName"] != Prober.__name__]
    there = [(tier_of.get(each["Address"]["NodeID"]), each["Name"].partition("#")[0] or each["ActorClassName"]) for each in alive]
    return [Actor(tier, name) for tier, name in sorted((tier, name) for tier, name in there if tier is not None)]


def _nodes(labels: Mapping[str, Mapping[str, str]]) -> dict[str, Mapping[str, Any]]:
    import ray

    live = [node for node in ray.nodes() if node["Alive"]]
    fitting = {tier: [node for node in live if wanted.items() <= node["Labels"].items()] for tier, wanted in labels.items()}
    return {tier: nodes[0] for tier, nodes in fitting.items() if nodes}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _mode(path: str) -> int | None:
    try:
        return stat.S_IMODE(Path(path).stat().st_mode) if path else None
    except OSError:
        return None
