"""The table name -> strategy, and `solve`, which takes a name or a function of yours."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace

from partitioners import competitors, vertical
from partitioners.blocks import by_blocks
from partitioners.chain import by_chain
from partitioners.cost import evaluate, solution, violations
from partitioners.critical_path import by_critical_path
from partitioners.errors import Infeasible, PartitionerError
from partitioners.exhaustive import by_exhaustion
from partitioners.lagrange import by_lagrange
from partitioners.milp import by_milp
from partitioners.mincut import by_mincut
from partitioners.objective import LATENCY, Objective
from partitioners.placement import Solution
from partitioners.problem import Problem

AUTO_LIMIT_S = 60.0  # for HiGHS within "auto": past it the best plan and bound so far are as good an answer
AUTO_OPS = 2000  # above, the relaxation is taken first: HiGHS needs more than the limit there

Strategy = Callable[..., Solution | Mapping[str, str]]
"""From a Problem and an Objective, or from a Problem alone."""


def auto(problem: Problem, objective: Objective = LATENCY) -> Solution:
    """Take the cheapest exact strategy that applies, by the objective's kind, the limits and the size.

    Sums: the minimum cut, which is the answer where it is exact and keeps the limits. Critical path: the search for two
    tiers. Then the dynamic programmes, on a chain and between blocks; where the graph is too wide for these, the integer
    program for at most `AUTO_LIMIT_S`, with the Lagrangian relaxation before it on more than `AUTO_OPS` ops. Stops at the
    first proof of optimality; else the best plan comes back with the best bound. Where workers may divide ops, "hybrid"
    goes before all this, if it applies.
    """
    if problem.divisible and any(len(tier.workers) > 1 for tier in problem.tiers):
        try:
            return by_hybrid(problem, objective)
        except Infeasible:
            raise
        except PartitionerError:  # a critical path, or data both ways: nothing is divided
            return vertical.run_whole(problem, objective, _whole)
    return vertical.run_whole(problem, objective, _whole)


def by_hybrid(problem: Problem, objective: Objective = LATENCY) -> Solution:
    """Weigh horizontal, vertical and hybrid splits in one search; see `vertical` and `hybrid`."""
    return vertical.by_hybrid(problem, objective, _whole)


def _whole(problem: Problem, objective: Objective) -> Solution:
    """Do what `auto` does, without division."""
    found: list[Solution] = []
    refused: list[PartitionerError] = []
    for strategy in _order(problem, objective):
        try:
            found.append(strategy(problem, objective))
        except Infeasible:
            raise
        except PartitionerError as reason:  # it does not apply, breaks a limit, or ran out of time
            refused.append(reason)
        else:
            if found[-1].certificate.status == "optimal":
                return found[-1]
    if not found:
        raise refused[-1]
    best = min(found, key=lambda s: s.value)
    bound = max(s.certificate.bound or 0.0 for s in found)
    return solution(problem, best.placement, best.strategy, bound, objective, best.codecs)


def _order(problem: Problem, objective: Objective) -> list[Callable[[Problem, Objective], Solution]]:
    first = by_mincut if objective.additive else by_critical_path
    last = [by_lagrange, _milp] if len(problem.ops) > AUTO_OPS else [_milp]
    return [first, by_chain, by_blocks, *last]


def _milp(problem: Problem, objective: Objective) -> Solution:
    return by_milp(problem, objective, AUTO_LIMIT_S)


STRATEGIES: dict[str, Callable[[Problem, Objective], Solution]] = {
    "auto": auto,
    "mincut": by_mincut,
    "chain": by_chain,
    "blocks": by_blocks,
    "critical_path": by_critical_path,
    "milp": by_milp,
    "lagrange": by_lagrange,
    "exhaustive": by_exhaustion,
    "hybrid": by_hybrid,
    "neurosurgeon": competitors.by_neurosurgeon,
    "neurosurgeon_tiers": competitors.by_neurosurgeon_tiers,
    "dads": competitors.by_dads,
    "dads_no_reverse": competitors.by_dads_no_reverse,
    "greedy": competitors.by_greedy,
}


def solve(problem: Problem, strategy: str | Strategy = "auto", objective: str | Objective = LATENCY) -> Solution:
    """Place every op. `strategy` is a name of `STRATEGIES` or a function to a `Solution` or to op -> tier.

    A function's mapping is checked and priced like any other, with the best codecs; its certificate claims nothing
    beyond "feasible". Raises `Infeasible` where nothing, or not this placement, keeps the limits, and
    `PartitionerError` where the strategy does not apply.
    """
    objective = Objective.of(objective)
    if isinstance(strategy, str):
        if strategy not in STRATEGIES:
            raise PartitionerError(f"there is no strategy {strategy!r}; choose one of {', '.join(STRATEGIES)}")
        solver = STRATEGIES[strategy]
        return solver(problem, objective) if solver in (auto, by_hybrid) else vertical.run_whole(problem, objective, solver)
    needed = [each for each in inspect.signature(strategy).parameters.values() if each.default is each.empty]
    alone = len(needed) < 2
    answer = strategy(problem) if alone else strategy(problem, objective)
    name = getattr(strategy, "__name__", "function")
    return answer if isinstance(answer, Solution) else priced(problem, answer, name, objective)


def priced(problem: Problem, placement: Mapping[str, str], strategy: str, objective: Objective = LATENCY) -> Solution:
    """A given placement with the best codecs for it under the objective and the limits."""
    cost, _ = evaluate(problem, placement, None, objective)
    if objective.additive and not violations(problem, cost):
        return solution(problem, placement, strategy, None, objective)
    # Codecs that compete for a limit or a load are chosen by the program, every op held in its place.
    ops = tuple(replace(op, pinned=placement[op.name]) for op in problem.ops)
    best = by_milp(replace(problem, ops=ops), objective, AUTO_LIMIT_S)
    return solution(problem, placement, strategy, None, objective, best.codecs)
