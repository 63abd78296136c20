"""Expected latency under load against a simulated line, and the ranks it makes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from small_problems import anything, every_plan, problem

from partitioners import Link, PartitionerError, solve
from partitioners.load import offered_load, overload, rank_by_load


def simulated(stages: list[float], rate_per_s: float, requests: int = 2_000_000) -> float:
    """Mean seconds in a line of first-come-first-served machines with constant service."""
    done = arrived = np.cumsum(np.random.default_rng(1).exponential(1 / rate_per_s, requests))
    number = np.arange(requests)
    for s in stages:
        done = np.maximum.accumulate(done - s * number) + s * (number + 1)
    return float((done - arrived).mean())


@pytest.mark.parametrize("busy", [0.3, 0.6, 0.9])
def test_offered_load_against_a_simulated_line(busy: float) -> None:
    p = problem({"in": (0.5, 0.0, 0.0), "mid": (9.0, 1.5, 9.0), "end": (9.0, 9.0, 1.0)},
                [("in", "mid", 0.7), ("mid", "end", 0.2)], (Link(1.0, 0.0), Link(1.0, 0.0)))  # fmt: skip
    plan = solve(p)
    assert list(plan.placement.values()) == ["t0", "t1", "t2"]
    rate = busy / 1.5
    expected = simulated([0.5, 0.7, 1.5, 0.2, 1.0], rate)
    assert offered_load(plan, rate) == pytest.approx(expected, rel=0.04)
    assert offered_load(plan, 0.0) == plan.cost.latency_s


def test_too_many_requests_wait_for_ever_and_it_says_where() -> None:
    plan = solve(problem({"in": (0.5, 0.0), "end": (9.0, 1.0)}, [("in", "end", 2.0)]))
    assert offered_load(plan, 0.6) == math.inf
    assert overload(plan, 0.6) == (
        "link 0 up works 2 s on each request, so fewer than 0.5 per second can arrive; 0.6 do, and the queue grows without end"
    )
    assert overload(plan, 0.4) == ""
    with pytest.raises(PartitionerError, match="finite, zero or more"):
        offered_load(plan, -1.0)


def test_the_rank_changes_with_the_load() -> None:
    """Quick: all on t1, 4 s. Steady: half of it here, half there, 5 s in stages of 2, 1 and 2."""
    p = problem({"in": (0.0, 0.0), "a": (2.0, 2.0), "b": (9.0, 2.0)}, [("in", "a", 0.0), ("a", "b", 1.0)])
    idle, busy = rank_by_load(p, 0.001), rank_by_load(p, 0.24)
    assert [round(plan.cost.latency_s) for plan, _ in idle] == [4, 5]
    assert [round(plan.cost.latency_s) for plan, _ in busy] == [5, 4]
    assert [math.isinf(seconds) for _, seconds in rank_by_load(p, 0.4)] == [False, True]
    both = rank_by_load(p, 0.9)
    assert [plan.cost.interval_s for plan, seconds in both if math.isinf(seconds)] == [2, 4]
    assert rank_by_load(p, 0.24, [busy[1][0]]) == [busy[1]]


def test_no_plan_is_better_under_load_than_a_fixed_point() -> None:
    """The best of the candidates against all placements: never better than possible, and mostly the best there is."""
    best = 0
    for seed in range(12):
        p = replace(anything(seed, 2, 6), tensors=tuple(replace(t, codecs=None) for t in anything(seed, 2, 6).tensors))
        rate = 0.9 / solve(p, "auto", "interval").value
        ranked = rank_by_load(p, rate)
        everything = min(offered_load(plan, rate) for plan in every_plan(p))
        assert ranked[0][1] >= everything * (1 - 1e-6)
        best += ranked[0][1] <= everything * (1 + 1e-6)
    assert best >= 10
