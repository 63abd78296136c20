"""The cost function: a worked example by hand, the independent walk on random placements, and what must hold."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from line_problems import chain, layered, problems, scaled

from partitioners import Codec, Infeasible, Link, Op, Problem, Tensor, Tier, evaluate, solve
from partitioners.exhaustive import placements, walk

SETTINGS = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}

# in (device) -> a -> b, a's result used on two tiers, b's returned. The codec halves the bytes.
HALF = Codec("half", 50, (1, 2, 4), (0.1, 0.2, 0.4))
QUARTER = Codec("quarter", 25, (9, 9, 9), (0.1, 0.2, 0.4))
WORKED = Problem(
    tiers=(Tier("device"), Tier("edge"), Tier("cloud")),
    links=(Link(10, 0.5), Link(25, 0.25, 5)),
    ops=(Op("in", (0, 0, 0), "device"), Op("a", (8, 4, 2)), Op("b", (16, 8, 4))),
    tensors=(Tensor("in", ("a", "b"), 100, codecs=(HALF, QUARTER)), Tensor("a", ("b",), 10), Tensor("b", (), 5, True)),
)
PLACED = {"in": "device", "a": "edge", "b": "cloud"}


def test_worked_example_transcode() -> None:
    """Encoded on device and again on edge; each link's bytes; decoded on edge and on cloud."""
    cost, crossings = evaluate(WORKED, PLACED)
    assert cost.compute_s == 4 + 4
    assert cost.encode_s == 1 + 2
    assert cost.wire_s == pytest.approx(50 / 10 + 50 / 25 + 10 / 25)
    assert cost.decode_s == pytest.approx(0.2 + 0.4)
    assert cost.link_latency_s == 0.75
    assert cost.return_s == pytest.approx(5 / 5 + 5 / 10 + 0.75)
    assert cost.link_nbytes == (50, 60)
    assert cost.tier_compute_s == {"device": 0, "edge": 4, "cloud": 4}
    assert [(c.tensor, c.codec, c.links, c.nbytes) for c in crossings] == [
        ("in#0", "half", (0,), 50), ("in#0", "half", (1,), 50), ("a#1", "raw", (1,), 10)
    ]  # fmt: skip


def test_worked_example_forward() -> None:
    """Encoded once, on the device; decoded on both tiers that use it."""
    cost, crossings = evaluate(replace(WORKED, relay="forward"), PLACED)
    assert cost.encode_s == 1
    assert cost.decode_s == pytest.approx(0.2 + 0.4)
    assert cost.link_nbytes == (50, 60)
    assert [(c.tensor, c.codec, c.links) for c in crossings] == [("in#0", "half", (0, 1)), ("a#1", "raw", (1,))]


def test_forward_does_not_decode_where_nobody_listens() -> None:
    cost, _ = evaluate(replace(WORKED, relay="forward"), PLACED | {"a": "cloud"})
    assert cost.decode_s == pytest.approx(0.4)


def test_all_on_the_device_pays_no_link() -> None:
    cost, crossings = evaluate(WORKED, dict.fromkeys(PLACED, "device"))
    assert (cost.latency_s, crossings) == (cost.compute_s, ())


@settings(max_examples=150, **SETTINGS)
@given(problems(), st.randoms(use_true_random=False))
def test_evaluate_equals_the_walk(problem: Problem, rng: random.Random) -> None:
    possible = list(placements(problem))
    assume(possible)
    tier = rng.choice(possible)
    named = {name: problem.tiers[i].name for name, i in tier.items()}
    assert evaluate(problem, named)[0].latency_s == pytest.approx(walk(problem, tier), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in": "edge"}, "'in' is on 'edge' but pinned to 'device'"),
        ({"a": "cloud", "b": "edge"}, "'b' on 'edge' takes data from 'a' on 'cloud'"),
        ({"a": "moon"}, "'a' is on 'moon'; the tiers are device, edge, cloud"),
        ({"extra": "edge"}, "'extra', which is no op"),
    ],
)
def test_infeasible_placements_are_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(Infeasible, match=message):
        evaluate(WORKED, PLACED | change)


