"""Every plan for every bandwidth at once; re-planning at run time is then a look-up.

Eisner and Severance, "Mathematical techniques for efficient record segmentation in large shared databases" (J. ACM
23(4), 1976): with the placement and the codecs fixed, a sum of costs is a straight line in 1/rate, so the optimum, as a
minimum of lines, is concave and piecewise straight. Solve at both ends; where the lines found meet, solve again:

    value                          either nothing is cheaper there, and the corner is a breakpoint of the optimum,
      |    B _____----- A          or a new line C is, and it meets A and B in two corners still to be examined.
      |    .-/--- ?
      |  /                         K plans: at most 2 K - 1 solves, and a line more for each plan that is optimal at
      +------------------ 1/rate   a single rate only.

Both ends of every span have been solved, so the proofs there carry over: between two rates a concave function is above
the chord of its bounds at both, and the share by which a line is above a chord is largest at an end.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from typing import Any, Literal

from partitioners.cost import solution
from partitioners.errors import PartitionerError
from partitioners.objective import LATENCY, Objective
from partitioners.placement import OPTIMAL_GAP, Certificate, Cost, Crossing, Solution
from partitioners.problem import Link, Problem
from partitioners.strategies import Strategy, solve
from partitioners.tabular import codecs_used, ops_per_tier, table

VERSION = 1
NEW = 1e-9  # relative; a plan cheaper by less than this, which is the precision of the solvers, is no new plan
ON_RATES = ("latency_s", "interval_s", "critical_path_s")
"""Costs in which the rates of links occur."""


@dataclass(frozen=True)
class Span:
    """One plan and the rates between which no other is cheaper."""

    low: float
    """Rates are in bytes/s, or factors where the table scales all links."""
    high: float
    solution: Solution
    """The plan, its price and its proof at `low`."""
    fixed: float
    """What it costs apart from the links in question, in units of the objective."""
    wire: float
    """What it costs on them at rate 1."""

    def value(self, rate: float) -> float:
        """What the plan costs at a rate, in units of the objective."""
        return self.fixed + self.wire / rate


@dataclass(frozen=True)
class BandwidthTable:
    """The best plan for every rate between two; prints as a table."""

    spans: tuple[Span, ...]
    """Without gaps, slowest first."""
    objective: Objective
    link: int | None
    """Whose rate it is; None: a factor on the rates of all links, both ways."""
    gap: float | None
    """No plan is cheaper by more than this share, whatever the rate; None: nothing is proved."""
    solves: int
    """How many problems were solved to find all this."""

    @property
    def status(self) -> Literal["optimal", "within", "feasible"]:
        """As in a certificate."""
        if self.gap is None:
            return "feasible"
        return "optimal" if self.gap <= OPTIMAL_GAP else "within"

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """Rates at which the best plan changes, ascending."""
        return tuple(span.low for span in self.spans[1:])

    def at(self, rate: float) -> Span:
        """Look up the best plan; O(log plans). Raises `PartitionerError` for a rate outside the table."""
        low, high = self.spans[0].low, self.spans[-1].high
        if not low <= rate <= high:
            raise PartitionerError(f"rate {rate:g} is outside the table, which goes from {low:g} to {high:g}.\n  Build a wider one.")
        return self.spans[bisect_right(self.breakpoints, rate)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, ready for JSON."""
        return {"version": VERSION, "objective": dict(self.objective.weights), "link": self.link, "gap": self.gap, "solves": self.solves,
                "spans": [{**vars(span), "solution": _without_objective(span.solution)} for span in self.spans]}  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BandwidthTable:
        """Inverse of `to_dict`; raises `PartitionerError` where the shape is another."""
        if data.get("version") != VERSION:
            raise PartitionerError(f"bandwidth table of version {data.get('version')!r}; this release reads version {VERSION}")
        try:
            objective = Objective(dict(data["objective"]))
            spans = tuple(Span(**{**span, "solution": _solution(span["solution"], objective)}) for span in data["spans"])
            return cls(spans, objective, data["link"], data["gap"], data["solves"])
        except (KeyError, TypeError, AttributeError) as error:
            raise PartitionerError(f"this is no bandwidth table: {error!r}") from None

    def __str__(self) -> str:
        """One row for each plan: its rates, what it costs at both ends, ops on each tier, codecs."""
        proved = {
            "optimal": "optimal at every rate",
            "within": f"within {self.gap or 0:.2%} of the optimum at every rate",
            "feasible": "nothing proved",
        }
        where = "factor on all links" if self.link is None else f"bytes/s on link {self.link}"
        head = ("from", "to", f"{self.objective} from", "to", "ops / tier", "codecs")
        rows = [
            (f"{s.low:.6g}", f"{s.high:.6g}", f"{s.value(s.low):.6g}", f"{s.value(s.high):.6g}", ops_per_tier(s.solution),
             codecs_used(s.solution))
            for s in self.spans
        ]  # fmt: skip
        return f"{where}: {len(rows)} plans, {proved[self.status]} ({self.solves} solves)\n{table(head, rows)}"


