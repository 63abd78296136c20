"""When requests come, and from which client.

An open process goes on whatever happens to its requests; a closed loop sends the next one when the last has ended.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Protocol

from splitinfer.errors import UsageError

Arrival = tuple[float, int]
"""Seconds, and the client, counted from 0."""


class Arrivals(Protocol):
    """An open process."""

    def times(self, clients: int, chance: Random) -> Iterator[Arrival]:
        """Arrivals in order."""


@dataclass(frozen=True)
class ClosedLoop:
    """Users who each have one request under way, and send the next `think_s` after its end. User u belongs to client u mod clients."""

    users: int = 1
    think_s: float = 0.0

    def __post_init__(self) -> None:
        """Check."""
        if self.users < 1 or not 0 <= self.think_s < math.inf:
            raise UsageError(f"a closed loop of {self.users} users who think {self.think_s} s; it needs one user and 0 s at least")


@dataclass(frozen=True)
class Poisson:
    """Independent arrivals, `rate_per_s` in all; each comes from any client, all equally likely."""

    rate_per_s: float

    def __post_init__(self) -> None:
        """Check."""
        _check_rate(self.rate_per_s)

    def times(self, clients: int, chance: Random) -> Iterator[Arrival]:
        """As the protocol."""
        now_s = 0.0
        while True:
            now_s += chance.expovariate(self.rate_per_s)
            yield now_s, chance.randrange(clients) if clients > 1 else 0


@dataclass(frozen=True)
class Periodic:
    """Each client sends every `period_s`, as a camera does; the first at once, the others each with a phase of their own."""

    period_s: float

    def __post_init__(self) -> None:
        """Check."""
        if not 0 < self.period_s < math.inf:
            raise UsageError(f"a period of {self.period_s} s; it must be above 0")

    def times(self, clients: int, chance: Random) -> Iterator[Arrival]:
        """As the protocol."""
        phases = sorted((self.period_s * chance.random() if client else 0.0, client) for client in range(clients))
        for number in count():
            for phase_s, client in phases:
                yield number * self.period_s + phase_s, client


@dataclass(frozen=True)
class Bursts:
    """A Poisson process that is on and off by turns, each for an exponential time: an interrupted Poisson process.

    The simplest Markov-modulated one (Fischer and Meier-Hellstern: The MMPP cookbook, Performance Evaluation 18, 1993).
    In the mean ``(rate * on + quiet * off) / (on + off)`` requests per second.
    """

    rate_per_s: float
    """While on, all clients together."""
    on_s: float
    off_s: float
    """Mean lengths."""
    quiet_per_s: float = 0.0
    """The rate while off."""

    def __post_init__(self) -> None:
        """Check."""
        _check_rate(self.rate_per_s)
        if not (0 < self.on_s < math.inf and 0 < self.off_s < math.inf and 0 <= self.quiet_per_s < math.inf):
            shape = f"bursts of {self.on_s} s, then {self.off_s} s at {self.quiet_per_s} per s"
            raise UsageError(f"{shape}; lengths are above 0, rates at least 0")

    def times(self, clients: int, chance: Random) -> Iterator[Arrival]:
        """As the protocol."""
        now_s, on = 0.0, True
        while True:
            ends_s = now_s + chance.expovariate(1 / (self.on_s if on else self.off_s))
            rate = self.rate_per_s if on else self.quiet_per_s
            while rate:
                now_s += chance.expovariate(rate)
                if now_s >= ends_s:  # memoryless: what was drawn past the end may be thrown away
                    break
                yield now_s, chance.randrange(clients)
            now_s, on = ends_s, not on


@dataclass(frozen=True)
class Given:
    """Arrivals as they were recorded."""

    arrivals: tuple[Arrival, ...]

    def __post_init__(self) -> None:
        """Check."""
        if not self.arrivals:
            raise UsageError("there are no arrivals; give at least one")
        before_s = 0.0
        for row, (time_s, client) in enumerate(self.arrivals, 1):
            if not before_s <= time_s < math.inf or client < 0:
                raise UsageError(f"arrival {row} is at {time_s} s, client {client}; times start at 0 and do not decrease, clients at 0")
            before_s = time_s

    def times(self, clients: int, chance: Random) -> Iterator[Arrival]:  # noqa: ARG002 - nothing is left to chance
        """As the protocol. Raises UsageError for a client that is not there."""
        for time_s, client in self.arrivals:
            if client >= clients:
                raise UsageError(f"an arrival comes from client {client}; there are {clients}, counted from 0. Raise the clients")
            yield time_s, client

    @staticmethod
    def from_csv(path: str | Path) -> Given:
        """Arrivals from a CSV file of seconds and, where there are several clients, the client; a first line of names is passed over."""
        rows: list[Arrival] = []
        try:
            with Path(path).open(encoding="utf-8", newline="") as lines:
                for number, row in enumerate(csv.reader(lines), 1):
                    try:
                        rows.append((float(row[0]), int(row[1]) if len(row) > 1 else 0))
                    except (ValueError, IndexError):
                        if number > 1 and row:
                            raise UsageError(f"{path}:{number}: {','.join(row)!r:.80} is not a time in s and a client") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the arrivals {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from error
        except csv.Error as error:
            raise UsageError(f"{path} is no CSV: {error}") from error
        return Given(tuple(rows))


def _check_rate(rate_per_s: float) -> None:
    if not 0 < rate_per_s < math.inf:
        raise UsageError(f"a rate of {rate_per_s} requests per second; it must be above 0")
