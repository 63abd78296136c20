"""The checker: right answers are confirmed, claim by claim; an answer with any field changed is refuted, whatever it holds."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from line_problems import numbered

from partitioners import Codec, Infeasible, Link, Objective, Op, Problem, ProblemError, Tensor, Tier, solution, solve
from partitioners.baselines import baseline_values
from partitioners.checker import Verdict, check

# image (device) -> a -> b -> c: a's result is also used by c, the result returns. Every limit holds something back.
HALF = Codec("half", 20, (0.5, 0.25, 0.125), (0.25, 0.125, 0.0625), 0.01)
QUARTER = Codec("quarter", 10, (1, 0.5, 0.25), (0.5, 0.25, 0.125), 0.04, (1.75, 1.25))
PROBLEM = Problem(
    tiers=(Tier("device", 5, 2.0, 0.125), Tier("edge", None, 1.0, 0.5), Tier("cloud", 40, 8.0, 4.0)),
    links=(Link(10, 0.25, None, 0.5, 0.125), Link(20, 0.5, 10, 0.25, 0.5)),
    ops=(Op("image", (0, 0, 0), "device"), Op("a", (2, 2, 2), None, 5), Op("b", (9, 4, 1), None, 10, 0.5), Op("c", (9, 8, 1), None, 20)),
    tensors=(
        Tensor("image", ("a",), 50),
        Tensor("a", ("b", "c"), 40, codecs=(HALF, QUARTER), name="features"),
        Tensor("b", ("c",), 30, codecs=(HALF, QUARTER), reach=0.5),
        Tensor("c", (), 2, True),
    ),
    error_budget=0.06,
    within={"latency_s": 25.0, "interval_s": 9.0},
)
BACK = (replace(PROBLEM.ops[2], pinned="cloud"), replace(PROBLEM.ops[3], pinned="edge"))
CASES = {
    "transcode": PROBLEM,
    "forward": replace(PROBLEM, relay="forward"),
    "two_way": replace(PROBLEM, two_way=True, ops=(*PROBLEM.ops[:2], *BACK)),
}
OBJECTIVES = ("latency", "interval", "0.5*latency + energy + 0.125*critical_path")


def right_answer(problem: Problem, objective: str) -> dict[str, Any]:
    found = solve(problem, "exhaustive", objective)
    return json.loads(replace(found, baselines=baseline_values(problem, found.objective)).to_json())


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("case", CASES)
def test_a_right_answer_is_confirmed_claim_by_claim(case: str, objective: str) -> None:
    problem, answer = CASES[case], right_answer(CASES[case], objective)
    assert answer["codecs"], "an answer without crossings tests little"
    for form in (answer, json.dumps(answer)):
        for given_problem in (problem, problem.to_json(), problem.to_dict()):
            verdict = check(given_problem, form)
            assert verdict, str(verdict)
    for claim in ("strategy", "objective", "placement", "codecs", "cost.latency_s", "cost.tier_load_s.edge", "cost.link_nbytes[1]",
                  "within.interval_s", "error_budget", "tiers[0].memory_bytes", "certificate.gap", "baselines.cloud only"):  # fmt: skip
        assert claim in verdict.confirmed
    assert str(verdict).endswith("claims confirmed, 0 refuted")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items and path:
        yield path
    for key, item in items:
        yield from leaves(item, (*path, key))


def changed(answer: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The answer with one place set, or deleted if the value is `...`."""
    answer = copy.deepcopy(answer)
    place: Any = answer
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return answer


GARBAGE = (..., None, True, -1, math.nan, math.inf, 10**400, "", "x", [], {}, [1], {"x": 1})


def wrong(path: tuple[Any, ...], value: Any) -> list[Any]:
    """Values that a place must not have."""
    near = [value * 1.001, value + 1e-6, value * 0.999] if isinstance(value, float | int) else []
    other = {
        "placement": ["device", "edge", "cloud"],
        "codecs": ["image#0", "features", "half", "quarter", "up", "down", 0, 1, 2],
        "certificate": ["within", "feasible"],
    }.get(path[0], [])
    values = [v for v in [*GARBAGE, *near, *other] if v is ... or v is None or v != value]
    if path[0] == "strategy":  # any name will do
        values.remove("x")
    if path == ("baselines",):  # none is claimed
        values.remove({})
    if path[-1] == "direction" and value == "up":  # as if left out
        values.remove(...)
    return values


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("case", CASES)
def test_any_changed_field_is_refuted(case: str, objective: str) -> None:
    problem, answer = CASES[case], right_answer(CASES[case], objective)
    places = {*leaves(answer), *((key,) for key in answer), *(("codecs", i) for i in range(len(answer["codecs"])))}
    for path in sorted(places, key=str):
        value: Any = answer
        for key in path:
            value = value[key]
        if path[0] == "baselines" and len(path) == 2:
            continue  # below
        for bad in wrong(path, value):
            verdict = check(problem, changed(answer, path, bad))
            assert not verdict, (path, bad)
            about = {refutation.field.split(".")[0].split("[")[0] for refutation in verdict.refuted}
            elsewhere = {"codecs", "cost", "placement", "certificate"} if path[0] in ("placement", "codecs", "objective") else set()
            assert about & {path[0], *elsewhere}, (path, bad, str(verdict))
            assert str(verdict).count("\n") == len(verdict.refuted)


