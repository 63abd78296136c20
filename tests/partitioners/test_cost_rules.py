"""The rules of the costs, one by one, on examples worked by hand; the cost function and the checker's walk must both agree."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from partitioners import Codec, Cost, Crossing, Infeasible, Link, Op, Problem, Tensor, Tier, evaluate, solve, violations
from partitioners.checker import recompute

# in (device) -> a -> b, in's result used on two tiers, b's returned. The codec halves the bytes.
HALF = Codec("half", 50, (1, 2, 4), (0.1, 0.2, 0.4), 0.25)
QUARTER = Codec("quarter", 25, (9, 9, 9), (0.1, 0.2, 0.4), 0.5)
WORKED = Problem(
    tiers=(Tier("device", None, 2, 0.5), Tier("edge", None, 4, 1), Tier("cloud", None, 8, 2)),
    links=(Link(10, 0.5, None, 0.125, 0.25), Link(25, 0.25, 5, 0.5, 1)),
    ops=(Op("in", (0, 0, 0), "device", 1), Op("a", (8, 4, 2), None, 10), Op("b", (16, 8, 4), None, 100)),
    tensors=(Tensor("in", ("a", "b"), 100, codecs=(HALF, QUARTER)), Tensor("a", ("b",), 10), Tensor("b", (), 5, True)),
)
PLACED = {"in": "device", "a": "edge", "b": "cloud"}


def price(problem: Problem, placement: dict[str, str], codecs: list[Crossing] | None = None) -> tuple[Cost, tuple[Crossing, ...]]:
    """By the cost function, after the walk has confirmed every field."""
    cost, crossings = evaluate(problem, placement, codecs)
    for name, value in recompute(problem, placement, crossings).items():
        assert cost.to_dict()[name] == pytest.approx(value, rel=1e-12), name
    return cost, crossings


def test_worked_example_transcode() -> None:
    """Encoded on device and again on edge; each link's bytes; decoded on edge and on cloud."""
    cost, crossings = price(WORKED, PLACED)
    assert cost.compute_s == 4 + 4
    assert cost.encode_s == 1 + 2
    assert cost.wire_s == pytest.approx(50 / 10 + 50 / 25 + 10 / 25)
    assert cost.decode_s == pytest.approx(0.2 + 0.4)
    assert cost.return_s == pytest.approx(5 / 5 + 5 / 10)
    assert cost.link_latency_s == 0.75 + 0.75, "up and down"
    assert cost.transfer_s == 0
    assert cost.latency_s == pytest.approx(8 + 3 + 7.4 + 0.6 + 1.5 + 1.5)
    assert cost.link_nbytes == (50, 60)
    assert cost.return_nbytes == (5, 5)
    assert cost.tier_memory_bytes == {"device": 1, "edge": 10, "cloud": 100}
    assert [(c.tensor, c.link, c.codec, c.nbytes, c.direction) for c in crossings] == [
        ("in#0", 0, "half", 50, "up"), ("in#0", 1, "half", 50, "up"), ("a#1", 1, "raw", 10, "up")
    ]  # fmt: skip


def test_worked_example_forward() -> None:
    """Encoded once, on the device; decoded on both tiers that use it."""
    cost, crossings = price(replace(WORKED, relay="forward"), PLACED)
    assert cost.encode_s == 1
    assert cost.decode_s == pytest.approx(0.2 + 0.4)
    assert cost.link_nbytes == (50, 60)
    assert [(c.tensor, c.link, c.codec) for c in crossings] == [("in#0", 0, "half"), ("in#0", 1, "half"), ("a#1", 1, "raw")]


def test_forward_does_not_decode_where_nobody_listens() -> None:
    cost, _ = price(replace(WORKED, relay="forward"), PLACED | {"a": "cloud"})
    assert cost.decode_s == pytest.approx(0.4)


def test_loads_and_interval() -> None:
    """The largest of what is busy; latency of links keeps nothing busy."""
    cost, _ = price(WORKED, PLACED)
    assert cost.tier_load_s == {"device": 1, "edge": pytest.approx(4 + 0.2 + 2), "cloud": pytest.approx(4 + 0.4)}
    assert cost.link_load_s == (pytest.approx(5), pytest.approx(2.4))
    assert cost.return_load_s == (pytest.approx(0.5), pytest.approx(1))
    assert cost.interval_s == pytest.approx(6.2)
    slow = replace(WORKED, links=(WORKED.links[0], replace(WORKED.links[1], return_bytes_per_s=0.5)))
    assert price(slow, PLACED)[0].interval_s == pytest.approx(10), "the link on the way back"


