"""The Pareto front: every plan that nothing beats in one cost without losing in another, unsupported points included.

    energy
      |  A              A, B, D, E: the front. A weighted sum never chooses D, which is above the line from B to E.
      |    B            epsilon-constraint (Haimes, Lasdon and Wismer, 1971): minimise the first cost with limits
      |          D      on the others just below the points already found.
      |             E
      +--------------- latency

What is still to be searched is a set of zones, each "better than u in every cost" (Klamroth, Lacour and Vanderpooten,
"On the representation of the search region in multi-objective optimization", EJOR 245, 2015). It begins as one zone, of
everything. A point z of the front that is in a zone leaves of it, for each cost, the part that is better than z in it:
what is better in none is z itself or worse. Zones inside others are dropped. With two costs this is the classic walk
from one end of the front to the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, prod

from partitioners.cost import solution
from partitioners.errors import Infeasible, PartitionerError
from partitioners.objective import ALIASES, FIELDS, Objective
from partitioners.placement import Solution
from partitioners.problem import Problem
from partitioners.strategies import Strategy, solve
from partitioners.tabular import codecs_used, ops_per_tier, table

RESOLUTION = 1e-6
"""Relative: a plan better by less than this in the costs in which it is better at all is no point of its own."""
MOST_SOLVES = 1000
FINE = "a limit just below a point is finer than the tolerance of the solver"

Point = tuple[float, ...]
"""One value for each cost."""


@dataclass(frozen=True)
class Front:
    """Plans of which none is beaten in every cost by another; prints as a table."""

    costs: tuple[str, ...]
    points: tuple[Solution, ...]
    """Ascending in the first cost. Their certificates claim nothing: what is proved is said of the front."""
    unproved: str
    """Why there may be more or better points; "": there are none."""
    solves: int
    """How many problems were solved to find all this."""

    @property
    def complete(self) -> bool:
        """Whether these are proved to be all points of the front."""
        return not self.unproved

    @property
    def values(self) -> tuple[Point, ...]:
        """What each point costs, in the order of `costs`."""
        return tuple(values(point, self.costs) for point in self.points)

    def __str__(self) -> str:
        """One row for each point: its costs, ops on each tier, codecs."""
        rows = [
            (*(f"{value:.6g}" for value in values(point, self.costs)), ops_per_tier(point), codecs_used(point)) for point in self.points
        ]
        claim = f"may lack points: {self.unproved}" if self.unproved else "complete"
        return f"{len(rows)} points, {claim} ({self.solves} solves)\n{table((*self.costs, 'ops / tier', 'codecs'), rows)}"


def pareto_front(
    problem: Problem,
    costs: Sequence[str] = ("latency", "energy"),
    points: int | None = None,
    strategy: str | Strategy = "auto",
    most_solves: int = MOST_SOLVES,
) -> Front:
    """Find the Pareto front over two or more costs of `FIELDS`, within the limits of the problem.

    Two solves a point: the least of the first cost within limits, then, of all plans that cost no more, the least sum
    of the others, so that no point is beaten in any cost for nothing. With three costs about two zones a point turn out
    empty, one solve each; with p costs zones grow as points^(p/2). `points` stops at so many: with two costs they are
    spread evenly over the second, with more the largest zone goes first. Put first a cost that is quick to minimise.

    Raises `PartitionerError` for costs that do not exist or are listed twice, and `Infeasible` where no plan keeps the
    limits.
    """
    names = tuple(ALIASES.get(name, name) for name in costs)
    if len(names) < 2 or len({*names}) < len(names) or not {*names} <= {*FIELDS}:
        raise PartitionerError(f"costs {', '.join(costs)}: two or more different ones of {', '.join(FIELDS)} are needed")
    if points is not None and points < len(names):
        raise PartitionerError(f"points={points}: the ends of {len(names)} costs are points already")
    search = _Search(problem, names, strategy, most_solves)
    try:
        search.ends()
        if points is None or len(names) > 2:
            search.zones(points)
        else:
            search.levels(points)
    except _OutOfSolves:
        search.unproved = search.unproved or f"stopped after {most_solves} solves"
    return search.front()


def values(found: Solution, costs: Sequence[str]) -> Point:
    """Return what a plan costs, in the order of `costs`."""
    return tuple(float(getattr(found.cost, FIELDS[name])) for name in costs)


class _OutOfSolves(Exception):
    """The limit on solves is reached."""


@dataclass(frozen=True)
class _Zone:
    """What is better than `upper` in every cost, and no better than `lower` in any."""

    upper: Point
    lower: Point

    @property
    def empty(self) -> bool:
        return any(below(u) < low for u, low in zip(self.upper, self.lower, strict=True))

    def holds(self, point: Point) -> bool:
        return all(value <= below(u) for value, u in zip(point, self.upper, strict=True))

    def inside(self, other: _Zone) -> bool:
        return all(mine <= theirs for mine, theirs in zip(self.upper, other.upper, strict=True))

    def without(self, point: Point) -> Iterator[_Zone]:
        """For each cost, the part in which it is less than at the point."""
        for i, value in enumerate(point):
            yield replace(self, upper=(*self.upper[:i], value, *self.upper[i + 1 :]))


def below(value: float) -> float:
    """Return the most that is less than a cost by more than rounding; nothing is less than zero."""
    return value * (1 - RESOLUTION) if value > 0 else -inf


class _Search:
    """The points found so far."""

    def __init__(self, problem: Problem, costs: tuple[str, ...], strategy: str | Strategy, most_solves: int) -> None:
        self.problem, self.costs, self.strategy, self.most_solves = problem, costs, strategy, most_solves
        self.found: dict[Point, Solution] = {}
        self.solves, self.unproved = 0, ""

    def ends(self) -> None:
        """The point that is least in each cost, where the front ends."""
        for name in self.costs:
            self.add(self._point(name, {}))
        self.ideal: Point = tuple(map(min, zip(*self.found, strict=True)))
        self.nadir: Point = tuple(map(max, zip(*self.found, strict=True)))

    def zones(self, points: int | None) -> None:
        """Search every zone, the largest first; stop at so many points."""
        zones = [_Zone((inf,) * len(self.costs), self.ideal)]
        for point in self.found:
            zones = _without(zones, point)
        while zones:
            if points is not None and len(self.found) >= points:
                self.unproved = self.unproved or f"stopped at {points} points"
                return
            zone = max(zones, key=self._size)
            zones.remove(zone)
            limits = dict(zip(self.costs[1:], map(below, zone.upper[1:]), strict=True))
            try:
                least = self._least(self.costs[0], limits)
            except Infeasible:
                if any(_keeps(point, limits.values()) for point in self.found):
                    self.unproved = FINE
                continue
            first = values(least, self.costs)[0]
            if first > below(zone.upper[0]):  # the zone is empty: what keeps its other limits costs too much
                continue
            point = self.add(self._best_of_equals(least, self.costs[0], limits))
            if zone.holds(point):
                zones = _without([*zones, replace(zone, lower=(first, *zone.lower[1:]))], point)
            else:
                self.unproved = FINE

    def levels(self, points: int) -> None:
        """Two costs: search below evenly spaced levels of the second."""
        low, high = self.ideal[1], self.nadir[1]
        if low == high:  # one point is the best in both
            return
        last = high
        for i in reversed(range(1, points - 1)):
            level = low + (high - low) * i / (points - 1)
            if last > level:  # else the last point is the best here too
                last = self.add(self._point(self.costs[0], {self.costs[1]: level}))[1]
        self.unproved = self.unproved or f"searched at {points} levels of {self.costs[1]} only"

    def front(self) -> Front:
        """All points that no other one beats, as priced without the limits of the search."""
        best = [p for p in sorted(self.found) if not any(_beats(q, p) for q in self.found)]
        first = Objective({self.costs[0]: 1.0})
        made = [solution(self.problem, s.placement, s.strategy, None, first, s.codecs) for s in map(self.found.__getitem__, best)]
        return Front(self.costs, tuple(made), self.unproved, self.solves)

    def add(self, found: Solution) -> Point:
        point = values(found, self.costs)
        self.found.setdefault(point, found)
        return point

    def _point(self, first: str, limits: Mapping[str, float]) -> Solution:
        """A point of the front: lexicographically least."""
        return self._best_of_equals(self._least(first, limits), first, limits)

    def _least(self, first: str, limits: Mapping[str, float]) -> Solution:
        return self._solve(Objective({first: 1.0}), limits)

    def _best_of_equals(self, least: Solution, first: str, limits: Mapping[str, float]) -> Solution:
        """Of the plans that cost no more in the first cost: the least sum of the others, each in units of its value here."""
        cost = dict(zip(self.costs, values(least, self.costs), strict=True))
        others = Objective({name: 1 / (cost[name] or 1.0) for name in self.costs if name != first})
        try:
            return self._solve(others, {**limits, first: cost[first]})
        except Infeasible:  # by rounding: there is one
            return least

    def _solve(self, objective: Objective, limits: Mapping[str, float]) -> Solution:
        if self.solves == self.most_solves:
            raise _OutOfSolves
        self.solves += 1
        found = solve(limited(self.problem, limits), self.strategy, objective)
        if found.certificate.status != "optimal":
            self.unproved = f"'{found.strategy}' left a plan unproved ({found.certificate})"
        return found

    def _size(self, zone: _Zone) -> float:
        """The volume, in units of the box that the ends span."""
        sides = zip(zone.upper, self.ideal, self.nadir, strict=True)
        return prod((min(upper, high) - low) / (high - low) if high > low else 1.0 for upper, low, high in sides)


def _without(zones: Sequence[_Zone], point: Point) -> list[_Zone]:
    """Take a point, and all that it beats, out of the zones."""
    kept = [zone for zone in zones if not zone.holds(point)]
    parts = [part for zone in zones if zone.holds(point) for part in zone.without(point) if not part.empty]
    for i, part in enumerate(parts):
        if not any(part.inside(other) for other in (*kept, *parts[i + 1 :])):
            kept.append(part)
    return kept


def _keeps(point: Point, limits: Iterable[float]) -> bool:
    """Whether the costs behind the first are within limits."""
    return all(value <= limit for value, limit in zip(point[1:], limits, strict=True))


def _beats(point: Point, other: Point) -> bool:
    return point != other and all(a <= b for a, b in zip(point, other, strict=True))


def limited(problem: Problem, limits: Mapping[str, float]) -> Problem:
    """Return the problem with limits on costs beside its own; infinity is none."""
    within = dict(problem.within)
    if problem.error_budget is not None:
        within["error"] = min(problem.error_budget, within.get("error", inf))
    for name, limit in limits.items():
        if limit < inf:
            within[FIELDS[name]] = min(limit, within.get(FIELDS[name], inf))
    return replace(problem, within=within, error_budget=within.pop("error", None))
