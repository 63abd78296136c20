"""What a plan must beat: each tier alone, and plain splits in two. "Splitting does not help here" is an answer too."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from partitioners.cost import solution
from partitioners.errors import Infeasible
from partitioners.placement import Solution
from partitioners.problem import Problem


def baseline_solutions(problem: Problem, split_after: Iterable[str] = ()) -> dict[str, Solution | Infeasible]:
    """Return "<tier> only" for each tier and "split after <op>" for each op named, or the reason it cannot be.

    Pinned ops stay where they are pinned. A split puts the op and all it descends from on the first tier, the rest on
    the last. O(ops + tensors) each.
    """
    tiers = [tier.name for tier in problem.tiers]
    found = {f"{tier} only": _priced(problem, f"{tier} only", (), tier) for tier in tiers}
    for name in split_after:
        early = _with_ancestors(problem, name)
        found[f"split after {name}"] = _priced(problem, f"split after {name}", early, tiers[-1])
    return found


def _priced(problem: Problem, name: str, early: Collection[str], rest: str) -> Solution | Infeasible:
    """Put `early` on the first tier and the others on `rest`; pins go before both."""
    first = problem.tiers[0].name
    placement = {op.name: op.pinned or (first if op.name in early else rest) for op in problem.ops}
    try:
        return solution(problem, placement, name)
    except Infeasible as reason:
        return reason


def _with_ancestors(problem: Problem, name: str) -> set[str]:
    if name not in problem.op_index:
        raise Infeasible(f"cannot split after {name!r}: there is no such op")
    seen, todo = {name}, [name]
    while todo:
        for before in problem.predecessors[todo.pop()]:
            if before not in seen:
                seen.add(before)
                todo.append(before)
    return seen
