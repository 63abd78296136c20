"""What must hold between the optimum of one problem and that of a changed one; each case for several objectives.

"auto" is what is tested: it is exact on problems of this size, so optima are comparable.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from line_problems import UNLIMITED, chain, layered, numbered, scaled

from partitioners import Codec, Infeasible, Link, Objective, Op, Problem, Solution, Tensor, Tier, solution, solve
from partitioners.objective import FIELDS

OBJECTIVES = ("latency", "interval", "critical_path", "energy", "money", "latency + 0.2*energy")
SECONDS = ("latency", "interval", "critical_path")
ROUNDING = 1e-9


@cache
def solved(objective: str, seeds: range, **kind: Any) -> list[tuple[Problem, Solution]]:
    """Problems that have a solution, with it."""
    found = []
    for seed in seeds:
        problem = numbered(seed, objective, **kind)
        try:
            found.append((problem, solve(problem, objective=objective)))
        except Infeasible:
            continue
    assert len(found) > len(seeds) / 2
    return found


def best(problem: Problem, objective: str) -> float:
    return solve(problem, objective=objective).value


def never_hurts(change: Callable[[Problem], Problem], objective: str, seeds: range = range(100, 115)) -> None:
    better = 0
    for problem, before in solved(objective, seeds):
        after = best(change(problem), objective)
        assert after <= before.value * (1 + ROUNDING) + ROUNDING
        better += after < before.value * (1 - ROUNDING)
    assert better, "a change that never helps tests little"


# --- the numbers ---


@pytest.mark.parametrize("factor", [1e-6, 0.25, 1e4])
@pytest.mark.parametrize("objective", SECONDS)
def test_scaling_every_duration_scales_the_optimum_and_keeps_the_plan(objective: str, factor: float) -> None:
    for problem, before in solved(objective, range(10), within=False):
        changed = scaled(problem, factor)
        after = solve(changed, objective=objective)
        assert after.value == pytest.approx(factor * before.value, rel=1e-6)
        kept = solution(changed, before.placement, "kept", None, objective, before.codecs)
        assert kept.value == pytest.approx(after.value, rel=1e-6)


@pytest.mark.parametrize(("objective", "factor"), [("energy", 1e-3), ("energy", 64.0), ("money", 1e-3), ("money", 64.0)])
def test_scaling_every_price_scales_the_optimum(objective: str, factor: float) -> None:
    for problem, before in solved(objective, range(10), within=False):
        tiers = tuple(replace(t, watts=t.watts * factor, price_per_s=t.price_per_s * factor) for t in problem.tiers)
        links = tuple(
            replace(j, joules_per_byte=j.joules_per_byte * factor, price_per_byte=j.price_per_byte * factor) for j in problem.links
        )
        assert best(replace(problem, tiers=tiers, links=links), objective) == pytest.approx(factor * before.value, rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_weight_scales_the_optimum(objective: str) -> None:
    for problem, before in solved(objective, range(10)):
        heavier = Objective({name: 8 * weight for name, weight in before.objective.weights.items()})
        assert solve(problem, objective=heavier).value == pytest.approx(8 * before.value, rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_order_in_the_file_does_not_matter(objective: str) -> None:
    for seed, (problem, before) in enumerate(solved(objective, range(10))):
        rng = random.Random(seed)
        ops, tensors = rng.sample(problem.ops, len(problem.ops)), rng.sample(problem.tensors, len(problem.tensors))
        assert best(replace(problem, ops=tuple(ops), tensors=tuple(tensors)), objective) == pytest.approx(before.value, rel=1e-6)


# --- more freedom ---


def longer(problem: Problem) -> Problem:
    """One tier more at the end, faster and with every price halved."""

    def half(values: tuple[float, ...]) -> tuple[float, ...]:
        return (*values, values[-1] / 2)

    def codec(c: Codec) -> Codec:
        overlap = (*c.transfer_s, 0.125) if c.transfer_s else () if problem.links else c.transfer_s
        return replace(c, encode_s=half(c.encode_s), decode_s=half(c.decode_s), transfer_s=overlap)

    last = problem.tiers[-1]
    return replace(
        problem,
        tiers=(*problem.tiers, Tier("more", None, last.watts / 2, last.price_per_s / 2)),
        links=(*problem.links, Link(64.0, 0.125)),
        ops=tuple(replace(op, seconds=half(op.seconds)) for op in problem.ops),
        tensors=tuple(replace(t, codecs=t.codecs and tuple(map(codec, t.codecs))) for t in problem.tensors),
    )


def faster(problem: Problem) -> Problem:
    links = tuple(
        replace(j, bytes_per_s=j.bytes_per_s * 2, latency_s=j.latency_s / 2, return_bytes_per_s=j.back_bytes_per_s * 2)
        for j in problem.links
    )
    return replace(problem, links=links)


def freer(problem: Problem) -> Problem:
    return replace(problem, ops=tuple(replace(op, pinned=None) for op in problem.ops))


def looser(problem: Problem) -> Problem:
    tiers = tuple(replace(t, memory_bytes=t.memory_bytes and t.memory_bytes * 1.5) for t in problem.tiers)
    budget = None if problem.error_budget is None else problem.error_budget + 0.125
    return replace(problem, tiers=tiers, error_budget=budget, within={name: 1.5 * most for name, most in problem.within.items()})


def both_ways(problem: Problem) -> Problem:
    return replace(problem, two_way=True)


def more_codecs(problem: Problem) -> Problem:
    """A tenth of the bytes for every tensor, at no cost but a little error."""
    tensors = (replace(t, codecs=(*t.ways, Codec("tiny", t.nbytes / 10, error=2**-10))) for t in problem.tensors)
    return replace(problem, tensors=tuple(tensors))


CHANGES = [longer, faster, freer, looser, both_ways, more_codecs]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_more_freedom_never_hurts(change: Callable[[Problem], Problem], objective: str) -> None:
    if change is faster and objective in ("energy", "money"):
        pytest.skip("a faster link costs the same energy and money per byte")
    never_hurts(change, objective)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_pinning_everything_where_it_is_changes_nothing(objective: str) -> None:
    for problem, before in solved(objective, range(10)):
        ops = tuple(replace(op, pinned=before.placement[op.name]) for op in problem.ops)
        assert best(replace(problem, ops=ops), objective) == pytest.approx(before.value, rel=1e-6)


@pytest.mark.parametrize("other", ["latency", "interval", "energy"])
@pytest.mark.parametrize("objective", ["latency", "interval", "energy", "money"])
def test_a_limit_that_the_optimum_keeps_changes_nothing_and_one_below_the_least_is_infeasible(objective: str, other: str) -> None:
    for problem, before in solved(objective, range(5), within=False):
        field = FIELDS[other]
        most = getattr(before.cost, field)
        assert best(replace(problem, within={field: most}), objective) == pytest.approx(before.value, rel=1e-6)
        least = best(problem, other)
        if least > 0:
            with pytest.raises(Infeasible, match=field):
                solve(replace(problem, within={field: least * 0.99}), objective=objective)


# --- one objective and another ---


def test_the_costs_of_one_plan_are_ordered() -> None:
    """Overlap never takes longer than one after the other, nor less than the busiest op; a load is part of the latency
    unless a measured transfer hides it."""
    for _, found in solved("latency", range(20), overlap=False, **UNLIMITED):
        assert found.cost.critical_path_s <= found.cost.latency_s * (1 + ROUNDING)
        assert found.cost.interval_s <= found.cost.latency_s * (1 + ROUNDING)


def test_the_least_of_each_objective_bounds_the_weighted_sum() -> None:
    for problem, found in solved("latency + 0.2*energy", range(10)):
        assert best(problem, "latency") + 0.2 * best(problem, "energy") <= found.value * (1 + 1e-6) + ROUNDING


def test_both_relays_are_one_on_two_tiers_one_way() -> None:
    for problem, found in solved("latency", range(10), tiers=2, relay="forward", two_way=False):
        assert best(replace(problem, relay="transcode"), "latency") == pytest.approx(found.value, rel=1e-6)


def test_what_nobody_reaches_costs_nothing() -> None:
    for problem, _ in solved("latency", range(8), **UNLIMITED):
        ops, tensors = (tuple(replace(x, reach=0.0) for x in kind) for kind in (problem.ops, problem.tensors))
        for objective in OBJECTIVES:
            assert best(replace(problem, ops=ops, tensors=tensors), objective) == 0


# --- bandwidth at its ends ---


def with_rate(problem: Problem, rate: float) -> Problem:
    return replace(problem, links=tuple(Link(rate, 0.0) for _ in problem.links))


def free_codecs(problem: Problem) -> Problem:
    return replace(problem, tensors=tuple(replace(t, codecs=None) for t in problem.tensors))


def test_bandwidth_towards_infinity_gives_the_minimum_of_each_op() -> None:
    """Both ways, that is: one way, the data holds some ops back."""
    for seed in range(20):
        problem = free_codecs(numbered(seed, two_way=True, pins=False, rooted=False, wide=False, **UNLIMITED))
        least = sum(op.reach * min(op.seconds) for op in problem.ops)
        assert best(with_rate(problem, 1e15), "latency") == pytest.approx(least, rel=1e-9, abs=1e-9)


def test_bandwidth_towards_infinity_one_way_keeps_the_order_of_the_line() -> None:
    problem = chain([(1, 1, 1), (1, 2, 3), (2, 1, 3), (3, 2, 1)], [9, 9, 9], (Link(1e15, 0), Link(1e15, 0)))
    assert list(solve(problem).placement.values()) == ["t0", "t0", "t1", "t2"]


@pytest.mark.parametrize("objective", SECONDS)
@pytest.mark.parametrize("relay", ["transcode", "forward"])
def test_bandwidth_towards_zero_keeps_all_on_the_device(relay: str, objective: str) -> None:
    problem = layered(14, 3, relay, 0)
    assert len(set(solve(problem, objective=objective).placement.values())) > 1
    assert set(solve(with_rate(problem, 1e-9), objective=objective).placement.values()) == {"t0"}


def rates() -> Iterator[float]:
    yield from (2.0**i for i in range(-6, 12))


def test_more_bandwidth_is_never_slower_nor_cheaper_in_bytes_saved() -> None:
    """Over a grid of rates the latency falls, and what is sent is only ever more."""
    problem = layered(40, 3, "transcode", 1)
    plans = [solve(with_rate(problem, rate)) for rate in rates()]
    latencies = [plan.cost.latency_s for plan in plans]
    sent = [sum(plan.cost.link_nbytes) + sum(plan.cost.return_nbytes) for plan in plans]
    assert latencies == sorted(latencies, reverse=True)
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(sent))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_tensor_of_no_consumers_costs_nothing_however_large(objective: str) -> None:
    for problem, before in solved(objective, range(10)):
        more = replace(problem, tensors=(*problem.tensors, Tensor(problem.ops[0].name, (), 1e9)))
        assert best(more, objective) == pytest.approx(before.value, rel=1e-6)


def test_an_op_of_no_seconds_between_two_changes_nothing() -> None:
    """Under raw transport: the tensor waits at either of its ends."""
    plain = chain([(1, 1, 1), (9, 3, 1), (9, 3, 1)], [2, 2], (Link(4, 0.5), Link(8, 0.25)))
    ops = (*plain.ops, Op("pass", (0, 0, 0)))
    tensors = (plain.tensors[0], Tensor("op1", ("pass",), 2), Tensor("pass", ("op2",), 2))
    for objective in SECONDS:
        assert best(replace(plain, ops=ops, tensors=tensors), objective) == pytest.approx(best(plain, objective))


def test_a_measured_overlap_upwards_does_not_pay_for_the_way_down() -> None:
    """The program served a tier that nobody wanted, because `transfer_s` upwards hid the encoding for the way down."""
    codec = Codec("c", 1.0, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), transfer_s=(0.0, 0.0))
    ops = (Op("p", (0.5, 0.0, 9.0)), Op("u", (0.0, 0.0, 0.0), "t0"), Op("v", (0.0, 0.0, 0.0), "t0"))
    tiers, links = (Tier("t0"), Tier("t1"), Tier("t2")), (Link(1e9, 0.0), Link(1e9, 0.0))
    problem = Problem(tiers, links, ops, (Tensor("p", ("u", "v"), 1.0, codecs=(codec,)),), "forward", True)
    assert solve(problem, "milp").value == pytest.approx(0.5)
