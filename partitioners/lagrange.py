"""Maxima and limits at sizes where integer programming is slow: a Lagrangian bound from minimum cuts, and a plan beside it.

A load or a limited cost is priced instead of bounded (Everett 1963, Geoffrion 1974): for prices m >= 0, those of the
loads adding up to the interval's weight,

    L(m) = min over placements of   additive cost + sum of m_r load_r + sum of m_l (cost_l - limit_l)

is one minimum cut and a lower bound of every placement that keeps the limits. L is concave and piecewise linear; its
maximum is found by Kelley's cutting planes (1960), each cut being the loads of the placement that the minimum cut
returned, queried between the best prices so far and the planes' own optimum (Ben-Ameur and Neto 2007).

Near the maximum a few placements cost the same under L and balance the loads differently: a local search between them
(`improve`) finds the plan, and, time permitting, the integer program chooses the ops about which the best plans differ.
O(rounds x minimum cut); the gap that remains is the duality gap, of the order of one op in a tier's load.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
from scipy.optimize import linprog

from partitioners.arrays import Arrays, Floats, Ints
from partitioners.cost import solution
from partitioners.errors import PartitionerError
from partitioners.improve import improved
from partitioners.milp import by_milp
from partitioners.mincut import place
from partitioners.objective import LATENCY, Objective
from partitioners.placement import OPTIMAL_GAP, Crossing, Solution
from partitioners.prices import Prices
from partitioners.problem import Problem
from partitioners.resources import Resources

TIME_LIMIT_S = 30.0
ROUNDS = 200
CONVERGED = 1e-4  # relative distance between the planes' optimum and the best bound: the rest is the duality gap
BETWEEN = 0.6  # of the way from the best prices to the planes' optimum
MIXED = 1e-3  # of the optimum: less is rounding
FREE = 400  # ops that the integer program chooses at the end: what HiGHS closes in seconds


def by_lagrange(problem: Problem, objective: Objective = LATENCY, time_limit_s: float = TIME_LIMIT_S) -> Solution:
    """Place by Lagrangian relaxation: a proved bound, and the best placement found within the time.

    Raises `PartitionerError` for a critical path, which is no sum of loads, and where no placement that keeps the limits
    was met; that may be a proof that there is none, see 'milp'.
    """
    if "critical_path" in objective.weights or "critical_path_s" in problem.limits:
        raise PartitionerError("'lagrange' prices loads, and a critical path is none.\n  Take 'milp'.")
    begun = time.monotonic()
    resources = Resources(Arrays.of(problem), objective)
    dual = _Dual(resources)
    dual.ascend(begun + 0.4 * time_limit_s)
    prices = resources.prices(dual.centre)
    starts = dual.mixed()
    tiers = [*starts, improved(resources, prices, starts, begun + 0.75 * time_limit_s)]
    ranked = sorted(tiers, key=lambda tier: _score(resources, resources.of(tier, prices)))
    found = [_solution(resources, prices, tier) for tier in ranked if not resources.excess(resources.of(tier, prices))][:1]
    left = begun + time_limit_s - time.monotonic()
    if left > 1 and not (found and _gap(found[0].value, dual.bound) <= OPTIMAL_GAP):
        with suppress(PartitionerError):  # too few ops free to keep the limits, or too little time
            found.append(by_milp(_held(resources, ranked[0]), objective, left / 2))  # HiGHS overruns its limits
    if not found:
        raise PartitionerError(
            f"'lagrange' met no placement that keeps the limits in {time_limit_s:g} s; no plan costs less than {dual.bound:.6g}."
            "\n  Take 'milp', or loosen a limit."
        )
    answer = min(found, key=lambda s: s.value)
    return solution(problem, answer.placement, "lagrange", dual.bound, objective, answer.codecs)


def _score(resources: Resources, used: Floats) -> tuple[float, float]:
    return resources.excess(used), resources.value(used)


def _gap(value: float, bound: float) -> float:
    if value == np.inf:
        return value
    return (value - bound) / value if value else 0.0


def _solution(resources: Resources, prices: Prices, tier: Ints) -> Solution:
    """The placement with the codecs that are cheapest at these prices."""
    a, problem, crossings = resources.a, resources.a.problem, []
    for start, stops, tensors in a.travels(tier):
        chosen = a.cheapest_codec(prices.hop(start, stops)) - a.first_codec
        links = [(j, "up") for j in range(start, max(stops))] + [(j, "down") for j in range(min(stops), start)]
        for t in np.flatnonzero(tensors).tolist():
            codec = problem.tensors[t].ways[int(chosen[t])]
            crossings += [Crossing(problem.tensors[t].name, j, codec.name, codec.nbytes, way) for j, way in links]  # type: ignore[arg-type]
    return solution(problem, a.names(tier), "lagrange", None, resources.objective, crossings)


def _held(resources: Resources, tier: Ints) -> Problem:
    """Pin all but the ops nearest to a change of tier."""
    a, problem = resources.a, resources.a.problem
    source = a.producer[a.owner]
    changed = tier[source] != tier[a.consumer]
    near = {*source[changed].tolist(), *a.consumer[changed].tolist()}
    layer = near
    while layer and len(near) < FREE:
        layer = {u for v in layer for u, _ in (*a.producers_of[v], *a.consumers_of[v])} - near
        near |= set(sorted(layer)[: FREE - len(near)])
    names = [tier.name for tier in problem.tiers]
    ops = (op if v in near else replace(op, pinned=names[tier[v]]) for v, op in enumerate(problem.ops))
    return replace(problem, ops=tuple(ops))


class _Dual:
    """The concave function L and its planes."""

    def __init__(self, resources: Resources) -> None:
        self.r, self.bound = resources, -np.inf
        self.centre = np.zeros(resources.priced)
        loads = resources.loads.stop - resources.loads.start
        self.centre[:loads] = resources.interval / loads
        self.planes: list[tuple[float, Floats]] = []
        self.met: list[Ints] = []
        self.shares: Sequence[float] = []

    def ascend(self, until: float) -> None:
        """Raise the bound until the planes meet it, or time is up."""
        point, value, last = self.centre, np.inf, np.inf
        for _ in range(ROUNDS):
            prices = self.r.prices(point)
            tier, least = place(self.r.a, prices)
            used = self.r.of(tier, prices)
            self.met.append(tier)
            self.planes.append((float(used[0]), self.r.amounts(used)))
            if not self.r.excess(used):
                value = min(value, self.r.value(used))
            if least - self.r.constant(point) > self.bound:
                self.bound, self.centre = least - self.r.constant(point), point
            top, best = self._planes()
            far = top - self.bound > CONVERGED * max(abs(self.bound), abs(top))
            if not far or _gap(value, self.bound) <= OPTIMAL_GAP or time.monotonic() > until:
                return
            # A plane met between the two may leave the planes' optimum where it is; the one met there never does.
            point = best if top >= last * (1 - 1e-9) else self.centre + BETWEEN * (best - self.centre)
            last = top

    def mixed(self) -> list[Ints]:
        """The placements that the planes' optimum is made of, the largest share first, each once."""
        order = sorted(range(len(self.shares)), key=lambda i: -self.shares[i])
        found = {self.met[i].tobytes(): self.met[i] for i in order if self.shares[i] > MIXED}
        return list(found.values()) or self.met[-1:]

    def _planes(self) -> tuple[float, Floats]:
        """Maximise the least of the planes over the prices, limits' prices inside a box that grows."""
        r, size = self.r, len(self.centre)
        loads = r.loads.stop - r.loads.start
        rows = np.array([[1.0, *(-amounts)] for _, amounts in self.planes])
        unit = np.abs(rows[:, 1:]).max(axis=0)  # of each resource: prices are chosen in cost per unit
        unit[unit == 0] = 1.0
        fixed = np.array([value for value, _ in self.planes])
        level = max(float(np.abs(fixed).max()), r.interval * float(np.abs(rows[:, 1 : 1 + loads]).max())) or 1.0
        box = np.maximum(4 * self.centre * unit, level)
        bounds = [(None, None)] + [(0, r.interval * unit[i] if i < loads else box[i]) for i in range(size)]
        rows[:, 1:] /= unit
        simplex = np.concatenate([[0.0], 1 / unit[:loads], np.zeros(size - loads)])[None]
        found = linprog([-1.0] + [0.0] * size, rows, fixed, simplex, [r.interval], bounds)
        if found.x is None:
            return np.inf, self.centre
        self.shares = (-found.ineqlin.marginals).tolist()
        return float(-found.fun), np.maximum(found.x[1:], 0.0) / unit
