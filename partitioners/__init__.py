"""Numbers in, placement out: which machine of a line runs which op of a model, exactly and with a proof.

The words, as this project uses them (papers use the first two in opposite senses):

- *Horizontal split*: different layers (operators) go to different machines; activations cross the cut.
- *Vertical split*: one layer, or one fused block of layers, is divided inside, by channels, attention heads or
  spatial tiles; several machines work on it in parallel.
- *Hybrid split*: a plan that uses both.
- *Tier*: device, edge, cloud; any number in a line. *Cut tensor*: an activation that crosses a link; it is sent once
  per link, whatever the number of its consumers.

This package solves the horizontal split for latency, interval (throughput), critical path, energy, money and weighted
sums of them, under limits on memory, error and any cost; vertical and hybrid splits, where tiers have several workers,
for all of these but the critical path; and whole families of plans (docs/plan-families.md):

    >>> problem = Problem.from_json(text)
    >>> print(solve(problem, objective="latency + 0.2*energy"))
    >>> print(check(problem, answer))

A strategy is a function from a `Problem` and an `Objective` to a `Solution`; `STRATEGIES` names those that come with
the package, and a plain function of yours that returns op -> tier serves as well. No other package of the project is
imported here.
"""

from __future__ import annotations

from partitioners.baselines import baseline_solutions
from partitioners.checker import Verdict, check
from partitioners.cost import evaluate, solution, violations
from partitioners.errors import Infeasible, PartitionerError, ProblemError
from partitioners.fused import fused_blocks
from partitioners.load import offered_load, rank_by_load
from partitioners.mincut import exact_for
from partitioners.objective import FIELDS, LATENCY, Objective
from partitioners.parametric import BandwidthTable, Span, at_rate, bandwidth_table
from partitioners.pareto import Front, pareto_front
from partitioners.placement import Block, Certificate, Cost, Crossing, Solution, certify
from partitioners.problem import Codec, Layout, Link, Op, Problem, Tensor, Tier, Worker
from partitioners.robust import Intervals, RobustPlan, min_max_cost, min_max_regret, worst_regret
from partitioners.shares import affine_shares
from partitioners.strategies import STRATEGIES, Strategy, auto, solve
from partitioners.switching import LinkEstimate, Switching, offline_optimum
from partitioners.topk import top_k

__all__ = [
    "FIELDS", "LATENCY", "STRATEGIES", "BandwidthTable", "Block", "Certificate", "Codec", "Cost", "Crossing", "Front",
    "Infeasible", "Intervals", "Layout", "Link", "LinkEstimate", "Objective", "Op", "PartitionerError", "Problem",
    "ProblemError", "RobustPlan", "Solution", "Span", "Strategy", "Switching", "Tensor", "Tier", "Verdict", "Worker", "affine_shares",
    "at_rate", "auto", "bandwidth_table", "baseline_solutions", "certify", "check", "evaluate", "exact_for", "fused_blocks",
    "min_max_cost", "min_max_regret", "offered_load", "offline_optimum", "pareto_front", "rank_by_load", "solution",
    "solve", "top_k", "violations", "worst_regret",
]  # fmt: skip
