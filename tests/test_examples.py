"""The experiment scripts run from start to end, write what they promise, and give the same figures for the same seed."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def ran(name, out, *options):
    """The rows of the table that a script wrote."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--quick", "--out", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment, check=False)
    assert found.returncode == 0, found.stderr
    assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert f"{name}.csv" in found.stdout
    with (out / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_day_with_a_trace_of_the_users(tmp_path):
    trace = tmp_path / "day.csv"
    trace.write_text("seconds,bytes_per_s\n0,2000000\n1800,20000\n3600,2000000\n", encoding="utf-8")
    rows = ran("mobile_day", tmp_path, "--trace", str(trace))
    slow = [row for row in rows if 1800 <= float(row["from_s"]) < 3600]
    worst = {name: max(float(row["p95_s"]) for row in slow if row["plan"] == name) for name in ("re-planned", "one plan", "phone only")}
    assert worst["re-planned"] <= worst["phone only"] * 1.01 < worst["one plan"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sweep", "mobile_day", "cameras", "time_series", "text_classifier"])
def test_equal_seeds_give_equal_tables(name, tmp_path):
    runs = [ran(name, tmp_path / each, "--seed", "3") for each in "ab"]
    assert runs[0] == runs[1]
    assert runs[0]
    if name == "sweep":
        best = {(row["model"], row["uplink_mbps"]): float(row["latency_s"]) for row in runs[0] if row["strategy"] == "exact"}
        assert all(float(row["latency_s"]) >= best[row["model"], row["uplink_mbps"]] * (1 - 1e-5) for row in runs[0])
    if name in ("time_series", "text_classifier"):
        exact = [row for row in runs[0] if row.get("forecast", row.get("run")).endswith(("raw", "zstd", "best plan"))]
        assert len(exact) == 3
        assert all(float(row["largest_difference"]) < 1e-5 for row in exact)


@pytest.mark.slow
def test_requests_go_on_while_machines_are_killed(tmp_path):
    command = [sys.executable, str(EXAMPLES / "survive.py"), "--seconds", "40", "--out", str(tmp_path)]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    found = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, check=False)
    assert found.returncode == 0, found.stderr
    assert "none lost" in found.stdout
    with (tmp_path / "survive.csv").open(encoding="utf-8") as file:
        assert len({row["by"] for row in csv.DictReader(file)}) > 1
    assert (tmp_path / "survive.png").read_bytes()[:4] == b"\x89PNG"
