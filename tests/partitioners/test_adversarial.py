"""The instances on which other planners go wrong, each for the objectives that it is about."""

from __future__ import annotations

from dataclasses import replace

import pytest
from line_problems import chain

from partitioners import Codec, Infeasible, Link, Op, PartitionerError, Problem, Tensor, Tier, solve
from partitioners.checker import check

TWO = (Tier("t0", None, 2.0, 0.5), Tier("t1", None, 8.0, 4.0))
THREE = tuple(Tier(f"t{i}") for i in range(3))

EXACT = ["auto", "milp", "blocks", "exhaustive"]


def waist(branches: int, big: float) -> Problem:
    """In -> stem -> parallel branches, each one byte wide in its middle -> concat."""
    ops = [Op("in", (0, 0), "t0"), Op("stem", (0.1, 0.01))]
    tensors = [Tensor("in", ("stem",), big), Tensor("stem", tuple(f"narrow{i}" for i in range(branches)), big)]
    for i in range(branches):
        ops += [Op(f"narrow{i}", (0.1, 0.01)), Op(f"wide{i}", (50, 0.5))]
        tensors += [Tensor(f"narrow{i}", (f"wide{i}",), 1), Tensor(f"wide{i}", ("concat",), big)]
    ops.append(Op("concat", (0.1, 0.01)))
    return Problem(TWO, (Link(1000, 0.02, None, 1e-3, 1e-3),), tuple(ops), tuple(tensors))


@pytest.mark.parametrize("objective", ["latency", "interval", "critical_path", "energy", "money", "latency + interval"])
def test_waist_of_parallel_branches(objective: str) -> None:
    """Six tensors of one byte are cut, where a planner that sees a chain sees only the wide stem and the wide end."""
    problem = waist(6, 1e6)
    found = solve(problem, objective=objective)
    assert found.certificate.status == "optimal"
    assert check(problem, found)
    assert {c.tensor for c in found.codecs} == {f"narrow{i}#{2 + 2 * i}" for i in range(6)}
    assert found.cost.latency_s == pytest.approx(0.1 + 6 * 0.1 + 6 * 0.001 + 0.02 + 6 * 0.5 + 0.01)
    assert found.cost.critical_path_s == pytest.approx(0.1 + 0.1 + 0.001 + 0.02 + 0.5 + 0.01)
    assert found.cost.interval_s == pytest.approx(6 * 0.5 + 0.01)


@pytest.mark.parametrize("big", [1e4, 1e6, 1e8])
def test_a_scan_of_the_layers_in_a_row_misses_the_waist_by_any_factor(big: float) -> None:
    """In the order of the file no cut lies between all narrow and all wide halves."""
    problem = waist(4, big)
    best, scan = solve(problem).value, solve(problem, "neurosurgeon").value
    assert scan == pytest.approx(big / 1000, rel=0.3), "it sends what it believes to be sent already"
    assert best < 3
    assert solve(problem, "dads").value == pytest.approx(best)


@pytest.mark.parametrize("relay", ["transcode", "forward"])
@pytest.mark.parametrize("objective", ["latency", "interval", "critical_path", "energy", "money", "latency + energy"])
def test_eight_consumers_pay_once(objective: str, relay: str) -> None:
    """Paid per consumer, the tensor would take 12 s, 2400 J and money, and everything would stay on the device."""
    users = tuple(f"user{i}" for i in range(8))
    ops = (Op("in", (0, 0, 0), "t0"), *(Op(u, (0.5, 0.4, 0.1)) for u in users))
    tiers = tuple(Tier(f"t{i}", None, 100.0, 100.0) for i in range(3))
    links = (Link(100, 0.0, None, 1.0, 1.0), Link(200, 0.0, None, 1.0, 1.0))
    problem = Problem(tiers, links, ops, (Tensor("in", users, 100),), relay)
    for strategy in EXACT:
        try:
            found = solve(problem, strategy, objective)
        except PartitionerError:
            assert strategy == "blocks", "only one may refuse, and only the critical path"
            continue
        assert check(problem, found)
        if objective == "interval":
            assert found.value == pytest.approx(1.0), "the first link; all on the device would take 4"
        elif objective == "critical_path":
            assert found.value == pytest.approx(0.5), "they overlap: the device is soonest"
        else:
            assert found.placement == {"in": "t0"} | dict.fromkeys(users, "t2")
            assert found.cost.latency_s == pytest.approx(1 + 0.5 + 8 * 0.1)
            assert found.cost.energy_j == pytest.approx(200 + 8 * 0.1 * 100)


