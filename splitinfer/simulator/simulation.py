"""``splitinfer.simulate``: a plan in virtual time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from itertools import accumulate
from random import Random

from cluster.topology import Topology
from splitinfer.calibrations import Calibration
from splitinfer.errors import UsageError
from splitinfer.plans import Plan
from splitinfer.profiles import Profile
from splitinfer.simulator.arrivals import Arrival, Arrivals, ClosedLoop
from splitinfer.simulator.engine import Engine, Request
from splitinfer.simulator.fleet import Fleet
from splitinfer.simulator.peers import paths
from splitinfer.simulator.records import Recorder
from splitinfer.simulator.replanning import Controller, Replanning, idle_s
from splitinfer.simulator.results import Simulation
from splitinfer.simulator.steps import Compute, Program
from splitinfer.simulator.system import System
from splitinfer.simulator.work import Work

_MOMENT_S = 1e-3  # a pause where no better one is known


def simulate(
    plan: Plan,
    profile: Profile,
    topology: Topology | None = None,
    arrivals: Arrivals | ClosedLoop = ClosedLoop(),  # noqa: B008 - frozen
    *,
    requests: int = 1000,
    warmup: int = 0,
    seed: int = 0,
    system: System = System(),  # noqa: B008 - frozen
    replanning: Replanning | None = None,
    expected: bool = False,
    calibration: Calibration | None = None,
) -> Simulation:
    """Send `requests` requests through a plan, after `warmup` others that are not counted; equal seeds give equal results.

    `topology` defaults to the one that the plan was made for. With `expected`, every request does the expected work over
    all early exits; else chance decides, by their `reach`, where each ends. Raises PlanError or ProfileError where plan,
    profile and topology do not fit each other, and UsageError for a wish that makes no sense.

    Assumptions, beside those of `System`: a tier serves in the order of arrival, one request per worker, and decodes,
    computes and encodes in one go; one packet per request, link and direction, after the stage's work has ended; links
    as in `cluster.link.Link`; calls between stages delay a request and occupy nothing; waking up is paid where a worker
    was idle; a stateful plan serves one request of a client at a time. A tier that shares layers with its peers is held until
    the slowest of them has ended; each peer has a link of its own to it.
    """
    if topology is None and plan.topology is None:
        raise UsageError("the plan was made by hand and names no topology; give one")
    if requests < 1 or warmup < 0:
        raise UsageError(f"{requests} requests after a warm-up of {warmup}; at least 1, and 0")
    place = topology or Topology.from_dict(plan.topology or {})
    works = [Work(each, profile, place, calibration) for each in (plan, *(replanning.plans if replanning else ()))]
    run = _Run(works, place, arrivals, system, requests + warmup, warmup, seed, expected, replanning)
    return run.run()


class _Run:
    """One simulation."""

    def __init__(
        self, works: list[Work], topology: Topology, arrivals: Arrivals | ClosedLoop, system: System, total: int, warmup: int, seed: int,
        expected: bool, replanning: Replanning | None,
    ) -> None:  # fmt: skip
        self.topology, self.system, self.seed, self.total, self.warmup = topology, system, seed, total, warmup
        means = [work.expected() for work in works]
        self.programs = [(mean,) if expected else work.programs() for mean, work in zip(means, works, strict=True)]
        self.engine = Engine(self._ended)
        # Chance is divided, so that another system meets the same arrivals.
        arriving, self.exiting, serving = (Random(f"{seed} {what}") for what in ("arrivals", "exits", "service"))  # noqa: S311
        _check_batches(system, self.programs)
        used = {name for programs in self.programs for program in programs for name in program.resources}
        self.fleet = Fleet(self.engine, topology, system, used, serving)
        self.paths = paths(topology)
        self.idle_s = idle_s(means[0], self._carrier) or _MOMENT_S
        self.controller = Controller(means, self._carrier, self.fleet.failed, replanning.migration_cost_s) if replanning else None
        self.closed = arrivals if isinstance(arrivals, ClosedLoop) else None
        self.coming: Iterator[Arrival] = iter(()) if isinstance(arrivals, ClosedLoop) else arrivals.times(system.clients, arriving)
        self.turns: dict[int, deque[tuple[Request, Program]]] | None = {} if works[0].plan.stateful else None
        self.started = self.ended = 0
        self.recorder = Recorder(self.engine, self.fleet, self.idle_s / 4)

    def run(self) -> Simulation:
        """All of it."""
        if self.closed is None:
            self._plan_next()
        for user in range(self.closed.users if self.closed else 0):
            self._start(user % self.system.clients)
        self.engine.run()
        return self.recorder.found(self.topology, self.seed, self.controller.switches if self.controller else [])

    def _carrier(self, link: str, t_s: float) -> tuple[float, float]:
        spec, way = self.paths[link]
        conditions = self.system.links.get(link)
        if conditions is not None and conditions.trace is not None:
            return conditions.trace.rate_at(t_s), spec.latency_s
        return spec.up_bytes_per_s if way == "up" else spec.down_bytes_per_s, spec.latency_s

    def _plan_next(self) -> None:
        """Plan the next arrival of an open process; where there is none, the requests so far are all."""
        time_s, client = next(self.coming, (math.inf, 0)) if self.started < self.total else (math.inf, 0)
        if time_s < math.inf:
            self.engine.at(time_s, self._arrive, client)
        else:
            self.total = self.started

    def _arrive(self, client: int, _: object) -> None:
        self._start(client)
        self._plan_next()
        self._stop_if_done()

    def _start(self, client: int, _: object = None) -> None:
        if self.started == self.total:
            return
        if self.started == self.warmup:
            self.recorder.reset()
        now_s = self.engine.now_s
        plan = self.controller.choose(now_s) if self.controller else 0
        program = self._drawn(self.programs[plan])
        request = Request(program.steps, self.fleet.places[client], program, now_s, client, plan, self.started)
        self.started += 1
        if self.turns is None:
            self.engine.begin(request, program.delay_s)
            return
        turns = self.turns.setdefault(client, deque())
        turns.append((request, program))
        if len(turns) == 1:
            self.engine.begin(request, program.delay_s)

    def _drawn(self, programs: tuple[Program, ...]) -> Program:
        """Chance decides where a request ends."""
        if len(programs) == 1:
            return programs[0]
        chance = self.exiting.random()
        upto = accumulate(program.share for program in programs)
        return next((program for program, share in zip(programs, upto, strict=True) if chance < share), programs[-1])

    def _ended(self, request: Request, outcome: str, resource: str) -> None:
        self.ended += 1
        self.recorder.book(request, outcome, resource, request.index >= self.warmup)
        if self.turns is not None:
            turns = self.turns[request.client]
            turns.popleft()
            if turns:
                following, program = turns[0]
                self.engine.begin(following, program.delay_s)
        if self.closed is not None:
            # A user who was turned away tries again after a moment, not at once and forever.
            pause_s = self.closed.think_s + (0.0 if outcome == "done" else self.idle_s)
            self.engine.at(self.engine.now_s + pause_s, self._start, request.client)
        self._stop_if_done()

    def _stop_if_done(self) -> None:
        if self.ended == self.total:
            self.engine.stop()


def _check_batches(system: System, programs: list[tuple[Program, ...]]) -> None:
    """Raise UsageError where a tier batches that shares layers: the shares of several requests have no order."""
    for step in (step for each in programs for program in each for step in program.steps):
        if isinstance(step, Compute) and step.groups and step.resource in system.batching:
            raise UsageError(f"batching: '{step.resource}' shares layers with its peers, which is done for one request at a time")
