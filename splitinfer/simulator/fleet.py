"""The places of all clients: machines and wires, shared as the system says, and the meters that watch them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from random import Random

from cluster.link import Link
from cluster.topology import LinkSpec, Topology
from splitinfer.errors import UsageError
from splitinfer.simulator.engine import Engine, Fork, Place
from splitinfer.simulator.places import BatchMachine, Machine, Meter, Wire
from splitinfer.simulator.steps import FORK
from splitinfer.simulator.system import Conditions, Failure, System


class Fleet:
    """Built once for a run; only the resources that some program uses are there."""

    def __init__(self, engine: Engine, topology: Topology, system: System, used: Collection[str], chance: Random) -> None:
        """`used`: names of tiers and of links, ``from:to``."""
        system.check(topology)
        self._engine, self._system, self._chance = engine, system, chance
        self.tiers: dict[str, Meter] = {}
        self.links: dict[str, Meter] = {}
        self.machines: dict[str, list[Machine]] = {}
        self.wires: dict[str, list[Wire]] = {}
        names = [tier.name for tier in topology.tiers]
        counts = [system.clients, *(system.machines.get(name, 1) for name in names[1:])]
        for name, count in zip(names, counts, strict=True):
            if name in used:
                self._add_machines(name, count)
        specs = [(count, spec) for count, spec in zip(counts, topology.links, strict=False)]
        specs += [(system.clients, topology.direct)] if topology.direct else []
        for count, spec in specs:
            self._add_wires(spec, count, used)
        self.places = [self._places(client, names, counts, topology.direct) for client in range(system.clients)]
        """Resource -> place, for each client."""
        for failure in system.failures:
            self._plan(failure)

    def failed(self, t_s: float) -> set[str]:
        """What does not work at a time, as far as all of its machines or wires fail."""
        return {each.resource for each in self._system.failures if each.machine is None and each.from_s <= t_s < each.to_s}

    def reset(self) -> None:
        """Forget what the meters have seen; what is under way counts from now on."""
        for meter in (*self.tiers.values(), *self.links.values()):
            meter.reset(self._engine.now_s)
        for name, wires in self.wires.items():
            self.links[name].book(sum(wire.under_way_s for wire in wires), 0.0)

    def _limit(self, name: str) -> int | None:
        limit = self._system.queue_limit
        return limit.get(name) if isinstance(limit, Mapping) else limit

    def _add_machines(self, name: str, count: int) -> None:
        system, engine = self._system, self._engine
        workers = system.workers.get(name, 1)
        meter = self.tiers[name] = Meter(name, count * workers)
        vary = self._vary if system.variation else None
        common = engine, meter, workers, self._limit(name), system.retry, vary
        batching = system.batching.get(name)
        self.machines[name] = [BatchMachine(*common, batching) if batching else Machine(*common) for _ in range(count)]

    def _vary(self) -> float:
        shape = self._system.variation**-2
        return self._chance.gammavariate(shape, 1 / shape)

    def _add_wires(self, spec: LinkSpec, count: int, used: Collection[str]) -> None:
        low, high = spec.between
        for name, rate in ((f"{low}:{high}", spec.up_bytes_per_s), (f"{high}:{low}", spec.down_bytes_per_s)):
            if name in used:
                meter = self.links[name] = Meter(name, count)
                limit, retry = self._limit(name), self._system.retry
                self.wires[name] = [Wire(self._engine, meter, self._link(name, rate, spec), limit, retry) for _ in range(count)]

    def _link(self, name: str, rate: float, spec: LinkSpec) -> Link:
        each = self._system.links.get(name, Conditions())
        seed = self._chance.getrandbits(32)
        try:
            return Link(rate, spec.latency_s, jitter_s=each.jitter_s, loss=each.loss, trace=each.trace, seed=seed)
        except ValueError as error:
            raise UsageError(f"link '{name}': {error}") from None

    def _places(self, client: int, names: list[str], counts: list[int], direct: LinkSpec | None) -> dict[str, Place]:
        """One client's: its own machine, and the ones above it, each with the link that leads there."""
        found: dict[str, Place] = {FORK: Fork(self._engine)}
        place = client
        for tier, (name, count) in enumerate(zip(names, counts, strict=True)):
            if tier:
                below = place
                place = below * count // counts[tier - 1]
                self._join(found, names[tier - 1], name, below)
            if name in self.machines:
                found[name] = self.machines[name][place]
        if direct is not None:
            self._join(found, *direct.between, client)
        return found

    def _join(self, found: dict[str, Place], low: str, high: str, wire: int) -> None:
        for name in (f"{low}:{high}", f"{high}:{low}"):
            if name in self.wires:
                found[name] = self.wires[name][wire]

    def _plan(self, failure: Failure) -> None:
        places: list[Machine] | list[Wire] = self.machines.get(failure.resource) or self.wires.get(failure.resource) or []
        if failure.machine is not None and places and not 0 <= failure.machine < len(places):
            raise UsageError(f"machine {failure.machine} of '{failure.resource}' fails; there are {len(places)}, counted from 0")
        for place in places if failure.machine is None else places[failure.machine : failure.machine + 1]:
            if isinstance(place, Wire):
                self._engine.at(failure.from_s, lambda wire, until_s: wire.fail(until_s), place, failure.to_s)
            else:
                self._engine.at(failure.from_s, lambda machine, _: machine.fail(), place)
                self._engine.at(failure.to_s, lambda machine, _: machine.repair(), place)


def paths(topology: Topology) -> dict[str, tuple[LinkSpec, str]]:
    """``from:to`` -> the link, and "up" or "down"."""
    specs = [*topology.links, *filter(None, [topology.direct])]
    ways = [(spec, *spec.between, "up") for spec in specs] + [(spec, *spec.between[::-1], "down") for spec in specs]
    return {f"{one}:{two}": (spec, way) for spec, one, two, way in ways}
