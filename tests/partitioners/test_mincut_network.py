"""The cut against networkx on larger graphs, its precision, and the instances on which other planners go wrong."""

from __future__ import annotations

import random
from itertools import pairwise, product

import networkx as nx
import numpy as np
import pytest
from line_problems import chain, layered

import partitioners
from partitioners import Codec, Link, Op, PartitionerError, Problem, Tensor, Tier, exact_for, solve
from partitioners.arrays import Arrays
from partitioners.flow import minimum_cut
from partitioners.mincut import _relaxed_weights


def network(problem: Problem) -> nx.DiGraph:
    """The cut's network written anew, arc by arc: no constant is taken out, every tensor has a node, as has each op."""
    graph = nx.DiGraph()
    top = len(problem.tiers) - 1
    weights: dict[tuple[object, object], float] = {}

    def arc(a: object, b: object, seconds: float) -> None:
        weights[a, b] = weights.get((a, b), 0.0) + seconds

    back = [0.0]
    for link in problem.links:
        back.append(back[-1] + 1 / link.back_bytes_per_s)
    for op in problem.ops:
        sent = sum(t.nbytes for t in problem.tensors if t.producer == op.name and t.returned)
        level = ["S", *((op.name, j) for j in reversed(range(top))), "T"]
        for tier, (a, b) in zip(range(top, -1, -1), pairwise(level), strict=True):
            barred = op.pinned not in (None, problem.tiers[tier].name)
            arc(a, b, float("inf") if barred else op.seconds[tier] + sent * back[tier])
        for j in range(top - 1):
            arc((op.name, j), (op.name, j + 1), float("inf"))
    for t, j in product(problem.tensors, range(top)):
        hop = min(c.encode_s[j] + c.nbytes / problem.links[j].bytes_per_s + c.decode_s[j + 1] for c in t.codecs or [])
        arc((t.producer, j), ("tensor", t.name, j), hop)
        for c in t.consumers:
            arc(("tensor", t.name, j), (c, j), float("inf"))
            arc((c, j), (t.producer, j), float("inf"))
        if t.returned:
            arc("S", ("back", j), problem.links[j].latency_s)
            arc(("back", j), (t.producer, j), float("inf"))
    for op, j in product(problem.ops, range(top)):
        weights["S", ("up", j)] = problem.links[j].latency_s
        arc(("up", j), (op.name, j), float("inf"))
    for (a, b), seconds in weights.items():
        graph.add_edge(a, b, capacity=seconds)
    return graph


@pytest.mark.parametrize(("n", "tiers", "seed"), [(80, 2, 0), (80, 2, 1), (60, 3, 2), (60, 3, 3), (40, 4, 4)])
def test_value_equals_networkx(n: int, tiers: int, seed: int) -> None:
    problem = layered(n, tiers, "transcode", seed)
    found = solve(problem, "mincut")
    assert len(set(found.placement.values())) > 1, "an instance that is not split tests little"
    expected = nx.minimum_cut_value(network(problem), "S", "T")
    assert found.cost.latency_s == pytest.approx(expected, rel=1e-9)
    assert found.certificate.bound == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_cut_of_any_network_equals_networkx(seed: int) -> None:
    """Capacities over twelve orders of magnitude, infinite and antiparallel arcs: what 32-bit integers get wrong."""
    rng = random.Random(seed)
    nodes = rng.randint(2, 14)
    arcs: dict[tuple[int, int], float] = {}
    for _ in range(rng.randint(1, 50)):
        tail, head = rng.sample(range(nodes), 2)
        arcs[tail, head] = rng.choice([10 ** rng.uniform(-6, 6), rng.uniform(1, 2), float("inf")])
    arcs[0, 1] = min(arcs.get((0, 1), 1.0), 1e6)
    for node in range(2, nodes):  # no infinite path from 0 to 1
        arcs[0, node] = min(arcs.get((0, node), 1.0), 10 ** rng.uniform(-6, 6))
    graph = nx.DiGraph()
    for (tail, head), capacity in arcs.items():
        graph.add_edge(tail, head, capacity=capacity)
    expected, _ = nx.minimum_cut(graph, 0, 1, flow_func=nx.algorithms.flow.edmonds_karp)
    tail, head = np.array(list(arcs), dtype=np.int64).T
    capacity = np.array(list(arcs.values()))
    trivial = sum(c for (a, _), c in arcs.items() if a == 0)
    lower, side = minimum_cut(tail, head, capacity, 0, 1, trivial)
    assert side is not None
    assert side[1]
    assert not side[0]
    cut = sum(c for (a, b), c in arcs.items() if not side[a] and side[b])
    assert cut == pytest.approx(expected, rel=1e-8, abs=2e-9 * trivial)
    assert lower <= cut * (1 + 1e-12)
    assert lower == pytest.approx(expected, rel=1e-8, abs=2e-9 * trivial)
    assert minimum_cut(tail, head, capacity, 0, 1, expected / 2) == (expected / 2, None)


