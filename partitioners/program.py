"""A linear or mixed-integer program, built a block of columns or rows at a time, and solved by HiGHS."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult
from scipy.optimize import milp as highs
from scipy.sparse import coo_array, csr_array

from partitioners.arrays import Floats, Ints

Term = tuple["Ints | list[Ints]", "float | Floats | list[Floats]"]
"""Columns of a block of rows and their coefficients: (rows,) or (rows, several) or a list of one array for each row."""

KNOWN = 1e4  # of scaled costs, for one that is known
SMALLEST = 1e-200  # of a mean cost: dividing by less overflows


@contextmanager
def _silent() -> Iterator[None]:
    """Send the process' standard output nowhere: HiGHS prints there now and then, whatever it is told, amid --json."""
    sys.stdout.flush()
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a descriptor is needed
        kept = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


class Program:
    """Minimise a sum over columns within bounds and rows."""

    def __init__(self) -> None:
        self.size = self.count = 0
        self._columns: list[tuple[Floats, Floats, Floats]] = []
        self._entries: list[tuple[Ints, Ints, Floats]] = []
        self._bounds: list[tuple[Floats, Floats]] = []
        self._cost: list[tuple[Ints, Floats]] = []
        self._forbidden: list[Ints] = [np.zeros(0, dtype=np.int64)]

    def columns(self, shape: tuple[int, ...], low: object, high: object, integral: bool = False) -> Ints:
        """Make columns of this shape between `low` and `high`; returns their numbers."""
        new = np.arange(self.size, self.size + int(np.prod(shape))).reshape(shape)
        self.size += new.size
        parts = (np.broadcast_to(np.asarray(part, dtype=float), shape).ravel() for part in (low, high, float(integral)))
        self._columns.append(tuple(parts))  # type: ignore[arg-type]
        return new

    def forbid(self, columns: Ints) -> None:
        """Hold columns at 0."""
        self._forbidden.append(columns)

    def rows(self, terms: Sequence[Term], low: object, high: object = np.inf) -> None:
        """Add rows: low <= the sum of coefficients times columns <= high."""
        count = len(terms[0][0])
        for columns, weight in terms:
            if isinstance(columns, list):
                sizes = [len(each) for each in columns]
                row, flat = np.repeat(np.arange(count), sizes), np.concatenate([*columns, np.zeros(0, dtype=np.int64)])
                value = np.concatenate([*weight, np.zeros(0)]) if isinstance(weight, list) else np.broadcast_to(weight, (count,))[row]
            else:
                wide = columns.reshape(count, int(np.prod(columns.shape[1:])))
                row, flat = np.repeat(np.arange(count), wide.shape[1]), wide.ravel()
                given = np.asarray(weight, dtype=float)
                value = np.broadcast_to(given[:, None] if given.ndim == 1 else given, wide.shape).ravel()
            self._entries.append((row + self.count, flat, value))
        self._bounds.append(tuple(np.broadcast_to(np.asarray(side, dtype=float), (count,)) for side in (low, high)))  # type: ignore[arg-type]
        self.count += count

    def row(self, columns: Ints, values: Floats, low: float, high: float = np.inf) -> None:
        """Add one row."""
        self.rows([(columns[None], values[None])], low, high)

    def minimise(self, columns: Ints, values: Floats, weight: float) -> None:
        """Add to what is minimised."""
        self._cost.append((columns, weight * values))

    @property
    def cost(self) -> Floats:
        """(columns,) what is minimised."""
        cost = np.zeros(self.size)
        for columns, values in self._cost:
            np.add.at(cost, columns, values)
        return cost

    @property
    def spread(self) -> float:
        """How far the largest cost is above the mean."""
        cost = self.cost
        return float(cost.max() / cost[cost != 0].mean()) if cost.any() else 1.0

    def solve(self, gap: float, time_limit_s: float | None = None, known: float = np.inf, relaxed: bool = False) -> OptimizeResult:
        """Hand the program to HiGHS. `known`: what a solution costs; `relaxed` drops the integers."""
        # Scale, so that absolute tolerances of 1e-6 mean little: a known cost to 1e4, else costs to about 1.
        cost = self.cost
        mean = float(np.abs(cost[cost != 0]).mean()) if cost.any() else 1.0
        size = known / KNOWN if known < np.inf else mean
        self.scale = 1 / size if size > SMALLEST else 1.0
        low, high, integral = (np.concatenate(part) for part in zip(*self._columns, strict=True))
        high[np.concatenate(self._forbidden)] = 0.0
        options = {"mip_rel_gap": gap} | ({} if time_limit_s is None else {"time_limit": time_limit_s})
        with _silent():
            return highs(cost * self.scale, bounds=Bounds(low, high), integrality=0 * integral if relaxed else integral,
                         constraints=self._constraints(), options=options)  # fmt: skip

    def bound(self, found: OptimizeResult) -> float:
        """The lower bound that HiGHS proved."""
        return float(found.fun if found.mip_dual_bound is None else found.mip_dual_bound) / self.scale

    def _constraints(self) -> list[LinearConstraint]:
        if not self.count:
            return []
        row, column, value = (np.concatenate(part) for part in zip(*self._entries, strict=True))
        low, high = (np.concatenate(part) for part in zip(*self._bounds, strict=True))
        matrix = csr_array(coo_array((value, (row, column)), shape=(self.count, self.size)))
        return [LinearConstraint(matrix, low, high)]
