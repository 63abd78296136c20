"""The search over blocks against all plans there are; fused blocks against all ways to cut; and what hybrid plans are for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from shared_problems import EveryPlan, conv_chain, limited, phones, shared_problem

from partitioners import (
    Infeasible, Layout, Link, Objective, Op, PartitionerError, Problem, Tensor, Tier, Worker, check, evaluate, fused_blocks, solution, solve,
)  # fmt: skip
from partitioners.division import Division, input_rows
from partitioners.hybrid import Search, Space
from partitioners.placement import Block
from partitioners.walk import recompute
from partitioners.walk_blocks import Team

OBJECTIVES = ("latency", "interval", "latency + 0.2*energy", "latency + interval")


def against_every_plan(seeds: range) -> Counter[str]:
    seen = Counter[str]()
    for seed in seeds:
        objective = Objective.of(OBJECTIVES[seed % 4])
        problem = shared_problem(seed)
        problem = limited(problem, seed) if seed // 4 % 2 else problem
        space = Space(problem)
        found, true = Search(space, objective).least(), EveryPlan(problem).least(objective)
        assert (found is None) == (true is None), seed
        if found is None:
            seen["infeasible"] += 1
            continue
        assert found.value == pytest.approx(true, rel=1e-9), seed
        answer = solution(problem, found.placement, "hybrid", found.value, objective, found.codecs, found.blocks)
        assert answer.value == pytest.approx(found.value, rel=1e-9), seed
        verdict = check(problem, answer)
        assert verdict, (seed, str(verdict))
        relaxed = Search(space, objective, relaxed=True).least()
        assert relaxed is not None, seed
        assert relaxed.value <= found.value * (1 + 1e-9), seed
        seen.update({block.axis for block in found.blocks} | {block.leaves for block in found.blocks})
        seen["crossed"] += bool(found.blocks and found.codecs)
    return seen


def test_against_every_plan() -> None:
    seen = against_every_plan(range(100))
    # The problems are worth the trouble: every axis, every way to leave tensors, hybrids proper and hopeless cases occur.
    assert seen.keys() >= {"rows", "channels", "heads", "whole", "divided", "replicated", "crossed", "infeasible"}, seen


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_against_every_plan_at_length() -> None:
    against_every_plan(range(1000, 2000))


def test_auto_is_the_better_of_hybrid_and_no_division() -> None:
    for seed in range(300, 340):
        problem, objective = shared_problem(seed), OBJECTIVES[seed % 2]
        answer = solve(problem, objective=objective)
        assert check(problem, answer), seed
        assert check(problem, answer.to_json()), seed
        assert answer.certificate.status == "optimal", seed
        undivided = solve(problem, "exhaustive", objective)
        divided = EveryPlan(problem).least(Objective.of(objective))
        assert divided is not None
        assert answer.value == pytest.approx(min(undivided.value, divided), rel=1e-9), seed
        for name, value in answer.baselines.items():
            assert isinstance(value, str) or value >= answer.value * (1 - 1e-9), (seed, name)


# -- fused blocks


def every_cut(problem: Problem, ops: list[str]) -> float:
    """All 2^(n-1) ways to cut a chain, each block with all its ways to share it."""
    place = problem.tiers[0]
    best = float("inf")
    for cuts in product([False, True], repeat=len(ops) - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(ops)]
        total = 0.0
        for i, j in zip(edges, edges[1:], strict=False):
            form = problem.ops[problem.op_index[ops[j - 1]]].layouts[0]
            ways = [s for s in product(range(form.units + 1), repeat=len(place.workers)) if sum(s) == form.units]
            ways = [s for s in ways if not any(n % form.granularity for n in [n for n in s if n][:-1])]
            blocks = [Block(tuple(ops[i:j]), place.name, "rows", s) for s in ways]
            total += min(max(share.compute_s + share.exchange_s for share in Team(problem, b, None).shares().values()) for b in blocks)
        best = min(best, total)
    return best


def fused(seeds: range) -> None:
    for seed in seeds:
        problem = conv_chain(seed)
        ops = [op.name for op in problem.ops[1:]]
        seconds, blocks = fused_blocks(problem, problem.tiers[0].name, ops)
        assert seconds == pytest.approx(every_cut(problem, ops), rel=1e-9), seed
        cost, _ = evaluate(problem, {op.name: problem.tiers[0].name for op in problem.ops}, blocks=blocks)
        assert cost.latency_s == pytest.approx(seconds, rel=1e-9), seed


def test_fused_blocks_against_all_cuts() -> None:
    fused(range(100))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fused_blocks_against_all_cuts_at_length() -> None:
    fused(range(1000, 2000))


def test_fused_blocks_need_a_chain_by_rows() -> None:
    problem = conv_chain(1)
    with pytest.raises(Infeasible, match="no layout by rows"):
        fused_blocks(problem, "t0", ["o0", "o1"])
    with pytest.raises(Infeasible, match="does not take from"):
        fused_blocks(problem, "t0", ["o2", "o1"])


# -- halos


@pytest.mark.parametrize(("kernel", "stride", "dilation", "padding", "height"), [(3, 1, 1, 1, 9), (3, 2, 1, 1, 9), (2, 2, 1, 0, 8), (3, 1, 2, 2, 9), (7, 2, 1, 3, 15)])
def test_input_rows_are_those_that_the_taps_touch(kernel: int, stride: int, dilation: int, padding: int, height: int) -> None:
    units = (height + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    form = Layout("t", "rows", units, (1.0,), kernel=kernel, stride=stride, dilation=dilation, padding=padding, input_units=height)
    for begin in range(units):
        for end in range(begin + 1, units + 1):
            touched = {r * stride - padding + dilation * k for r in range(begin, end) for k in range(kernel)} & set(range(height))
            assert input_rows(form, begin, end) == (min(touched), max(touched) + 1)  # type: ignore[arg-type]


def test_a_fused_block_computes_its_halo_twice() -> None:
    """Two convolutions of three rows on eight: the first computes one row more on each side of the cut."""
    problem = phones(2, [3, 3], 8)
    forms = [problem.ops[i].layouts[0] for i in (1, 2)]
    division = Division(problem, 0, ["o1", "o2"], forms)
    price = division.price((4, 4), replace_none(), "whole")
    assert price.compute_s == pytest.approx(5 + 4)


def replace_none() -> Any:
    from partitioners.division import AT_HOST

    return AT_HOST
