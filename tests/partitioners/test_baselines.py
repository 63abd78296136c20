"""Baselines under every objective and under limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_problems import anything, problem

from partitioners import LATENCY, Codec, Infeasible, Objective, Solution, solution, solve
from partitioners.baselines import baseline_solutions, baseline_values


@pytest.mark.parametrize("text", ["latency", "interval", "critical_path", "energy", "latency + 3*interval"])
def test_a_baseline_has_the_best_codecs_for_the_objective(text: str) -> None:
    p, objective = anything(4, 2, 6, relay="forward"), Objective.of(text)
    for name, plan in baseline_solutions(p, ["o2"], objective).items():
        assert isinstance(plan, Solution)
        assert (plan.strategy, plan.objective) == (name, objective)
        held = replace(p, ops=tuple(replace(op, pinned=plan.placement[op.name]) for op in p.ops))
        assert plan.value == pytest.approx(solve(held, "exhaustive", objective).value, rel=1e-6)


def test_a_baseline_that_cannot_be_says_why() -> None:
    p = anything(4, 2, 6)
    raw = replace(p, tensors=tuple(replace(t, codecs=None) for t in p.tensors))
    values = baseline_values(replace(raw, tiers=(p.tiers[0], replace(p.tiers[1], memory_bytes=0.5))))
    assert values["t0 only"] == pytest.approx(solution(raw, dict.fromkeys([op.name for op in p.ops], "t0"), "t0").value)
    assert "tier 't1' holds" in str(values["t1 only"])
    with pytest.raises(Infeasible, match="no such op"):
        baseline_values(p, LATENCY, ["nothing"])


def test_a_budget_that_another_codec_keeps_does_not_exclude_a_baseline() -> None:
    """The cheapest codec is lossy; under a budget of nothing the plan goes raw instead of falling out."""
    p = problem({"in": (0.0, 0.0), "end": (9.0, 1.0)}, [("in", "end", 4.0)])
    lossy = replace(p, tensors=(replace(p.tensors[0], codecs=(Codec("raw", 4.0), Codec("int8", 1.0, error=0.5))),))
    assert baseline_values(lossy)["t1 only"] == pytest.approx(2)
    assert baseline_values(replace(lossy, error_budget=0.0))["t1 only"] == pytest.approx(5)