BACK_AND_FORTH = chain([(0.1, 9), (9, 0.1), (0.1, 5)], [0, 0], (Link(1, 0),))


@pytest.mark.parametrize("strategy", ["auto", "mincut", "milp", "chain", "blocks", "exhaustive"])
def test_data_never_flows_back_down(strategy: str) -> None:
    """Cheap on the device, then in the cloud, then on the device again: the sum of minima, 0.3 s, cannot be had."""
    found = solve(BACK_AND_FORTH, strategy)
    assert found.placement == {"op0": "t0", "op1": "t1", "op2": "t1"}
    assert found.cost.latency_s == pytest.approx(0.1 + 0.1 + 5)
    assert found.certificate.bound == pytest.approx(5.2)


@pytest.mark.parametrize(("objective", "one_way", "both_ways"), [("interval", 5.1, 0.2), ("critical_path", 5.2, 0.3)])
def test_data_flows_back_only_where_it_may(objective: str, one_way: float, both_ways: float) -> None:
    assert solve(BACK_AND_FORTH, objective=objective).value == pytest.approx(one_way)
    found = solve(replace(BACK_AND_FORTH, two_way=True), objective=objective)
    assert found.value == pytest.approx(both_ways)
    assert found.placement == {"op0": "t0", "op1": "t1", "op2": "t0"}


@pytest.mark.parametrize("strategy", ["auto", "mincut", "milp", "exhaustive"])
def test_two_way_takes_the_way_back_and_pays_for_it(strategy: str) -> None:
    link = Link(10, 0.25, 5)
    problem = replace(BACK_AND_FORTH, two_way=True, links=(link,), tensors=tuple(replace(t, nbytes=2) for t in BACK_AND_FORTH.tensors))
    found = solve(problem, strategy)
    assert found.placement == {"op0": "t0", "op1": "t1", "op2": "t0"}
    assert found.cost.latency_s == pytest.approx(0.3 + 0.2 + 0.4 + 0.5)
    assert [(c.direction, c.link) for c in found.codecs] == [("up", 0), ("down", 0)]


def test_the_published_cut_without_its_reverse_arcs_plans_what_cannot_be() -> None:
    """Its cut is worth 0.3 s; whatever plan is made of it, it is not better than the optimum."""
    best = solve(BACK_AND_FORTH).value
    try:
        found = solve(BACK_AND_FORTH, "dads_no_reverse")
    except Infeasible:
        return
    assert found.certificate.bound is None or found.certificate.bound <= best
    assert found.value >= best * (1 - 1e-9)


def test_no_op_is_beyond_the_second_link_but_not_the_first() -> None:
    """Without the arcs between levels b would skip both dear encodes, on no tier at all, for a bound of 0."""
    into = Codec("into", 0, (10, 0, 0), (0, 0, 0))
    out = Codec("out", 0, (0, 10, 0), (0, 0, 0))
    ops = (Op("a", (0, 0, 0), "t0"), Op("b", (0, 100, 0)), Op("c", (0, 0, 0), "t2"))
    tensors = (Tensor("a", ("b",), 0, codecs=(into,)), Tensor("b", ("c",), 0, codecs=(out,)))
    found = solve(Problem(THREE, (Link(1, 0), Link(1, 0)), ops, tensors), "mincut")
    assert found.cost.latency_s == 10
    assert found.certificate.bound == pytest.approx(10)


@pytest.mark.parametrize("strategy", ["auto", "mincut", "milp", "blocks", "exhaustive"])
def test_latency_is_paid_once_per_link_and_direction(strategy: str) -> None:
    """Paid per tensor, three tensors and a result would take 4 s more than they do, and all would stay at home."""
    users = ("u0", "u1", "u2")
    ops = (Op("in", (0, 0), "t0"), *(Op(u, (1.5, 0.1)) for u in users))
    tensors = (*(Tensor("in", (u,), 0) for u in users), *(Tensor(u, (), 0, True) for u in users))
    found = solve(Problem(TWO, (Link(1, 1.0),), ops, tensors), strategy)
    assert found.placement == {"in": "t0"} | dict.fromkeys(users, "t1")
    assert found.cost.latency_s == pytest.approx(0.3 + 1 + 1)


