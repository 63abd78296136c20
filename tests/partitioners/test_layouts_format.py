"""Version 2 of the format: workers and layouts, read, written, and refused with the path of the field."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from shared_problems import limited, phones, shared_problem

from partitioners import Problem, ProblemError, solve
from partitioners.__main__ import main, with_baselines

PROBLEM: dict[str, Any] = {
    "version": 2,
    "tiers": [
        {"name": "phones", "workers": [{"name": "a"}, {"name": "b", "bytes_per_s": 1e6, "latency_s": 0.001, "memory_bytes": 1e9}]},
        {"name": "cloud"},
    ],
    "links": [{"bytes_per_s": 100, "latency_s": 0.01}],
    "ops": [
        {"name": "in", "seconds": [0, 0], "pinned": "phones"},
        {
            "name": "conv",
            "seconds": [8, 1],
            "layouts": [
                {"tier": "phones", "axis": "rows", "units": 8, "seconds_per_unit": [1, 2], "kernel": 3, "padding": 1, "weight_bytes": 72},
                {
                    "tier": "phones",
                    "axis": "channels",
                    "units": 4,
                    "seconds_per_unit": [2, 4],
                    "takes": "whole",
                    "weight_bytes_per_unit": 18,
                },
            ],
        },
        {"name": "relu", "seconds": [0, 0], "layouts": [{"tier": "phones", "axis": "rows", "units": 8, "seconds_per_unit": [0, 0]}]},
    ],
    "tensors": [
        {"producer": "in", "consumers": ["conv"], "nbytes": 800},
        {"producer": "conv", "consumers": ["relu"], "nbytes": 800},
        {"producer": "relu", "consumers": [], "nbytes": 800, "returned": True},
    ],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The problem with one field set; a path as in a complaint."""
    data = copy.deepcopy(PROBLEM)
    *way, last = path.replace("[", ".").replace("]", "").split(".")
    at: Any = data
    for key in way:
        at = at[int(key)] if key.isdigit() else at[key]
    at[int(last) if last.isdigit() else last] = value
    return data


def test_it_is_read_and_solved() -> None:
    problem = Problem.from_json(json.dumps(PROBLEM))
    conv = problem.ops[1].layouts[0]
    assert (conv.units, conv.input_rows, conv.fixed_s, conv.granularity) == (8, 8, (0.0, 0.0), 1)
    assert problem.tiers[0].workers[1].back_bytes_per_s == 1e6
    assert solve(problem).blocks


def test_round_trips() -> None:
    problems = [Problem.from_json(PROBLEM), *(limited(shared_problem(seed), seed) for seed in range(40))]
    for problem in problems:
        assert Problem.from_json(problem.to_json()) == problem
        assert Problem.from_json(problem.to_dict()) == problem
        assert problem.to_dict()["version"] == (2 if any(tier.workers for tier in problem.tiers) else 1)


def test_without_workers_version_1_is_written_and_either_is_read() -> None:
    data = {"tiers": [{"name": "t"}], "links": [], "ops": [{"name": "o", "seconds": [1]}], "tensors": []}
    one, two = (Problem.from_json({"version": version, **data}) for version in (1, 2))
    assert one == two
    assert one.to_dict()["version"] == 1


