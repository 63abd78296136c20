"""Every strategy against the oracle that tries everything, for every objective it claims, on problems of every kind.

The problems are numbered: a failure names its number, and `numbered` builds it again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from line_problems import UNLIMITED, numbered, problems

from partitioners import STRATEGIES, Infeasible, Objective, PartitionerError, Problem
from partitioners.checker import check
from partitioners.exhaustive import Optimum, optimum

SUMS = ("latency", "energy", "money", "error", "latency + 0.2*energy + 3*error")
MAXIMA = ("interval", "critical_path", "interval + 0.5*critical_path + 0.1*money")
OBJECTIVES = SUMS + MAXIMA
PROVED = 1e-6  # relative, what "optimal" means
ROUNDING = 1e-9


@dataclass(frozen=True)
class Claim:
    """What a strategy says of itself."""

    objectives: tuple[str, ...] = OBJECTIVES
    kind: dict[str, Any] = field(default_factory=dict)
    """The problems it is for, as arguments of `numbered`."""
    solved: float = 1.0
    """The least share of problems on which it must come to an answer, or find that there is none."""
    exact: bool = True
    """Whether an answer is always the optimum; else it is a plan, perhaps with a bound."""
    finds_infeasible: bool = True
    """Whether "infeasible" speaks of the problem, and not only of the plan it made without knowing the limits."""
    share: float = 1.0
    """How many problems, relative to others; fewer for a strategy made for large ones, more where one objective is all."""


RIVAL = Claim(SUMS, solved=0.5, exact=False, finds_infeasible=False)
CLAIMS = {
    "auto": Claim(),
    "milp": Claim(),
    "exhaustive": Claim(),
    "mincut": Claim(SUMS, solved=0.5, exact=False),
    "chain": Claim((*SUMS, "interval"), {"chain": True, "two_way": False, "within": False}, 0.5),
    "blocks": Claim((*SUMS, "interval"), {"two_way": False}, 0.75),
    "hybrid": Claim((*SUMS, "interval"), {"two_way": False}, 0.75),
    "critical_path": Claim(("critical_path",), {"tiers": 2, "two_way": False} | UNLIMITED, share=4),
    "lagrange": Claim((*SUMS, "interval"), solved=0.5, exact=False, share=0.1),
    "neurosurgeon": RIVAL,
    "neurosurgeon_tiers": RIVAL,
    "dads": RIVAL,
    "dads_no_reverse": RIVAL,
    "greedy": RIVAL,
}
CASES = [(name, objective) for name in STRATEGIES for objective in CLAIMS.get(name, RIVAL).objectives]


@cache
def instance(seed: int, objective: str, **kind: Any) -> tuple[Problem, Optimum | None]:
    """A problem and its optimum, shared by the strategies."""
    problem = numbered(seed, objective, **kind)
    return problem, optimum(problem, objective)


def outcome(name: str, problem: Problem, objective: str, best: Optimum | None) -> str:
    """Run a strategy, hold everything it says against the optimum, and return how it went."""
    claim = CLAIMS[name]
    try:
        found = STRATEGIES[name](problem, Objective.of(objective))
    except Infeasible:
        if best is not None and claim.finds_infeasible:
            raise  # there is a plan
        return "infeasible" if best is None else "plan breaks a limit"
    except PartitionerError:
        return "refused"
    assert best is not None, "an answer where there is none"
    assert found.value >= best.value * (1 - ROUNDING) - ROUNDING
    bound = found.certificate.bound
    assert bound is None or bound <= best.value * (1 + PROVED) + ROUNDING
    if claim.exact or found.certificate.status == "optimal":
        assert found.certificate.status == "optimal"
        assert found.value == pytest.approx(best.value, rel=PROVED, abs=ROUNDING)
    for answer in (found, found.to_json()):
        verdict = check(problem, answer)
        assert verdict, str(verdict)
    return "solved"


def compare(name: str, objective: str, seeds: range) -> None:
    claim, outcomes = CLAIMS[name], Counter[str]()
    seeds = range(seeds.start, seeds.start + round(len(seeds) * claim.share))
    for seed in seeds:
        problem, best = instance(seed, objective, **claim.kind)
        try:
            outcomes[outcome(name, problem, objective, best)] += 1
        except Exception as error:
            raise AssertionError(f"numbered({seed}, {objective!r}, **{claim.kind}): {type(error).__name__}: {error}") from error
    assert outcomes["solved"] + outcomes["infeasible"] >= claim.solved * len(seeds), outcomes
    assert outcomes["solved"] >= len(seeds) * claim.solved / 2, outcomes


def test_every_strategy_makes_a_claim() -> None:
    assert set(STRATEGIES) == set(CLAIMS)


@pytest.mark.parametrize(("name", "objective"), CASES)
def test_strategy_against_the_oracle(name: str, objective: str) -> None:
    compare(name, objective, range(30))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "objective"), CASES)
def test_strategy_against_the_oracle_at_length(name: str, objective: str) -> None:
    compare(name, objective, range(1000, 1300))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(problems(most_ops=6), st.sampled_from(OBJECTIVES))
def test_corners(problem: Problem, objective: str) -> None:
    """The corners that Hypothesis looks for; what fails here shrinks."""
    best = optimum(problem, objective)
    for name in ("auto", "milp"):
        outcome(name, problem, objective, best)


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_not_claimed_is_refused_or_right(name: str) -> None:
    for objective in OBJECTIVES:
        for seed in range(2000, 2000 + round(6 * min(1, CLAIMS[name].share))):
            problem, best = instance(seed, objective)
            outcome(name, problem, objective, best)
