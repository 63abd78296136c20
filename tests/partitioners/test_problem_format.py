"""The JSON form: it round-trips, its documentation is true, and each malformed field is named by its path."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from line_problems import problems

from partitioners import Codec, Link, Op, Problem, ProblemError, Tensor, Tier, solve

DOCUMENT = Path(__file__).parents[2] / "docs" / "problem-format.md"
GOOD: dict[str, Any] = {
    "version": 1,
    "tiers": [
        {"name": "device", "memory_bytes": 100.5, "watts": 5, "price_per_s": 0},
        {"name": "edge"},
        {"name": "cloud", "price_per_s": 0.01},
    ],
    "links": [
        {"bytes_per_s": 10.0, "latency_s": 0.5, "return_bytes_per_s": 20, "joules_per_byte": 1e-6, "price_per_byte": 0.25},
        {"bytes_per_s": 5.0, "latency_s": 0},
    ],
    "ops": [
        {"name": "in", "seconds": [0, 0, 0], "pinned": "device"},
        {"name": "a", "seconds": [2.5, 1, 1], "memory_bytes": 10.5, "reach": 0.5},
        {"name": "b", "seconds": [2, 1, 1]},
    ],
    "tensors": [
        {"producer": "in", "consumers": ["a"], "nbytes": 8.5, "codecs": [
            {"name": "int8", "nbytes": 2.25, "encode_s": [0.1, 0.1, 0.1], "error": 0.01, "transfer_s": [0.5, 0.25]},
            {"name": "int4", "nbytes": 1}]},
        {"name": "feature", "producer": "a", "consumers": ["b"], "nbytes": 4, "reach": 0.25},
        {"producer": "b", "consumers": [], "nbytes": 1, "returned": True},
    ],
    "relay": "forward",
    "two_way": True,
    "error_budget": 0.05,
    "within": {"latency_s": 9.5, "energy_j": 100},
}  # fmt: skip
ZEROS = (0.0, 0.0, 0.0)


def test_reads_every_field() -> None:
    assert Problem.from_json(json.dumps(GOOD)) == Problem(
        (Tier("device", 100.5, 5, 0), Tier("edge"), Tier("cloud", price_per_s=0.01)),
        (Link(10.0, 0.5, 20, 1e-6, 0.25), Link(5.0, 0)),
        (Op("in", (0, 0, 0), "device"), Op("a", (2.5, 1, 1), None, 10.5, 0.5), Op("b", (2, 1, 1))),
        (
            Tensor("in", ("a",), 8.5, False, (Codec("int8", 2.25, (0.1, 0.1, 0.1), ZEROS, 0.01, (0.5, 0.25)),
                                              Codec("int4", 1, ZEROS, ZEROS)), "in#0"),
            Tensor("a", ("b",), 4, name="feature", reach=0.25),
            Tensor("b", (), 1, True, name="b#2"),
        ),
        "forward",
        True,
        0.05,
        {"latency_s": 9.5, "energy_j": 100},
    )  # fmt: skip


def test_what_is_left_out_is_none_zero_or_false() -> None:
    problem = Problem.from_json({
        "version": 1,
        "tiers": [{"name": "device"}],
        "links": [],
        "ops": [{"name": "a", "seconds": [1]}],
        "tensors": [{"producer": "a", "consumers": [], "nbytes": 0}],
    })  # fmt: skip
    (tier,), (op,), (tensor,) = problem.tiers, problem.ops, problem.tensors
    assert (tier.memory_bytes, tier.watts, tier.price_per_s) == (None, 0, 0)
    assert (op.pinned, op.memory_bytes, op.reach) == (None, 0, 1)
    assert (tensor.returned, tensor.codecs, tensor.name, tensor.reach) == (False, None, "a#0", 1)
    assert (problem.relay, problem.two_way, problem.error_budget, problem.within) == ("transcode", False, None, {})
    link = Link(3, 0)
    assert (link.back_bytes_per_s, link.joules_per_byte, link.price_per_byte) == (3, 0, 0)


def test_null_is_left_out() -> None:
    data = copy.deepcopy(GOOD)
    data["tiers"][0]["memory_bytes"] = data["links"][0]["return_bytes_per_s"] = data["error_budget"] = data["within"] = None
    problem = Problem.from_json(data)
    assert problem.tiers[0].memory_bytes is None
    assert problem.links[0].back_bytes_per_s == 10.0
    assert problem.limits == {}


def test_the_smaller_of_two_limits_on_error_counts() -> None:
    data = changed("within", {"error": 0.01})
    assert Problem.from_json(data).limits == {"error": 0.01}
    assert Problem.from_json(data | {"error_budget": 0.001}).limits == {"error": 0.001}


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(problems())
def test_round_trip(problem: Problem) -> None:
    assert Problem.from_json(problem.to_json()) == problem
    assert Problem.from_json(problem.to_dict()) == problem


def changed(path: str, value: object) -> dict[str, Any]:
    """Return GOOD with one place set, or deleted if the value is `...`."""
    data = copy.deepcopy(GOOD)
    *way, last = [int(k) if k.isdigit() else k for k in re.findall(r"\w+", path)]
    place: Any = data
    for key in way:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return data


CODEC = "tensors[0].codecs[0]"
NUMBERS = ["tiers[0].memory_bytes", "tiers[0].watts", "tiers[1].price_per_s", "links[0].bytes_per_s", "links[0].latency_s",
           "links[0].return_bytes_per_s", "links[0].joules_per_byte", "links[1].price_per_byte", "ops[1].seconds[1]",
           "ops[1].memory_bytes", "ops[1].reach", "tensors[1].nbytes", "tensors[1].reach", f"{CODEC}.nbytes",
           f"{CODEC}.encode_s[0]", f"{CODEC}.error", f"{CODEC}.transfer_s[1]", "error_budget", "within.latency_s"]  # fmt: skip


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "1", "", True, False, [], 10**400])
@pytest.mark.parametrize("path", NUMBERS)
def test_numbers_are_finite_and_not_negative(path: str, value: object) -> None:
    with pytest.raises(ProblemError, match="finite number") as caught:
        Problem.from_json(changed(path, value))
    assert caught.value.path == path


@pytest.mark.parametrize("path", ["ops[1].reach", "tensors[1].reach"])
def test_a_probability_is_at_most_one(path: str) -> None:
    Problem.from_json(changed(path, 1))
    with pytest.raises(ProblemError, match="at most 1") as caught:
        Problem.from_json(changed(path, 1.5))
    assert caught.value.path == path


@pytest.mark.parametrize("path", ["links[0].bytes_per_s", "links[0].return_bytes_per_s"])
def test_rates_are_above_zero(path: str) -> None:
    with pytest.raises(ProblemError, match="above zero") as caught:
        Problem.from_json(changed(path, 0))
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("version", ..., "None"),
        ("version", 3, "reads versions 1 and 2"),
        ("tiers", [], "empty"),
        ("ops", [], "empty"),
        ("tiers", "device", "must be a list"),
        ("tiers[1].name", "device", "also the name of tiers\\[0\\]"),
        ("tiers[1].name", ..., "missing"),
        ("tiers[0].name", 3, "non-empty text"),
        ("tiers[0]", "device", "must be an object"),
        ("links", [], "3 tiers in a line need 2"),
        ("links[0].latency_s", ..., "missing"),
        ("ops[1].name", "in", "also the name of ops\\[0\\]"),
        ("ops[0].seconds", [0], "one for each of the 3 tiers"),
        ("ops[0].seconds", 3, "must be a list"),
        ("ops[0].pinned", "moon", "no tier 'moon'"),
        ("tensors[0].producer", "x", "no op 'x'"),
        ("tensors[0].producer", ["in"], "no op"),
        ("tensors[0].consumers[0]", "x", "no op 'x'"),
        ("tensors[0].consumers[0]", "in", "produces itself"),
        ("tensors[0].consumers", "a", "must be a list"),
        ("tensors[0].name", "feature", "tensors\\[0\\]"),
        ("tensors[2].returned", 1, "true or false"),
        ("tensors[0].codecs", [], "empty"),
        (f"{CODEC}.name", "int4", "codecs\\[0\\]"),
        (f"{CODEC}.decode_s", [1, 2], "has 2 numbers"),
        (f"{CODEC}.transfer_s", [1, 2, 3], "one for each of the 2 links"),
        (f"{CODEC}.transfer_s", 0.5, "must be a list"),
        (f"{CODEC}.encode_s", {}, "must be a list"),
        ("relay", "broadcast", "'transcode' or 'forward'"),
        ("two_way", 1, "true or false"),
        ("within", [], "must be an object"),
        ("within", 3, "must be an object"),
        ("within.latency", 1, "no such cost; choose from latency_s, interval_s, critical_path_s, energy_j, money, error"),
        ("within.compute_s", 1, "no such cost"),
        ("memory_bytes", 1, "not supported"),
        ("tiers[0].cores", 1, "not supported"),
        ("links[0].price", 1, "not supported"),
        ("ops[1].watts", [1, 2], "not supported"),
        ("tensors[1].error", 1, "not supported"),
        (f"{CODEC}.two_way", True, "not supported"),
    ],
)
def test_a_malformed_field_is_named(path: str, value: object, complaint: str) -> None:
    with pytest.raises(ProblemError, match=complaint) as caught:
        Problem.from_json(changed(path, value))
    # Of two equal names the second is blamed.
    blamed = {"tensors[0].name": "tensors[1].name", f"{CODEC}.name": "tensors[0].codecs[1].name"}
    assert caught.value.path == blamed.get(path, path)
    assert "\n" not in str(caught.value)


def test_a_consumer_is_listed_once() -> None:
    with pytest.raises(ProblemError, match="listed twice") as caught:
        Problem.from_json(changed("tensors[0].consumers", ["a", "a"]))
    assert caught.value.path == "tensors[0].consumers[1]"


def test_a_cycle_is_named() -> None:
    with pytest.raises(ProblemError, match=r"tensors: .*cycle: (a -> b -> a|b -> a -> b)$"):
        Problem.from_json(changed("tensors[2].consumers", ["a"]))


@pytest.mark.parametrize("source", ["{", "[]", "3", "null"])
def test_what_is_no_object_is_refused(source: str) -> None:
    with pytest.raises(ProblemError) as caught:
        Problem.from_json(source)
    assert caught.value.path == "$"


def test_the_documented_example_costs_what_the_document_says() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    example = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    printed = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    assert example
    assert printed
    assert str(solve(Problem.from_json(example[1]))) == printed[1].rstrip()
