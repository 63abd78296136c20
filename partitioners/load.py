"""Which plan answers soonest when requests queue: a plan of more latency and less load can be the faster one.

    requests --l per second--> [ tier ] --> [ link ] --> [ tier ] --> ...        each stage takes its load, always the same

For deterministic stages in tandem only the slowest of them makes requests wait, wherever it stands: Friedman,
"Reduction methods for tandem queuing systems" (Operations Research 1965). With Poisson arrivals of rate l, and s the
load of the slowest, it is one M/D/1 queue (Pollaczek and Khinchine):

    mean seconds = latency + l s^2 / (2 (1 - l s))

Assumed: one request follows another through the same stages; a tier or link does its whole share of a request at once;
queues have room. The latency is that of an idle line, delays of links included; s is the interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from partitioners.errors import PartitionerError
from partitioners.objective import LATENCY, Objective
from partitioners.placement import Solution
from partitioners.problem import Problem
from partitioners.strategies import solve

INTERVAL = Objective({"interval": 1.0})
TANGENTS = 8  # weighted sums tried; a fixed point after two or three is usual


def offered_load(solution: Solution, rate_per_s: float) -> float:
    """Return the expected seconds of a request when `rate_per_s` arrive; infinite where `overload` says why."""
    if overload(solution, rate_per_s):
        return math.inf
    return solution.cost.latency_s + _wait(solution.cost.interval_s, rate_per_s)


def overload(solution: Solution, rate_per_s: float) -> str:
    """Say which stage has no time for so many requests; empty where every stage has."""
    if not 0 <= rate_per_s < math.inf:
        raise PartitionerError(f"a rate of {rate_per_s!r} requests per second; it must be finite, zero or more")
    cost = solution.cost
    loads = {f"tier {name!r}": seconds for name, seconds in cost.tier_load_s.items()}
    loads |= {f"link {j} up": seconds for j, seconds in enumerate(cost.link_load_s)}
    loads |= {f"link {j} down": seconds for j, seconds in enumerate(cost.return_load_s)}
    stage = max(loads, key=lambda name: loads[name])
    if rate_per_s * loads[stage] < 1:
        return ""
    return (
        f"{stage} works {loads[stage]:.6g} s on each request, so fewer than {1 / loads[stage]:.6g} per second can arrive;"
        f" {rate_per_s:.6g} do, and the queue grows without end"
    )


def rank_by_load(problem: Problem, rate_per_s: float, candidates: Iterable[Solution] | None = None) -> list[tuple[Solution, float]]:
    """Return candidates with their `offered_load`, the soonest first; of the infinite ones that of the smallest interval.

    Without `candidates`: those of `plans_under_load`, each of which may take the time of an integer program. Of equal
    plans the first is kept.
    """
    plans = list[Solution]()
    for plan in plans_under_load(problem, rate_per_s) if candidates is None else candidates:
        if all((plan.placement, plan.codecs) != (other.placement, other.codecs) for other in plans):
            plans.append(plan)
    ranked = [(plan, offered_load(plan, rate_per_s)) for plan in plans]
    return sorted(ranked, key=lambda pair: (pair[1], pair[0].cost.interval_s))


def plans_under_load(problem: Problem, rate_per_s: float) -> Iterator[Solution]:
    """Yield the plans of least interval, of least latency, and of weighted sums in between.

    The wait is convex in s, so its tangent at a plan's s, of slope w, is a lower bound of it. A plan of least
    `latency + w*interval` is therefore the best of all under this load if w is the slope at its own s: the weights are
    the slopes at the best plan so far, until no better one appears.
    """
    yield (quickest := solve(problem, "auto", LATENCY))
    yield (steadiest := solve(problem, "auto", INTERVAL))
    best = min(quickest, steadiest, key=lambda plan: offered_load(plan, rate_per_s))
    for _ in range(TANGENTS):
        busy = rate_per_s * best.cost.interval_s
        if not 0 < busy < 1:
            return
        slope = busy * (2 - busy) / (2 * (1 - busy) ** 2)
        yield (plan := solve(problem, "auto", Objective({"latency": 1.0, "interval": slope})))
        if offered_load(plan, rate_per_s) >= offered_load(best, rate_per_s):
            return
        best = plan


def _wait(interval_s: float, rate_per_s: float) -> float:
    busy = rate_per_s * interval_s
    return busy * interval_s / (2 * (1 - busy))
