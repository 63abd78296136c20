"""The oracle itself: against an enumeration without any shortcut, and its prices against the cost function."""

from __future__ import annotations

import math
import random
import re
from itertools import product
from typing import Any

import pytest
from line_problems import UNLIMITED, anywhere, chain, numbered, some_codecs

from partitioners import Codec, Crossing, Infeasible, Link, Op, PartitionerError, Problem, Tensor, Tier, evaluate, exhaustive, solve
from partitioners.checker import recompute
from partitioners.exhaustive import LIMIT, optimum
from partitioners.objective import FIELDS, Objective
from partitioners.walk import crossings, stops_of

OBJECTIVES = (*FIELDS, "latency + 0.2*energy + 3*error", "interval + 0.5*critical_path + 0.1*money")


def every_choice(problem: Problem, placement: dict[str, str]) -> Any:
    """Yield all lists of crossings of one placement."""
    at = {name: problem.tier_index[tier] for name, tier in placement.items()}
    hops = []  # (tensor, the crossings that share a codec)
    for tensor in problem.tensors:
        way = crossings(at[tensor.producer], stops_of(tensor, at))
        hops += [(tensor, way)] if problem.relay == "forward" and way else [(tensor, [leg]) for leg in way]
    if math.prod(len(tensor.ways) for tensor, _ in hops) > 2000:
        return
    for codecs in product(*[tensor.ways for tensor, _ in hops]):
        yield [
            Crossing(tensor.name, link, codec.name, codec.nbytes, direction)
            for (tensor, way), codec in zip(hops, codecs, strict=True)
            for direction, link in way
        ]


def keeps(problem: Problem, cost: dict[str, Any]) -> bool:
    held = [(cost["tier_memory_bytes"][t.name], t.memory_bytes) for t in problem.tiers]
    held += [(cost["error"], problem.error_budget), *((cost[name], most) for name, most in problem.within.items())]
    return all(most is None or used <= most * (1 + 1e-9) for used, most in held)


def least(problem: Problem, objective: str) -> float | None:
    """The optimum, without a shortcut."""
    names, best = [op.name for op in problem.ops], None
    for tiers in product([tier.name for tier in problem.tiers], repeat=len(names)):
        placement = dict(zip(names, tiers, strict=True))
        if any(op.pinned not in (None, placement[op.name]) for op in problem.ops):
            continue
        at = {name: problem.tier_index[tier] for name, tier in placement.items()}
        if not problem.two_way and any(at[user] < at[t.producer] for t in problem.tensors for user in t.consumers):
            continue
        for codecs in every_choice(problem, placement):
            cost = recompute(problem, placement, codecs)
            if keeps(problem, cost):
                value = sum(weight * cost[FIELDS[name]] for name, weight in Objective.of(objective).weights.items())
                best = value if best is None else min(best, value)
    return best


def against_enumeration(seeds: range) -> None:
    for seed in seeds:
        objective = OBJECTIVES[seed % len(OBJECTIVES)]
        problem = numbered(seed, objective, most_ops=4)
        best, true = optimum(problem, objective), least(problem, objective)
        assert (best is None) == (true is None), seed
        assert best is None or best.value == pytest.approx(true, rel=1e-12, abs=1e-12), seed


def test_against_an_enumeration_without_shortcuts() -> None:
    against_enumeration(range(160))


@pytest.mark.slow
def test_against_an_enumeration_without_shortcuts_at_length() -> None:
    against_enumeration(range(5000, 7000))


def same_price(seeds: range) -> int:
    """Compare the cost function with the walk, field by field, on placements and codecs by chance."""
    priced = 0
    for seed in seeds:
        rng, problem = random.Random(seed), numbered(seed, **UNLIMITED)
        if (placement := anywhere(problem, rng)) is not None:
            codecs = some_codecs(problem, placement, rng)
            cost, listed = evaluate(problem, placement, codecs)
            assert set(listed) == set(codecs)
            claimed, true = cost.to_dict(), recompute(problem, placement, codecs)
            assert claimed.keys() == true.keys()
            for name, value in true.items():
                assert claimed[name] == pytest.approx(value, rel=1e-12), (seed, name)
            priced += 1
    return priced


def test_the_cost_function_equals_the_walk() -> None:
    assert same_price(range(600)) > 500


