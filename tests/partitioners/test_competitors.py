"""The competitors: right where their papers are right, wrong where they are known to be."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from small_problems import ENERGY, anything, chain, every_plan, problem, without_latency

from partitioners import LATENCY, Infeasible, Link, Objective, solution, solve
from partitioners.competitors import COMPETITORS, by_dads, by_dads_no_reverse, by_greedy, by_neurosurgeon, by_neurosurgeon_tiers, dads_cut

# -- right where the papers are right


@pytest.mark.parametrize("name", COMPETITORS)
@pytest.mark.parametrize("relay", ["transcode", "forward"])
def test_a_plan_keeps_the_rules_and_claims_nothing(name: str, relay: str) -> None:
    for seed in range(20):
        p = anything(seed, 1 + seed % 4, 7, relay=relay)
        for objective in (LATENCY, ENERGY):
            found = COMPETITORS[name](p, objective)
            assert (found.strategy, found.certificate.status, found.certificate.bound) == (name, "feasible", None)
            assert found.value >= solve(p, "auto", objective).value * (1 - 1e-9)


@pytest.mark.parametrize("name", COMPETITORS)
def test_another_objective_is_priced_though_not_planned_for(name: str) -> None:
    p = anything(3, 3, 7)
    for text in ("interval", "critical_path"):
        objective = Objective.of(text)
        found = COMPETITORS[name](p, objective)
        assert found.placement == COMPETITORS[name](p, LATENCY).placement
        assert found.value == getattr(found.cost, f"{text}_s")


@pytest.mark.parametrize("name", COMPETITORS)
def test_limits_are_found_out_afterwards(name: str) -> None:
    p = anything(3, 2, 7)
    full = replace(p, tiers=tuple(replace(tier, memory_bytes=0.0) for tier in p.tiers))
    with pytest.raises(Infeasible, match=r"tier 't\d' holds"):
        COMPETITORS[name](full, LATENCY)
    with pytest.raises(Infeasible, match=r"latency_s is .* over the limit of 0"):
        COMPETITORS[name](replace(p, within={"latency_s": 0.0}), LATENCY)


@pytest.mark.parametrize("name", COMPETITORS)
def test_two_way_problems_are_planned_one_way(name: str) -> None:
    p = anything(5, 3, 6)
    found = COMPETITORS[name](replace(p, two_way=True), LATENCY)
    assert found.placement == COMPETITORS[name](p, LATENCY).placement
    back = replace(p, two_way=True, ops=(replace(p.ops[0], pinned="t2"), *p.ops[1:-1], replace(p.ops[-1], pinned="t0")))
    assert solve(back).placement["o5"] == "t0"
    if "o5" in {user for tensor in p.tensors for user in tensor.consumers}:
        with pytest.raises(Infeasible, match="data flows down the line only"):
            COMPETITORS[name](back, LATENCY)


def test_the_scan_is_exact_on_chains() -> None:
    for seed in range(60):
        p = chain(seed, 2 + seed % 3)
        best = solve(p).value
        assert by_neurosurgeon_tiers(p).value == pytest.approx(best, rel=1e-9)
        if len(p.tiers) == 2:
            assert by_neurosurgeon(p).value == pytest.approx(best, rel=1e-9)
            assert by_neurosurgeon(p, ENERGY).value == pytest.approx(solve(p, "auto", ENERGY).value, rel=1e-9)


def test_dads_is_exact_on_two_tiers_once_it_has_its_arcs() -> None:
    for seed in range(60):
        p = without_latency(anything(seed, 2, 8))
        cut = dads_cut(p, reverse_arcs=True)
        assert not cut.backwards
        assert by_dads(p).value == pytest.approx(solve(p).value, rel=1e-9)
        assert cut.claimed == pytest.approx(solve(p).value, rel=1e-9)


def test_what_dads_claims_without_them_is_never_above_the_optimum() -> None:
    below = 0
    for seed in range(60):
        p = without_latency(anything(seed, 2, 8))
        cut, best = dads_cut(p), solve(p).value
        assert cut.claimed <= best * (1 + 1e-9)
        # Where the cut does not run backwards it is a plan like any other.
        assert bool(cut.backwards) or by_dads_no_reverse(p).value == pytest.approx(cut.claimed, rel=1e-9)
        below += cut.claimed < best * (1 - 1e-6)
    assert below > 0


# -- wrong where they are known to be


@pytest.mark.parametrize("branches", [2, 4, 8])
def test_a_waist_of_one_byte_in_each_branch(branches: int) -> None:
    """The waists stand at different depths, so no prefix of a topological order cuts all branches at theirs."""
    ops = {"in": (0.0, 0.0), "stem": (1.0, 0.0)}
    tensors = [("in", "stem", 1e6)]
    for i in range(branches):
        names = [f"b{i}.{d}" for d in range(branches + 1)]
        ops |= {name: (1.0 if d <= i else 1e5, 0.0) for d, name in enumerate(names)}
        tensors += [("stem", names[0], 1e6), (names[-1], "concat", 1e6)]
        tensors += [(a, b, 1.0 if d == i else 1e6) for d, (a, b) in enumerate(pairwise(names))]
    p = problem({**ops, "concat": (1.0, 0.0)}, tensors)
    best = 1 + branches * (branches + 1) / 2 + branches  # stem, all up to the waists, a byte each
    assert solve(p).value == by_dads(p).value == pytest.approx(best)
    assert by_neurosurgeon(p).value > 1e5


def test_eight_tensors_cross_and_one_is_priced() -> None:
    """Eight branches of equal output: after the last of them the scan sees one tensor on the link where eight are."""
    ops = {"in": (0.0, 0.0), **{f"b{i}": (0.0, 1.0) for i in range(8)}, "sum": (20.0, 0.0)}
    tensors = [("in", " ".join(f"b{i}" for i in range(8)), 100.0), *((f"b{i}", "sum", 12.0) for i in range(8))]
    p = problem(ops, tensors)
    found = by_neurosurgeon(p)
    assert solve(p).value == pytest.approx(20)  # all on the device
    assert found.placement["sum"] == "t1"
    assert found.value == pytest.approx(96)  # it thought 12
    assert by_dads(p).value == pytest.approx(20)


def test_eight_consumers_are_paid_once() -> None:
    """DADS' node for a layer of several successors does it; an arc for each consumer would be up to 8 times too dear."""
    users = [f"u{i}" for i in range(8)]
    ops = {"in": (0.0, 0.0), **dict.fromkeys(users, (1.0, 0.0))}
    p, per_edge = problem(ops, [("in", " ".join(users), 7.0)]), problem(ops, [("in", name, 7.0) for name in users])
    assert solve(p).value == by_dads(p).value == dads_cut(p).claimed == pytest.approx(7)
    assert solve(per_edge).placement["u0"] == "t0"  # 8 s: what the wrong price makes of it
    assert solution(p, solve(per_edge).placement, "per edge").value == pytest.approx(8)


