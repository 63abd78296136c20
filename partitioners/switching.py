"""When to change plans, and what a link is worth now: decisions from a stream of observations, without any I/O.

*Switching*. For each alternative keep what it would have saved, forgotten as soon as it would have cost more:

    acc = max(0, acc + cost of the current plan - cost of the alternative);    switch when acc > the cost of migrating

so nothing is paid for a move before staying has lost as much (the ski rental rule; metrical task systems: Borodin,
Linial and Saks, J. ACM 39(4), 1992). Two plans and one migration cost D, steps small beside D: the total is at most
4 times that of `offline_optimum`, plus 2 D. For let w(p) be the least cost of any past that ends in plan p, the current
one. acc stays between w(p) - w(other) and D more. So a switch comes before w(p) exceeds the other by D, where its
growth would be cut off, and what is paid for staying is that growth, all of it. A stay that ends with a switch cost D at
least, so the switch doubles it at most; no w ever shrinks; and at the end both are at most the optimum plus D.

*LinkEstimate*. A message takes t = a + nbytes * s: least squares with exponential forgetting in recursive form. s is
seconds per byte, averaged in the domain of time, E[1/rate]: half the bytes at 1 MB/s and half at 9 MB/s are 1.8 MB/s,
not 5. Messages of one size, or so small that the wire drowns in noise, identify a only; then no rate is stated.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from math import inf, sqrt
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from partitioners.errors import PartitionerError

Plan = TypeVar("Plan", bound=Hashable)

SURE = 4.0
"""Standard errors that the slope must be above zero; every message is a look, and chance reaches this in one of 30,000."""
FEWEST = 3.0
"""Messages, in effect, from which two coefficients and their error can be told."""


class Switching(Generic[Plan]):
    """Decides, after each observation, which plan to use from now on."""

    def __init__(self, migration_cost: float | Callable[[Plan, Plan], float], current: Plan | None = None) -> None:
        """`migration_cost` is in the unit of the costs, one number or a function of (from, to); `current` None: the first best."""
        self.migration_cost = migration_cost
        self.current = current
        self.saved: dict[Plan, float] = {}
        """For each alternative, what it would have saved by now."""

    def observe(self, costs: Mapping[Plan, float]) -> Plan:
        """Take what each plan cost, or would have cost, since the last time; return the plan to use next.

        Plans may come and go: one without a cost cannot be used, so the current one is left at once if it is missing.
        Raises `PartitionerError` if there is no plan at all.
        """
        if not costs:
            raise PartitionerError("there is no plan to choose from; give at least one cost")
        if self.current is None or self.current not in costs:
            return self._switch(min(costs, key=lambda plan: costs[plan] + self._migration(plan)))
        here = costs[self.current]
        self.saved = {plan: max(0.0, self.saved.get(plan, 0.0) + here - cost) for plan, cost in costs.items() if plan != self.current}
        gains = {plan: saved - self._migration(plan) for plan, saved in self.saved.items()}
        best = max(gains, key=gains.__getitem__, default=self.current)
        return self._switch(best) if gains.get(best, 0.0) > 0 else self.current

    def _switch(self, plan: Plan) -> Plan:
        self.current, self.saved = plan, {}
        return plan

    def _migration(self, plan: Plan) -> float:
        if self.current is None:
            return 0.0
        return self.migration_cost(self.current, plan) if callable(self.migration_cost) else self.migration_cost


def offline_optimum(costs: ArrayLike, migration_cost: ArrayLike, start: int | None = None) -> tuple[float, list[int]]:
    """Return the least total that knowing the future allows, and the plan of each step; O(steps x plans^2).

    `costs` is (steps, plans); `migration_cost` one number or (plans, plans), from and to. `start` is the plan in use
    before the first step; None: any, for nothing. Staying is free.
    """
    each = np.asarray(costs, dtype=float)
    steps, plans = each.shape
    move = np.broadcast_to(np.asarray(migration_cost, dtype=float), (plans, plans)).copy()
    np.fill_diagonal(move, 0.0)
    least = np.zeros(plans) if start is None else np.where(np.arange(plans) == start, 0.0, inf)
    came = np.zeros((steps, plans), dtype=np.int64)
    for step in range(steps):
        through = least[:, None] + move
        came[step] = through.argmin(axis=0)
        least = through.min(axis=0) + each[step]
    path = [int(least.argmin())] if steps else []
    for step in range(steps - 1, 0, -1):
        path.append(int(came[step, path[-1]]))
    return float(least.min()), path[::-1]


class LinkEstimate:
    """Latency and rate of a link, from the sizes and the times of messages."""

    def __init__(self, forgetting: float = 0.98) -> None:
        """A message counts `forgetting` times what the next one does: 0.98 looks back about 50 messages. In (0, 1]."""
        if not 0 < forgetting <= 1:
            raise PartitionerError(f"forgetting is {forgetting}; it must be above 0 and at most 1")
        self.forgetting = forgetting
        self._weight = self._weight_of_squares = 0.0
        self._mean_nbytes = self._mean_s = 0.0
        self._bytes2 = self._bytes_s = self._s2 = 0.0  # sums of squares and products around the means

    def observe(self, nbytes: float, seconds: float) -> None:
        """Take one message; O(1)."""
        keep, before = self.forgetting, self._weight * self.forgetting
        self._weight, self._weight_of_squares = before + 1, self._weight_of_squares * keep**2 + 1
        more_bytes, more_s = nbytes - self._mean_nbytes, seconds - self._mean_s
        self._mean_nbytes += more_bytes / self._weight
        self._mean_s += more_s / self._weight
        share = before / self._weight
        self._bytes2 = keep * self._bytes2 + share * more_bytes**2
        self._bytes_s = keep * self._bytes_s + share * more_bytes * more_s
        self._s2 = keep * self._s2 + share * more_s**2

    @property
    def messages(self) -> float:
        """How many count, in effect."""
        return self._weight**2 / self._weight_of_squares if self._weight else 0.0

    @property
    def identified(self) -> bool:
        """Whether the messages tell what a byte costs: the slope is well above its standard error."""
        if self.messages < FEWEST or self._bytes2 <= 1e-12 * self._weight * self._mean_nbytes**2:
            return False
        slope = self._bytes_s / self._bytes2
        unexplained = max(0.0, self._s2 - slope * self._bytes_s)
        return slope > SURE * sqrt(unexplained / (self.messages - 2) / self._bytes2)

    @property
    def seconds_per_byte(self) -> float | None:
        """E[1/rate]; None while it is not identified."""
        return self._bytes_s / self._bytes2 if self.identified else None

    @property
    def bytes_per_s(self) -> float | None:
        """The rate, a harmonic mean; None while it is not identified."""
        slope = self.seconds_per_byte
        return None if slope is None else 1 / slope

    @property
    def latency_s(self) -> float:
        """The time of an empty message, which noise may put below zero; while the rate is not identified, of a message as seen."""
        return self._mean_s - (self.seconds_per_byte or 0.0) * self._mean_nbytes
