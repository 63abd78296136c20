"""Chains, exactly: where to cut, and with which codec, by dynamic programming.

Data flows one way, so each tier holds one stretch of the chain, and a placement is a list of cuts:

    tier 0      tier 1          tier 2
    o--o--o  |  o--o--o--o  |   o--o--o          cut a: before op a; cut n: after the last
             a              b

    arrive[i, a, c]  the least cost of all before cut a, on its way into tier i with codec c
    leave[i, b, d]   the same with the ops a..b-1 on tier i, and on its way out with codec d

    leave[i, b, d]   = min over a, c of  arrive[i, a, c] (+) decode(i, a, c) + ops a..b-1 on tier i + encode(i, b, d)
    arrive[j, b, d]  = min over i < j of leave[i, b, d] (+) carry(i, j, b, d)

(+) is "+" for sums such as latency, and "max" for the interval: the load of a tier, the load of a link. What a stretch
takes of its tier's memory is known with the stretch, so limits on memory cost nothing extra. Relay "forward" carries
from any tier to any later one; "transcode" from each to the next, where the stretch may be empty.

O(k n^2 C^2), C codecs for a cut; C is 1 for sums, where each tensor takes its cheapest codec.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from math import prod

import numpy as np

from partitioners.arrays import Arrays, Floats, Ints
from partitioners.cost import ROUNDING, evaluate, solution, violations
from partitioners.errors import Infeasible, PartitionerError
from partitioners.objective import Objective
from partitioners.placement import Crossing, Solution
from partitioners.prices import Prices
from partitioners.problem import Problem

WAYS = 64  # choices of codecs for all tensors of one cut together: 600 ops take some 20 s with it


def by_chain(problem: Problem, objective: Objective) -> Solution:
    """Place a chain for any sum of costs, or for the interval, under limits on memory."""
    _refuse(problem, objective)
    chain = _Chain(problem)
    if objective.additive:
        value, stretches = chain.shortest(chain.sums(objective), np.add)
        codecs = None  # the cost function takes each tensor's cheapest, too
    else:
        value, stretches = chain.shortest(chain.loads(), np.maximum)
        value, codecs = value * objective.weight("interval"), chain.crossings(stretches)
    if not stretches:
        _, stretches = chain.shortest(chain.excess(), np.maximum, limited=False)
        cost, _ = evaluate(problem, chain.placement(stretches))
        raise Infeasible(f"no cuts of the chain keep the limits; the nearest: {'; '.join(violations(problem, cost))}")
    return solution(problem, chain.placement(stretches), "chain", value, objective, codecs)


def _refuse(problem: Problem, objective: Objective) -> None:
    if not objective.additive and set(objective.weights) != {"interval"}:
        raise PartitionerError(f"'chain' minimises a sum, or the interval alone; '{objective}' is neither.\n  Take 'blocks' or 'milp'.")
    if problem.limits:
        limits = ", ".join(f"{name} {limit:.6g}" for name, limit in problem.limits.items())
        raise PartitionerError(f"'chain' keeps limits on memory alone; the problem has {limits}.\n  Take 'blocks' or 'milp'.")
    if problem.two_way:
        raise PartitionerError("'chain' sends data one way; the problem is two_way.\n  Take 'mincut' or 'milp'.")
    users = {name: set[str]() for name in problem.predecessors}
    for tensor in problem.tensors:
        users[tensor.producer].update(tensor.consumers)
    sources = [name for name, before in problem.predecessors.items() if not before]
    branches = [f"{name!r} takes data from {len(set(before))} ops" for name, before in problem.predecessors.items() if len(set(before)) > 1]
    branches += [f"{name!r} sends data to {len(after)} ops" for name, after in users.items() if len(after) > 1]
    branches += [f"{', '.join(map(repr, sources[:3]))} begin {len(sources)} chains"] if len(sources) > 1 else []
    if branches:
        raise PartitionerError(f"'chain' needs one op after the other; {branches[0]}.\n  Take 'blocks' or 'mincut'.")


@dataclass(frozen=True)
class _Terms:
    """The terms of the recurrences, for k tiers, cuts 0..n and C codecs."""

    work: Floats
    """(k, n) of each op on each tier; infinite where it must not be."""
    decode: Floats
    """(k, n + 1, C)"""
    encode: Floats
    """(k, n + 1, C)"""
    carry: dict[tuple[int, int], Floats]
    """(from, to) -> (n, C); infinite where there is nothing to carry, or no such codec."""
    start: Floats
    """(k,) of a chain that begins on this tier."""


@dataclass(frozen=True)
class _Stretch:
    """Consecutive ops on one tier."""

    tier: int
    first: int
    stop: int
    way_in: int
    """The codecs on the way in, by their position in `_Chain.ways`."""


class _Chain:
    """A problem whose ops follow one another."""

    def __init__(self, problem: Problem) -> None:
        self.a = a = Arrays.of(problem)
        self.order = np.array(a.topological)
        self.tiers, self.size = a.tiers, len(self.order)
        self.memory_limit = np.array([np.inf if tier.memory_bytes is None else tier.memory_bytes for tier in problem.tiers])
        # Tensors that may cross, and the cut where they do; the others are results.
        self.sent = np.flatnonzero(a.fan_out)
        self.cut = np.argsort(self.order)[a.producer[self.sent]] + 1
        # What returns from beyond a cut.
        self.back_bytes = a.returned_bytes[self.order][::-1].cumsum()[::-1]
        self.back_reach = np.maximum.accumulate(a.return_reach[self.order][::-1])[::-1]
        self.forward = problem.relay == "forward"
        self.hops = [(i, j) for j in range(self.tiers) for i in range(j) if self.forward or i == j - 1]

    def sums(self, objective: Objective) -> _Terms:
        """Terms of an additive objective; the cheapest codecs are priced in `carry`."""
        prices = Prices(self.a, objective)
        reach, carry = np.zeros(self.size), {}
        np.maximum.at(reach, self.cut, self.a.reach[self.sent])
        for i, j in self.hops:
            # What uses a link up crosses at this very cut; what uses it down returns from beyond.
            carry[i, j] = prices.latency[i:j].sum() * (reach + self.back_reach)
            np.add.at(carry[i, j], self.cut, self.a.cheapest(prices.hop(i, [j]))[self.sent])
        start = self.back_reach[0] * np.cumsum([0.0, *prices.latency])
        return self._terms(prices.stay[self.order].T, start, carry)

    def loads(self) -> _Terms:
        """Terms of the interval: seconds of work on each tier and each link."""
        links, a = self.a.problem.links, self.a
        most = max(len(rows) for rows in self.ways)
        coding, nbytes = np.zeros((2, self.tiers, self.size + 1, most)), np.full((self.size, most), np.inf)
        for b, rows in enumerate(self.ways):
            for side, seconds in zip(coding, (a.decode_s, a.encode_s), strict=True):
                side[:, b, : len(rows)] = seconds[rows].sum(axis=1).T
            nbytes[b, : len(rows)] = a.nbytes[rows].sum(axis=1)
        wire = [np.maximum(nbytes / link.bytes_per_s, self.back_bytes[:, None] / link.back_bytes_per_s) for link in links]
        start = np.maximum.accumulate([0.0, *(self.back_bytes[0] / link.back_bytes_per_s for link in links)])
        return self._terms(a.seconds[self.order].T, start, {(i, j): np.max(wire[i:j], axis=0) for i, j in self.hops}, *coding)

    def excess(self) -> _Terms:
        """Terms of the bytes by which the fullest tier exceeds its limit."""
        limit = np.where(np.isinf(self.memory_limit), 0.0, self.memory_limit)[:, None, None]
        held = np.where(np.isinf(self.memory_limit)[:, None], 0.0, self.a.memory_bytes[self.order])
        nothing = np.zeros((self.tiers, self.size + 1, 1))
        carry = {hop: np.zeros(self.size) for hop in self.hops}
        return self._terms(held, np.zeros(self.tiers), carry, nothing - limit)

    def _terms(
        self, work: Floats, start: Floats, carry: dict[tuple[int, int], Floats], decode: Floats | None = None, encode: Floats | None = None
    ) -> _Terms:
        tier, a = np.arange(self.tiers)[:, None], self.a
        open_ = (a.low[self.order] <= tier) & (tier <= a.high[self.order])
        nothing = np.zeros((self.tiers, self.size + 1, 1))
        carry = {hop: each.reshape(self.size, -1) for hop, each in carry.items()}
        for each in carry.values():
            each[0] = np.inf  # before the first op nothing crosses; a chain starts on its tier
        return _Terms(
            work=np.where(open_, work, np.inf),
            start=start,
            carry=carry,
            decode=nothing if decode is None else decode,
            encode=nothing if encode is None else encode,
        )

    def shortest(self, terms: _Terms, plus: np.ufunc, limited: bool = True) -> tuple[float, list[_Stretch]]:
        """Solve the recurrences; returns the least cost and the stretches that have it, none if it is infinite."""
        n, ways = self.size, terms.decode.shape[2]
        arrive, leave = np.full((self.tiers, n, ways), np.inf), np.full((self.tiers, n + 1, ways), np.inf)
        came, began = np.zeros(arrive.shape, dtype=np.int64), np.zeros(leave.shape, dtype=np.int64)
        memory, limit = self.a.memory_bytes[self.order], self.memory_limit * (1 + ROUNDING) + 1e-12
        for i in range(self.tiers):
            # Into tier i: as the first one, or straight from any tier that a hop leads from.
            arrive[i, 0, 0] = terms.start[i]
            for j in (j for j, to in self.hops if to == i):
                reached = plus(leave[j, :n], terms.carry[j, i])
                came[i] = np.where(reached < arrive[i], j, came[i])
                arrive[i] = np.minimum(arrive[i], reached)
            # Out of it at cut b: `work[a]` and `held[a]` are sums over the ops a..b-1.
            work, held = np.zeros(n + 1), np.zeros(n + 1)
            for b in range(1, n + 1):
                work[:b] += terms.work[i, b - 1]
                held[:b] += memory[b - 1]
                if limited:
                    work[:b][held[:b] > limit[i]] = np.inf
                last = b if self.forward or b == n else b + 1  # an empty stretch passes the tensors of cut b on
                inside = (terms.decode[i, :last] + work[:last, None]).reshape(-1, 1)
                total = plus(arrive[i, :last].reshape(-1, 1), inside + terms.encode[i, b])
                began[i, b] = total.argmin(axis=0)
                leave[i, b] = total[began[i, b], np.arange(ways)]
        # Back from the last cut.
        tier, b, way = int(leave[:, n, 0].argmin()), n, 0
        value, stretches = float(leave[tier, n, 0]), list[_Stretch]()
        while b and np.isfinite(value):
            first, way = divmod(int(began[tier, b, way]), ways)
            stretches.append(_Stretch(tier, first, b, way))
            tier, b = int(came[tier, first, way]), first
        return value, stretches[::-1]

    @cached_property
    def ways(self) -> list[Ints]:
        """For cuts 0..n-1: (choices, tensors), a codec for each tensor that crosses there."""
        last = [*self.a.first_codec[1:].tolist(), len(self.a.nbytes)]
        choices: list[list[range]] = [[] for _ in range(self.size)]
        for tensor, b in zip(self.sent.tolist(), self.cut.tolist(), strict=True):
            choices[b].append(range(int(self.a.first_codec[tensor]), last[tensor]))
        for b, each in enumerate(choices):
            if (count := prod(map(len, each))) > WAYS:
                name = self.a.problem.ops[self.order[b - 1]].name
                raise PartitionerError(
                    f"'chain' tries every choice of codecs at a cut; after {name!r} {len(each)} tensors have {count:,} choices,"
                    f" the limit is {WAYS}.\n  Take 'blocks' or 'milp'."
                )
        return [np.array(list(product(*each)), dtype=np.int64) for each in choices]

    def crossings(self, stretches: list[_Stretch]) -> list[Crossing]:
        """Return the codecs chosen, link by link."""
        found = []
        for before, after in pairwise(stretches):
            for row in self.ways[after.first][after.way_in].tolist():
                tensor = self.a.problem.tensors[self.a.codec_owner[row]]
                codec = tensor.ways[row - self.a.first_codec[self.a.codec_owner[row]]]
                found += [Crossing(tensor.name, j, codec.name, codec.nbytes) for j in range(before.tier, after.tier)]
        return found

    def placement(self, stretches: list[_Stretch]) -> dict[str, str]:
        """Return op -> tier."""
        tier = np.zeros(self.size, dtype=np.int64)
        for each in stretches:
            tier[self.order[each.first : each.stop]] = each.tier
        return self.a.names(tier)
