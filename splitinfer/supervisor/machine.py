"""The state machine: each event changes the state of a part, and what is to be done follows from the states and the time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from splitinfer.errors import UsageError
from splitinfer.supervisor.events import (
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
    Event,
    Failed,
    GatewayLost,
    GatewayUp,
    Instruction,
    Mend,
    Missed,
    Ping,
    Reason,
    Refuse,
    ReturnTier,
    Start,
    StartGateway,
    StopGateway,
    Switched,
    Undeploy,
)
from splitinfer.supervisor.requests import Requests
from splitinfer.supervisor.settings import Choice, Settings
from splitinfer.supervisor.states import Deployment, Part, PartStatus, State


class Machine:
    """Keeps a split model answering. Drive it from one thread::

        instructions = machine.handle(event, now_s)     # carry them out in their order
        machine.wake_s()                                # hand in a Tick then, if nothing else comes first

    Times never decrease; one that does counts as the latest.
    """

    def __init__(self, family: Sequence[Choice], settings: Settings, *, can_answer_alone: bool, repeatable: bool) -> None:
        """`family`: best first. `repeatable` is False for a stateful model. Raises UsageError if two plans have one name."""
        if len({choice.name for choice in family}) < len(family):
            raise UsageError(f"two plans have the same name: {', '.join(choice.name for choice in family)}; rename one")
        self._settings = settings
        self._said: list[Instruction] = []
        self._requests = Requests(self._said.append, settings.most_in_flight, can_answer_alone, repeatable)
        self._gateway = Part(settings)
        self._plans = {choice.name: Deployment(choice, settings) for choice in family}
        self._tiers = frozenset[str]().union(*(choice.tiers for choice in family))
        self._draining: dict[str, bool] = {}  # tier -> whether it was said that it is drained
        self._current: str | None = None
        self._now_s = -math.inf
        self._wake_s = math.inf
        self._started = self._closed = False
        self._close_s: float | None = None

    @property
    def current(self) -> str | None:
        """The plan that new requests take; None: they are answered alone, or wait."""
        return self._current

    @property
    def in_flight(self) -> int:
        """Requests that are open."""
        return len(self._requests)

    @property
    def draining(self) -> frozenset[str]:
        """Tiers that take no new requests."""
        return frozenset(self._draining)

    @property
    def gateway(self) -> PartStatus:
        """The gateway, with the requests under way on all plans."""
        return self._gateway.status(sum(map(self._requests.under_way, self._plans)))

    @property
    def plans(self) -> Mapping[str, PartStatus]:
        """Each plan of the family, best first."""
        return {name: plan.status(self._requests.under_way(name)) for name, plan in self._plans.items()}

    def handle(self, event: Event, now_s: float) -> list[Instruction]:
        """What to do after `event`, in this order. Never raises: what is unknown or late is ignored."""
        self._now_s = max(self._now_s, now_s)
        self._forgive_pause()
        self._requests.expire(self._now_s)
        if not self._closed:
            self._react(event)
            self._give_up()
            self._switch()
            self._requests.settle(self._current, {name: plan.why for name, plan in self._plans.items() if plan.state is not State.UP})
            self._deploy()
            self._ping()
            self._finish()
        elif isinstance(event, Arrived):
            self._arrive(event.request, event.deadline_s)
        self._wake_s = math.inf if self._closed else min(self._times_s())
        said = self._said[:]
        self._said.clear()
        return said

    def wake_s(self) -> float | None:
        """When a `Tick` is needed at the latest; None: not before the next event."""
        return self._wake_s if self._wake_s < math.inf else None

    def _times_s(self) -> Iterator[float]:
        yield self._requests.deadline_s
        if self._close_s is not None:
            yield self._close_s
        if self._may_start():
            yield self._gateway.ready_s
        yield self._gateway.give_up_s
        for plan in self._plans.values():
            yield plan.give_up_s
            yield plan.ping_s
        yield from (plan.ready_s for plan in self._to_deploy())

    def _forgive_pause(self) -> None:
        """While this process stood still it heard nobody, which is no silence of theirs."""
        pause_s = self._now_s - self._wake_s
        if pause_s > self._settings.beat_s:
            for part in (self._gateway, *self._plans.values()):
                part.give_up_s += pause_s

    # --- events

    def _react(self, event: Event) -> None:
        now_s = self._now_s
        match event:
            case Start():
                self._started = True
            case Arrived(request, deadline_s):
                self._arrive(request, deadline_s)
            case Answered(request, attempt):
                if plan := self._plan(self._requests.answered(request, attempt)):
                    plan.hear(now_s)
            case Failed(request, attempt, lost, why):
                if plan := self._plan(self._requests.failed(request, attempt, lost, why)):
                    plan.down(now_s, f"{plan} lost a request: {why}")
            case GatewayUp() if self._gateway.state is State.COMING:
                self._gateway.enter(State.UP, now_s, "the gateway is up")
            case GatewayLost(why) if self._gateway.state is not State.ABSENT:
                self._lose_gateway(f"the gateway is gone: {why}")
            case Deployed(name) | DeployFailed(name) | Beat(name) | Missed(name) if plan := self._plan(name):
                self._react_of(plan, event)
            case DrainTier(tier):
                self._drain(tier)
            case ReturnTier(tier):
                self._draining.pop(tier, None)
            case Close(until_s):
                self._close_s = until_s

    def _react_of(self, plan: Deployment, event: Deployed | DeployFailed | Beat | Missed) -> None:
        match event:
            case Deployed():
                plan.deployed(self._now_s)
            case DeployFailed(why=why) if plan.state is State.COMING:
                plan.fail(self._now_s, f"{plan} could not be deployed: {why}")
            case Beat():
                plan.beat(self._now_s)
            case Missed(why=why, restarted=restarted):
                plan.missed(self._now_s, why)
                if restarted and plan.mend(self._now_s):
                    self._said.append(Mend(plan.choice.name))

    def _plan(self, name: str | None) -> Deployment | None:
        return None if name is None else self._plans.get(name)

    def _arrive(self, request: str, deadline_s: float) -> None:
        if self._close_s is None:
            self._requests.arrive(request, deadline_s, self._now_s)
        else:
            self._said.append(Refuse(request, Reason.CLOSED, "the pipeline is being closed and takes no new requests; open another"))

    def _drain(self, tier: str) -> None:
        if tier in self._tiers:
            self._draining[tier] = False
        else:
            self._said.append(Drained(tier))

    def _lose_gateway(self, why: str) -> None:
        """With it goes all that it deployed."""
        self._gateway.fail(self._now_s, why)
        for plan in self._plans.values():
            plan.enter(State.ABSENT, self._now_s, why)

    # --- what follows from states and time

    def _give_up(self) -> None:
        if self._now_s >= self._gateway.give_up_s:
            self._stop_gateway(f"the gateway did not start within {self._settings.start_timeout_s:.3g} s")
        for plan in self._plans.values():
            if self._now_s >= plan.give_up_s:
                self._give_up_on(plan)

    def _give_up_on(self, plan: Deployment) -> None:
        now_s = self._now_s
        if plan.state is State.UP:
            plan.down(now_s, f"{plan} gave no sign of life for {now_s - plan.heard_s:.3g} s (limit {plan.limit_s:.3g} s)")
            return
        why = f"{plan} {'was not deployed' if plan.state is State.COMING else 'did not come back'} within {now_s - plan.since_s:.3g} s"
        if max(other.heard_s for other in self._plans.values()) <= plan.since_s:
            self._stop_gateway(f"{why}, and no other gave a sign of life")
        else:
            self._said.append(Undeploy(plan.choice.name))
            plan.fail(now_s, why)

    def _stop_gateway(self, why: str) -> None:
        self._said.append(StopGateway())
        self._lose_gateway(why)

    def _switch(self) -> None:
        best = next((name for name, plan in self._plans.items() if plan.state is State.UP and not self._is_draining(plan)), None)
        if best == self._current:
            return
        left, taken = self._plan(self._current), self._plan(best)
        if left and left.state is not State.UP:
            why = left.why
        elif left and self._is_draining(left):
            why = f"{left} uses a tier that is being drained: {', '.join(sorted(left.choice.tiers & self.draining))}"
        else:
            why = taken.why if taken else ""
        self._current = best
        self._said.append(Switched(best, why))

    def _is_draining(self, plan: Deployment) -> bool:
        return not plan.choice.tiers.isdisjoint(self._draining)

    def _may_start(self) -> bool:
        return self._started and bool(self._plans) and self._gateway.state is State.ABSENT

    def _deploy(self) -> None:
        now_s = self._now_s
        if self._may_start() and now_s >= self._gateway.ready_s:
            self._gateway.enter(State.COMING, now_s, "the gateway is starting", now_s + self._settings.start_timeout_s)
            self._said.append(StartGateway())
        for plan in self._to_deploy():
            if now_s >= plan.ready_s:
                plan.deploy(now_s)
                self._said.append(Deploy(plan.choice.name))
        for plan in self._superfluous():
            plan.enter(State.ABSENT, now_s, f"{plan} is not needed at present")
            self._said.append(Undeploy(plan.choice.name))

    def _wanted(self) -> list[Deployment]:
        """Best first, as many as are to stand by; those in trouble, or about to lose a tier, do not count."""
        if self._settings.standby is None:
            return list(self._plans.values())
        wanted, missing = [], self._settings.standby
        for plan in self._plans.values():
            if missing and not self._is_draining(plan):
                wanted.append(plan)
                missing -= plan.state is State.UP or not plan.backoff_s
        return wanted

    def _to_deploy(self) -> list[Deployment]:
        if self._gateway.state is not State.UP:
            return []
        return [plan for plan in self._wanted() if plan.state is State.ABSENT and not self._is_draining(plan)]

    def _superfluous(self) -> list[Deployment]:
        wanted = self._wanted()
        if self._settings.standby is None or sum(plan.is_settled(self._now_s) for plan in wanted) < self._settings.standby:
            return []
        return [
            plan for name, plan in self._plans.items()
            if plan not in wanted and plan.state is not State.ABSENT and not self._requests.under_way(name)
        ]  # fmt: skip

    def _ping(self) -> None:
        for name, plan in self._plans.items():
            if self._now_s >= plan.ping_s:
                plan.ping(self._now_s)
                self._said.append(Ping(name))

    def _finish(self) -> None:
        for tier in [tier for tier, said in self._draining.items() if not said]:
            if not any(self._requests.under_way(name) for name, plan in self._plans.items() if tier in plan.choice.tiers):
                self._draining[tier] = True
                self._said.append(Drained(tier))
        if self._close_s is not None:
            if self._now_s >= self._close_s:
                self._requests.close("the pipeline was closed before there was an answer")
            if not self._requests:
                self._closed = True
                self._said.append(Closed())
