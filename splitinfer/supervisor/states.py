"""The state of the gateway, and of one plan behind it; neither knows of the other, nor of requests.

::

    gateway    ABSENT --StartGateway--> COMING --GatewayUp--> UP
    plan       ABSENT --Deploy--> COMING --Deployed--> UP <--beats / silence--> DOWN

and back to ABSENT from everywhere, to come again after a backoff.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from splitinfer.supervisor.settings import Choice, Settings


class State(Enum):
    """Of a gateway (never down: it is ended instead), or of a plan."""

    ABSENT = "absent"
    COMING = "coming"
    UP = "up"
    DOWN = "down"
    """Deployed, but not to be relied on."""


@dataclass(frozen=True, slots=True)
class PartStatus:
    """The gateway or a plan, for people."""

    state: State
    since_s: float
    why: str
    in_flight: int
    """Requests under way there."""


class Part:
    """Something that is started, may fail, and is started again later and later if it fails soon each time."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.state = State.ABSENT
        self.since_s = 0.0
        self.why = "not started yet"
        self.backoff_s = 0.0
        """After the last failure; 0 while none was."""
        self.ready_s = -math.inf
        """Absent: not started before; down: not used before."""
        self.give_up_s = math.inf
        """The present state is not borne any longer than until then."""

    def status(self, in_flight: int) -> PartStatus:
        """How it is, beside the number of requests under way there."""
        return PartStatus(self.state, self.since_s, self.why, in_flight)

    def enter(self, state: State, now_s: float, why: str, give_up_s: float = math.inf) -> None:
        """Leave the present state. What stayed up for longer than its last backoff begins with the shortest again."""
        if self.state is State.UP and now_s >= self.since_s + self.backoff_s:
            self.backoff_s = 0.0
        self.state, self.since_s, self.why, self.give_up_s = state, now_s, why, give_up_s

    def fail(self, now_s: float, why: str) -> None:
        """Absent, and not to be started again before the backoff."""
        self.enter(State.ABSENT, now_s, why)
        self.ready_s = self.later_s(now_s)

    def later_s(self, now_s: float) -> float:
        """The end of a backoff that begins now, and is twice as long as the one before."""
        self.backoff_s = min(max(2 * self.backoff_s, self.settings.first_backoff_s), self.settings.longest_backoff_s)
        return now_s + self.backoff_s


class Deployment(Part):
    """One plan of the family: what is known of its stages."""

    def __init__(self, choice: Choice, settings: Settings) -> None:
        super().__init__(settings)
        self.choice = choice
        self.limit_s = settings.silence_s + 2 * choice.latency_s
        """A silence that is longer means that it is down."""
        self.heard_s = -math.inf
        self._beats = 0
        self._pinged_s = -math.inf
        self._ping_is_out = False
        self._mend_s = -math.inf

    @property
    def is_deployed(self) -> bool:
        """All stages were put in place."""
        return self.state in (State.UP, State.DOWN)

    def is_settled(self, now_s: float) -> bool:
        """Up for so long that others are not needed beside it."""
        return self.state is State.UP and now_s >= self.since_s + self.settings.longest_backoff_s

    def deploy(self, now_s: float) -> None:
        """It is being deployed."""
        self.enter(State.COMING, now_s, f"plan '{self.choice.name}' is being deployed", now_s + self.settings.deploy_timeout_s)

    def deployed(self, now_s: float) -> None:
        """It is used at once, unless it has failed lately: then it must answer pings first."""
        if self.state is not State.COMING:
            return
        self._beats, self._ping_is_out, self._pinged_s, self.ready_s, self._mend_s = 0, False, -math.inf, now_s, now_s
        if self.backoff_s:
            self.enter(State.DOWN, now_s, f"{self} is deployed again, and has yet to answer pings", now_s + self.settings.stuck_s)
        else:
            self.enter(State.UP, now_s, f"{self} is deployed")
        self.hear(now_s)

    def hear(self, now_s: float) -> None:
        """A sign of life."""
        if self.is_deployed:
            self.heard_s = now_s
        if self.state is State.UP:
            self.give_up_s = now_s + self.limit_s

    def down(self, now_s: float, why: str) -> None:
        """Not used until it answers pings again; if it was down a moment ago, not before the backoff either."""
        self.enter(State.DOWN, now_s, why, now_s + self.settings.stuck_s)
        self._beats = 0
        self.ready_s = self._mend_s = now_s + self.backoff_s
        self.later_s(now_s)

    @property
    def ping_s(self) -> float:
        """When to ping it next."""
        if not self.is_deployed:
            return math.inf
        return self._pinged_s + (self.limit_s if self._ping_is_out else self.settings.beat_s)

    def ping(self, now_s: float) -> None:
        """A ping is sent; one that is still out counts as failed."""
        if self._ping_is_out:
            self._beats = 0
        self._pinged_s, self._ping_is_out = now_s, True

    def beat(self, now_s: float) -> None:
        """The ping came back."""
        self.hear(now_s)
        self._beats += self._ping_is_out  # one that comes twice counts once
        self._ping_is_out = False
        if self.state is State.DOWN and self._beats >= self.settings.steady_beats and now_s >= self.ready_s:
            self.enter(State.UP, now_s, f"{self} answered {self._beats} pings in a row", now_s + self.limit_s)

    def missed(self, now_s: float, why: str) -> None:
        """The ping failed."""
        if not (self.is_deployed and self._ping_is_out):
            return
        self._beats, self._ping_is_out = 0, False
        if self.state is State.UP:
            self.down(now_s, f"{self} failed a ping: {why}")

    def mend(self, now_s: float) -> bool:
        """Whether to reload its restarted stages now, rather than later; from then on it may stay down as long as a deployment takes."""
        if self.state is not State.DOWN or now_s < self._mend_s:
            return False
        self._mend_s = self.later_s(now_s)
        self.give_up_s = max(self.give_up_s, self.since_s + self.settings.deploy_timeout_s)
        return True

    def __str__(self) -> str:
        return f"plan '{self.choice.name}'"