def test_a_refutation_names_the_field_and_both_numbers() -> None:
    answer = right_answer(PROBLEM, "latency")
    true = answer["cost"]["energy_j"]
    verdict = check(PROBLEM, changed(answer, ("cost", "energy_j"), true + 1))
    (refutation,) = verdict.refuted
    assert (refutation.field, refutation.claimed, refutation.recomputed) == ("cost.energy_j", true + 1, pytest.approx(true))
    assert str(verdict).splitlines()[1] == f"  cost.energy_j: claimed {true + 1:.12g}, but {true:.12g}"


def fields(problem: Problem, answer: Any) -> set[str]:
    return {refutation.field for refutation in check(problem, answer).refuted}


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"error_budget": 0.005}, "error_budget"),
        ({"within": {"latency_s": 1.0}}, "within.latency_s"),
        ({"within": {"critical_path_s": 1.0}}, "within.critical_path_s"),
        ({"within": {"energy_j": 1.0}}, "within.energy_j"),
        ({"within": {"error": 0.005}}, "within.error"),
        ({"tiers": (replace(PROBLEM.tiers[0], memory_bytes=4), *PROBLEM.tiers[1:])}, "tiers[0].memory_bytes"),
    ],
)
def test_a_broken_limit_is_refuted(limits: dict[str, Any], field: str) -> None:
    """An answer for the problem without limits, shown to the same problem with one; the budget and `within` both count."""
    free = replace(PROBLEM, error_budget=None, within={}, tiers=tuple(replace(t, memory_bytes=None) for t in PROBLEM.tiers))
    pinned = replace(free, ops=(*free.ops[:1], replace(free.ops[1], pinned="device"), *free.ops[2:]))
    answer = right_answer(pinned, "latency")
    assert not fields(pinned, answer)
    assert field in fields(replace(pinned, **limits), answer)


def test_the_tighter_of_budget_and_limit_on_error_counts() -> None:
    answer = right_answer(replace(PROBLEM, within={}), "latency")
    error = answer["cost"]["error"]
    assert error > 0
    assert "within.error" in fields(replace(PROBLEM, within={"error": error / 2}, error_budget=error), answer)
    assert "error_budget" in fields(replace(PROBLEM, within={"error": error}, error_budget=error / 2), answer)


def test_pins_direction_and_unknown_names_are_refuted() -> None:
    answer = right_answer(PROBLEM, "latency")
    assert "placement.image" in fields(PROBLEM, changed(answer, ("placement", "image"), "edge"))
    backwards = answer | {"placement": {"image": "device", "a": "cloud", "b": "cloud", "c": "edge"}}
    assert "placement.c" in fields(PROBLEM, backwards)
    assert "placement.moon" in fields(PROBLEM, changed(answer, ("placement", "moon"), "edge"))
    assert "placement.b" in fields(PROBLEM, changed(answer, ("placement", "b"), "moon"))
    assert "placement.b" in fields(PROBLEM, changed(answer, ("placement", "b"), ...))
    assert "cost.joy" in fields(PROBLEM, changed(answer, ("cost", "joy"), 1.0))


def test_codecs_are_listed_for_what_crosses_and_nothing_else() -> None:
    answer = right_answer(PROBLEM, "latency")
    entries = answer["codecs"]
    assert "codecs" in fields(PROBLEM, answer | {"codecs": entries[1:]})
    assert f"codecs[{len(entries)}]" in fields(PROBLEM, answer | {"codecs": [*entries, entries[0]]})
    assert f"codecs[{len(entries)}]" in fields(PROBLEM, answer | {"codecs": [*entries, entries[0] | {"direction": "down"}]})
    assert f"codecs[{len(entries)}]" in fields(PROBLEM, answer | {"codecs": [*entries, entries[0] | {"tensor": "moon"}]})
    assert "codecs[0].codec" in fields(PROBLEM, answer | {"codecs": [entries[0] | {"codec": "zip"}, *entries[1:]]})
    assert "codecs[0].nbytes" in fields(PROBLEM, answer | {"codecs": [entries[0] | {"nbytes": 1}, *entries[1:]]})


def test_a_forwarded_tensor_has_one_codec() -> None:
    ops = (*PROBLEM.ops[:1], replace(PROBLEM.ops[1], pinned="device"), *(replace(op, pinned="cloud") for op in PROBLEM.ops[2:]))
    problem = replace(CASES["forward"], ops=ops, error_budget=None, within={})
    answer = right_answer(problem, "latency")
    second = next(i for i, entry in enumerate(answer["codecs"]) if entry["tensor"] == "features" and entry["link"] == 1)
    other = {"half": ("quarter", 10), "quarter": ("half", 20)}[answer["codecs"][second]["codec"]]
    mixed = changed(answer, ("codecs", second), answer["codecs"][second] | {"codec": other[0], "nbytes": other[1]})
    assert "codecs" in fields(problem, mixed)