def test_energy_and_money() -> None:
    """Watts and prices on busy seconds; joules and prices per byte in both directions, results included."""
    cost, _ = price(WORKED, PLACED)
    assert cost.energy_j == pytest.approx(2 * 1 + 4 * 6.2 + 8 * 4.4 + 0.125 * (50 + 5) + 0.5 * (60 + 5))
    assert cost.money == pytest.approx(0.5 * 1 + 1 * 6.2 + 2 * 4.4 + 0.25 * (50 + 5) + 1 * (60 + 5))


def test_errors_count_once_per_encoding() -> None:
    assert price(WORKED, PLACED)[0].error == 0.25 + 0.25
    assert price(replace(WORKED, relay="forward"), PLACED)[0].error == 0.25


def test_all_on_the_device_pays_no_link() -> None:
    cost, crossings = price(WORKED, dict.fromkeys(PLACED, "device"))
    assert (cost.latency_s, crossings) == (cost.compute_s, ())
    assert cost.interval_s == cost.critical_path_s == 24
    assert cost.error == 0


def test_reach_multiplies_seconds_and_bytes_but_neither_memory_nor_error() -> None:
    """Half the requests end before a; a link's latency is paid by the largest share that uses it."""
    ops = (WORKED.ops[0], *(replace(op, reach=0.5) for op in WORKED.ops[1:]))
    shares = (0.5, 0.25, 0.25)
    early = replace(WORKED, ops=ops, tensors=tuple(replace(t, reach=r) for t, r in zip(WORKED.tensors, shares, strict=True)))
    cost, crossings = price(early, PLACED)
    assert cost.compute_s == 4
    assert cost.encode_s == 1.5
    assert cost.wire_s == pytest.approx((50 / 10 + 50 / 25) / 2 + 10 / 25 / 4)
    assert cost.decode_s == pytest.approx(0.3)
    assert cost.return_s == pytest.approx(1.5 / 4)
    assert cost.link_latency_s == pytest.approx(0.75 / 2 + 0.75 / 4)
    assert cost.link_nbytes == (25, 27.5)
    assert cost.return_nbytes == (1.25, 1.25)
    assert cost.error == 0.5
    assert cost.tier_memory_bytes == {"device": 1, "edge": 10, "cloud": 100}
    assert [c.nbytes for c in crossings] == [50, 50, 10], "the size of what is sent, when it is"


# A measured transfer: 1.5 s on the first link, 1.25 s on the second, where the three steps one by one take more.
MEASURED = replace(HALF, transfer_s=(1.5, 1.25))
OVERLAP = replace(WORKED, tensors=(replace(WORKED.tensors[0], codecs=(MEASURED,)), *WORKED.tensors[1:]))


@pytest.mark.parametrize("relay", ["transcode", "forward"])
def test_a_measured_transfer_replaces_the_three_in_latency_only(relay: str) -> None:
    plain = replace(WORKED, relay=relay, tensors=(replace(WORKED.tensors[0], codecs=(HALF,)), *WORKED.tensors[1:]))
    before, _ = price(plain, PLACED)
    cost, _ = price(replace(OVERLAP, relay=relay), PLACED)
    assert cost.transfer_s == 1.5 + 1.25
    assert (cost.encode_s, cost.decode_s) == (0, 0)
    assert cost.wire_s == pytest.approx(10 / 25)
    for name in ("interval_s", "energy_j", "money", "error", "tier_load_s", "link_load_s", "link_nbytes"):
        assert getattr(cost, name) == getattr(before, name)


@pytest.mark.parametrize("relay", ["transcode", "forward"])
def test_the_critical_path_is_the_longest_way(relay: str) -> None:
    """In -> a by the first link; in -> b by both, beside a; b's result comes back."""
    problem = replace(OVERLAP, relay=relay)
    cost, _ = price(problem, PLACED)
    a_done = 1.5 + 0.5 + 4
    b_ready = max(a_done + 10 / 25 + 0.25, 1.5 + 1.25 + 0.75)
    assert cost.critical_path_s == pytest.approx(b_ready + 4 + 1.5 + 0.75)
    assert cost.critical_path_s < cost.latency_s


