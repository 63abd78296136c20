"""Every solver against the oracle that tries all placements, on any small problem."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, assume, given, settings
from line_problems import problems

from partitioners import Infeasible, Problem, Solution, exact_for, solve

# Hypothesis finds problems of this size large; the examples are fixed, so that a failure is one for everybody.
SETTINGS = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
ROUNDING = 1e-9


def optimum(problem: Problem) -> Solution:
    try:
        return solve(problem, "exhaustive")
    except Infeasible:
        assume(False)
        raise


def check_exact(problem: Problem, strategy: str) -> None:
    best, found = optimum(problem), solve(problem, strategy)
    assert found.cost.latency_s == pytest.approx(best.cost.latency_s, rel=ROUNDING, abs=ROUNDING)
    assert found.certificate.status == "optimal"
    assert found.certificate.bound == pytest.approx(best.cost.latency_s, rel=2e-6, abs=ROUNDING)


def check_mincut(problem: Problem) -> None:
    """Optimal where it says so; everywhere else its bound is below the optimum and its plan above."""
    best, found = optimum(problem).cost.latency_s, solve(problem, "mincut")
    if exact_for(problem):
        assert (found.certificate.status, found.cost.latency_s) == ("optimal", pytest.approx(best, rel=ROUNDING))
    assert found.certificate.bound is not None
    assert found.certificate.bound <= best * (1 + ROUNDING) + ROUNDING
    assert found.cost.latency_s >= best * (1 - ROUNDING) - ROUNDING
    if found.certificate.status == "optimal":
        assert found.cost.latency_s == pytest.approx(best, rel=2e-6, abs=ROUNDING)


def check_milp(problem: Problem) -> None:
    check_exact(problem, "milp")


def check_auto(problem: Problem) -> None:
    check_exact(problem, "auto")


def check_oracle(problem: Problem) -> None:
    """The oracle's own price of its plan is the cost function's."""
    best = optimum(problem)
    assert best.certificate.bound == pytest.approx(best.cost.latency_s, rel=ROUNDING, abs=ROUNDING)


CHECKS = [check_mincut, check_milp, check_auto, check_oracle]


@pytest.mark.parametrize("relay", ["transcode", "forward"])
@pytest.mark.parametrize("check", CHECKS)
def test_small_problems(check: Callable[[Problem], None], relay: str) -> None:
    run = settings(max_examples=100, **SETTINGS)(given(problems((relay,)))(lambda problem: check(problem)))
    run()


@pytest.mark.slow
@pytest.mark.parametrize("relay", ["transcode", "forward"])
@pytest.mark.parametrize("check", CHECKS)
def test_many_small_problems(check: Callable[[Problem], None], relay: str) -> None:
    run = settings(max_examples=500, **SETTINGS)(given(problems((relay,)))(lambda problem: check(problem)))
    run()


@settings(max_examples=100, **SETTINGS)
@given(problems(("transcode",), source_on_device=True))
def test_a_source_on_the_device_is_enough_for_the_cut(problem: Problem) -> None:
    assert exact_for(problem)
    check_exact(problem, "mincut")


@settings(max_examples=60, **SETTINGS)
@given(problems(source_on_device=False))
def test_all_solvers_agree_on_what_is_infeasible(problem: Problem) -> None:
    try:
        solve(problem, "exhaustive")
    except Infeasible:
        for strategy in ("mincut", "milp", "auto"):
            with pytest.raises(Infeasible, match="pinned to"):
                solve(problem, strategy)
