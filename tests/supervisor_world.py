"""A watched machine for tests: each call of `handle` is checked; and a world in virtual time around it, where things fail."""

from __future__ import annotations

import gc
import heapq
import itertools
import types
from dataclasses import dataclass, field

from splitinfer.supervisor import (
    Abandon,
    Accept,
    AnswerAlone,
    Answered,
    Arrived,
    Beat,
    Close,
    Closed,
    Deploy,
    Deployed,
    DeployFailed,
    Drained,
    DrainTier,
    Failed,
    GatewayLost,
    GatewayUp,
    Machine,
    Mend,
    Missed,
    Ping,
    Reason,
    Refuse,
    ReturnTier,
    Send,
    StartGateway,
    State,
    StopGateway,
    Switched,
    Tick,
    Undeploy,
)

HEAD = frozenset({"cloud"})
"""Where a gateway connects to when it starts."""


@dataclass
class Seen:
    """One request, as the watcher knows it."""

    deadline_s: float
    attempt: int = -1
    place: str | None = None
    sent_s: float = -1.0
    under_way: bool = False


class Watched:
    """A machine; whatever it is told and says is held against the rules that always hold."""

    def __init__(self, family, settings, **kind):
        self.machine = Machine(family, settings, **kind)
        self.family, self.settings, self.kind = {choice.name: choice for choice in family}, settings, kind
        self.open: dict[str, Seen] = {}
        self.verdicts: dict[str, Accept | Refuse] = {}
        self.tries: dict[str, int] = {}
        self.answered: set[tuple[str, int]] = set()
        self.pinged_s: dict[str, float] = {}  # when the last ping was sent
        self.out: set[str] = set()  # plans of which neither beat nor miss has come since
        self.mended_s: dict[str, float] = {}
        self.draining: set[str] = set()
        self.closing = self.closed = False
        self.current = None
        self.said: set[type] = set()

    def handle(self, event, now_s):
        before, new = len(self.open), isinstance(event, Arrived) and event.request not in self.open
        self._hear(event)
        said = self.machine.handle(event, now_s)
        self.said.update(map(type, said))
        for instruction in said:
            self._check(instruction, now_s)
        if new:
            assert event.request in self.open or event.request in self.verdicts
        assert all(now_s < seen.deadline_s for seen in self.open.values()), "a request outlived its deadline"
        assert self.machine.in_flight == len(self.open) <= self.settings.most_in_flight
        assert self.machine.current == self.current
        assert (wake_s := self.machine.wake_s()) is None or wake_s > now_s, "it would be woken at once, again and again"
        assert len(said) <= 4 * (before + 1) + 4 * len(self.family) + len(self.draining) + 4, "a storm of instructions"
        return said

    def _hear(self, event):
        match event:
            case Arrived(request, deadline_s) if request not in self.open:
                assert request not in self.verdicts, "the test used a name twice"
                self.open[request] = Seen(deadline_s)
            case Answered(request, attempt):
                self.answered.add((request, attempt))
            case Beat(plan) | Missed(plan):
                self.out.discard(plan)
            case DrainTier(tier):
                self.draining.add(tier)
            case ReturnTier(tier):
                self.draining.discard(tier)
            case Close():
                self.closing = True

    def _check(self, instruction, now_s):
        assert not self.closed or isinstance(instruction, Refuse), "closed, and still talking"
        match instruction:
            case Send(request, attempt, plan):
                assert self.machine.plans[plan].state is State.UP
                assert not self.family[plan].tiers & self.draining
                self._attempt(request, attempt, plan, now_s)
            case AnswerAlone(request, attempt):
                assert self.kind["can_answer_alone"]
                self._attempt(request, attempt, None, now_s)
            case Abandon(request, attempt):
                seen = self.open[request]
                assert seen.under_way and seen.attempt == attempt
                seen.under_way = False
            case Accept(request, attempt):
                assert (request, attempt) in self.answered and attempt <= self.open[request].attempt
                assert now_s < self.open[request].deadline_s
                self._end(request, instruction)
            case Refuse(request, reason, why):
                assert why and "\n" not in why
                assert reason is not Reason.CLOSED or self.closing
                self._end(request, instruction)
            case Ping(plan):
                waited_s = now_s - self.pinged_s.get(plan, float("-inf"))
                limit_s = self.settings.silence_s + 2 * self.family[plan].latency_s
                assert waited_s > (limit_s if plan in self.out else self.settings.beat_s) - 1e-9
                self.pinged_s[plan] = now_s
                self.out.add(plan)
            case Mend(plan):
                assert now_s - self.mended_s.get(plan, float("-inf")) >= self.settings.first_backoff_s - 1e-9
                self.mended_s[plan] = now_s
            case Deploy(plan):
                assert not self.family[plan].tiers & self.draining
                self.out.discard(plan)
                self.pinged_s.pop(plan, None)
                self.mended_s.pop(plan, None)
            case Switched(plan, why):
                assert plan != self.current and why
                self.current = plan
            case Drained(tier):
                assert not any(s.under_way and s.place and tier in self.family[s.place].tiers for s in self.open.values())
            case Closed():
                assert self.closing and not self.open
                self.closed = True

    def _attempt(self, request, attempt, place, now_s):
        seen = self.open[request]
        assert attempt == seen.attempt + 1
        assert attempt == 0 or self.kind["repeatable"]
        assert attempt == 0 or (place, now_s) != (seen.place, seen.sent_s), "the same place again, without time passing"
        seen.attempt, seen.place, seen.sent_s, seen.under_way = attempt, place, now_s, True

    def _end(self, request, verdict):
        assert request not in self.verdicts
        self.verdicts[request] = verdict
        self.tries[request] = self.open.pop(request).attempt + 1