def test_the_critical_path_multiplies_latency_by_each_tensors_own_reach() -> None:
    tensors = (replace(OVERLAP.tensors[0], reach=0.5), replace(OVERLAP.tensors[1], reach=0.25), replace(OVERLAP.tensors[2], reach=0.25))
    cost, _ = price(replace(OVERLAP, tensors=tensors), PLACED)
    a_done = (1.5 + 0.5) / 2 + 4
    assert cost.critical_path_s == pytest.approx(a_done + (10 / 25 + 0.25) / 4 + 4 + (1.5 + 0.75) / 4)


def test_an_op_that_nobody_waits_for_still_counts_in_the_critical_path() -> None:
    problem = replace(WORKED, ops=(*WORKED.ops, Op("aside", (99, 99, 99))))
    assert price(problem, PLACED | {"aside": "cloud"})[0].critical_path_s == 99


# p on the edge, used on the device and on the cloud: one way up, one way down.
TWO_WAY = Problem(
    tiers=(Tier("device", None, 1), Tier("edge", None, 1), Tier("cloud", None, 1)),
    links=(Link(10, 0.5, 5), Link(25, 0.25)),
    ops=(Op("p", (1, 1, 1), "edge"), Op("up", (1, 1, 1), "cloud"), Op("down", (1, 1, 1), "device")),
    tensors=(Tensor("p", ("up", "down"), 100, codecs=(HALF,)),),
    two_way=True,
)
SPREAD = {"p": "edge", "up": "cloud", "down": "device"}


def test_two_way_transcode_encodes_for_each_direction() -> None:
    cost, crossings = price(TWO_WAY, SPREAD)
    assert cost.encode_s == 2 + 2
    assert cost.wire_s == pytest.approx(50 / 25 + 50 / 5)
    assert cost.decode_s == pytest.approx(0.4 + 0.1)
    assert cost.link_latency_s == 0.25 + 0.5
    assert cost.error == 0.5
    assert (cost.link_load_s, cost.return_load_s) == ((0, pytest.approx(2)), (pytest.approx(10), 0))
    assert {(c.link, c.direction) for c in crossings} == {(1, "up"), (0, "down")}
    assert cost.critical_path_s == pytest.approx(1 + max(2 + 2 + 0.4 + 0.25, 2 + 10 + 0.1 + 0.5) + 1)


def test_two_way_forward_encodes_once() -> None:
    cost, _ = price(replace(TWO_WAY, relay="forward"), SPREAD)
    assert cost.encode_s == 2
    assert cost.wire_s == pytest.approx(12)
    assert cost.decode_s == pytest.approx(0.5)
    assert cost.error == 0.25
    assert cost.tier_load_s == {"device": pytest.approx(1.1), "edge": 3, "cloud": pytest.approx(1.4)}


def test_two_way_transcode_walks_down_link_by_link() -> None:
    """From cloud to device: encoded on cloud and edge, decoded on edge and device, at the rates of the way back."""
    ops = (replace(TWO_WAY.ops[0], pinned="cloud"), *TWO_WAY.ops[1:])
    cost, crossings = price(replace(TWO_WAY, ops=ops), SPREAD | {"p": "cloud"})
    assert cost.encode_s == 4 + 2
    assert cost.wire_s == pytest.approx(50 / 25 + 50 / 5)
    assert cost.decode_s == pytest.approx(0.2 + 0.1)
    assert [(c.link, c.direction) for c in crossings] == [(1, "down"), (0, "down")]


def test_a_measured_transfer_holds_upwards_only() -> None:
    """The way down pays wire and decoding; its encoding is its own under transcode, shared and measured under forward."""
    measured = replace(TWO_WAY, tensors=(replace(TWO_WAY.tensors[0], codecs=(MEASURED,)),))
    cost, _ = price(measured, SPREAD)
    assert (cost.transfer_s, cost.encode_s, cost.decode_s) == (1.25, 2, pytest.approx(0.1))
    assert cost.wire_s == pytest.approx(10)
    assert cost.critical_path_s == pytest.approx(1 + max(1.25 + 0.25, 2 + 10 + 0.1 + 0.5) + 1)
    cost, _ = price(replace(measured, relay="forward"), SPREAD)
    assert (cost.transfer_s, cost.encode_s, cost.decode_s) == (1.25, 0, pytest.approx(0.1))
    assert cost.critical_path_s == pytest.approx(1 + max(1.25 + 0.25, 2 + 10 + 0.1 + 0.5) + 1), "this way, encoding is not hidden"