def test_device_cheap_cloud_cheap_device_cheap() -> None:
    """The story of the missing arcs: the cut goes to the cloud and comes back for nothing."""
    p = problem({"in": (0.0, 9.0), "mid": (9.0, 0.0), "end": (0.0, 9.0)}, [("in", "mid", 1.0), ("mid", "end", 1.0)])
    cut = dads_cut(p)
    assert cut.claimed == pytest.approx(1)
    assert cut.device == {"in", "end"}
    assert cut.backwards == ("end",)
    assert min(plan.value for plan in every_plan(p)) == pytest.approx(9)  # in all there is
    assert by_dads_no_reverse(p).placement["end"] == "t1"
    assert by_dads_no_reverse(p).value == pytest.approx(10)  # repaired
    assert dads_cut(p, reverse_arcs=True).claimed == by_dads(p).value == pytest.approx(9)


def test_the_repair_can_cost_any_factor() -> None:
    p = problem({"in": (0.0, 1e6), "mid": (9.0, 0.0), "end": (0.0, 1e6)}, [("in", "mid", 1.0), ("mid", "end", 1.0)])
    assert by_dads_no_reverse(p).value / solve(p).value > 1e5


def test_greedy_does_not_look_ahead() -> None:
    """Each op alone is cheaper than the transfer that would pay for all."""
    names = [f"o{i}" for i in range(1, 50)]
    ops = {"o0": (0.0, 0.0), **dict.fromkeys(names, (1.0, 0.0))}
    p = problem(ops, [(a, b, 2.0) for a, b in zip(["o0", *names], names, strict=False)])
    assert solve(p).value == pytest.approx(2)
    assert by_greedy(p).value == pytest.approx(49)


def test_two_of_three_tiers_are_not_enough() -> None:
    p = problem({"in": (0.0, 9.0, 9.0), "mid": (9.0, 0.0, 9.0), "end": (9.0, 9.0, 0.0)},
                [("in", "mid", 1.0), ("mid", "end", 1.0)], (Link(1.0, 0.0), Link(1.0, 0.0)))  # fmt: skip
    assert solve(p).value == by_neurosurgeon_tiers(p).value == pytest.approx(2)
    assert by_dads(p).value == by_neurosurgeon(p).value == pytest.approx(11)
