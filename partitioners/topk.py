"""The best k placements instead of the best one: what else is there, and how much dearer is it.

Murty, "An algorithm for ranking all the assignments in order of increasing cost" (Operations Research 1968), in the
form of Lawler (Management Science 1972). The placements other than the best one fall, op by op, into disjoint sets:

    best                  a b c d                    the tiers of four ops in topological order; *: any tier
    all others            A * * *  |  a B * *  |  a b C *  |  a b c D       A: any other than a, a set for each

The best of each set is found by `solve` with its fixed ops pinned; the best of them all is the second placement, and
its own set falls apart in the same way for the third. O(k n (tiers - 1)) calls of `solve`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from heapq import heappop, heappush, nsmallest
from itertools import count

import numpy as np

from partitioners.arrays import Arrays
from partitioners.cost import solution
from partitioners.errors import Infeasible, PartitionerError
from partitioners.objective import LATENCY, Objective
from partitioners.placement import Solution
from partitioners.prices import Prices
from partitioners.problem import Problem
from partitioners.strategies import solve

LIMIT = 2_000_000  # ops times calls of `solve`: a few minutes


def top_k(problem: Problem, k: int, objective: str | Objective = LATENCY) -> list[Solution]:
    """Return the k best different placements, the best first, each with its best codecs; all, if there are fewer.

    For sums, with every limit that 'auto' keeps. The certificates say how far from the optimum each is proved to be.
    Raises `PartitionerError` for other objectives, for more than `LIMIT`, and where a set's best cannot be proved.
    """
    objective = Objective.of(objective)
    if not objective.additive:
        raise PartitionerError(f"top_k ranks by sums over ops and tensors; '{objective}' is none")
    if k < 1:
        raise PartitionerError(f"top_k of {k} placements; ask for one or more")
    sets = _Sets(problem, objective)
    if (work := sets.alternatives * (k - 1) * len(problem.ops)) > LIMIT:
        raise PartitionerError(
            f"the {k} best of {len(problem.ops)} ops take up to {sets.alternatives * (k - 1):,} solutions of the problem, {work:,} with"
            f" its ops; the limit is {LIMIT:,}.\n  Ask for fewer, or pin what is decided."
        )
    best = _proved(problem, objective)
    found: list[Solution] = []
    # Entries: the best placement of a set, the set being all that agree with it on the first `fixed` ops.
    number = count()
    queue = [(best.value, next(number), best, 0)]
    while queue:
        _, _, chosen, fixed = heappop(queue)
        found.append(chosen)
        wanted = k - len(found)
        if not wanted:
            break
        for pins, after in sets.split(chosen.placement, fixed):
            # A set whose every placement is dearer than those in hand need not be solved.
            enough = nsmallest(wanted, queue)[-1][0] if wanted <= len(queue) else np.inf
            if sets.floor(pins) < enough and (member := sets.best(pins)):
                heappush(queue, (member.value, next(number), member, after))
    return [
        solution(problem, each.placement, f"top {place}", best.certificate.bound, objective, each.codecs)
        for place, each in enumerate(found, start=1)
    ]


def _proved(problem: Problem, objective: Objective) -> Solution:
    best = solve(problem, "auto", objective)
    if best.certificate.status != "optimal":
        raise PartitionerError(f"the best of a set of placements is only proved to be '{best.certificate}', so no rank is certain")
    return best


class _Sets:
    """Sets of placements, given by the tiers of the first few ops in topological order."""

    def __init__(self, problem: Problem, objective: Objective) -> None:
        self.problem, self.objective = problem, objective
        self.a = Arrays.of(problem)
        self.order = list(problem.predecessors)
        self.alternatives = int((self.a.high - self.a.low).sum())
        prices = Prices(self.a, objective)
        self.stay = prices.stay
        self.up = np.zeros((len(self.a.producer), 0))
        if problem.relay == "transcode":
            links = [self.a.cheapest(prices.hop(j, [j + 1])) for j in range(self.a.tiers - 1)]
            self.up = np.stack(links, axis=1) if links else self.up

    def split(self, placement: Mapping[str, str], fixed: int) -> Iterator[tuple[dict[str, str], int]]:
        """Yield the sets into which all others fall: their pins, and how many ops these fix."""
        index, tiers = self.problem.tier_index, self.problem.tiers
        for p in range(fixed, len(self.order)):
            name = self.order[p]
            v, pins = self.problem.op_index[name], {other: placement[other] for other in self.order[:p]}
            least = int(self.a.low[v])
            if not self.problem.two_way:
                least = max([least, *(index[placement[before]] for before in self.problem.predecessors[name])])
            for i in range(least, int(self.a.high[v]) + 1):
                if tiers[i].name != placement[name]:
                    yield {**pins, name: tiers[i].name}, p + 1

    def best(self, pins: Mapping[str, str]) -> Solution | None:
        """Return the best placement of a set; None: it is empty."""
        ops = tuple(replace(op, pinned=pins.get(op.name, op.pinned)) for op in self.problem.ops)
        try:
            return _proved(replace(self.problem, ops=ops), self.objective)
        except Infeasible:
            return None

    def floor(self, pins: Mapping[str, str]) -> float:
        """No placement of a set costs less: its fixed ops, the others where each is cheapest, transfers that are certain."""
        low, high = self.a.low.copy(), self.a.high.copy()
        at = [self.problem.op_index[name] for name in pins]
        low[at] = high[at] = [self.problem.tier_index[tier] for tier in pins.values()]
        tier = np.arange(self.a.tiers)
        open_ = (low[:, None] <= tier) & (tier <= high[:, None])
        total = np.where(open_, self.stay, np.inf).min(axis=1).sum()
        furthest = np.zeros(len(self.a.producer), dtype=np.int64)
        np.maximum.at(furthest, self.a.owner, low[self.a.consumer])
        link = np.arange(self.up.shape[1])
        crossed = (high[self.a.producer][:, None] <= link) & (link < furthest[:, None])
        return float(total + self.up[crossed].sum())