def test_rounding_is_won_back_on_a_large_graph() -> None:
    """One integer cut leaves a gap of about ops / 2^30; the refinement closes it."""
    found = solve(layered(3000, 3, "transcode", 7), "mincut")
    assert len(set(found.placement.values())) > 1
    assert found.certificate.gap is not None
    assert found.certificate.gap < 1e-9


def test_waist_of_parallel_branches() -> None:
    """Every branch narrows to one byte: six tensors are cut, where a chain planner sees only the wide stem and end."""
    big, branches = 1e6, range(6)
    ops = [Op("in", (0, 0), "t0"), Op("stem", (0.1, 0.01))]
    tensors = [Tensor("in", ("stem",), big), Tensor("stem", tuple(f"narrow{i}" for i in branches), big)]
    for i in branches:
        ops += [Op(f"narrow{i}", (0.1, 0.01)), Op(f"wide{i}", (50, 0.5))]
        tensors += [Tensor(f"narrow{i}", (f"wide{i}",), 1), Tensor(f"wide{i}", ("concat",), big)]
    ops.append(Op("concat", (0.1, 0.01)))
    problem = Problem((Tier("t0"), Tier("t1")), (Link(1000, 0.02),), tuple(ops), tuple(tensors))
    found = solve(problem)
    assert {c.tensor for c in found.codecs} == {f"narrow{i}#{2 + 2 * i}" for i in branches}
    assert found.cost.latency_s == pytest.approx(0.1 + 6 * 0.1 + 6 * 0.001 + 0.02 + 6 * 0.5 + 0.01)


@pytest.mark.parametrize("relay", ["transcode", "forward"])
@pytest.mark.parametrize("strategy", ["mincut", "milp"])
def test_eight_consumers_pay_once(strategy: str, relay: str) -> None:
    """Paid per consumer, the tensor would cost 8 s and everything would stay on the device."""
    users = tuple(f"user{i}" for i in range(8))
    ops = (Op("in", (0, 0, 0), "t0"), *(Op(u, (0.5, 0.4, 0.1)) for u in users))
    tiers, links = tuple(Tier(f"t{i}") for i in range(3)), (Link(100, 0.0), Link(200, 0.0))
    problem = Problem(tiers, links, ops, (Tensor("in", users, 100),), relay)
    found = solve(problem, strategy)
    assert found.placement == {"in": "t0"} | dict.fromkeys(users, "t2")
    assert found.cost.latency_s == pytest.approx(1 + 0.5 + 8 * 0.1)


@pytest.mark.parametrize("strategy", ["mincut", "milp", "exhaustive"])
def test_data_never_flows_back_up(strategy: str) -> None:
    """Cheap on the device, then in the cloud, then on the device again: the sum of minima, 0.3 s, cannot be had."""
    problem = chain([(0.1, 9), (9, 0.1), (0.1, 5)], [0, 0], (Link(1, 0),))
    found = solve(problem, strategy)
    assert found.placement == {"op0": "t0", "op1": "t1", "op2": "t1"}
    assert found.cost.latency_s == pytest.approx(0.1 + 0.1 + 5)
    assert found.certificate.bound == pytest.approx(5.2)


