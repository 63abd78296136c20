"""The command's exit statuses, the strategy table, the baselines, and what the package may import."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from line_problems import chain, layered

from partitioners import STRATEGIES, Infeasible, Link, Op, PartitionerError, Problem, baseline_solutions, solve
from partitioners.__main__ import main

ROOT = Path(__file__).parents[2]
PROBLEM = chain([(0, 0), (4, 1), (4, 1)], [2, 8], (Link(2, 0.5),))


@pytest.fixture
def problem_file(tmp_path: Path) -> Path:
    path = tmp_path / "problem.json"
    path.write_text(PROBLEM.to_json())
    return path


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_solve_prints_json(problem_file: Path, strategy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", str(problem_file), "--strategy", strategy, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["placement"] == {"op0": "t0", "op1": "t1", "op2": "t1"}
    assert printed["cost"]["latency_s"] == pytest.approx(1 + 0.5 + 2)


def test_solve_prints_a_table(problem_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", str(problem_file)]) == 0
    assert capsys.readouterr().out.startswith("mincut: 3.5 s = compute 2 + wire 1 + link latency 0.5\n  optimal")


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


def test_too_large_for_the_oracle_exits_1(problem_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem_file.write_text(layered(40, 3, "forward", 0).to_json())
    assert main(["solve", str(problem_file), "--strategy", "exhaustive"]) == 1
    assert "39 free ops on 3 tiers" in capsys.readouterr().err


def test_solving_loads_neither_torch_nor_ray(problem_file: Path) -> None:
    """In a process of its own: this one may have loaded anything."""
    program = (
        "import sys; from partitioners.__main__ import main\n"
        f"for s in {list(STRATEGIES)!r}: assert main(['solve', {str(problem_file)!r}, '--strategy', s]) == 0\n"
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


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(PartitionerError, match="'magic'; choose one of auto, mincut, milp, exhaustive"):
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
