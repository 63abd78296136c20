"""What a plan must beat: each tier alone, and plain splits in two. "Splitting does not help here" is an answer too."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from partitioners.cost import solution
from partitioners.errors import Infeasible, PartitionerError
from partitioners.objective import LATENCY, Objective
from partitioners.placement import Solution
from partitioners.problem import Problem


def baseline_solutions(
    problem: Problem, split_after: Iterable[str] = (), objective: Objective = LATENCY
) -> dict[str, Solution | Infeasible]:
    """Return "<tier> only" for each tier and "split after <op>" for each op named, or the reason it cannot be.

    Pinned ops stay where they are pinned. A split puts the op and all it descends from on the first tier, the rest on
    the last. Limits hold. O(ops + tensors) each; where codecs compete for a limit or a load, a program for them alone.
    """
    tiers = [tier.name for tier in problem.tiers]
    found = {f"{tier} only": _placed(problem, f"{tier} only", (), tier, objective) for tier in tiers}
    for name in split_after:
        early = _with_ancestors(problem, name)
        found[f"split after {name}"] = _placed(problem, f"split after {name}", early, tiers[-1], objective)
    return found


def baseline_values(problem: Problem, objective: Objective = LATENCY, split_after: Iterable[str] = ()) -> dict[str, float | str]:
    """Return the same as numbers under the objective, or the reason as text: the `baselines` of a `Solution`."""
    rivals = baseline_solutions(problem, split_after, objective)
    return {name: rival.value if isinstance(rival, Solution) else str(rival) for name, rival in rivals.items()}


def _placed(problem: Problem, name: str, early: Collection[str], rest: str, objective: Objective) -> Solution | Infeasible:
    """Put `early` on the first tier and the others on `rest`; pins go before both."""
    from partitioners.strategies import priced  # here: a strategy may itself want to beat the baselines

    first = problem.tiers[0].name
    placement = {op.name: op.pinned or (first if op.name in early else rest) for op in problem.ops}
    try:
        if all(len(tensor.ways) == 1 for tensor in problem.tensors):
            return solution(problem, placement, name, None, objective)
        return priced(problem, placement, name, objective)
    except Infeasible as reason:
        return reason
    except PartitionerError as reason:  # no codecs found in time
        return Infeasible(str(reason))


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
