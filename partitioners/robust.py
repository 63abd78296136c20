"""Plans from numbers known only as intervals: the seconds of ops, the rates and the latency of links.

*Min-max cost*. Placement and codecs fixed, every cost of this package is made of sums and maxima of seconds,
bytes/rate and latencies with factors of zero or more, so it grows with each of them: its worst scenario is every number
at its bad end, the same for all plans. The plan of least worst cost is therefore the optimum of that one problem, for
any objective; it keeps there what limits it has, hence everywhere.

*Min-max regret*: the least of "how much better could another plan have been, once the numbers are known?" A sum a(X).s
is priced by how often plan X uses each number s; the regret of X is max over Y and s of (a(X) - a(Y)).s.

- Exactly, for one plan: s is at a corner. A number that X does not use is at its good end, one that X uses as often as
  any plan can is at its bad end (an op is on a tier or not), whatever Y is. What remains is the few numbers used more or
  less often, the rates and latencies of the links in use: all corners of those are tried, one solve each.
- NP-hard to minimise. The optimum M of the midpoint scenario has at most twice the least regret (Kasperski and
  Zielinski, "An approximation algorithm for interval data minmax regret combinatorial optimization problems", IPL 97,
  2006). With d = a(M) - a(X), split in d+ - d-: M is best at (low + high)/2, so d+.(high + low) <= d-.(high + low), so
  d+.high - d-.low <= d-.high - d+.low <= regret(X), by comparing X with M; and regret(M) <= that + regret(X). So half
  of M's regret is a lower bound for every plan. The midpoint is that of the times, hence the harmonic mean of rates.

Codecs keep their numbers, `transfer_s` included. The numbers are independent of each other: what makes a whole tier
slow at once is a scenario among others here, and the worst one is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from operator import mul
from typing import Literal

from partitioners.cost import evaluate, solution
from partitioners.errors import PartitionerError
from partitioners.objective import LATENCY, Objective
from partitioners.parametric import ON_RATES
from partitioners.placement import Solution
from partitioners.problem import Link, Op, Problem
from partitioners.strategies import Strategy, solve

Share = float | Mapping[str, float] | Sequence[float]
"""One share for all, or one by name of tier (0 for those left out), or one for each in order."""


@dataclass(frozen=True)
class Intervals:
    """The same problem twice: with every number at its good end, and at its bad end."""

    best: Problem
    worst: Problem

    def __post_init__(self) -> None:
        """Check; raises `PartitionerError` naming what is no interval."""
        best, worst = self.best, self.worst
        if _frame(best) != _frame(worst):
            raise PartitionerError("the two ends differ in more than the seconds of ops, the rates and the latency of links")
        for op, bad in zip(best.ops, worst.ops, strict=True):
            if any(a > b for a, b in zip(op.seconds, bad.seconds, strict=True)):
                raise PartitionerError(f"op {op.name!r}: seconds {op.seconds} at the good end, {bad.seconds} at the bad one")
        for j, (link, off) in enumerate(zip(best.links, worst.links, strict=True)):
            if link.bytes_per_s < off.bytes_per_s or link.back_bytes_per_s < off.back_bytes_per_s or link.latency_s > off.latency_s:
                raise PartitionerError(f"link {j} is slower at the good end than at the bad one")

    @classmethod
    def around(cls, problem: Problem, seconds: Share = 0.0, rates: Share = 0.0, latency: Share = 0.0) -> Intervals:
        """Put an interval around each number of a problem, from 1 - share to 1 + share times the number.

        `seconds` has a share for each tier, the others for each link. Raises `PartitionerError` for a share that is not
        in [0, 1).
        """
        per_tier = _shares("seconds", seconds, [tier.name for tier in problem.tiers])
        unnamed = [""] * len(problem.links)
        per_rate, per_latency = _shares("rates", rates, unnamed), _shares("latency", latency, unnamed)

        def end(sign: float) -> Problem:
            def moved(link: Link, rate: float, wait: float) -> Link:
                slower = 1 - sign * rate
                return _with(link, link.bytes_per_s * slower, link.back_bytes_per_s * slower, link.latency_s * (1 + sign * wait))

            longer = [1 + sign * share for share in per_tier]
            ops = tuple(replace(op, seconds=tuple(map(mul, op.seconds, longer))) for op in problem.ops)
            return replace(problem, ops=ops, links=tuple(map(moved, problem.links, per_rate, per_latency)))

        return cls(end(-1.0), end(1.0))

    @cached_property
    def middle(self) -> Problem:
        """Every time half-way between its ends; so rates are harmonic means."""
        best, worst = self.best, self.worst
        return replace(
            best,
            ops=tuple(
                replace(op, seconds=tuple((a + b) / 2 for a, b in zip(op.seconds, bad.seconds, strict=True)))
                for op, bad in zip(best.ops, worst.ops, strict=True)
            ),
            links=tuple(
                _with(link, _harmonic(link.bytes_per_s, bad.bytes_per_s), _harmonic(link.back_bytes_per_s, bad.back_bytes_per_s),
                      (link.latency_s + bad.latency_s) / 2)
                for link, bad in zip(best.links, worst.links, strict=True)
            ),
        )  # fmt: skip


@dataclass(frozen=True)
class RobustPlan:
    """A plan made for intervals."""

    solution: Solution
    """The plan with every number at its bad end: its `value` is the worst that it can cost, and its certificate says how
    far from the least worst cost that is."""
    criterion: Literal["cost", "regret"]
    """What was minimised, at its worst."""
    regret: float | None
    """The most that another plan can be cheaper, in units of the objective; None where it is not defined: the objective
    is no sum, or a limit depends on the numbers."""
    bound: float | None
    """No plan has a smaller worst cost, or regret; None: nothing is proved."""

    def __str__(self) -> str:
        """The worst cost, the regret and the bound, then the plan."""
        regret = "not defined" if self.regret is None else f"{self.regret:.6g}"
        bound = "unknown" if self.bound is None else f"at least {self.bound:.6g}"
        worst = f"worst {self.solution.objective} {self.solution.value:.6g}, worst regret {regret}"
        return f"{worst}; the worst {self.criterion} of any plan is {bound}\n{self.solution}"


def min_max_cost(intervals: Intervals, objective: str | Objective = LATENCY, strategy: str | Strategy = "auto") -> RobustPlan:
    """The plan whose worst cost is least, for any objective and any limits; one solve, and a few for its regret."""
    objective = Objective.of(objective)
    found = solve(intervals.worst, strategy, objective)
    defined = objective.additive and not _moving_limits(intervals)
    regret = worst_regret(intervals, found, strategy) if defined else None
    return RobustPlan(found, "cost", regret, found.certificate.bound)


def min_max_regret(intervals: Intervals, objective: str | Objective = LATENCY, strategy: str | Strategy = "auto") -> RobustPlan:
    """A plan of small worst regret: the best of the optima of the midpoint and of the two ends, at most twice the least.

    Raises `PartitionerError` for an objective that is no sum, for a limit that depends on the uncertain numbers, and
    where the strategy proves nothing.
    """
    objective = Objective.of(objective)
    if not objective.additive:
        raise PartitionerError(f"regret under '{objective}', which is no sum, is not known here.\n  Take min_max_cost.")
    if moving := _moving_limits(intervals):
        raise PartitionerError(f"within.{moving[0]} depends on the uncertain numbers, so plans are not the same in all scenarios.")
    candidates = [solve(each, strategy, objective) for each in (intervals.middle, intervals.best, intervals.worst)]
    middle, _, worst = candidates
    regrets = [worst_regret(intervals, each, strategy) for each in candidates]
    regret, plan = min(zip(regrets, candidates, strict=True), key=lambda pair: pair[0])
    # What the solver leaves open at the midpoint weakens the bound by as much.
    bound = max(0.0, regrets[0] / 2 - (middle.value - _proved(middle)))
    made = solution(intervals.worst, plan.placement, plan.strategy, worst.certificate.bound, objective, plan.codecs)
    return RobustPlan(made, "regret", regret, min(bound, regret))


def worst_regret(intervals: Intervals, plan: Solution, strategy: str | Strategy = "auto") -> float:
    """Return the most that another plan can be cheaper than this one, in units of its objective, which must be a sum.

    Exact to the bounds proved by the solver: never too small. One solve for each corner of the rates and latencies that
    the plan shares with others: at most 2^(3 links), usually 2 to 8.
    """
    worst = 0.0
    for scenario in _scenarios(intervals, plan):
        cost, _ = evaluate(scenario, plan.placement, plan.codecs)
        worst = max(worst, plan.objective.value(cost) - _proved(solve(scenario, strategy, plan.objective)))
    return worst


def _scenarios(intervals: Intervals, plan: Solution) -> Iterator[Problem]:
    """The corners among which the worst one for a plan is."""
    best, worst = intervals.best, intervals.worst
    ops = tuple(_spoiled(op, bad, best.tier_index[plan.placement[op.name]]) for op, bad in zip(best.ops, worst.ops, strict=True))
    directions = 2.0 if best.two_way or any(tensor.returned for tensor in best.tensors) else 1.0
    matters = plan.objective.weight("latency") > 0  # rates occur in nothing else
    choices = []
    for j, (link, bad) in enumerate(zip(best.links, worst.links, strict=True)):
        up, down = plan.cost.link_nbytes[j] > 0, plan.cost.return_nbytes[j] > 0
        follows, used = link.return_bytes_per_s is None, _times_used(best, plan, j)
        rates = _ends(link.bytes_per_s, bad.bytes_per_s, matters and (up or (follows and down)))
        back = _ends(link.back_bytes_per_s, bad.back_bytes_per_s, matters and not follows and down)
        latency = [bad.latency_s] if used == directions else _ends(link.latency_s, bad.latency_s, matters and used > 0)
        choices.append([_with(link, *numbers) for numbers in product(rates, back, latency)])
    for links in product(*choices):
        yield replace(best, ops=ops, links=links)


def _spoiled(op: Op, bad: Op, tier: int) -> Op:
    """Bad where the plan has it, good elsewhere."""
    return replace(op, seconds=tuple(bad.seconds[i] if i == tier else s for i, s in enumerate(op.seconds)))


def _ends(good: float, bad: float, used: bool) -> list[float]:
    return [good, bad] if used and good != bad else [good]


def _times_used(problem: Problem, plan: Solution, link: int) -> float:
    """How often the plan pays the latency of a link: the largest reach on it, each way."""
    tensors = {tensor.name: tensor for tensor in problem.tensors}
    up = max((tensors[c.tensor].reach for c in plan.codecs if (c.link, c.direction) == (link, "up")), default=0.0)
    down = max((tensors[c.tensor].reach for c in plan.codecs if (c.link, c.direction) == (link, "down")), default=0.0)
    home = (t.reach for t in problem.tensors if t.returned and problem.tier_index[plan.placement[t.producer]] > link)
    return up + max([down, *home])


def _proved(found: Solution) -> float:
    if found.certificate.bound is None:
        raise PartitionerError(f"'{found.strategy}' proves no bound, so no regret can be stated.\n  Take 'auto'.")
    return found.certificate.bound


def _moving_limits(intervals: Intervals) -> list[str]:
    return [name for name in intervals.best.within if name in (*ON_RATES, "energy_j", "money")]


def _frame(problem: Problem) -> Problem:
    """What both ends must have in common."""
    ops = tuple(replace(op, seconds=(0.0,) * len(op.seconds)) for op in problem.ops)
    return replace(problem, ops=ops, links=tuple(_with(link, 1.0, 1.0, 0.0) for link in problem.links))


def _with(link: Link, bytes_per_s: float, back_bytes_per_s: float, latency_s: float) -> Link:
    """The link with other numbers; a return rate left to its default stays so."""
    back = None if link.return_bytes_per_s is None else back_bytes_per_s
    return replace(link, bytes_per_s=bytes_per_s, return_bytes_per_s=back, latency_s=latency_s)


def _harmonic(a: float, b: float) -> float:
    return 2 / (1 / a + 1 / b)


def _shares(what: str, given: Share, names: Sequence[str]) -> list[float]:
    if isinstance(given, Mapping):
        if unknown := [name for name in given if name not in names]:
            raise PartitionerError(f"{what}: there is no {unknown[0]!r}; choose from {', '.join(names)}")
        shares = [given.get(name, 0.0) for name in names]
    else:
        shares = list(given) if isinstance(given, Sequence) else [given] * len(names)
    if len(shares) != len(names) or not all(0 <= share < 1 for share in shares):
        raise PartitionerError(f"{what}: {given} is no share for each of {len(names)}; each must be at least 0 and below 1")
    return shares
