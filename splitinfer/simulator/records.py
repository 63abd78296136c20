"""What a run writes down: requests as they end, queues as time goes by; and the results made of it."""

from __future__ import annotations

from array import array
from collections import Counter

import numpy as np

from cluster.topology import Topology
from splitinfer.simulator.engine import Engine, Request
from splitinfer.simulator.fleet import Fleet
from splitinfer.simulator.peers import paths, peer_machines
from splitinfer.simulator.places import Meter
from splitinfer.simulator.results import Requests, Samples, Simulation, Use
from splitinfer.simulator.statistics import latency

_MOST_SAMPLES = 512  # of queue lengths: a picture is not wider than that


class Recorder:
    """Counts from `reset` on."""

    def __init__(self, engine: Engine, fleet: Fleet, sampling_s: float) -> None:
        """`sampling_s`: how often to look at the queues; half as often each time that there are too many looks."""
        self._engine, self._fleet, self._sampling_s = engine, fleet, sampling_s
        self._since_s = 0.0
        self._answered = 0  # since then, requests of the warm-up among them
        self._arrived_s, self._latency_s = array("d"), array("d")
        self._client, self._plan = array("q"), array("q")
        self._exit: list[str] = []
        self._failed = {"dropped": Counter[str](), "lost": Counter[str]()}
        self._times_s: list[float] = []
        self._waiting: list[list[int]] = []
        self._meters = {**fleet.tiers, **fleet.links}
        engine.at(0.0, self._sample)

    def reset(self) -> None:
        """The first request that counts arrives now."""
        self._fleet.reset()
        self._since_s = self._engine.now_s
        self._answered = 0

    def book(self, request: Request, outcome: str, resource: str, counts: bool) -> None:
        """A request has ended; `counts`: it is none of the warm-up."""
        self._answered += outcome == "done"
        if not counts:
            return
        if outcome != "done":
            self._failed[outcome][resource] += 1
            return
        self._arrived_s.append(request.arrived_s)
        self._latency_s.append(self._engine.now_s - request.arrived_s)
        self._client.append(request.client)
        self._plan.append(request.plan)
        self._exit.append(request.program.exit if request.program else "")

    def _sample(self, _: object, __: object) -> None:
        self._times_s.append(self._engine.now_s)
        self._waiting.append([meter.waiting for meter in self._meters.values()])
        if len(self._times_s) == _MOST_SAMPLES:
            del self._times_s[1::2], self._waiting[1::2]
            self._sampling_s *= 2
        self._engine.at(self._engine.now_s + self._sampling_s, self._sample)

    def found(self, topology: Topology, seed: int, switches: list[tuple[float, int]]) -> Simulation:
        """The results, once all requests have ended."""
        duration_s = self._engine.now_s - self._since_s
        seconds = np.array(self._latency_s)
        machines = [*topology.tiers, *(machine for _, machine in peer_machines(topology).values())]
        specs = {machine.name: (machine.watts or 0.0, machine.price_per_s or 0.0) for machine in machines}
        wires = {name: (spec.joules_per_byte or 0.0, spec.price_per_byte or 0.0) for name, (spec, _) in paths(topology).items()}
        exits = np.array(self._exit, dtype=np.str_)
        return Simulation(
            latency(seconds), self._answered / duration_s if duration_s else 0.0, len(seconds),
            dict(self._failed["dropped"]), dict(self._failed["lost"]),
            {name: self._use(meter, duration_s, *specs[name]) for name, meter in self._fleet.tiers.items()},
            {name: self._use(meter, duration_s, *wires[name]) for name, meter in self._fleet.links.items()},
            {str(name): int(count) for name, count in zip(*np.unique(exits[exits != ""], return_counts=True), strict=True)},
            tuple(switches), duration_s, self._engine.events, seed,
            Requests(np.array(self._arrived_s), seconds, np.array(self._client), np.array(self._plan), exits),
            Samples(tuple(self._times_s), {name: tuple(row[n] for row in self._waiting) for n, name in enumerate(self._meters)}),
        )  # fmt: skip

    def _use(self, meter: Meter, duration_s: float, energy: float, money: float) -> Use:
        """`energy` and `money` are per second of a tier, per byte of a link."""
        now_s = self._engine.now_s
        busy_s, waiting_s = meter.busy_s(now_s), meter.waiting_s(now_s)
        amount = meter.nbytes if meter.name in self._fleet.links else busy_s
        share, mean = (busy_s / (meter.servers * duration_s), waiting_s / duration_s) if duration_s else (0.0, 0.0)
        return Use(share, mean, meter.most_waiting, busy_s, meter.nbytes, amount * energy, amount * money)
