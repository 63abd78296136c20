"""The command's exit statuses, the strategy table, the baselines, and what the package may import."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from line_problems import chain, layered

from partitioners import STRATEGIES, Infeasible, Link, Objective, Op, PartitionerError, Problem, Solution, Tier, baseline_solutions, solve
from partitioners.__main__ import main
from partitioners.checker import check

ROOT = Path(__file__).parents[2]
PROBLEM = chain([(0, 0), (4, 1), (4, 1)], [2, 8], (Link(2, 0.5),))


@pytest.fixture
def problem_file(tmp_path: Path) -> Path:
    path = tmp_path / "problem.json"
    path.write_text(PROBLEM.to_json())
    return path


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_solve_prints_json(problem_file: Path, strategy: str, capsys: pytest.CaptureFixture[str]) -> None:
    objective = "critical_path" if strategy == "critical_path" else "latency"
    assert main(["solve", str(problem_file), "--strategy", strategy, "--objective", objective, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["placement"] == {"op0": "t0", "op1": "t1", "op2": "t1"}
    assert printed["cost"]["latency_s"] == pytest.approx(1 + 0.5 + 2)
    assert printed["baselines"] == {"t0 only": 8, "t1 only": pytest.approx(3.5)}
    verdict = check(PROBLEM, printed)
    assert verdict, str(verdict)


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        ("latency", 3.5), ("interval", 2), ("period", 2), ("critical_path", 3.5), ("energy", 2 + 8), ("money", 0.5),
        ("2*latency + 0.5*energy", 7 + 5),
    ],
)  # fmt: skip
def test_objectives(tmp_path: Path, objective: str, value: float, capsys: pytest.CaptureFixture[str]) -> None:
    """The device draws 4 W, the cloud 1 W and the link 4 J for its two bytes; only the cloud costs money."""
    tiers, links = (Tier("t0", watts=4), Tier("t1", watts=1, price_per_s=0.5)), (Link(2, 0.5, joules_per_byte=4),)
    ops = (*PROBLEM.ops[:2], Op("op2", (4, 1), "t1"))
    problem = replace(PROBLEM, tiers=tiers, links=links, ops=ops)
    path = tmp_path / "priced.json"
    path.write_text(problem.to_json())
    assert main(["solve", str(path), "--objective", objective, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    best = solve(problem, "exhaustive", objective)
    assert best.value == pytest.approx(value)
    assert printed["objective"] == str(best.objective)
    assert best.objective.value(best.cost) == pytest.approx(printed["certificate"]["bound"])
    assert check(problem, printed)


@pytest.mark.parametrize("objective", ["speed", "latency +", "-1*latency", "0*latency", "latency*latency", "2*3*latency", ""])
def test_an_objective_that_is_not_understood_exits_2(problem_file: Path, objective: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["solve", str(problem_file), f"--objective={objective}"])
    assert caught.value.code == 2
    assert "objective" in capsys.readouterr().err


def test_solve_prints_a_table(problem_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", str(problem_file)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("mincut: latency 3.5\n  optimal")
    assert "latency 3.5 s = compute 2 + wire 1 + link latency 0.5" in printed
    assert "t0 only: 8, 2.29 times this" in printed


def test_malformed_exits_2_with_one_line(problem_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = PROBLEM.to_dict()
    data["ops"][1]["seconds"][1] = -1
    problem_file.write_text(json.dumps(data))
    assert main(["solve", str(problem_file)]) == 2
    error = capsys.readouterr().err
    assert "ops[1].seconds[1]: is -1" in error
    assert error.count("\n") == 1
    assert main(["solve", str(problem_file), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_missing_file_exits_2(tmp_path: Path) -> None:
    assert main(["solve", str(tmp_path / "none.json")]) == 2


def test_infeasible_exits_3(problem_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = PROBLEM.to_dict()
    data["ops"][0]["pinned"], data["ops"][2]["pinned"] = "t1", "t0"
    problem_file.write_text(json.dumps(data))
    assert main(["solve", str(problem_file)]) == 3
    assert "'op2' is pinned to 't0' but takes data from 'op0', pinned to 't1'" in capsys.readouterr().err


@pytest.mark.parametrize("strategy", ["auto", "milp", "exhaustive"])
@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"within": {"latency_s": 3.0}}, ("latency_s", "3.5", "3")),
        ({"within": {"interval_s": 1.5}}, ("interval_s", "1.5", "2")),
        ({"tiers": (Tier("t0", 5.0), Tier("t1", 5.0))}, ("bytes", "5", "10")),
    ],
)
def test_a_limit_that_cannot_be_kept_exits_3_with_both_numbers(
    problem_file: Path, strategy: str, limits: dict[str, Any], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    ops = tuple(replace(op, memory_bytes=10.0) for op in PROBLEM.ops) if "tiers" in limits else PROBLEM.ops
    problem_file.write_text(replace(PROBLEM, ops=ops, **limits).to_json())
    assert main(["solve", str(problem_file), "--strategy", strategy]) == 3
    error = capsys.readouterr().err
    assert error.startswith("Infeasible")
    assert all(word in error for word in words), error


def test_too_large_for_the_oracle_exits_1(problem_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem_file.write_text(layered(40, 3, "forward", 0).to_json())
    assert main(["solve", str(problem_file), "--strategy", "exhaustive"]) == 1
    assert "39 free ops on 3 tiers" in capsys.readouterr().err


def test_solving_loads_neither_torch_nor_ray(problem_file: Path) -> None:
    """In a process of its own: this one may have loaded anything."""
    program = (
        "import sys; from partitioners.__main__ import main\n"
        f"for s in {list(STRATEGIES)!r}: assert main(['solve', {str(problem_file)!r}, '--strategy', s,"
        " '--objective', 'critical_path' if s == 'critical_path' else 'latency']) == 0\n"
        "print('LOADED', sorted(m for m in sys.modules if m.split('.')[0] in"
        " ('torch', 'ray', 'splitinfer', 'cluster', 'partitioners')))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = done.stdout.split("LOADED")[1]
    assert "'partitioners.mincut'" in loaded
    assert not any(name in loaded for name in ("torch", "ray'", "ray.", "splitinfer", "cluster"))


def test_a_plain_function_is_a_strategy() -> None:
    def everything_first(problem: Problem) -> Mapping[str, str]:
        return {op.name: "t0" for op in problem.ops}

    found = solve(PROBLEM, everything_first)
    assert (found.strategy, found.certificate.status) == ("everything_first", "feasible")
    assert found.cost.latency_s == 8
    with pytest.raises(Infeasible, match="op0"):
        solve(PROBLEM, lambda problem: {})


def test_a_function_may_ask_for_the_objective() -> None:
    asked = []

    def careful(problem: Problem, objective: Objective) -> Solution:
        asked.append(str(objective))
        return solve(problem, "milp", objective)

    found = solve(PROBLEM, careful, "period")
    assert asked == ["interval"]
    assert found.certificate.status == "optimal"
    assert found.value == 2


def test_a_plan_of_a_function_that_breaks_a_limit_is_infeasible() -> None:
    problem = replace(PROBLEM, within={"latency_s": 5.0})
    with pytest.raises(Infeasible, match="8"):
        solve(problem, lambda problem: {op.name: "t0" for op in problem.ops})


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(PartitionerError, match="'magic'; choose one of auto, "):
        solve(PROBLEM, "magic")


def test_baselines() -> None:
    found = baseline_solutions(PROBLEM, split_after=["op1"])
    seconds = {name: s.cost.latency_s for name, s in found.items() if not isinstance(s, Infeasible)}
    assert seconds == {"t0 only": 8, "t1 only": pytest.approx(3.5), "split after op1": pytest.approx(4 + 4 + 0.5 + 1)}
    with pytest.raises(Infeasible, match="no such op"):
        baseline_solutions(PROBLEM, split_after=["nothing"])


def test_an_impossible_baseline_says_why() -> None:
    pinned = (*PROBLEM.ops[:2], Op("op2", (4, 1), "t0"))
    problem = Problem(PROBLEM.tiers, PROBLEM.links, pinned, PROBLEM.tensors)
    found = baseline_solutions(problem)["t1 only"]
    assert isinstance(found, Infeasible)
    assert "'op2' on 't0' takes data from 'op1' on 't1'" in str(found)
