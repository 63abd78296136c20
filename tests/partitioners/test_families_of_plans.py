"""Tables over bandwidth and Pareto fronts, against direct solves and against all plans of small problems."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from every_plan import every_cost, small
from line_problems import chain, layered

from partitioners import (
    Certificate,
    Codec,
    Infeasible,
    Link,
    Objective,
    Op,
    PartitionerError,
    Problem,
    Solution,
    Tensor,
    Tier,
    baseline_solutions,
    solution,
    solve,
    violations,
)
from partitioners.objective import FIELDS
from partitioners.parametric import BandwidthTable, at_rate, bandwidth_table
from partitioners.pareto import Front, limited, pareto_front, values

# --- the table over bandwidth


def check_table(problem: Problem, table: BandwidthTable, strategy: str, points: int = 50) -> None:
    """Direct solves at many rates, and just beside each breakpoint, find what the table says."""
    low, high = table.spans[0].low, table.spans[-1].high
    beside = [rate * side for rate in table.breakpoints for side in (1 - 1e-6, 1 + 1e-6)]
    for rate in [*np.geomspace(low, high, points)[1:-1], low, high, *beside]:
        here = at_rate(problem, float(rate), table.link)
        best = solve(here, strategy, table.objective)
        span = table.at(float(rate))
        again = solution(here, span.solution.placement, "again", None, table.objective, span.solution.codecs)
        assert again.value == pytest.approx(span.value(float(rate)), rel=1e-12)
        # The table may be better: a direct solve is content within a millionth of its bound.
        assert best.certificate.bound is not None
        assert table.gap is not None
        assert best.certificate.bound * (1 - 1e-9) <= again.value <= best.value * (1 + table.gap + 1e-9)
    for before, after in pairwise(table.spans):
        assert before.high == after.low
        assert before.value(after.low) == pytest.approx(after.value(after.low), rel=1e-12)
        assert before.wire < after.wire
    assert table.status == "optimal"
    assert table.solves <= max(2, 2 * len(table.spans) - 1)


TABLES = [
    ("latency", 0, {}),
    ("latency", None, {}),
    ("latency + 0.02*energy + 0.01*money", -1, {}),
    ("latency", 0, {"error_budget": 0.05}),
    ("latency", -1, {"within": {"money": 2.0}}),
    ("energy", 0, {}),
]


@pytest.mark.parametrize(("objective", "link", "limits"), TABLES)
def test_table_equals_direct_solves(objective: str, link: int | None, limits: dict[str, object]) -> None:
    for seed in range(3):
        problem = replace(small(seed), **limits)
        links = len(problem.links)
        table = bandwidth_table(problem, 0.01, 1e4, objective, link and link % links, "exhaustive")
        check_table(problem, table, "exhaustive")


@pytest.mark.parametrize("relay", ["transcode", "forward"])
def test_table_of_a_larger_graph(relay: str) -> None:
    problem = layered(24, 3, relay, 5)
    check_table(problem, bandwidth_table(problem, 0.1, 1e4), "auto")


@pytest.mark.slow
@pytest.mark.parametrize("relay", ["transcode", "forward"])
@pytest.mark.parametrize("link", [0, 1, None])
def test_tables_of_many_larger_graphs(relay: str, link: int | None) -> None:
    for seed in range(6):
        problem = layered(40, 3, relay, seed)
        check_table(problem, bandwidth_table(problem, 0.05, 1e4, link=link), "auto", 80)


def test_table_sweeps_from_the_device_to_the_cloud() -> None:
    problem = layered(12, 2, "transcode", 1)
    table = bandwidth_table(problem, 1e-6, 1e9)
    tiers = [set(span.solution.placement.values()) for span in table.spans]
    assert tiers[0] == {"t0"}
    assert list(table.spans[-1].solution.placement.values()).count("t1") == 11  # all but the input
    assert table.at(1e-6) is table.spans[0]
    assert table.at(1e9) is table.spans[-1]
    assert table.at(table.breakpoints[0]) is table.spans[1]


def test_table_prints_and_survives_json() -> None:
    table = bandwidth_table(layered(12, 3, "forward", 1), 0.5, 500, "latency + 0.333333333333*error")
    assert BandwidthTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    head, *rows = str(table).splitlines()
    assert head.startswith(f"bytes/s on link 0: {len(table.spans)} plans, optimal at every rate")
    assert len(rows) == 1 + len(table.spans)
    for broken in ({}, {"version": 2}, {"version": 1, "spans": 3}, {**table.to_dict(), "spans": [{"low": 1}]}):
        with pytest.raises(PartitionerError, match="bandwidth table"):
            BandwidthTable.from_dict(broken)


def only_one_tier(problem: Problem, objective: Objective) -> Solution:
    """An honest but poor solver: the best single tier, beside the bound that a good one proves."""
    found = [s for s in baseline_solutions(problem).values() if isinstance(s, Solution)]
    best = min(found, key=lambda s: s.value)
    return solution(problem, best.placement, "alone", solve(problem, "auto", objective).certificate.bound, objective)


def test_table_of_a_poor_solver_says_how_poor() -> None:
    problem = chain([(0, 0), (1, 9), (1, 9), (30, 1), (30, 1)], [40, 20, 5, 4], (Link(1.0, 0.1),))
    table = bandwidth_table(problem, 0.1, 1e4, link=None, strategy=only_one_tier)
    assert table.status == "within"
    assert table.gap is not None
    true = [1 - solve(at_rate(problem, rate, None)).value / table.at(rate).value(rate) for rate in np.geomspace(0.1, 1e4, 60)]
    assert max(true) <= table.gap + 1e-9
    unproved = bandwidth_table(problem, 1, 10, strategy=lambda problem: {op.name: "t0" for op in problem.ops})
    assert (unproved.status, unproved.gap) == ("feasible", None)
    assert "nothing proved" in str(unproved)


def test_table_refuses_what_is_no_straight_line() -> None:
    problem = layered(6, 2, "transcode", 1)
    measured = replace(problem.tensors[0], codecs=(Codec("zip", 3.0, transfer_s=(0.5,)),))
    overlapping = replace(problem, tensors=(measured, *problem.tensors[1:]))
    cases: list[tuple[Problem, dict[str, object], str]] = [
        (problem, {"objective": "interval"}, "no sum"),
        (problem, {"objective": "latency + critical_path"}, "no sum"),
        (replace(problem, within={"latency_s": 9.0}), {}, "within.latency_s depends on the rate"),
        (replace(problem, within={"interval_s": 9.0}), {}, "within.interval_s depends on the rate"),
        (overlapping, {}, "'zip' of tensor 'in#0' has transfer_s"),
        (problem, {"link": 1}, "no link 1; the problem has 1"),
        (problem, {"low": 3.0, "high": 2.0}, "no range"),
        (problem, {"low": 0.0}, "no range"),
    ]
    for given, arguments, message in cases:
        with pytest.raises(PartitionerError, match=message):
            bandwidth_table(given, **{"low": 1.0, "high": 2.0, **arguments})  # type: ignore[arg-type]
    assert bandwidth_table(overlapping, 1.0, 2.0, "energy").status == "optimal"  # the rate is not in it
    with pytest.raises(PartitionerError, match="rate 3 is outside the table, which goes from 1 to 2"):
        bandwidth_table(problem, 1.0, 2.0).at(3.0)
    with pytest.raises(Infeasible):
        bandwidth_table(replace(problem, within={"money": 0.0, "energy_j": 0.0}, tiers=(Tier("t0", 0.0, 1.0), Tier("t1", 0.0, 1.0))), 1, 2)


# --- the Pareto front

FRONTS = [
    ("latency", "energy"),
    ("latency", "interval"),
    ("critical_path", "money"),
    ("energy", "error"),
    ("latency", "energy", "error"),
    ("energy", "money", "interval"),
]


def true_front(problem: Problem, costs: Sequence[str], seed: int) -> list[tuple[float, ...]]:
    """The nondominated values among all plans that keep the limits; what differs by rounding is one point."""
    kept = [c for c in every_cost(seed) if all(c[field] <= limit * (1 + 1e-9) for field, limit in problem.limits.items())]
    found = sorted({tuple(float(f"{c[FIELDS[name]]:.10g}") for name in costs) for c in kept})
    return [p for p in found if not any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in found)]


def check_front(front: Front, true: Sequence[tuple[float, ...]]) -> None:
    assert front.complete, front.unproved
    assert len(front.points) == len(true)
    for found, wanted in zip(front.values, true, strict=True):
        assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("costs", FRONTS)
def test_front_is_the_one_of_all_plans(costs: tuple[str, ...]) -> None:
    for seed in range(8):
        problem = small(seed)
        check_front(pareto_front(problem, costs, strategy="exhaustive"), true_front(problem, costs, seed))


@pytest.mark.slow
@pytest.mark.parametrize("costs", FRONTS)
def test_fronts_of_many_problems(costs: tuple[str, ...]) -> None:
    for seed in range(100):
        problem = small(seed)
        check_front(pareto_front(problem, costs, strategy="exhaustive"), true_front(problem, costs, seed))


@pytest.mark.parametrize("costs", FRONTS)
def test_front_by_the_fast_solvers(costs: tuple[str, ...]) -> None:
    """A solver with tolerances may miss points, but then the front says so, and what it has is true."""
    for seed in range(4, 8):
        front, true = pareto_front(small(seed), costs), true_front(small(seed), costs, seed)
        if front.complete:
            check_front(front, true)
        for point in front.values:
            assert any(point == pytest.approx(wanted, rel=1e-6) for wanted in true)


@pytest.mark.parametrize("limits", [{"error_budget": 0.06}, {"within": {"energy_j": 20.0}}, {"within": {"error": 0.05, "interval_s": 2.0}}])
def test_front_keeps_the_limits(limits: dict[str, object]) -> None:
    for seed in range(8):
        problem = replace(small(seed), **limits)
        true = true_front(problem, ("latency", "energy"), seed)
        if not true:
            with pytest.raises(Infeasible):
                pareto_front(problem, strategy="exhaustive")
            continue
        front = pareto_front(problem, strategy="exhaustive")
        check_front(front, true)
        assert not any(violations(problem, point.cost) for point in front.points)


def one_op(points: Sequence[tuple[float, float]]) -> Problem:
    """One op with these latencies and energies on its tiers; data moves for nothing."""
    tiers = tuple(Tier(f"t{i}", watts=joules / seconds) for i, (seconds, joules) in enumerate(points))
    ops = (Op("in", (0.0,) * len(points), "t0"), Op("work", tuple(seconds for seconds, _ in points)))
    return Problem(tiers, (Link(1.0, 0.0),) * (len(points) - 1), ops, (Tensor("in", ("work",), 0.0),))


def test_front_has_the_points_that_weighted_sums_miss() -> None:
    points = [(1.0, 10.0), (2.0, 9.5), (6.0, 7.0), (9.0, 3.0), (9.5, 2.5), (10.0, 1.0)]  # but for the ends, above the line between them
    problem = one_op(points)
    by_weights = {values(solve(problem, "auto", f"latency + {w:.9f}*energy"), ("latency", "energy")) for w in np.geomspace(1e-3, 1e3, 200)}
    assert by_weights == {points[0], points[-1]}
    check_front(pareto_front(problem), points)
    check_front(pareto_front(problem, ("latency", "energy", "error")), [(*point, 0.0) for point in points])


def independent(ops: int) -> Problem:
    """Ops that save 1, 2, 4, ... seconds elsewhere and cost as many joules there: every subset is a point of the front."""
    work = tuple(Op(f"op{i}", (2 * 2.0**i, 2.0**i)) for i in range(ops))
    return Problem((Tier("t0", watts=0.5), Tier("t1", watts=2.0)), (Link(1.0, 0.0),), work, ())


def test_front_with_a_limit_on_points_is_spread_and_says_so() -> None:
    problem = independent(5)
    front = pareto_front(problem, points=5, strategy="exhaustive")
    assert len(front.points) == 5
    steps = np.diff([joules for _, joules in front.values])
    assert max(steps) - min(steps) <= 1.0 + 1e-9  # 31 J in 4 whole steps
    assert not front.complete
    assert "5 levels of energy" in str(front)
    assert pareto_front(one_op([(1.0, 1.0), (2.0, 2.0)]), points=5).complete  # one point, the best in both
    whole = pareto_front(problem, ("latency", "energy", "interval"), strategy="exhaustive")
    part = pareto_front(problem, ("latency", "energy", "interval"), points=6, strategy="exhaustive")
    assert (len(whole.points), len(part.points), part.complete) == (32, 6, False)
    assert {*part.values} <= {*whole.values}


def test_front_out_of_solves_keeps_what_it_has() -> None:
    problem = independent(5)
    front = pareto_front(problem, most_solves=21, strategy="exhaustive")
    assert (front.solves, front.unproved) == (21, "stopped after 21 solves")
    assert 2 < len(front.points) < 32
    whole = pareto_front(problem, strategy="exhaustive")
    assert (len(whole.points), whole.solves) == (32, 2 * 32 + 1)


def test_front_of_a_solver_that_proves_nothing_claims_nothing() -> None:
    def proves_nothing(problem: Problem, objective: Objective) -> Solution:
        return replace(solve(problem, "exhaustive", objective), certificate=Certificate("feasible"))

    front = pareto_front(small(1), strategy=proves_nothing)
    assert not front.complete
    assert "unproved" in front.unproved


def test_front_refuses_costs_that_make_no_front() -> None:
    for costs in (["latency"], ["latency", "latency"], ["latency", "beauty"], ["interval", "period"]):
        with pytest.raises(PartitionerError, match="two or more different ones"):
            pareto_front(small(0), costs)
    with pytest.raises(PartitionerError, match="points=1"):
        pareto_front(small(0), points=1)


def test_limits_of_a_front_join_those_of_the_problem() -> None:
    problem = replace(small(0), error_budget=0.5, within={"error": 0.3, "money": 2.0})
    assert limited(problem, {"energy": 4.0, "money": 3.0, "latency": float("inf")}).limits == {"energy_j": 4.0, "money": 2.0, "error": 0.3}
    assert limited(problem, {"error": 0.1}).error_budget == 0.1
