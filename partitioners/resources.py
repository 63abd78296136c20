"""What a placement uses, as one vector: its additive cost, its loads, and the costs and memory that are limited."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from partitioners.arrays import Arrays, Floats, Ints
from partitioners.hops import hops
from partitioners.objective import ADDITIVE, FIELDS, Objective
from partitioners.prices import Prices, Rates

ROUNDING = 1e-9  # relative: limits are kept up to this, as in `cost`


class Resources:
    """The layout of the vector and how ops and tensors fill it.

        [0]  additive cost | loads: tiers, links up, links down | limited sums | memory of limited tiers
    """

    def __init__(self, a: Arrays, objective: Objective) -> None:
        self.a, self.objective = a, objective
        limits, k = a.problem.limits, a.tiers
        self.additive = Objective({name: weight for name, weight in objective.weights.items() if name in ADDITIVE})
        self.interval = objective.weight("interval")
        self.sums = [name for name in ADDITIVE if FIELDS[name] in limits]
        self.memory = [i for i, tier in enumerate(a.problem.tiers) if tier.memory_bytes is not None]
        self.loads = slice(1, 3 * k - 1)
        self.limited = slice(3 * k - 1, 3 * k - 1 + len(self.sums) + len(self.memory))
        self.limit = np.array([limits[FIELDS[name]] for name in self.sums] + [a.problem.tiers[i].memory_bytes or 0 for i in self.memory])
        self.pace = limits.get("interval_s", np.inf)
        self.size = self.limited.stop
        self._unit = [Prices(a, self.additive), *(Prices(a, Objective({name: 1.0})) for name in self.sums)]
        self._sum_places = [0, *range(self.limited.start, self.limited.start + len(self.sums))]
        self._rate = [(1 / link.bytes_per_s, 1 / link.back_bytes_per_s) for link in a.problem.links]

    @cached_property
    def ops(self) -> Floats:
        """(n, k, R) what each op uses on each tier, its results on the way back included."""
        a, k = self.a, self.a.tiers
        rows = np.zeros((len(a.low), k, self.size))
        for i in range(k):
            rows[:, i, 1 + i] = a.seconds[:, i]
            for j in range(i):
                rows[:, i, 2 * k + j] = a.returned_bytes * self._rate[j][1]
            for place, prices in zip(self._sum_places, self._unit, strict=True):
                rows[:, i, place] = prices.stay[:, i]
        for place, i in enumerate(self.memory, self.limited.start + len(self.sums)):
            rows[:, i, place] = a.memory_bytes
        return rows

    def hop(self, prices: Prices, start: int, stops: tuple[int, ...]) -> Floats:
        """(T, R) what each tensor uses on a hop, with the codec that is cheapest at these prices."""
        a, k = self.a, self.a.tiers
        codec = a.cheapest_codec(prices.hop(start, stops))
        rows = np.zeros((len(codec), self.size))
        rows[:, 1 + start] += a.encode_s[codec, start]
        for stop in stops:
            rows[:, 1 + stop] += a.decode_s[codec, stop]
        for j in range(start, max(stops)):
            rows[:, 1 + k + j] = a.nbytes[codec] * self._rate[j][0]
        for j in range(min(stops), start):
            rows[:, 2 * k + j] = a.nbytes[codec] * self._rate[j][1]
        for place, unit in zip(self._sum_places, self._unit, strict=True):
            rows[:, place] = unit.hop(start, stops)[codec]
        return rows

    def travel(self, prices: Prices, home: int, served: int) -> Floats:
        """(T, R) what each tensor uses from its producer's tier to all in the bit mask `served`."""
        stops = [i for i in range(self.a.tiers) if served >> i & 1]
        rows = np.zeros((len(self.a.producer), self.size))
        for start, ends in hops(self.a.problem, home, stops):
            rows += self.hop(prices, start, ends)
        return rows

    def of(self, tier: Ints, prices: Prices) -> Floats:
        """(R,) what a placement uses, with the codecs that are cheapest at these prices."""
        total = self.ops[np.arange(len(tier)), tier].sum(axis=0)
        for start, stops, tensors in self.a.travels(tier):
            total += self.hop(prices, start, stops)[tensors].sum(axis=0)
        return np.asarray(total + self.links(tier))

    def links(self, tier: Ints) -> Floats:
        """(R,) the latency of the links that a placement uses."""
        total = np.zeros(self.size)
        used = self.a.usage(tier).sum(axis=0)
        for place, unit in zip(self._sum_places, self._unit, strict=True):
            total[place] = unit.latency @ used
        return total

    def value(self, used: Floats) -> float:
        """What is minimised."""
        return float(used[0] + self.interval * used[self.loads].max())

    def excess(self, used: Floats) -> float:
        """By how much limits are broken, relative to them and added up; 0 within rounding."""
        over = (used[self.limited] - self.limit) / np.maximum(self.limit, 1e-12)
        pace = used[self.loads].max() / self.pace - 1 if self.pace else np.inf
        return float(over[over > ROUNDING].sum() + (pace if pace > ROUNDING else 0.0))

    # -- prices for the vector: loads (adding up to the interval's weight), limits, loads against a limited interval

    @property
    def priced(self) -> int:
        """How many prices there are."""
        loads = self.loads.stop - self.loads.start
        return loads + len(self.limit) + (loads if self.pace < np.inf else 0)

    def amounts(self, used: Floats) -> Floats:
        """(priced,) what the prices multiply: loads, and what is limited less its limit."""
        parts = [used[self.loads], used[self.limited] - self.limit]
        return np.concatenate([*parts, used[self.loads] - self.pace] if self.pace < np.inf else parts)

    def constant(self, m: Floats) -> float:
        """The part of the relaxed cost that no placement changes."""
        loads = self.loads.stop - self.loads.start
        total = m[loads : loads + len(self.limit)] @ self.limit
        return float(total + (m[-loads:].sum() * self.pace if self.pace < np.inf else 0.0))

    def prices(self, m: Floats) -> Prices:
        """What ops, tensors and links cost at these prices."""
        k, count = self.a.tiers, self.loads.stop - self.loads.start
        limits = m[count : count + len(self.limit)]
        load = m[:count] + (m[-count:] if self.pace < np.inf else 0.0)
        weights = dict(self.additive.weights)
        for name, price in zip(self.sums, limits, strict=False):
            weights[name] = weights.get(name, 0.0) + float(price)
        memory = np.zeros(k)
        memory[self.memory] = limits[len(self.sums) :]
        return Prices(self.a, Objective(weights), Rates(load[:k], load[k : 2 * k - 1], load[2 * k - 1 :], memory))