def test_no_op_is_beyond_the_second_link_but_not_the_first() -> None:
    """Without the arcs between levels b would skip both dear encodes, on no tier at all, for a bound of 0."""
    into = Codec("into", 0, (10, 0, 0), (0, 0, 0))
    out = Codec("out", 0, (0, 10, 0), (0, 0, 0))
    ops = (Op("a", (0, 0, 0), "t0"), Op("b", (0, 100, 0)), Op("c", (0, 0, 0), "t2"))
    tensors = (Tensor("a", ("b",), 0, codecs=(into,)), Tensor("b", ("c",), 0, codecs=(out,)))
    found = solve(Problem(tuple(Tier(f"t{i}") for i in range(3)), (Link(1, 0), Link(1, 0)), ops, tensors), "mincut")
    assert found.cost.latency_s == 10
    assert found.certificate.bound == pytest.approx(10)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_milp_proves_what_the_cut_cannot(seed: int) -> None:
    """Larger than any oracle: the two bounds and the two plans must lie on the right sides of each other."""
    problem = layered(60, 4, "forward", seed)
    cut, exact = solve(problem, "mincut"), solve(problem, "milp")
    assert cut.certificate.status == "within"
    assert exact.certificate.gap is not None
    assert exact.certificate.gap < 1e-8
    assert (cut.certificate.bound or 0) < exact.cost.latency_s <= cut.cost.latency_s * (1 + 1e-9)


FREE_SOURCE = Problem(
    (Tier("t0"), Tier("t1")), (Link(1, 3.0),), (Op("a", (0.1, 5)), Op("b", (5, 0.1))), (Tensor("a", ("b",), 0),)
)


def test_auto_closes_by_milp_what_the_cut_leaves_open() -> None:
    """With no op bound to the device the cut cannot tell whether the link is used, so it does not charge latency."""
    assert not exact_for(FREE_SOURCE)
    cut = solve(FREE_SOURCE, "mincut").certificate
    assert (cut.status, cut.bound) == ("within", pytest.approx(0.2))
    found = solve(FREE_SOURCE)
    assert (found.strategy, found.certificate.status) == ("milp", "optimal")
    assert found.cost.latency_s == pytest.approx(3.2)


def test_auto_keeps_the_cut_when_time_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(problem: Problem, time_limit_s: float) -> None:
        raise PartitionerError("no placement in time")

    monkeypatch.setattr(partitioners, "by_milp", late)
    found = solve(FREE_SOURCE)
    assert (found.strategy, found.certificate.status) == ("mincut", "within")


def test_when_the_cut_is_exact() -> None:
    """Condition by condition of the docstring of `exact_for`."""
    two = (Link(1, 0.5),)
    three = (Link(1, 0.5), Link(1, 0.5))
    assert exact_for(chain([(1, 1), (1, 1)], [1], two, relay="forward"))
    assert exact_for(chain([(1, 1, 1), (1, 1, 1)], [1], three, relay="forward")), "raw costs no time to encode"
    assert not exact_for(layered(5, 3, "forward", 0)), "encoded once, not per link"
    assert exact_for(layered(5, 3, "transcode", 0))
    free = Problem((Tier("t0"), Tier("t1")), (Link(1, 0.0),), FREE_SOURCE.ops, FREE_SOURCE.tensors)
    assert exact_for(free), "no latency, nothing to prove"
    far = (Op("a", (1, 1), "t1"), Op("b", (1, 1)))
    assert exact_for(Problem(free.tiers, two, far, FREE_SOURCE.tensors)), "born beyond the link, b never uses it"


def test_relaxed_weights_never_exceed_a_forwarded_hop() -> None:
    a = Arrays.of(layered(30, 4, "forward", 3))
    rng = np.random.default_rng(0)
    for _ in range(5):
        weights = _relaxed_weights(a, rng.random((len(a.producer), 3)) < 0.5)
        for i, j in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]:
            assert (weights[:, i:j].sum(axis=1) <= a.hop_s(i, [j]) * (1 + 1e-12)).all()
        assert (weights >= 0).all()
