"""Minimum latency, exact for every problem, as a mixed-integer program for HiGHS (Huangfu and Hall, 2018).

    y[v,i] = 1 iff op v is on tier i                                  the only integers
    s[t,h,M] = 1 iff tensor t is produced on tier h and served to exactly the tiers M beyond h

The price of (h, M) has the best codec in it already, so no codec variables remain, and a codec's fixed encode cost,
which breaks the minimum cut, is an ordinary number here. With one consumer per tensor the relaxation is the local
polytope of the line, which is what makes it tight. Variables: O(ops k + tensors 2^k), or tensors k^2 for "transcode",
where being served on a tier serves every tier on the way. Worst case exponential in the ops, as any exact method.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult
from scipy.optimize import milp as highs
from scipy.sparse import coo_array

from partitioners.arrays import Arrays, Floats, Ints
from partitioners.cost import solution
from partitioners.errors import PartitionerError
from partitioners.placement import Solution
from partitioners.problem import Problem

GAP = 1e-9  # HiGHS stops at 1e-4 by default, which is not what "optimal" says


def by_milp(problem: Problem, time_limit_s: float | None = None) -> Solution:
    """Place by integer programming; stopped by the limit, the best so far comes back with the bound proved so far."""
    a = Arrays.of(problem)
    # Scale: an op costs about 1 on average, so that absolute tolerances of 1e-6 mean little.
    scale = len(a.low) / (float(a.stay_s.mean(axis=1).sum()) or 1.0)
    cost, bounds, integral, rows = _program(a)
    options = {"mip_rel_gap": GAP} | ({} if time_limit_s is None else {"time_limit": time_limit_s})
    found = highs(cost * scale, bounds=bounds, integrality=integral, constraints=rows, options=options)
    if found.x is None:
        raise PartitionerError(f"HiGHS found no placement: {found.message}\n  Raise the time limit or take 'mincut'.")
    tier = found.x[: a.stay_s.size].reshape(a.stay_s.shape).argmax(axis=1)
    return solution(problem, a.names(tier), "milp", _bound(found) / scale)


def _bound(found: OptimizeResult) -> float:
    return float(found.fun if found.mip_dual_bound is None else found.mip_dual_bound)


@dataclass(frozen=True)
class _Hop:
    """A way for a tensor: from `home` to `stops`; a consumer on any of `serves` is content."""

    home: int
    stops: tuple[int, ...]
    serves: tuple[int, ...]
    seconds: Floats
    """(T,)"""


def _hops(a: Arrays) -> Iterator[_Hop]:
    most = int(a.fan_out.max(initial=0))
    for home, far in combinations(range(a.tiers), 2):
        between = range(home + 1, far)
        if a.problem.relay == "transcode":
            seconds = sum((a.hop_s(j, [j + 1]) for j in range(home, far)), start=np.zeros(len(a.producer)))
            yield _Hop(home, (far,), (*between, far), seconds)
            continue
        for size in range(min(most, far - home)):
            for some in combinations(between, size):
                yield _Hop(home, (*some, far), (*some, far), a.hop_s(home, [*some, far]))


@dataclass
class _Rows:
    """Sparse rows that must be >= 0, added a block at a time."""

    count: int = 0
    entries: list[tuple[Ints, Ints, Floats]] = field(default_factory=list)

    def add(self, *terms: tuple[float, Ints]) -> None:
        """Add rows: the sum of coefficient x columns; columns are (rows,) or (rows, several)."""
        size = len(terms[0][1])
        for coefficient, columns in terms:
            wide = columns.reshape(size, columns.size // size if size else 0)
            row = np.repeat(np.arange(self.count, self.count + size), wide.shape[1])
            self.entries.append((row, wide.ravel(), np.full(wide.size, coefficient)))
        self.count += size


def _program(a: Arrays) -> tuple[Floats, Bounds, Ints, list[LinearConstraint]]:
    """Return objective, bounds, integrality and constraints over the columns y, s, up, back."""
    n, k = a.stay_s.shape
    hops, tensors = list(_hops(a)), len(a.producer)
    y = np.arange(n * k).reshape(n, k)
    s = y.size + np.arange(len(hops) * tensors).reshape(len(hops), tensors)
    up, back = y.size + s.size + np.arange(2 * (k - 1)).reshape(2, k - 1)
    cost = np.concatenate([a.stay_s.ravel(), *(hop.seconds for hop in hops), a.latency_s, a.latency_s])
    rows = _Rows()
    source = a.producer[a.owner]

    def those(chosen: Iterable[bool]) -> Ints:
        """(T, several): the columns s of the chosen hops."""
        return s[np.flatnonzero(list(chosen))].T

    for j in range(k - 1):
        # Direction: a producer beyond link j has its consumers beyond it.
        rows.add((1, y[a.consumer, j + 1 :]), (-1, y[source, j + 1 :]))
        # A link that carries a tensor is used; a link that a returned tensor comes back over, too.
        rows.add((1, np.full(tensors, up[j])), (-1, those(hop.home <= j < hop.stops[-1] for hop in hops)))
        rows.add((1, np.full(len(a.returning), back[j])), (-1, y[a.returning, j + 1 :]))
        # A tensor takes one way at most, and from the tier of its producer.
        rows.add((1, y[a.producer, j]), (-1, those(hop.home == j for hop in hops)))
    for i in range(1, k):
        # A consumer on tier i sits beside its producer or is served there.
        served = those(i in hop.serves for hop in hops)[a.owner]
        rows.add((1, y[source, i]), (1, served), (-1, y[a.consumer, i]))
    # Every op has one tier, among those the pins leave open.
    tier = np.arange(k)
    open_ = (a.low[:, None] <= tier) & (tier <= a.high[:, None])
    one = coo_array((np.ones(n * k), (np.repeat(np.arange(n), k), y.ravel())), shape=(n, len(cost))).tocsr()
    upper = np.concatenate([open_.ravel(), np.ones(len(cost) - n * k)])
    constraints = [LinearConstraint(one, 1, 1)]
    if rows.count:
        row, column, value = (np.concatenate(part) for part in zip(*rows.entries, strict=True))
        matrix = coo_array((value, (row, column)), shape=(rows.count, len(cost))).tocsr()
        constraints.append(LinearConstraint(matrix, 0, np.inf))
    integral = (np.arange(len(cost)) < n * k).astype(np.int64)
    return cost, Bounds(0, upper), integral, constraints
