"""What the machine is given: the family of plans, and its times and limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from splitinfer.errors import UsageError


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds. Raises UsageError for a value that is out of range."""

    beat_s: float = 0.5
    """Between the pings of one plan."""
    silence_s: float = 2.0
    """Without a sign of life for this long, plus twice its predicted latency, a plan is down."""
    steady_beats: int = 2
    """Pings in a row that a plan which was down answers before it is used again."""
    first_backoff_s: float = 1.0
    """Before a plan is deployed, or a gateway started, again; doubles each time it fails soon."""
    longest_backoff_s: float = 10.0
    """To which the backoff grows. A plan that has been up for so long makes those beyond `standby` superfluous."""
    stuck_s: float = 15.0
    """A plan that stays down for this long is deployed anew; if no plan gave a sign of life meanwhile, the gateway is started anew."""
    deploy_timeout_s: float = 120.0
    """For a deployment, and for reloading stages that were restarted."""
    start_timeout_s: float = 30.0
    """For the start of a gateway."""
    most_in_flight: int = 256
    """Requests that are open at once; further ones are refused."""
    standby: int | None = None
    """How many plans are kept deployed, the best that can be had; None: all."""

    def __post_init__(self) -> None:
        """Check."""
        for name in (field.name for field in fields(self) if field.name.endswith("_s")):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be finite and above 0 s")
        if self.longest_backoff_s < self.first_backoff_s:
            raise UsageError(f"longest_backoff_s is {self.longest_backoff_s}, below first_backoff_s, {self.first_backoff_s}; raise it")
        for name in ("steady_beats", "most_in_flight", "standby"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise UsageError(f"{name} is {number}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class Choice:
    """One plan of the family. Raises UsageError for a latency that is negative or not finite."""

    name: str
    tiers: frozenset[str]
    """That it uses beyond the caller's own."""
    latency_s: float
    """Predicted, of one request."""

    def __post_init__(self) -> None:
        """Check."""
        if not 0 <= self.latency_s < math.inf:
            raise UsageError(f"plan '{self.name}' has a latency of {self.latency_s} s; it must be finite and at least 0")
