"""The cut against networkx on larger graphs, its precision, and where it is exact."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise, product

import networkx as nx
import numpy as np
import pytest
from line_problems import UNLIMITED, chain, layered, numbered

from partitioners import Link, Objective, Op, PartitionerError, Problem, Tensor, Tier, exact_for, solve, strategies
from partitioners.arrays import Arrays
from partitioners.checker import check
from partitioners.exhaustive import optimum
from partitioners.flow import minimum_cut
from partitioners.mincut import _relaxed_weights
from partitioners.prices import Prices
from partitioners.walk import Step, send, send_back

OBJECTIVES = ("latency", "energy", "money", "latency + 0.2*energy + 0.1*money")


def network(problem: Problem, objective: str) -> nx.DiGraph:
    """The cut's network written anew, arc by arc: no constant is taken out, every tensor has a node, as has each op.

    Its prices are added up from the steps of the walk. Data flows one way, or links have no latency: what the way down
    costs once per link is no cut otherwise.
    """
    weigh = Objective.of(objective).weight
    graph, top = nx.DiGraph(), len(problem.tiers) - 1
    weights: dict[tuple[object, object], float] = defaultdict(float)

    def price(steps: Iterable[Step]) -> float:
        """Of one sending, on busy tiers and links."""
        total = 0.0
        for _, place, seconds, nbytes in steps:
            assert place is not None, "no measured transfers here"
            kind, i = place
            tier, link = problem.tiers[i], problem.links[min(i, top - 1)]
            total += weigh("latency") * seconds
            total += seconds * (weigh("energy") * tier.watts + weigh("money") * tier.price_per_s) if kind == "tier" else 0.0
            total += nbytes * (weigh("energy") * link.joules_per_byte + weigh("money") * link.price_per_byte) if kind != "tier" else 0.0
        return total

    for op in problem.ops:
        results = [t for t in problem.tensors if t.producer == op.name and t.returned]
        level = ["S", *((op.name, j) for j in reversed(range(top))), "T"]
        for tier, (a, b) in zip(range(top, -1, -1), pairwise(level), strict=True):
            stay = price([Step("compute", ("tier", tier), op.seconds[tier])]) + sum(price(send_back(problem, t, tier)) for t in results)
            weights[a, b] += float("inf") if op.pinned not in (None, problem.tiers[tier].name) else stay
        for j in range(top - 1):
            weights[(op.name, j), (op.name, j + 1)] = float("inf")
    for t, j in product(problem.tensors, range(top)):
        up = min(price(send(problem, t, c, j, {j + 1})) for c in t.ways)
        down = min(price(send(problem, t, c, j + 1, {j})) for c in t.ways)
        weights[(t.producer, j), ("up", t.name, j)] = up
        if problem.two_way:
            weights[("down", t.name, j), (t.producer, j)] = down
        for c in t.consumers:
            weights[("up", t.name, j), (c, j)] = float("inf")
            if problem.two_way:
                weights[(c, j), ("down", t.name, j)] = float("inf")
            else:
                weights[(c, j), (t.producer, j)] = float("inf")
        if t.returned:
            weights["S", ("back", j)] = weigh("latency") * problem.links[j].latency_s
            weights[("back", j), (t.producer, j)] = float("inf")
    for op, j in product(problem.ops, range(top)):
        weights["S", ("beyond", j)] = weigh("latency") * problem.links[j].latency_s
        weights[("beyond", j), (op.name, j)] = float("inf")
    for (a, b), cost in weights.items():
        graph.add_edge(a, b, capacity=cost)
    return graph


@pytest.mark.parametrize("two_way", [False, True], ids=["one-way", "two-way"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("n", "tiers", "seed"), [(80, 2, 1), (60, 3, 2), (60, 3, 3), (40, 4, 4)])
def test_value_equals_networkx(n: int, tiers: int, seed: int, objective: str, two_way: bool) -> None:
    problem = layered(n, tiers, "transcode", seed)
    if two_way:
        problem = replace(problem, two_way=True, links=tuple(replace(link, latency_s=0.0) for link in problem.links))
    found = solve(problem, "mincut", objective)
    assert len(set(found.placement.values())) > 1, "an instance that is not split tests little"
    expected = nx.minimum_cut_value(network(problem, objective), "S", "T")
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.certificate.bound == pytest.approx(expected, rel=1e-9)
    verdict = check(problem, found)
    assert verdict, str(verdict)


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


def test_auto_closes_what_the_cut_leaves_open() -> None:
    """With no op bound to the device the cut cannot tell whether the link is used, so it does not charge latency."""
    assert not exact_for(FREE_SOURCE)
    cut = solve(FREE_SOURCE, "mincut").certificate
    assert (cut.status, cut.bound) == ("within", pytest.approx(0.2))
    found = solve(FREE_SOURCE)
    assert (found.strategy, found.certificate.status) == ("chain", "optimal")
    assert found.cost.latency_s == pytest.approx(3.2)


def test_auto_keeps_the_cut_when_time_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(problem: Problem, objective: Objective, time_limit_s: float = 0) -> None:
        raise PartitionerError("no placement in time")

    for name in ("by_chain", "by_blocks", "by_milp"):
        monkeypatch.setattr(strategies, name, late)
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


def test_where_it_says_it_is_exact_it_is() -> None:
    """On small problems of every kind; and the claim is made for enough of them to be worth something."""
    claimed = 0
    for seed in range(200):
        objective = OBJECTIVES[seed % len(OBJECTIVES)]
        problem = numbered(seed, objective, **UNLIMITED)
        best = optimum(problem, objective)
        if best is not None and exact_for(problem, Objective.of(objective)):
            found = solve(problem, "mincut", objective)
            assert found.value == pytest.approx(best.value, rel=1e-6, abs=1e-9), seed
            assert found.certificate.status == "optimal", seed
            claimed += 1
    assert claimed > 100


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("two_way", [False, True], ids=["one-way", "two-way"])
def test_relaxed_weights_never_exceed_a_forwarded_hop(objective: str, two_way: bool) -> None:
    """Over any stretch of links, up, down and both at once."""
    problem = replace(layered(30, 4, "forward", 3), two_way=two_way)
    prices = Prices(Arrays.of(problem), Objective.of(objective))
    cheapest, tiers = prices.a.cheapest, range(4)
    rng = np.random.default_rng(0)
    for _ in range(5):
        up, down = _relaxed_weights(prices, rng.integers(0, 4, len(problem.ops)))
        assert (up >= 0).all()
        assert (down >= 0).all()
        for low, home, high in product(tiers, repeat=3):
            if low <= home <= high and low < high and (two_way or low == home):
                whole = cheapest(prices.hop(home, sorted({low, high} - {home})))
                assert (up[:, home:high].sum(axis=1) + down[:, low:home].sum(axis=1) <= whole * (1 + 1e-12)).all()
