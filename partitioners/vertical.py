"""The strategy "hybrid": the better of the search over blocks and the best plan without division, with its rivals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from partitioners.cost import solution
from partitioners.errors import Infeasible, PartitionerError
from partitioners.hybrid import Plan, Search
from partitioners.objective import Objective
from partitioners.placement import Solution
from partitioners.problem import Problem
from partitioners.space import Space

Solver = Callable[[Problem, Objective], Solution]
_ROUNDING = 1e-12  # a division that gains no more is none


def undivided(problem: Problem) -> Problem:
    """Return the problem in which every op runs whole, on its tier's host."""
    if not problem.divisible and not any(tier.workers for tier in problem.tiers):
        return problem
    tiers = []
    for tier in problem.tiers:
        limits = [limit for limit in (tier.memory_bytes, *(host.memory_bytes for host in tier.workers[:1])) if limit is not None]
        tiers.append(replace(tier, workers=(), memory_bytes=min(limits, default=None)))
    return replace(problem, tiers=tuple(tiers), ops=tuple(replace(op, layouts=()) for op in problem.ops))


def run_whole(problem: Problem, objective: Objective, solver: Solver) -> Solution:
    """Solve without division, by a strategy that knows none."""
    found = solver(undivided(problem), objective)
    if not any(tier.workers for tier in problem.tiers):
        return found
    priced = solution(problem, found.placement, found.strategy, None, objective, found.codecs)
    return replace(priced, certificate=found.certificate)


def by_hybrid(problem: Problem, objective: Objective, whole: Solver) -> Solution:
    """Search over blocks, and beside it what `whole` finds without division; the better one counts.

    The baselines say what the rivals cost: no division, and each axis alone. Raises `Infeasible` where nothing keeps the
    limits.
    """
    space = Space(problem)
    search = Search(space, objective)
    found = search.least()
    plain: Solution | PartitionerError
    try:
        plain = run_whole(problem, objective, whole)
    except PartitionerError as reason:
        plain = reason
    if found is None and isinstance(plain, PartitionerError):
        raise plain
    bound = _bound(search, found, plain)
    rivals: dict[str, float | str] = {"no division": plain.value if isinstance(plain, Solution) else str(plain)} if space.axes else {}
    for axis in space.axes if len(space.axes) > 1 else ():
        alone = found is not None and {block.axis for block in found.blocks} <= {axis}  # it is the best by this axis as well
        rival = found if alone else Search(space, objective, (axis,)).least()
        rivals[f"{axis} only"] = "nothing keeps the limits" if rival is None else rival.value
    if found is None or (isinstance(plain, Solution) and plain.value <= found.value * (1 + _ROUNDING)):
        assert isinstance(plain, Solution)
        best = solution(problem, plain.placement, f"hybrid, {plain.strategy}", bound, objective, plain.codecs)
    else:
        best = solution(problem, found.placement, "hybrid", bound, objective, found.codecs, found.blocks)
    return replace(best, baselines=rivals)


def _bound(search: Search, found: Plan | None, plain: Solution | PartitionerError) -> float | None:
    """Return what no plan can cost less than, divided or not; None where that is not known."""
    whole = plain.certificate.bound if isinstance(plain, Solution) else float("inf") if isinstance(plain, Infeasible) else None
    if whole is None or not search.space.bounded:
        return None
    if not (search.complete and search.space.complete):
        found = Search(search.space, search.objective, relaxed=True).least()
    return whole if found is None else min(whole, found.value)
