"""Plans from intervals, against every plan in every corner of the intervals."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from every_plan import Plan, plans, small
from line_problems import layered

from partitioners import Link, Objective, Op, PartitionerError, Problem, Solution, Tensor, Tier, solution, solve
from partitioners.objective import FIELDS
from partitioners.parametric import at_rate
from partitioners.robust import Intervals, min_max_cost, min_max_regret, worst_regret
from partitioners.walk import recompute

LINK_NUMBERS = ("bytes_per_s", "return_bytes_per_s", "latency_s")


def scenarios(intervals: Intervals) -> Iterator[Problem]:
    """Every combination of ends of all numbers."""
    ends = (intervals.best, intervals.worst)
    # One list of choices for each number: of an op on a tier, or of a link.
    seconds = [{*pair} for op, bad in zip(*(end.ops for end in ends), strict=True) for pair in zip(op.seconds, bad.seconds, strict=True)]
    rates = [
        {getattr(link, name), getattr(off, name)} for link, off in zip(*(end.links for end in ends), strict=True) for name in LINK_NUMBERS
    ]
    tiers = len(intervals.best.tiers)
    for numbers in product(*seconds, *rates):
        times, speeds = numbers[: len(seconds)], numbers[len(seconds) :]
        ops = (replace(op, seconds=times[i * tiers : (i + 1) * tiers]) for i, op in enumerate(intervals.best.ops))
        links = (Link(*(speeds[3 * j + i] for i in (0, 2, 1)), *unchanged(link)) for j, link in enumerate(intervals.best.links))
        yield replace(intervals.best, ops=tuple(ops), links=tuple(links))


def unchanged(link: Link) -> tuple[float, float]:
    return link.joules_per_byte, link.price_per_byte


def check_robust(seed: int, objective: str) -> None:
    """The worst cost, the regret and both bounds against every plan in every corner of the intervals."""
    rng = random.Random(seed)
    problem = small(seed, 3)
    wide = {tier.name: rng.choice([0.0, 0.3, 0.6]) for tier in rng.sample(problem.tiers, 2)}
    intervals = Intervals.around(problem, seconds=wide, rates=rng.choice([0.3, 0.8]), latency=rng.choice([0.0, 0.9]))
    weights = Objective.of(objective).weights
    all_plans = list(plans(problem))

    def price(here: Problem, plan: Plan) -> float:
        cost = recompute(here, *plan)
        return sum(weight * cost[FIELDS[name]] for name, weight in weights.items())

    cost = np.array([[price(here, plan) for plan in all_plans] for here in scenarios(intervals)])
    regret = (cost - cost.min(axis=1, keepdims=True)).max(axis=0)

    def place(found: Solution) -> int:
        return next(i for i, (where, codecs) in enumerate(all_plans) if where == found.placement and {*codecs} == {*found.codecs})

    careful, calm = min_max_cost(intervals, objective, "exhaustive"), min_max_regret(intervals, objective, "exhaustive")
    assert careful.solution.value == pytest.approx(cost.max(axis=0).min())
    assert careful.bound == pytest.approx(careful.solution.value)
    for made in (careful, calm):
        assert made.regret == pytest.approx(regret[place(made.solution)], abs=1e-9)
        assert made.solution.value == pytest.approx(cost[:, place(made.solution)].max())
    assert calm.regret is not None
    assert calm.bound is not None
    assert calm.bound - 1e-9 <= regret.min() <= calm.regret + 1e-9 <= 2 * regret.min() + 2e-9


@pytest.mark.parametrize("objective", ["latency", "latency + 0.1*energy", "energy"])
def test_robust_plans_are_what_they_say(objective: str) -> None:
    for seed in range(4):
        check_robust(seed, objective)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["latency", "latency + 0.1*energy", "energy"])
def test_many_robust_plans(objective: str) -> None:
    for seed in range(40):
        check_robust(seed, objective)


def test_the_worst_scenario_is_every_number_at_its_bad_end() -> None:
    """For maxima too: no scenario inside the intervals costs the plan more."""
    rng = random.Random(1)
    for seed, objective in product(range(4), ["interval", "critical_path", "latency + interval"]):
        intervals = Intervals.around(small(seed), seconds=0.5, rates=0.5, latency=0.5)
        made = min_max_cost(intervals, objective, "exhaustive")
        assert made.regret is None
        for _ in range(10):
            ops = tuple(
                replace(op, seconds=tuple(rng.uniform(a, b) for a, b in zip(op.seconds, bad.seconds, strict=True)))
                for op, bad in zip(intervals.best.ops, intervals.worst.ops, strict=True)
            )
            links = tuple(
                replace(link, bytes_per_s=rng.uniform(off.bytes_per_s, link.bytes_per_s))
                for link, off in zip(intervals.best.links, intervals.worst.links, strict=True)
            )
            inside = replace(intervals.best, ops=ops, links=links)
            again = solution(inside, made.solution.placement, "again", None, objective, made.solution.codecs)
            assert again.value <= made.solution.value * (1 + 1e-9)


def test_without_uncertainty_there_is_no_regret() -> None:
    problem = small(5)
    made = min_max_regret(Intervals.around(problem))
    assert made.regret == pytest.approx(0.0, abs=1e-9)
    assert made.solution.value == pytest.approx(solve(problem).value)
    assert "the worst regret of any plan is at least 0" in str(made)


def test_the_middle_is_that_of_the_times() -> None:
    problem = layered(4, 3, "transcode", 1)  # link 1 has a return rate of its own
    middle = Intervals.around(problem, seconds=[0.1, 0.2, 0.3], rates=[0.5, 0.8], latency=0.4).middle
    assert middle.links[0].bytes_per_s == pytest.approx(20 * (1 - 0.5**2))
    assert middle.links[0].return_bytes_per_s is None
    assert middle.links[1].return_bytes_per_s == pytest.approx(60 * (1 - 0.8**2))
    assert [link.latency_s for link in middle.links] == pytest.approx([0.5, 0.2])
    assert middle.ops[1].seconds == pytest.approx(problem.ops[1].seconds)


def test_robust_refuses_what_it_cannot_state() -> None:
    problem = layered(4, 2, "transcode", 1)
    good = Intervals.around(problem, seconds=0.1)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: Intervals(good.worst, good.best), "op 'op1': seconds"),
        (lambda: Intervals(at_rate(problem, 1.0), problem), "link 0 is slower at the good end"),
        (lambda: Intervals(problem, replace(problem, two_way=True)), "differ in more than"),
        (lambda: Intervals.around(problem, seconds=1.0), "seconds: 1.0 is no share"),
        (lambda: Intervals.around(problem, rates=[0.1, 0.1]), r"rates: \[0.1, 0.1\] is no share for each of 1"),
        (lambda: Intervals.around(problem, seconds={"moon": 0.1}), "there is no 'moon'"),
        (lambda: min_max_regret(good, "interval"), "no sum"),
        (lambda: min_max_regret(Intervals.around(replace(problem, within={"latency_s": 99.0}))), "within.latency_s depends"),
        (lambda: min_max_regret(good, strategy=lambda problem: {op.name: "t0" for op in problem.ops}), "proves no bound"),
    ]
    for attempt, message in cases:
        with pytest.raises(PartitionerError, match=message):
            attempt()
    assert min_max_cost(Intervals.around(replace(problem, within={"latency_s": 99.0}))).regret is None


def test_a_plan_may_regret_more_than_its_own_numbers_say() -> None:
    """The rate of a link is one number for all plans: its worst end for a plan depends on what the rival sends."""
    tiers, links = (Tier("t0"), Tier("t1")), (Link(1.0, 0.0),)
    ops = (Op("in", (0.0, 0.0), "t0"), Op("a", (1.5, 0.0)), Op("b", (4.0, 4.0), "t1"))
    problem = Problem(tiers, links, ops, (Tensor("in", ("a",), 4.0), Tensor("a", ("b",), 2.0)))
    intervals = Intervals.around(problem, rates=0.5)
    late = solve(intervals.worst)  # 'a' stays, 2 bytes cross
    assert late.placement["a"] == "t0"
    # Fast link: (1.5 + 2 / 1.5) - 4 / 1.5 = 1/6, although the slow end is the one that costs this plan most.
    assert worst_regret(intervals, late) == pytest.approx(1 / 6)
