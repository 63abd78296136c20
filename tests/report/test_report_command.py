"""``splitinfer report``: a page from two files, one line and exit code 2 for bad input."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from small_plans import PROFILE, SPLIT, measured

from splitinfer.cli import main
from splitinfer.tracing import chrome_trace


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PROFILE.save("profile.json")
    SPLIT.save("plan.json")
    return tmp_path


def call(capsys, *arguments):
    code = main(["report", "plan.json", "--profile", "profile.json", "--points", "3", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_page(capsys, files):
    code, out, _ = call(capsys)
    assert code == 0
    assert "wrote report.html" in out
    assert "predicted against simulated: +0.0 %" in out
    assert (files / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_json_and_traces(capsys, files):
    (files / "traces.json").write_text(json.dumps(chrome_trace([measured()])))
    code, out, _ = call(capsys, "--json", "--traces", "traces.json", "-o", "other.html", "--link", "t1:t2", "--codecs", "raw,int8")
    assert code == 0
    found = json.loads(out)
    assert [clock["name"] for clock in found["clocks"]] == ["predicted", "simulated", "measured"]
    assert found["clocks"][0]["latency_s"] == pytest.approx(found["clocks"][1]["latency_s"], rel=1e-9)
    assert found["sweep"]["link"] == ["t1", "t2"]
    assert found["sweep"]["codecs"] == ["raw", "int8"]
    assert {trade["cost"] for trade in found["trade_offs"]} == {"energy", "money"}
    assert (files / "other.html").exists()


def test_it_needs_no_torch(files):
    code = (
        "import sys\nfrom splitinfer.cli import main\n"
        "main(['report', 'plan.json', '--profile', 'profile.json', '--points', '2'])\n"
        "print([name for name in ('torch', 'ray', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--link", "t0:t2"], "there is no link 't0:t2'"),
        (["--traces", "none.json"], "cannot read the traces none.json"),
        (["--codecs", "int5"], "codec 'int5' is not there"),
        (["-o", "/proc/none/report.html"], "cannot write /proc/none/report.html"),
    ],
)
def test_bad_input(capsys, files, arguments, message):
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_measuring_a_plan_by_hand_needs_a_topology(capsys, files):
    replace(SPLIT, topology=None).save("plan.json")
    code, _, err = call(capsys, "--run", "splitinfer.zoo:digits")
    assert code == 2
    assert "give --topology" in err


@pytest.mark.slow
def test_three_commands_from_model_and_topology_to_the_page(tmp_path):
    """And a fourth time, measured on Ray."""
    (tmp_path / "cluster.yaml").write_text(
        "version: 1\ntiers: [{name: device, compute: {factor: 8}}, {name: cloud, compute: measured}]\n"
        "links: [{between: [device, cloud], up: 2 Mbps, down: 10 Mbps, latency: 2 ms}]\n"
    )
    for command in (
        "profile splitinfer.zoo:digits -o profile.json",
        "plan --profile profile.json --topology cluster.yaml -o plan.json",
        "report plan.json --profile profile.json",
        "report plan.json --profile profile.json --run splitinfer.zoo:digits --requests 3 -o measured.html",
    ):
        result = subprocess.run(
            [sys.executable, "-m", "splitinfer", *command.split()], cwd=tmp_path, capture_output=True, text=True, timeout=250
        )
        assert result.returncode == 0, result.stderr
    assert "predicted against simulated" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "predicted against measured" in (tmp_path / "measured.html").read_text(encoding="utf-8")
