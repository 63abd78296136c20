"""What a simulated system is beyond its topology: how many machines, their queues and batches, links that vary, failures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.topology import Topology
from cluster.traces import Trace
from splitinfer.errors import UsageError
from splitinfer.simulator.peers import paths, peer_machines
from splitinfer.simulator.places import Batching


@dataclass(frozen=True)
class Conditions:
    """How one direction of a link differs from its declared rate and latency; see `cluster.link.Link`."""

    jitter_s: float = 0.0
    loss: float = 0.0
    trace: Trace | None = None


@dataclass(frozen=True)
class Failure:
    """A tier, or one direction of a link, does not work for some time."""

    resource: str
    """A tier's name, or ``from:to``."""
    from_s: float
    to_s: float
    machine: int | None = None
    """Which of several, counted from 0; None: all."""


@dataclass(frozen=True)
class System:
    """By default one client, one machine with one worker in each tier, endless queues, links as declared, no failures.

    Each client has a machine of the first tier and a link of its own; the machines of the tiers above are shared out
    evenly among those below, each with its own link upwards. Each machine has peers of its own, a link to each.
    """

    clients: int = 1
    machines: Mapping[str, int] = field(default_factory=dict)
    """Tier above the first -> machines (default 1), at most as many as in the tier below."""
    workers: Mapping[str, int] = field(default_factory=dict)
    """Tier -> requests that one machine serves at once (default 1)."""
    queue_limit: int | Mapping[str, int] | None = None
    """How many may wait at each machine and wire, or at those named; a request that finds no room is dropped."""
    batching: Mapping[str, Batching] = field(default_factory=dict)
    """Tier -> batches (default none)."""
    links: Mapping[str, Conditions] = field(default_factory=dict)
    """``from:to``, in the direction of travel -> conditions."""
    failures: tuple[Failure, ...] = ()
    retry: bool = True
    """Whether what a failure interrupts is done again; else it is lost."""
    variation: float = 0.0
    """Coefficient of variation of the work on tiers: each piece takes a gamma-distributed multiple of its seconds, 1 in
    the mean; 1 is exponential service."""

    def check(self, topology: Topology) -> None:
        """Raise UsageError for what the topology does not have, or numbers that make no sense."""
        tiers = [tier.name for tier in topology.tiers]
        links, peers = list(paths(topology)), list(peer_machines(topology))
        limited = self.queue_limit if isinstance(self.queue_limit, Mapping) else {}
        for what, names, known in (
            ("machines", self.machines, tiers[1:]), ("workers", self.workers, tiers), ("batching", self.batching, tiers),
            ("links", self.links, links), ("queue_limit", limited, tiers + peers + links),
            ("failures", [failure.resource for failure in self.failures], tiers + peers + links),
        ):  # fmt: skip
            for name in names:
                if name not in known:
                    raise UsageError(f"{what}: there is no '{name}'; choose from {', '.join(known)}")
        below = self.clients
        for name in tiers[1:]:
            count = self.machines.get(name, 1)
            if not 1 <= count <= below:
                raise UsageError(f"{count} machines of tier '{name}' above {below}; there must be one, and one below for each")
            below = count
        limits = list(self.queue_limit.values()) if isinstance(self.queue_limit, Mapping) else [self.queue_limit or 0]
        if self.clients < 1 or min(self.workers.values(), default=1) < 1 or min(limits, default=0) < 0:
            raise UsageError("clients and workers are at least 1, queue limits at least 0")
        if not 0 <= self.variation < math.inf:
            raise UsageError(f"a variation of {self.variation}; it is at least 0")
        for each in self.batching.values():
            if each.size < 1 or not 0 <= each.wait_s < math.inf or not 0 <= each.fixed <= 1:
                raise UsageError(f"batches of {each.size} that wait {each.wait_s} s, {each.fixed} fixed; at least 1, 0 s, and 0 to 1")
        for failure in self.failures:
            if not 0 <= failure.from_s < failure.to_s < math.inf:
                raise UsageError(f"'{failure.resource}' fails from {failure.from_s} to {failure.to_s} s; times are 0 or more and increase")