@pytest.mark.parametrize("strategy", ["auto", "milp", "blocks", "exhaustive"])
def test_encoding_once_is_not_the_sum_of_encoding_on_every_link(strategy: str) -> None:
    """Forwarded, a dear encode is paid once for both links; per link, the plan would stop at the edge."""
    codec = Codec("dear", 1, (2, 2, 2), (0, 0, 0))
    ops = (Op("in", (0, 0, 0), "t0"), Op("a", (9, 3, 1)))
    problem = Problem(THREE, (Link(10, 0), Link(10, 0)), ops, (Tensor("in", ("a",), 9, codecs=(codec,)),))
    there = solve(problem, strategy)
    assert (there.placement["a"], there.value) == ("t1", pytest.approx(2 + 0.1 + 3))
    beyond = solve(replace(problem, relay="forward"), strategy)
    assert (beyond.placement["a"], beyond.value) == ("t2", pytest.approx(2 + 0.2 + 1))


@pytest.mark.parametrize("strategy", ["auto", "milp", "blocks", "exhaustive"])
def test_two_codecs_that_are_each_best_break_the_budget_together(strategy: str) -> None:
    """Cheapest first, and each alone within the budget; the second best choice saves more with the larger tensor."""
    ops = (Op("in", (0, 0), "t0"), Op("small", (9, 1), "t1"), Op("large", (9, 1), "t1"))

    def ways(nbytes: float) -> tuple[Codec, ...]:
        return (Codec("raw", nbytes), Codec("int8", nbytes / 4, error=0.03))

    tensors = (Tensor("in", ("small",), 100, codecs=ways(100)), Tensor("in", ("large",), 400, codecs=ways(400)))
    problem = Problem(TWO, (Link(100, 0),), ops, tensors, error_budget=0.05)
    found = solve(problem, strategy)
    assert {c.tensor: c.codec for c in found.codecs} == {"in#0": "raw", "in#1": "int8"}
    assert found.value == pytest.approx(2 + 1 + 1)


@pytest.mark.parametrize("strategy", ["auto", "milp", "blocks", "exhaustive"])
def test_memory_holds_back_what_latency_would_move(strategy: str) -> None:
    """The cloud is faster for both, but holds one: the one that gains more."""
    ops = (Op("in", (0, 0), "t0"), Op("a", (3, 1), None, 60), Op("b", (5, 1), None, 60))
    tiers = (Tier("t0"), Tier("t1", 100.0))
    problem = Problem(tiers, (Link(1, 0),), ops, (Tensor("in", ("a", "b"), 0),))
    found = solve(problem, strategy)
    assert found.placement == {"in": "t0", "a": "t0", "b": "t1"}
    assert found.value == pytest.approx(4)


@pytest.mark.parametrize("strategy", ["auto", "milp", "chain", "blocks", "exhaustive"])
def test_throughput_balances_where_latency_does_not(strategy: str) -> None:
    """Latency puts all in the cloud; the pipeline is twice as fast if the device works too."""
    problem = chain([(0, 0), (1, 1), (1, 1)], [0, 0], (Link(1, 0),))
    found = solve(problem, strategy, "interval")
    assert found.value == 1
    assert found.placement == {"op0": "t0", "op1": "t0", "op2": "t1"}


@pytest.mark.parametrize("strategy", ["auto", "milp", "critical_path", "exhaustive"])
def test_branches_overlap_where_their_sum_does_not(strategy: str) -> None:
    """The sum keeps both branches at home, to save the link; side by side one of them is worth sending."""
    ops = (Op("in", (0, 0), "t0"), Op("left", (4, 4)), Op("right", (4, 3)), Op("join", (0, 0), "t1"))
    tensors = (Tensor("in", ("left",), 50), Tensor("in", ("right",), 1), Tensor("left", ("join",), 1), Tensor("right", ("join",), 3))
    problem = Problem(TWO, (Link(10, 0),), ops, tensors)
    found = solve(problem, strategy, "critical_path")
    assert found.value == pytest.approx(4.1)
    assert solve(problem).cost.latency_s == pytest.approx(4 + 0.1 + 0.1 + 3)


@pytest.mark.parametrize("strategy", ["auto", "milp", "exhaustive"])
def test_a_weighted_sum_of_a_maximum_and_a_sum(strategy: str) -> None:
    """Neither the best latency nor the best interval is the best of both."""
    problem = chain([(0, 0, 0), (4, 3, 2), (4, 3, 2), (4, 3, 2)], [10, 10, 10], (Link(10, 0), Link(10, 0)))
    both = solve(problem, strategy, "latency + interval")
    assert both.value == 9 + 4
    latency, interval = solve(problem, strategy, "latency"), solve(problem, strategy, "interval")
    assert (latency.cost.latency_s, latency.cost.interval_s) == (8, 6)
    assert interval.cost.interval_s == 4
    assert both.certificate.status == "optimal"
