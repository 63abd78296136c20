"""Local search on a placement: one op at a time to another tier, loads and limits kept up to date.

Two moves. *Sweep*: two placements differ beyond link j by a set of ops; take them over one after the other, sources
first where they come down and sinks first where they go up, so that data keeps flowing down the line, and stop where it
is best. This finds the balance between two placements that a relaxation cannot tell apart. *Descend*: any single op to
a neighbouring tier, while that helps. A move costs O(tensors at the op).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from partitioners.arrays import Floats, Ints
from partitioners.prices import Prices
from partitioners.resources import Resources

PENALTY = 10.0  # of the value, for each limit broken by 100 %: breaking a limit never pays for long


class Search:
    """A placement under change; codecs are those that are cheapest at the prices given."""

    def __init__(self, resources: Resources, prices: Prices, tier: Ints) -> None:
        self.r, self.a, self.prices = resources, resources.a, prices
        n, k = len(tier), self.a.tiers
        self.touching: list[list[int]] = [[] for _ in range(n)]  # tensors at each op
        self.consumers = np.split(self.a.consumer, np.cumsum(self.a.fan_out)[:-1]) if len(self.a.fan_out) else []
        for t, producer in enumerate(self.a.producer.tolist()):
            self.touching[producer].append(t)
            for user in self.consumers[t].tolist():
                self.touching[user].append(t)
        self.before = [[u for u, _ in each] for each in self.a.producers_of]
        self.after = [[u for u, _ in each] for each in self.a.consumers_of]
        self.rank = np.empty(n, dtype=np.int64)
        self.rank[self.a.topological] = np.arange(n)
        self.low, self.high = self.a.low.tolist(), self.a.high.tolist()
        self._rows: dict[tuple[int, int], Floats] = {}
        self.bits = [1 << i for i in range(k)]
        self.set(tier)

    def set(self, tier: Ints) -> None:
        """Start again from a placement."""
        self.tier = tier.tolist()
        self.count = np.zeros((len(self.consumers), self.a.tiers), dtype=np.int64)  # consumers of each tensor on each tier
        np.add.at(self.count, (self.a.owner, tier[self.a.consumer]), 1)
        self.used = self.r.of(tier, self.prices)

    @property
    def score(self) -> float:
        """The value, and a price for broken limits."""
        value = self.r.value(self.used)
        return value + PENALTY * abs(value) * self.r.excess(self.used)

    def move(self, v: int, to: int) -> None:
        """Put an op on another tier."""
        old = self.tier[v]
        delta = self.r.ops[v, to] - self.r.ops[v, old]
        for t in self.touching[v]:
            delta -= self._row(t)
        self.tier[v] = to
        for t in self.touching[v]:
            if self.a.producer[t] != v:
                self.count[t, old] -= 1
                self.count[t, to] += 1
            delta += self._row(t)
        self.used = self.used + delta

    def _row(self, t: int) -> Floats:
        home = self.tier[self.a.producer[t]]
        served = sum(bit for i, bit in enumerate(self.bits) if self.count[t, i] and i != home)
        if (home, served) not in self._rows:
            self._rows[home, served] = self.r.travel(self.prices, home, served)
        return np.asarray(self._rows[home, served][t])

    def allowed(self, v: int, to: int) -> bool:
        """Whether pins and the direction of the data let an op be on a tier."""
        if not self.low[v] <= to <= self.high[v]:
            return False
        if self.a.problem.two_way:
            return True
        return all(self.tier[u] <= to for u in self.before[v]) and all(self.tier[w] >= to for w in self.after[v])

    def sweep(self, other: Ints, until: float) -> bool:
        """Take over another placement op by op, link by link and way by way, as far as it helps; says whether it did."""
        helped = False
        for j in range(self.a.tiers - 1):
            here = np.array(self.tier)
            down = np.flatnonzero((here > j) & (other <= j))
            up = np.flatnonzero((here <= j) & (other > j))
            helped |= self._walk([(v, j) for v in down[np.argsort(self.rank[down])].tolist()], until)
            helped |= self._walk([(v, j + 1) for v in up[np.argsort(-self.rank[up])].tolist()], until)
        return helped

    def descend(self, until: float, rounds: int = 5) -> None:
        """Move single ops to neighbouring tiers while that helps."""
        for _ in range(rounds):
            edge = [v for v, i in enumerate(self.tier) if any(self.tier[u] != i for u in self.before[v] + self.after[v])]
            moved = False
            for v in edge:
                for to in (self.tier[v] - 1, self.tier[v] + 1):
                    if 0 <= to < self.a.tiers and self.allowed(v, to):
                        moved |= self._walk([(v, to)], until)
            if not moved or time.monotonic() > until:
                return

    def _walk(self, moves: Sequence[tuple[int, int]], until: float) -> bool:
        """Make moves one after the other, then go back to where it was best."""
        best, kept = self.score, 0
        done: list[tuple[int, int]] = []
        for v, to in moves:
            if not self.allowed(v, to) or time.monotonic() > until:
                continue
            done.append((v, self.tier[v]))
            self.move(v, to)
            if self.score < best - 1e-12 * abs(best):
                best, kept = self.score, len(done)
        for v, back in reversed(done[kept:]):
            self.move(v, back)
        return kept > 0


def improved(resources: Resources, prices: Prices, tiers: Sequence[Ints], until: float) -> Ints:
    """From each of a few placements sweep once towards the others and towards single tiers; go on from the best."""
    a = resources.a
    targets = [*tiers, *(np.clip(i, a.low, a.high) for i in range(a.tiers))]
    search = Search(resources, prices, tiers[0])
    best, score = tiers[0], np.inf
    for start in tiers:
        search.set(start)
        for other in targets:
            search.sweep(other, until)
        if search.score < score:
            best, score = np.array(search.tier), search.score
    search.set(best)
    while sum(search.sweep(other, until) for other in targets) and time.monotonic() < until:
        pass
    search.descend(until)
    return np.array(search.tier)
