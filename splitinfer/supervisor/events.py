"""What the machine hears and what it says; plain data.

`request` names a request and is never used again; attempts of a request count from 0; plans and tiers go by their names.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# --- events


@dataclass(frozen=True, slots=True)
class Start:
    """Start the gateway and deploy; until then requests are answered alone, or wait."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """The caller wants an answer by `deadline_s`, a time on the clock of `handle`."""

    request: str
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Answered:
    """There is an answer to this attempt."""

    request: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Failed:
    """This attempt ended without an answer."""

    request: str
    attempt: int
    lost: bool
    """The process or machine is gone, and it may be tried again; otherwise it is the model's own error, and final."""
    why: str


@dataclass(frozen=True, slots=True)
class GatewayUp:
    """The gateway started last can deploy; nothing is deployed yet."""


@dataclass(frozen=True, slots=True)
class GatewayLost:
    """The gateway started last has ended, or could not be started."""

    why: str


@dataclass(frozen=True, slots=True)
class Deployed:
    """All stages of the plan are in place."""

    plan: str


@dataclass(frozen=True, slots=True)
class DeployFailed:
    """The plan could not be deployed, and nothing of it is left."""

    plan: str
    why: str


@dataclass(frozen=True, slots=True)
class Beat:
    """The last ping of the plan went through all its stages and back."""

    plan: str


@dataclass(frozen=True, slots=True)
class Missed:
    """The last ping of the plan failed at once."""

    plan: str
    why: str
    restarted: bool = False
    """A stage is there again, but empty: `Mend` helps."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing but time has passed."""


@dataclass(frozen=True, slots=True)
class DrainTier:
    """Send nothing new to this tier, and say when nothing is under way there."""

    tier: str


@dataclass(frozen=True, slots=True)
class ReturnTier:
    """Use the tier again."""

    tier: str


@dataclass(frozen=True, slots=True)
class Close:
    """Take no new requests, and refuse those that are still open at `until_s`."""

    until_s: float


Event = (
    Start | Arrived | Answered | Failed | GatewayUp | GatewayLost | Deployed | DeployFailed | Beat | Missed | Tick | DrainTier
    | ReturnTier | Close
)  # fmt: skip

# --- instructions


class Reason(Enum):
    """Why a request was refused."""

    OVERLOADED = "overloaded"
    """Too many are open."""
    DEADLINE = "deadline"
    """There was no answer in time."""
    FAILED = "failed"
    """The model's own error."""
    LOST = "lost"
    """Its machine or process is gone, and it must not be tried again."""
    CLOSED = "closed"
    """The pipeline is being closed."""


@dataclass(frozen=True, slots=True)
class Send:
    """Pass the request to a plan."""

    request: str
    attempt: int
    plan: str


@dataclass(frozen=True, slots=True)
class AnswerAlone:
    """Answer the request on the device."""

    request: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Accept:
    """Give this attempt's answer to the caller. The request has ended."""

    request: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Give the caller an error. The request has ended."""

    request: str
    reason: Reason
    why: str


@dataclass(frozen=True, slots=True)
class Abandon:
    """This attempt need not go on; an answer that it gives nevertheless is still to be reported."""

    request: str
    attempt: int


@dataclass(frozen=True, slots=True)
class StartGateway:
    """Start a gateway; nothing may be left of earlier ones, and nothing they say may be reported from here on."""


@dataclass(frozen=True, slots=True)
class StopGateway:
    """End the gateway, by force if it does not hear."""


@dataclass(frozen=True, slots=True)
class Deploy:
    """Put the stages of the plan in place; answered by `Deployed` or `DeployFailed`."""

    plan: str


@dataclass(frozen=True, slots=True)
class Undeploy:
    """Remove the plan, or break off its deployment."""

    plan: str


@dataclass(frozen=True, slots=True)
class Mend:
    """Reload the restarted stages of the plan, unless that is under way already."""

    plan: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Send a ping through all stages of the plan, in place of one that is still out; answered by `Beat` or `Missed`, or not at all."""

    plan: str


@dataclass(frozen=True, slots=True)
class Switched:
    """New requests take this plan from here on; None: they are answered alone, or wait."""

    plan: str | None
    why: str


@dataclass(frozen=True, slots=True)
class Drained:
    """No request is under way on this tier any more."""

    tier: str


@dataclass(frozen=True, slots=True)
class Closed:
    """All requests have ended; nothing will be said any more, except that new requests are refused."""


Instruction = (
    Send | AnswerAlone | Accept | Refuse | Abandon | StartGateway | StopGateway | Deploy | Undeploy | Mend | Ping | Switched | Drained
    | Closed
)  # fmt: skip