def size_of(root) -> int:
    """How many objects a machine holds on to."""
    seen, pending = set(), [root]
    while pending:
        thing = pending.pop()
        if id(thing) in seen or isinstance(thing, type | types.ModuleType | types.FunctionType | types.CodeType):
            continue
        seen.add(id(thing))
        pending.extend(gc.get_referents(thing))
    return len(seen)


@dataclass(frozen=True)
class Fault:
    """What happens to a tier, or to the gateway, from `at_s` for `length_s`."""

    at_s: float
    length_s: float
    kind: str
    """kill: stages die and come back empty; lose: they do not come back; cut: nothing gets through; drain; the gateway: die, hang."""
    tier: str


@dataclass
class Stages:
    """A plan as it stands in the world."""

    whole: bool = True
    restarted: bool = False
    """If it is not whole, `Mend` helps."""
    deaths: int = 0


@dataclass
class World:
    """Tiers, a gateway, messages that come late, twice and in another order than they were sent; all by `chance`."""

    watched: Watched
    chance: object
    faults: list[Fault]
    delay_s: float = 0.3
    alone_s: float = 0.5
    faulty: frozenset[str] = frozenset()
    """Requests on which the model itself fails."""
    now_s: float = 0.0
    events: list = field(default_factory=list)
    dead: dict[str, int] = field(default_factory=dict)
    """Tier -> how many faults hold it."""
    cut: dict[str, float] = field(default_factory=dict)
    """Tier -> until when."""
    stages: dict[str, Stages] = field(default_factory=dict)
    """Deployed plans."""
    gateway: int = 0
    """Which one; counts up."""
    hangs: bool = False
    jobs: dict[str, int] = field(default_factory=dict)
    """Plan -> its deployment under way."""
    handled: int = 0

    def __post_init__(self):
        self.order = itertools.count()
        for fault in self.faults:
            self.at(fault.at_s, lambda fault=fault: self.strike(fault))

    # --- time

    def at(self, time_s, action):
        heapq.heappush(self.events, (time_s, next(self.order), action))

    def later(self, seconds, action):
        self.at(self.now_s + seconds, action)

    def run(self, until_s):
        while True:
            due_s, wake_s = self.events[0][0] if self.events else float("inf"), self.watched.machine.wake_s()
            self.now_s = min(due_s, float("inf") if wake_s is None else wake_s)
            if self.now_s > until_s:
                self.now_s = until_s
                return
            if due_s <= self.now_s:
                heapq.heappop(self.events)[2]()
            else:
                self.tell(Tick())

    def tell(self, event):
        self.handled += 1
        for instruction in self.watched.handle(event, self.now_s):
            self.carry_out(instruction)

    def report(self, event):
        """Through the gateway that runs now, unless it hangs or another one runs by then; now and then twice."""
        gateway = self.gateway

        def arrive():
            if gateway == self.gateway and not self.hangs:
                self.tell(event)

        for _ in range(self.chance.choice((1, 1, 1, 2))):
            self.later(self.chance.uniform(0, self.delay_s), arrive)

    # --- what fails

    def strike(self, fault):
        match fault.kind:
            case "kill" | "lose":
                self.dead[fault.tier] = self.dead.get(fault.tier, 0) + 1
                for name, stages in self.stages.items():
                    if fault.tier in self.watched.family[name].tiers:
                        stages.restarted = fault.kind == "kill" and (stages.whole or stages.restarted)
                        stages.whole, stages.deaths = False, stages.deaths + 1
                self.later(fault.length_s, lambda: self.dead.update({fault.tier: self.dead[fault.tier] - 1}))
            case "cut":
                self.cut[fault.tier] = max(self.cut.get(fault.tier, 0.0), self.now_s + fault.length_s)
            case "drain":
                self.tell(DrainTier(fault.tier))
                self.later(fault.length_s, lambda: self.tell(ReturnTier(fault.tier)))
            case "die":
                self.end_gateway()
                self.report(GatewayLost("killed"))
            case "hang":
                self.hangs = True

    def end_gateway(self):
        self.stages.clear()
        self.jobs.clear()

    def is_dead(self, plan):
        return any(self.dead.get(tier) for tier in self.watched.family[plan].tiers)

    def through(self, tiers, action):
        """Do it once no link to these tiers is cut."""
        until_s = max((self.cut.get(tier, 0.0) for tier in tiers), default=0.0)
        if until_s > self.now_s:
            self.at(until_s, lambda: self.through(tiers, action))
        else:
            action()

    # --- what is done

    def carry_out(self, instruction):
        tiers = self.watched.family[instruction.plan].tiers if getattr(instruction, "plan", None) else frozenset()
        match instruction:
            case StartGateway():
                self.gateway += 1
                self.hangs = False
                self.end_gateway()
                self.later(self.chance.uniform(0.1, 2), lambda gateway=self.gateway: self.through(HEAD, lambda: self.started(gateway)))
            case StopGateway():
                self.gateway += 1
                self.end_gateway()
            case Deploy(plan):
                self.jobs[plan] = job = next(self.order)
                self.later(self.chance.uniform(0.5, 3), lambda: self.through(tiers, lambda: self.deployed(plan, job)))
            case Undeploy(plan):
                self.jobs.pop(plan, None)
                self.stages.pop(plan, None)
            case Mend(plan):
                self.later(self.chance.uniform(0.2, 2), lambda: self.through(tiers, lambda: self.mended(plan)))
            case Ping(plan):
                self.through(tiers, lambda: self.pinged(plan))
            case Send(request, attempt, plan):
                stages = self.stages.get(plan)
                deaths = stages.deaths if stages else 0
                took_s = self.watched.family[plan].latency_s * self.chance.uniform(0.5, 1.5)
                self.later(took_s, lambda: self.through(tiers, lambda: self.ran(request, attempt, plan, stages, deaths)))
            case AnswerAlone(request, attempt):
                event = Failed(request, attempt, False, "ValueError") if request in self.faulty else Answered(request, attempt)
                self.later(self.alone_s, lambda: self.tell(event))

    def started(self, gateway):
        if gateway == self.gateway:
            self.report(GatewayUp())

    def deployed(self, plan, job):
        if self.jobs.get(plan) != job:
            return
        del self.jobs[plan]
        if self.is_dead(plan):
            self.report(DeployFailed(plan, "no such node"))
        else:
            self.stages[plan] = Stages()
            self.report(Deployed(plan))

    def mended(self, plan):
        if (stages := self.stages.get(plan)) and stages.restarted and not self.is_dead(plan):
            stages.whole, stages.restarted = True, False

    def pinged(self, plan):
        if (stages := self.stages.get(plan)) is None:
            return
        if stages.whole:
            self.report(Beat(plan))
        else:
            self.report(Missed(plan, "the actor is dead", stages.restarted and not self.is_dead(plan)))

    def ran(self, request, attempt, plan, stages, deaths):
        if stages is None or self.stages.get(plan) is not stages:
            return  # it went with the gateway or the deployment, and the machine knows
        if request in self.faulty:
            self.report(Failed(request, attempt, False, "ValueError"))
        elif not stages.whole or stages.deaths != deaths:
            self.report(Failed(request, attempt, True, "the actor died"))
        else:
            self.report(Answered(request, attempt))