def test_results_and_crossings_share_the_latency_of_the_way_down() -> None:
    tensors = (*TWO_WAY.tensors, Tensor("p", (), 10, True, reach=0.5))
    cost, crossings = price(replace(TWO_WAY, tensors=tensors), SPREAD)
    assert cost.link_latency_s == 0.25 + 0.5
    assert cost.return_s == pytest.approx(0.5 * 10 / 5)
    assert cost.return_load_s == (pytest.approx(10 + 1), 0)
    assert {c.tensor for c in crossings} == {"p#0"}, "results travel raw and are not listed"


def test_empty_tensors_still_use_the_link() -> None:
    problem = replace(WORKED, tensors=(Tensor("in", ("a",), 0), Tensor("a", ("b",), 0), Tensor("b", (), 0, True)))
    assert price(problem, PLACED)[0].link_latency_s == 1.5


def test_fractional_bytes_stay_fractional() -> None:
    problem = replace(WORKED, tensors=(Tensor("in", ("a", "b"), 0.3), *WORKED.tensors[1:]))
    cost, crossings = price(problem, PLACED)
    assert cost.link_nbytes == (0.3, 10.3)
    assert crossings[0].nbytes == 0.3


# --- which codec ---


@pytest.mark.parametrize(("objective", "codec"), [("latency", "half"), ("error", "half"), ("money", "quarter")])
def test_the_best_codec_depends_on_the_objective(objective: str, codec: str) -> None:
    """Money: 25 bytes fewer at 0.25 are worth 8 seconds more at 0.5."""
    placement = {"in": "device", "a": "edge", "b": "edge"}
    _, crossings = evaluate(WORKED, placement, objective=objective)
    assert [c.codec for c in crossings] == [codec]


def test_codecs_given_are_priced_as_given() -> None:
    given = [Crossing("in#0", 0, "quarter", 25), Crossing("in#0", 1, "half", 50), Crossing("a#1", 1, "raw", 10)]
    cost, crossings = price(WORKED, PLACED, given)
    assert cost.encode_s == 9 + 2
    assert set(crossings) == set(given)


@pytest.mark.parametrize(
    ("relay", "codecs"),
    [
        ("transcode", {(0, "up"): "half"}),
        ("transcode", {(0, "up"): "half", (1, "up"): "zip"}),
        ("transcode", {(0, "up"): "half", (1, "up"): "half", (1, "down"): "half"}),
        ("forward", {(0, "up"): "half", (1, "up"): "quarter"}),
    ],
)
def test_codecs_that_do_not_fit_are_refused(relay: str, codecs: dict[tuple[int, Any], str]) -> None:
    given = [Crossing("in#0", link, codec, 50, direction) for (link, direction), codec in codecs.items()]
    with pytest.raises(Infeasible, match="in#0"):
        evaluate(replace(WORKED, relay=relay), PLACED, [*given, Crossing("a#1", 1, "raw", 10)])


# --- rules and limits ---


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


def test_two_way_allows_what_one_way_does_not() -> None:
    back = PLACED | {"a": "cloud", "b": "edge"}
    assert price(replace(WORKED, two_way=True), back)[0].return_load_s[1] == pytest.approx(10 / 5)


def test_every_broken_limit_is_listed_with_both_numbers() -> None:
    tiers = (WORKED.tiers[0], replace(WORKED.tiers[1], memory_bytes=9.5), replace(WORKED.tiers[2], memory_bytes=100))
    limits = {"latency_s": 21.5, "interval_s": 6.2, "critical_path_s": 100.0}
    problem = replace(WORKED, tiers=tiers, error_budget=0.375, within=limits)
    cost, _ = price(problem, PLACED)
    broken = "; ".join(violations(problem, cost))
    assert len(violations(problem, cost)) == 3
    for words in ("'edge' holds 10 bytes", "error is 0.5, 0.125 over", "latency_s is 22, 0.5 over the limit of 21.5"):
        assert words in broken


def test_solution_prints_its_argument() -> None:
    found = solve(WORKED, lambda problem: PLACED)
    text = str(found)
    assert text.startswith("<lambda>: latency 22\n  feasible, no bound\n")
    assert "in#0  device -> edge  half  50 bytes" in text
    assert f"{found.cost.latency_s:.6g} s = compute 8 + encode 3" in text
    data = json.loads(found.to_json())
    assert data["placement"] == PLACED
    assert data["objective"] == "latency"
    assert data["cost"]["latency_s"] == pytest.approx(sum(found.cost.parts_s.values()))
    assert data["codecs"][0] == {"tensor": "in#0", "link": 0, "codec": "half", "nbytes": 50, "direction": "up"}
    assert data["certificate"] == {"status": "feasible", "bound": None, "gap": None}