def test_a_missing_op_is_named() -> None:
    with pytest.raises(Infeasible, match="'b' has no tier"):
        evaluate(WORKED, {"in": "device", "a": "edge"})


# What must hold between one problem and a changed one. "auto" is exact, so the optima are comparable.


def best(problem: Problem) -> float:
    return solve(problem).cost.latency_s


def feasible(problem: Problem) -> Problem:
    try:
        solve(problem, "mincut")
    except Infeasible:
        assume(False)
    return problem


@settings(max_examples=40, **SETTINGS)
@given(problems(), st.sampled_from([1e-6, 0.25, 1e4]))
def test_scaling_every_duration_scales_the_optimum(problem: Problem, factor: float) -> None:
    before = best(feasible(problem))
    assert best(scaled(problem, factor)) == pytest.approx(factor * before, rel=1e-9)


@settings(max_examples=40, **SETTINGS)
@given(problems())
def test_one_more_tier_at_the_end_never_hurts(problem: Problem) -> None:
    before = best(feasible(problem))

    def longer(values: tuple[float, ...]) -> tuple[float, ...]:
        return (*values, values[-1] / 2)

    def codec(c: Codec) -> Codec:
        return replace(c, encode_s=longer(c.encode_s), decode_s=longer(c.decode_s))

    after = Problem(
        (*problem.tiers, Tier("more")),
        (*problem.links, Link(1.0, 0.125)),
        tuple(replace(op, seconds=longer(op.seconds)) for op in problem.ops),
        tuple(replace(t, codecs=t.codecs and tuple(map(codec, t.codecs))) for t in problem.tensors),
        problem.relay,
    )
    assert best(after) <= before * (1 + 1e-9) + 1e-12


@settings(max_examples=40, **SETTINGS)
@given(problems())
def test_faster_links_and_fewer_pins_never_hurt(problem: Problem) -> None:
    before = best(feasible(problem))
    faster = tuple(Link(j.bytes_per_s * 2, j.latency_s / 2, j.back_bytes_per_s * 2) for j in problem.links)
    freer = tuple(replace(op, pinned=None) for op in problem.ops)
    assert best(replace(problem, links=faster)) <= before * (1 + 1e-9) + 1e-12
    assert best(replace(problem, ops=freer)) <= before * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("relay", ["transcode", "forward"])
def test_bandwidth_towards_zero_keeps_all_on_the_device(relay: str) -> None:
    problem = layered(40, 3, relay, 0)
    assert len(set(solve(problem).placement.values())) > 1
    slow = replace(problem, links=tuple(Link(1e-9, 0) for _ in problem.links))
    assert set(solve(slow).placement.values()) == {"t0"}


def test_bandwidth_towards_infinity_takes_the_fastest_tier_of_each_op() -> None:
    """As far as data flows one way: here the fastest tiers are in the order of the line."""
    problem = chain([(1, 1, 1), (1, 2, 3), (2, 1, 3), (3, 2, 1)], [9, 9, 9], (Link(1e15, 0), Link(1e15, 0)))
    assert list(solve(problem).placement.values()) == ["t0", "t0", "t1", "t2"]


def test_solution_prints_its_argument() -> None:
    found = solve(WORKED, lambda problem: PLACED)
    text = str(found)
    assert "feasible, no bound" in text
    assert "in#0  device -> edge  half  50 bytes" in text
    assert f"{found.cost.latency_s:.6g} s = compute 8 + encode 3" in text
    data = json.loads(found.to_json())
    assert data["placement"] == PLACED
    assert data["cost"]["latency_s"] == pytest.approx(sum(found.cost.parts_s.values()))
    assert data["codecs"][0] == {"tensor": "in#0", "codec": "half", "links": [0], "nbytes": 50}
    assert data["certificate"] == {"status": "feasible", "bound": None, "gap": None}