@pytest.mark.slow
def test_the_cost_function_equals_the_walk_at_length() -> None:
    assert same_price(range(10_000, 16_000)) > 5_000


def test_its_value_is_what_its_plan_costs() -> None:
    for seed in range(200):
        objective = OBJECTIVES[seed % len(OBJECTIVES)]
        problem = numbered(seed, objective)
        best = optimum(problem, objective)
        if best is not None:
            cost = recompute(problem, best.placement, best.codecs)
            value = sum(weight * cost[FIELDS[name]] for name, weight in Objective.of(objective).weights.items())
            assert best.value == pytest.approx(value, rel=1e-12, abs=1e-12)
            assert keeps(problem, cost)


# What it says where there is no answer. The device takes 4 s for each of three ops, the cloud 1 s.
SLOW = chain([(4, 1), (4, 1), (4, 1)], [2, 2], (Link(1, 0.5),))


def limited(problem: Problem, **limits: Any) -> Problem:
    memory = limits.pop("memory", {})
    tiers = tuple(Tier(t.name, memory.get(t.name)) for t in problem.tiers)
    ops = tuple(Op(op.name, op.seconds, op.pinned, 10.0) for op in problem.ops)
    return Problem(tiers, problem.links, ops, problem.tensors, **limits)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"within": {"latency_s": 5.0}}, "within.latency_s is 5, but at least 8.5 is needed: 3.5 too much"),
        ({"within": {"interval_s": 3.0}}, "within.interval_s is 3, but at least 4 is needed: 1 too much"),
        ({"within": {"critical_path_s": 8.0}}, "within.critical_path_s is 8, but at least 8.5 is needed: 0.5 too much"),
        ({"memory": {"t0": 8.0}}, "tiers[0].memory_bytes is 8, but at least 10 is needed: 2 too much"),
        (
            {"memory": {"t0": 15.0, "t1": 15.0}},
            "tiers[1].memory_bytes is 15, but at least 20 is needed where tiers[0].memory_bytes is kept: 5 too much",
        ),
        (
            {"memory": {"t1": 10.0}, "within": {"latency_s": 9.0}},
            "within.latency_s is 9, but at least 11.5 is needed where tiers[1].memory_bytes is kept: 2.5 too much",
        ),
    ],
)
def test_the_limit_that_cannot_be_kept_is_named_with_what_it_misses(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(Infeasible, match=re.escape(message)):
        solve(limited(SLOW, **limits), "exhaustive")


def test_an_error_budget_that_cannot_be_kept() -> None:
    lossy = Codec("lossy", 1, error=0.25)
    ops = (Op("a", (0, 9), "t0"), Op("b", (9, 1), "t1"))
    problem = Problem(SLOW.tiers, SLOW.links, ops, (Tensor("a", ("b",), 2, codecs=(lossy,)),), error_budget=0.125)
    with pytest.raises(Infeasible, match=r"error_budget is 0.125, but at least 0.25 is needed: 0.125 too much"):
        solve(problem, "exhaustive")


def test_pins_against_the_data() -> None:
    ops = (Op("a", (1, 1), "t1"), Op("b", (1, 1), "t0"))
    with pytest.raises(Infeasible, match="pins and the direction"):
        solve(Problem(SLOW.tiers, SLOW.links, ops, (Tensor("a", ("b",), 1),)), "exhaustive")


def test_too_many_placements_are_refused() -> None:
    long = chain([(1, 1)] * 30, [1] * 29, (Link(1, 0),))
    message = f"29 free ops on 2 tiers are 2^29 placements; the limit of 'exhaustive' is {LIMIT:,}"
    with pytest.raises(PartitionerError, match=re.escape(message)):
        solve(long, "exhaustive")


def test_too_many_choices_of_codecs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One placement, but 2^12 ways to trade the load of one tier for that of the other."""
    monkeypatch.setattr(exhaustive, "LIMIT", 100)
    ways = (Codec("early", 0.0, (1.0, 0), (0, 0.5)), Codec("late", 0.0, (0.5, 0), (0, 1.0)))
    ops = (Op("a", (0, 0), "t0"), Op("b", (0, 0), "t1"))
    problem = Problem(SLOW.tiers, SLOW.links, ops, tuple(Tensor("a", ("b",), 1, codecs=ways) for _ in range(12)))
    with pytest.raises(PartitionerError, match="1 placements need more than 100 steps"):
        solve(problem, "exhaustive", "interval")
