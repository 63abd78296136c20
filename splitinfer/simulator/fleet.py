"""The places of all clients: machines and wires, shared as the system says, and the meters that watch them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from random import Random

from cluster.link import Link
from cluster.topology import LinkSpec, Topology
from splitinfer.errors import UsageError
from splitinfer.simulator.engine import Engine, Fork, Place
from splitinfer.simulator.peers import paths as paths
from splitinfer.simulator.peers import peer_machines
from splitinfer.simulator.places import BatchMachine, Held, Machine, Meter, Wire
from splitinfer.simulator.steps import FORK, HELD
from splitinfer.simulator.system import Conditions, Failure, System


class Fleet:
    """Built once for a run; only the resources that some program uses are there."""

    def __init__(self, engine: Engine, topology: Topology, system: System, used: Collection[str], chance: Random) -> None:
        """`used`: names of tiers and of links, ``from:to``."""
        system.check(topology)
        self._engine, self._system, self._chance = engine, system, chance
        self._held = Held(engine, self._vary if system.variation else None)
        self.tiers: dict[str, Meter] = {}
        self.links: dict[str, Meter] = {}
        self.machines: dict[str, list[Machine]] = {}
        self.wires: dict[str, list[Wire]] = {}
        names = [tier.name for tier in topology.tiers]
        counts = [system.clients, *(system.machines.get(name, 1) for name in names[1:])]
        for name, count in zip(names, counts, strict=True):
            if name in used:
                self._add_machines(name, count)
        for name, (host, _) in peer_machines(topology).items():
            if name in used:
                self._add_machines(name, counts[names.index(host)])
        self.paths = {name: path for name, path in paths(topology).items() if name in used}
        for name, (spec, way) in self.paths.items():
            rate = spec.up_bytes_per_s if way == "up" else spec.down_bytes_per_s
            self._add_wires(name, rate, spec, counts[names.index(spec.between[0])])
        self._peers = peer_machines(topology)
        self.places = [self._places(client, names, counts) for client in range(system.clients)]
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
        common = engine, meter, workers, self._limit(name), system.retry, self._vary if system.variation else None
        batching = system.batching.get(name)
        self.machines[name] = [BatchMachine(*common, batching) if batching else Machine(*common) for _ in range(count)]

    def _vary(self) -> float:
        shape = self._system.variation**-2
        return self._chance.gammavariate(shape, 1 / shape)

    def _add_wires(self, name: str, rate: float, spec: LinkSpec, count: int) -> None:
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

    def _places(self, client: int, names: list[str], counts: list[int]) -> dict[str, Place]:
        """One client's: its own machine, and the ones above it, each with the links and peers that are its own."""
        found: dict[str, Place] = {FORK: Fork(self._engine), HELD: self._held}
        place = {names[0]: client}
        for tier, (name, count) in enumerate(zip(names, counts, strict=True)):
            if tier:
                place[name] = place[names[tier - 1]] * count // counts[tier - 1]
            if name in self.machines:
                found[name] = self.machines[name][place[name]]
        found |= {name: self.machines[name][place[host]] for name, (host, _) in self._peers.items() if name in self.machines}
        return found | {name: self.wires[name][place[spec.between[0]]] for name, (spec, _) in self.paths.items()}

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
