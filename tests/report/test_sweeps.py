"""Curves, regimes and fronts, against plans made one by one and the exact table of bandwidths."""

from dataclasses import replace
from itertools import pairwise

import pytest
from random_plans import a_profile, a_topology
from small_plans import CODECS, PROFILE, SPLIT, TOPOLOGY

from partitioners.parametric import bandwidth_table
from splitinfer.errors import UsageError
from splitinfer.planner import baseline_plans, plan, problems
from splitinfer.plans import INPUT
from splitinfer.report.figures import MBPS
from splitinfer.report.fronts import trade_offs
from splitinfer.report.sweep import link_named, sweep, usable_codecs

SWEEP = sweep(SPLIT, PROFILE, TOPOLOGY, CODECS, TOPOLOGY.links[0], points=17)


def at(rate):
    return replace(TOPOLOGY, links=(replace(TOPOLOGY.links[0], up_bytes_per_s=rate), *TOPOLOGY.links[1:]))


class TestSweep:
    def test_the_best_is_the_planner_s_and_never_above_another(self):
        best = SWEEP.curves["best plan"]
        for place, rate in enumerate(SWEEP.rates):
            assert best[place] == pytest.approx(plan(PROFILE, at(rate), codecs=CODECS, compare=False).cost.latency_s)
            assert all(best[place] <= curve[place] * (1 + 1e-9) for curve in SWEEP.curves.values())
        assert set(SWEEP.curves) == {"best plan", "this plan", "t0 only", "t1 only", "t2 only"}

    def test_this_plan_is_the_best_where_it_was_made(self):
        here = next(regime for regime in SWEEP.regimes if regime.low <= SWEEP.declared <= regime.high)
        both = zip(SWEEP.rates, SWEEP.curves["this plan"], SWEEP.curves["best plan"], strict=True)
        inside = [(mine, best) for rate, mine, best in both if here.low <= rate <= here.high]
        assert inside
        assert all(mine == pytest.approx(best) for mine, best in inside)

    def test_each_tier_alone_is_the_baseline(self):
        for place in (0, len(SWEEP.rates) - 1):
            alone = baseline_plans(PROFILE, at(SWEEP.rates[place]), CODECS)
            for name, made in alone.items():
                assert SWEEP.curves[name][place] == pytest.approx(made.cost.latency_s)

    def test_regimes_cover_all_rates(self):
        assert SWEEP.regimes[0].low == SWEEP.rates[0] == pytest.approx(0.1 * MBPS)
        assert SWEEP.regimes[-1].high == SWEEP.rates[-1] == pytest.approx(1000 * MBPS)
        assert all(one.high == two.low and one.name != two.name for one, two in pairwise(SWEEP.regimes))
        assert len(SWEEP.regimes) >= 3

    def test_borders_are_where_the_exact_table_has_them(self):
        """On a line of two tiers the planner's only other choice is the device alone, so the table of the two is the whole truth."""
        topology = a_topology([12, 1], [(250_000, 500_000, 0.002)])
        made = plan(PROFILE, topology, codecs=CODECS)
        found = sweep(made, PROFILE, topology, CODECS, topology.links[0], points=33)
        problem = problems(PROFILE, topology, CODECS)["t0", "t1"]
        ends = [1 / (1 / rate + PROFILE.framework.s_per_byte) for rate in (found.rates[0], found.rates[-1])]
        exact = [1 / (1 / rate - PROFILE.framework.s_per_byte) for rate in bandwidth_table(problem, *ends).breakpoints]
        assert len(exact) >= 2
        assert [regime.low for regime in found.regimes[1:]] == pytest.approx(exact, rel=0.03)

    def test_limits_that_no_plan_keeps_leave_gaps(self):
        memory = replace(TOPOLOGY, tiers=(replace(TOPOLOGY.tiers[0], memory_bytes=10), *TOPOLOGY.tiers[1:]))
        heavy = replace(PROFILE, layers=tuple(replace(layer, weight_nbytes=100) for layer in PROFILE.layers))
        kept = replace(SPLIT, kept_layers=1)
        found = sweep(kept, heavy, memory, CODECS, memory.links[0], points=2)
        assert "best plan" not in found.curves
        assert found.regimes == ()

    def test_the_range_reaches_the_declared_rate(self):
        slow = at(100.0)
        found = sweep(SPLIT, PROFILE, slow, CODECS, slow.links[0], points=3)
        assert found.rates[0] <= 100.0 < found.rates[-1]


def test_links_by_name():
    assert link_named(TOPOLOGY, None) == TOPOLOGY.links[0]
    assert link_named(TOPOLOGY, "t1:t2") == TOPOLOGY.links[1]
    with pytest.raises(UsageError, match="no link 't0:t2'; choose from t0:t1, t1:t2"):
        link_named(TOPOLOGY, "t0:t2")
    with pytest.raises(UsageError, match="a single tier"):
        link_named(a_topology([1], []), None)


def test_codecs_by_default_are_lossless_and_those_of_the_plan():
    assert set(usable_codecs(SPLIT, PROFILE)) == {"raw", "zstd", *(crossing.codec for crossing in SPLIT.crossings)}
    assert usable_codecs(SPLIT, PROFILE, ["raw"]) == ("raw",)
    assert usable_codecs(replace(SPLIT, crossings=()), PROFILE) == ("raw", "zstd")


class TestTradeOffs:
    def test_no_weighted_plan_lies_below_the_front(self):
        (energy, money) = trade_offs(SPLIT, PROFILE, TOPOLOGY, CODECS)
        assert (energy.cost, money.cost) == ("energy", "money")
        assert energy.unproved == ""
        assert all(one.latency_s < two.latency_s and one.other > two.other for one, two in pairwise(energy.points))
        for weight in (0.001, 0.01, 0.1, 1, 10, 1000):
            cost = plan(PROFILE, TOPOLOGY, f"latency + {weight}*energy", CODECS, compare=False).cost
            attained = [point.other for point in energy.points if point.latency_s <= cost.latency_s * (1 + 1e-6)]
            assert attained
            assert min(attained) <= cost.energy_j * (1 + 1e-6)

    def test_the_plan_of_least_latency_is_its_first_point(self):
        energy = trade_offs(SPLIT, PROFILE, TOPOLOGY, CODECS)[0]
        assert (energy.points[0].latency_s, energy.points[0].other) == pytest.approx((SPLIT.cost.latency_s, SPLIT.cost.energy_j))
        assert energy.marks["this plan"] == (SPLIT.cost.latency_s, SPLIT.cost.energy_j)
        assert set(energy.marks) == {"this plan", "t0 only", "t1 only", "t2 only"}

    def test_nothing_declared_nothing_traded(self):
        plain = a_topology([12, 1], [(250_000, 500_000, 0.002)])
        profile = a_profile({"a": 0.01}, [("in", INPUT, ("a",), 10, False), ("y", "a", (), 50, True)])
        assert trade_offs(plan(profile, plain, codecs=["raw"]), profile, plain, ["raw"]) == ()
