"""The best k placements against all there are."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from small_problems import ENERGY, anything, chain, every_plan, problem

from partitioners import LATENCY, Infeasible, Objective, PartitionerError, Problem
from partitioners.topk import LIMIT, top_k


def check_top(p: Problem, objective: Objective, k: int = 6) -> None:
    expected = sorted(plan.value for plan in every_plan(p, objective))[:k]
    if not expected:
        with pytest.raises(Infeasible):
            top_k(p, k, objective)
        return
    found = top_k(p, k, objective)
    assert [plan.value for plan in found] == pytest.approx(expected, rel=2e-6)
    assert len({tuple(plan.placement.items()) for plan in found}) == len(found)
    for place, plan in enumerate(found, start=1):
        assert plan.strategy == f"top {place}"
        assert plan.certificate.bound == pytest.approx(expected[0], rel=2e-6)
    assert found[0].certificate.status == "optimal"


def variants(seed: int) -> Problem:
    p = anything(seed, 2 + seed % 2, 5, relay=["transcode", "forward"][seed // 2 % 2], two_way=seed // 4 % 3 == 2)
    if seed % 5 == 0:
        p = replace(p, tiers=(*p.tiers[:-1], replace(p.tiers[-1], memory_bytes=1.2)))
    return p


@pytest.mark.parametrize("objective", [LATENCY, ENERGY, Objective.of("energy")], ids=str)
def test_top_k_against_brute_force(objective: Objective) -> None:
    for seed in range(12):
        check_top(variants(seed), objective)


@pytest.mark.slow
@pytest.mark.parametrize("objective", [LATENCY, ENERGY, Objective.of("energy")], ids=str)
def test_top_k_against_brute_force_often(objective: Objective) -> None:
    for seed in range(12, 150):
        check_top(variants(seed), objective, k=12)


def test_top_k_ends_with_the_last_placement() -> None:
    p = chain(1, 2)
    pinned = replace(p, ops=tuple(replace(op, pinned="t0" if i < 4 else None) for i, op in enumerate(p.ops)))
    assert len(top_k(pinned, 10)) == 3


def test_top_k_refuses() -> None:
    p = chain(1, 2)
    with pytest.raises(PartitionerError, match="one or more"):
        top_k(p, 0)
    with pytest.raises(PartitionerError, match="'interval' is none"):
        top_k(p, 2, "interval")
    names = [f"o{i}" for i in range(2000)]
    large = problem(dict.fromkeys(names, (1.0, 0.5)), [(a, b, 1.0) for a, b in pairwise(names)])
    with pytest.raises(PartitionerError, match=f"1,999 solutions of the problem, 3,998,000 with its ops; the limit is {LIMIT:,}"):
        top_k(large, 2)
    assert len(top_k(large, 1)) == 1