@pytest.mark.parametrize(
    ("certificate", "field"),
    [
        ({"status": "optimal", "bound": "value * 0.99", "gap": 0.01}, "certificate.status"),
        ({"status": "within", "bound": "value", "gap": 0.0}, "certificate.status"),
        ({"status": "optimal", "bound": "value * 1.01", "gap": 0.0}, "certificate.bound"),
        ({"status": "within", "bound": "value * 0.9", "gap": 0.05}, "certificate.gap"),
        ({"status": "optimal", "bound": None, "gap": None}, "certificate.status"),
        ({"status": "feasible", "bound": None, "gap": 0.0}, "certificate.gap"),
    ],
)
def test_a_certificate_must_agree_with_itself(certificate: dict[str, Any], field: str) -> None:
    answer = right_answer(PROBLEM, "latency")
    if certificate["bound"] is not None:
        certificate = certificate | {"bound": eval(certificate["bound"], {"value": answer["cost"]["latency_s"]})}
    assert field in fields(PROBLEM, answer | {"certificate": certificate})


def test_weaker_certificates_that_are_true_are_confirmed() -> None:
    answer = right_answer(PROBLEM, "latency")
    value = answer["cost"]["latency_s"]
    assert check(PROBLEM, answer | {"certificate": {"status": "feasible", "bound": None, "gap": None}})
    assert check(PROBLEM, answer | {"certificate": {"status": "within", "bound": value * 0.9, "gap": 0.1}})


def test_no_baseline_may_beat_the_bound() -> None:
    answer = right_answer(PROBLEM, "latency")
    low = answer["certificate"]["bound"] * 0.9
    assert "baselines.split after a" in fields(PROBLEM, changed(answer, ("baselines", "split after a"), low))
    assert not fields(PROBLEM, changed(answer, ("baselines", "split after a"), low * 2))
    assert "baselines.split after a" in fields(PROBLEM, changed(answer, ("baselines", "split after a"), math.nan))


def test_each_tier_alone_is_recomputed() -> None:
    free = replace(PROBLEM, within={})
    answer = right_answer(free, "latency")
    assert isinstance(answer["baselines"]["device only"], str), "too little memory"
    assert isinstance(answer["baselines"]["cloud only"], float)
    for name, bad in [("device only", 22.0), ("cloud only", answer["baselines"]["cloud only"] + 1), ("cloud only", "too far away")]:
        assert f"baselines.{name}" in fields(free, changed(answer, ("baselines", name), bad))


def test_a_solution_is_checked_as_it_is() -> None:
    found = solve(PROBLEM, "exhaustive")
    assert check(PROBLEM, found)
    assert not check(PROBLEM, replace(found, cost=replace(found.cost, money=found.cost.money + 1)))
    broken: Any = replace(found, cost=None)
    assert not check(PROBLEM, broken)


def test_the_objective_is_read_back_exactly() -> None:
    objective = Objective.of("latency + 0.123456789012*energy")
    found = solve(PROBLEM, "exhaustive", objective)
    assert Objective.of(str(objective)) == objective
    assert check(PROBLEM, found.to_json())


@pytest.mark.parametrize("answer", ["", "{", "[]", "null", "[" * 100_000, "1" * 5000, None, 3, b"{}", [], {}, object(), {"placement": {}}])
def test_what_is_no_answer_is_refuted(answer: Any) -> None:
    verdict = check(PROBLEM, answer)
    assert isinstance(verdict, Verdict)
    assert not verdict
    assert str(verdict)


def test_a_number_too_long_to_print_is_refuted_and_printed() -> None:
    verdict = check(PROBLEM, changed(ANSWER, ("cost", "money"), 10**5000))
    assert "cost.money: claimed a int" in str(verdict)


def test_a_malformed_problem_is_the_callers_mistake() -> None:
    with pytest.raises(ProblemError):
        check("{}", {})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["device", "half", "up", "features"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["status", "tensor", "edge"]), inner, max_size=3),
    max_leaves=8,
)
ANSWER = right_answer(PROBLEM, "latency")


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from(sorted({*leaves(ANSWER), *((key,) for key in ANSWER)}, key=str)), json_values)
def test_garbage_anywhere_is_refuted_and_never_raised(path: tuple[Any, ...], garbage: Any) -> None:
    verdict = check(PROBLEM, changed(ANSWER, path, garbage))
    assert isinstance(str(verdict), str)
    whole = check(PROBLEM, garbage)
    assert not whole
    assert str(whole)


def test_answers_to_other_problems_are_refuted() -> None:
    """The plan of one problem shown to another: same names, other numbers."""
    refuted = 0
    for seed in range(40):
        one, other = numbered(seed, tiers=3), numbered(seed + 100, tiers=3)
        try:
            refuted += not check(other, solve(one, "exhaustive"))
        except Infeasible:
            refuted += 1
    assert refuted == 40


def test_plans_of_functions_are_confirmed() -> None:
    plan = {"image": "device", "a": "edge", "b": "cloud", "c": "cloud"}
    free = replace(PROBLEM, within={})
    assert check(free, solution(free, plan, "by hand"))