@pytest.mark.parametrize(("path", "value", "complaint"), [
    ("version", 1, r"^tiers\[0\].workers: is not supported"),
    ("tiers[0].workers", 3, "must be a list"),
    ("tiers[0].workers[1]", 3, "must be an object"),
    ("tiers[0].workers[1].name", "a", "also the name of"),
    ("tiers[0].workers[1].bytes_per_s", None, "is missing; it joins this worker to the host"),
    ("tiers[0].workers[1].bytes_per_s", 0, "needs a rate above zero"),
    ("tiers[0].workers[1].return_bytes_per_s", -1, "finite number, zero or more"),
    ("tiers[0].workers[1].latency_s", "x", "finite number"),
    ("tiers[0].workers[1].memory_bytes", -1, "finite number"),
    ("tiers[0].workers[1].speed", 1, "is not supported"),
    ("tiers[0].workers[0].bytes_per_s", 1, "the first worker is the host"),
    ("tiers[0].workers[0].latency_s", 1, "the first worker is the host"),
    ("ops[1].layouts", {}, "must be a list"),
    ("ops[1].layouts[0].tier", "cloud", "'cloud' has no workers"),
    ("ops[1].layouts[0].tier", "mars", "there is no tier 'mars'"),
    ("ops[1].layouts[0].axis", "columns", "choose from rows, channels, heads"),
    ("ops[1].layouts[0].axis", ["rows"], "choose from rows, channels, heads"),
    ("ops[1].layouts[0].units", 0, "whole number, 1 or more"),
    ("ops[1].layouts[0].units", 2.5, "whole number, 1 or more"),
    ("ops[1].layouts[0].units", True, "whole number, 1 or more"),
    ("ops[1].layouts[0].granularity", 0, "whole number, 1 or more"),
    ("ops[1].layouts[0].kernel", 0, "whole number, 1 or more"),
    ("ops[1].layouts[0].stride", "2", "whole number, 1 or more"),
    ("ops[1].layouts[0].dilation", -1, "whole number, 1 or more"),
    ("ops[1].layouts[0].padding", -1, "whole number, 0 or more"),
    ("ops[1].layouts[0].seconds_per_unit", [1], "one for each of the 2 workers"),
    ("ops[1].layouts[0].seconds_per_unit", 1, "must be a list"),
    ("ops[1].layouts[0].seconds_per_unit[1]", -1, "finite number"),
    ("ops[1].layouts[0].fixed_s", [1], "one for each of the 2 workers"),
    ("ops[1].layouts[0].weight_bytes", -1, "finite number"),
    ("ops[1].layouts[0].weight_bytes_per_unit", 1, "for rows each worker holds all weights"),
    ("ops[1].layouts[0].gives", "partial", "rows that take 'split' cannot"),
    ("ops[1].layouts[0].takes", "half", "choose from whole, split"),
    ("ops[1].layouts[1].gives", "partial", "channels that take 'whole' cannot"),
    ("ops[1].layouts[1].kernel", 3, "is for rows"),
    ("ops[1].layouts[1].input_units", 3, "is for rows"),
    ("ops[2].layouts[0].units", 7, "tensor 'conv#1', which it takes, has 8 rows elsewhere"),
    ("ops[2].layouts[0].input_units", 9, "tensor 'conv#1', which it takes, has 8 rows elsewhere"),
    ("ops[2].layouts[0].halo", 1, "is not supported"),
])  # fmt: skip
def test_a_malformed_field_is_named(path: str, value: Any, complaint: str) -> None:
    with pytest.raises(ProblemError, match=complaint) as caught:
        Problem.from_json(changed(path, value))
    assert caught.value.path == path or path == "version" or caught.value.path.endswith(".input_units")


def test_two_layouts_of_one_tier_axis_and_takes_are_refused() -> None:
    layouts = PROBLEM["ops"][1]["layouts"]
    with pytest.raises(ProblemError, match=r"^ops\[1\].layouts\[2\]: has the tier, axis and takes of ops\[1\].layouts\[0\]"):
        Problem.from_json(changed("ops[1].layouts", [*layouts, layouts[0]]))


def test_any_field_may_be_broken_without_a_crash() -> None:
    """Whatever stands in a field, the complaint is a `ProblemError`, or the problem is sound."""
    rng = random.Random(0)
    base = limited(shared_problem(3), 3).to_dict()
    for _ in range(600):
        data = copy.deepcopy(base)
        at: Any = data
        while isinstance(at, dict | list) and at:
            key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
            if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.2:
                at[key] = rng.choice([None, -1, 0, 1.5, 10**400, "x", "", [], {}, [1], True, float("nan")])
                break
            at = at[key]
        with contextlib.suppress(ProblemError):
            Problem.from_json(data)


def test_the_command_prints_the_blocks(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "problem.json"
    path.write_text(phones(2, [3, 3], 8, 10.0, 8.0).to_json())
    assert main(["solve", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "on device by rows  " in shown
    assert "no division" in shown
    assert main(["solve", str(path), "--json", "--strategy", "hybrid"]) == 0
    blocks = json.loads(capsys.readouterr().out)["blocks"]
    assert blocks
    assert sum(blocks[0]["shares"]) == 8


def test_the_documented_example_costs_what_the_document_says() -> None:
    text = (Path(__file__).parents[2] / "docs" / "problem-format.md").read_text(encoding="utf-8")
    text = text[text.index("## Version 2") :]
    example, printed = re.search(r"```json\n(.*?)```", text, re.DOTALL), re.search(r"```text\n(.*?)```", text, re.DOTALL)
    assert example
    assert printed
    problem = Problem.from_json(example[1])
    assert str(with_baselines(problem, solve(problem))) == printed[1].rstrip()