def bandwidth_table(
    problem: Problem,
    low: float,
    high: float,
    objective: str | Objective = LATENCY,
    link: int | None = 0,
    strategy: str | Strategy = "auto",
) -> BandwidthTable:
    """Find the best plan for every rate of a link from `low` to `high` bytes/s; `link` None: for factors on all links.

    A return rate left to its default follows the link's rate; one that is given stays, but for `link` None, where both
    are scaled. Raises `PartitionerError` where the price of a plan is not a straight line in 1/rate: for an objective
    that is a maximum, a limit that depends on rates, or a codec with measured `transfer_s`.
    """
    objective = Objective.of(objective)
    _check(problem, low, high, objective, link)
    plans: list[Span] = []  # their ends do not matter yet
    bounds: dict[float, float | None] = {}
    unsolved: list[float] = [low, high]
    while unsolved:
        rate = unsolved[0]
        found = solve(at_rate(problem, rate, link), strategy, objective)
        bounds[rate] = found.certificate.bound
        plan = _line(problem, found, link)
        if not plans or plan.value(rate) < min(other.value(rate) for other in plans) * (1 - NEW):
            plans.append(plan)
        corners = _corners(plans, low, high)
        unsolved = [rate for rate in (low, high, *(start for start, _ in corners)) if rate not in bounds]
    ends = [*(start for start, _ in corners), high]
    spans = []
    for (start, end), (_, plan) in zip(pairwise(ends), corners, strict=True):
        here, found = at_rate(problem, start, link), plan.solution
        priced = solution(here, found.placement, found.strategy, bounds[start], objective, found.codecs)
        spans.append(replace(plan, low=start, high=end, solution=priced))
    proved = [(span.value(end), bounds[end]) for span in spans for end in (span.low, span.high)]
    gaps = [max(0.0, 1 - bound / value) if value else 0.0 for value, bound in proved if bound is not None]
    return BandwidthTable(tuple(spans), objective, link, max(gaps) if len(gaps) == len(proved) else None, len(bounds))


def at_rate(problem: Problem, rate: float, link: int | None = 0) -> Problem:
    """Return the problem with another rate, in bytes/s, of one link; `link` None: with all rates times `rate`."""
    if link is None:
        return replace(problem, links=tuple(_scaled(each, rate) for each in problem.links))
    return replace(problem, links=tuple(replace(each, bytes_per_s=rate) if j == link else each for j, each in enumerate(problem.links)))


def _scaled(link: Link, factor: float) -> Link:
    back = None if link.return_bytes_per_s is None else link.return_bytes_per_s * factor
    return replace(link, bytes_per_s=link.bytes_per_s * factor, return_bytes_per_s=back)


def _line(problem: Problem, found: Solution, link: int | None) -> Span:
    """Return the price of a plan as a line in 1/rate: its slope from the bytes sent, the rest from all other parts."""
    cost, weight = found.cost, found.objective.weight("latency")
    slope = steady_s = 0.0
    for j, each in enumerate(problem.links):
        follows = link is None or (j == link and each.return_bytes_per_s is None)
        both_ways = (cost.link_nbytes[j], each.bytes_per_s, link in (None, j)), (cost.return_nbytes[j], each.back_bytes_per_s, follows)
        for nbytes, rate, varies in both_ways:
            if varies:
                slope += weight * nbytes / (rate if link is None else 1.0)
            else:
                steady_s += nbytes / rate
    return Span(0.0, inf, found, found.objective.value(replace(cost, wire_s=steady_s, return_s=0.0)), slope)


def _corners(plans: Sequence[Span], low: float, high: float) -> list[tuple[float, Span]]:
    """Return the lower envelope from `low` to `high`: where each plan begins to be the cheapest."""
    plan = min(plans, key=lambda p: (p.value(low), p.fixed))
    found = [(low, plan)]
    while True:
        # A plan that puts more on the wire takes over where it has saved as much elsewhere.
        rivals = [((p.wire - plan.wire) / (plan.fixed - p.fixed), p.fixed, i) for i, p in enumerate(plans) if p.fixed < plan.fixed]
        rate, _, i = min(rivals, default=(inf, 0.0, 0))
        if rate >= high:
            return found
        plan = plans[i]
        found.append((max(rate, found[-1][0]), plan))


def _check(problem: Problem, low: float, high: float, objective: Objective, link: int | None) -> None:
    if not 0 < low <= high < inf:
        raise PartitionerError(f"rates from {low:g} to {high:g} are no range; 0 < low <= high is needed")
    if link is not None and not 0 <= link < len(problem.links):
        raise PartitionerError(f"there is no link {link}; the problem has {len(problem.links)}")
    if not objective.additive:
        raise PartitionerError(f"'{objective}' is no sum, so a plan's price is not a straight line in 1/rate.\n  Solve rate by rate.")
    for name in ON_RATES:
        if name in problem.within:
            raise PartitionerError(f"within.{name} depends on the rate, so the plans to choose from do too.\n  Solve rate by rate.")
    if not objective.weight("latency"):
        return
    for tensor in problem.tensors:
        for codec in tensor.ways:
            if codec.transfer_s:
                raise PartitionerError(
                    f"codec {codec.name!r} of tensor {tensor.name!r} has transfer_s, measured at one rate and unknown at others."
                    "\n  Leave it out; encoding, wire and decoding are then added up."
                )


def _without_objective(found: Solution) -> dict[str, Any]:
    return {key: value for key, value in found.to_dict().items() if key != "objective"}


def _solution(data: Mapping[str, Any], objective: Objective) -> Solution:
    given = ((key, value) for key, value in data["cost"].items() if key != "latency_s")
    cost: dict[str, Any] = {key: tuple(value) if isinstance(value, list | tuple) else value for key, value in given}
    return Solution(
        dict(data["placement"]), tuple(Crossing(**crossing) for crossing in data["codecs"]), Cost(**cost), data["strategy"],
        Certificate(**data["certificate"]), objective, dict(data["baselines"]),
    )  # fmt: skip
