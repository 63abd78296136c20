"""Numbers in, placement out: which machine of a line runs which op of a model, exactly and with a proof.

The words, as this project uses them (papers use the first two in opposite senses):

- *Horizontal split*: different layers (operators) go to different machines; activations cross the cut.
- *Vertical split*: one layer, or one fused block of layers, is divided inside, by channels, attention heads or
  spatial tiles; several machines work on it in parallel.
- *Hybrid split*: a plan that uses both.
- *Tier*: device, edge, cloud; any number in a line. *Cut tensor*: an activation that crosses a link; it is sent once
  per link, whatever the number of its consumers.

This package solves the horizontal split for minimum latency:

    >>> problem = Problem.from_json(text)
    >>> print(solve(problem))

A strategy is a function from a `Problem` to a `Solution`; `STRATEGIES` names those that come with the package, and a
plain function of yours that returns op -> tier serves as well. No other package of the project is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from partitioners.baselines import baseline_solutions
from partitioners.cost import evaluate, solution
from partitioners.errors import Infeasible, PartitionerError, ProblemError
from partitioners.exhaustive import by_exhaustion
from partitioners.milp import by_milp
from partitioners.mincut import by_mincut, exact_for
from partitioners.placement import Certificate, Cost, Crossing, Solution
from partitioners.problem import Codec, Link, Op, Problem, Tensor, Tier

__all__ = [
    "STRATEGIES", "Certificate", "Codec", "Cost", "Crossing", "Infeasible", "Link", "Op", "PartitionerError",
    "Problem", "ProblemError", "Solution", "Strategy", "Tensor", "Tier", "auto", "baseline_solutions", "evaluate",
    "exact_for", "solve",
]  # fmt: skip

AUTO_LIMIT_S = 60.0  # for HiGHS within "auto": past it the cut's plan and the better bound are as good an answer

Strategy = Callable[[Problem], Solution | Mapping[str, str]]


def auto(problem: Problem) -> Solution:
    """Cut first; only where the cut leaves a gap, close it by integer programming."""
    cut = by_mincut(problem)
    if cut.certificate.status == "optimal" or exact_for(problem):
        return cut
    try:
        exact = by_milp(problem, AUTO_LIMIT_S)
    except PartitionerError:  # the limit passed without a placement
        return cut
    best = min(exact, cut, key=lambda s: s.cost.latency_s)
    bound = max(s.certificate.bound or 0.0 for s in (cut, exact))
    return solution(problem, best.placement, best.strategy, bound)


STRATEGIES: dict[str, Callable[[Problem], Solution]] = {
    "auto": auto,
    "mincut": by_mincut,
    "milp": by_milp,
    "exhaustive": by_exhaustion,
}


def solve(problem: Problem, strategy: str | Strategy = "auto") -> Solution:
    """Place every op. `strategy` is a name of `STRATEGIES` or a function to a `Solution` or to op -> tier.

    A function's mapping is checked and priced like any other; its certificate claims nothing beyond "feasible".
    """
    if isinstance(strategy, str):
        if strategy not in STRATEGIES:
            raise PartitionerError(f"there is no strategy {strategy!r}; choose one of {', '.join(STRATEGIES)}")
        return STRATEGIES[strategy](problem)
    answer = strategy(problem)
    if isinstance(answer, Solution):
        return answer
    return solution(problem, answer, getattr(strategy, "__name__", "function"))
