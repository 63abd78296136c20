"""``splitinfer simulate``: JSON for programs, one line and exit code 2 for bad input."""

import json
from dataclasses import replace

import pytest
from random_plans import a_profile, a_topology

from splitinfer.cli import main
from splitinfer.planner import baseline_plans, plan
from splitinfer.plans import INPUT

PROFILE = a_profile(
    {"a": 0.010, "b": 0.020},
    [("in", INPUT, ("a",), 90_000, False), ("x", "a", ("b",), 500, False), ("y", "b", (), 100, True)],
)
TOPOLOGY = a_topology([10, 1], [(1e5, 1e5, 0.002)])
SPLIT = plan(PROFILE, TOPOLOGY, codecs=["raw"])


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PROFILE.save("profile.json")
    SPLIT.save("plan.json")
    baseline_plans(PROFILE, TOPOLOGY, ["raw"])["t0 only"].save("local.json")
    replace(SPLIT, topology=None).save("by_hand.json")
    return tmp_path


def call(capsys, *arguments, plan="plan.json"):
    code = main(["simulate", plan, "--profile", "profile.json", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def found(capsys, *arguments):
    code, out, _ = call(capsys, "--json", *arguments)
    assert code == 0
    return json.loads(out)


def test_an_idle_request(files, capsys):
    data = found(capsys, "--requests", "1")
    assert data["latency_s"]["mean"] == pytest.approx(SPLIT.cost.latency_s, rel=1e-9)
    assert set(data["utilisation"]["links"]) == {"t0:t1", "t1:t0"}


@pytest.mark.parametrize(
    ("arguments", "throughput"),
    [
        (("--rate", "5"), 5), (("--period", "250ms"), 4), (("--closed-loop", "4"), 10), (("--bursts", "9,1s,1s"), 4.5),
        (("--arrivals", "arrivals.csv"), 2),
    ],
)  # fmt: skip
def test_arrivals(files, capsys, arguments, throughput):
    (files / "arrivals.csv").write_text("\n".join(str(number / 2) for number in range(3000)))
    data = found(capsys, *arguments, "--requests", "3000", "--warmup", "50", "--seed", "3")
    assert data["throughput_per_s"] == pytest.approx(throughput, rel=0.15)
    assert data["seed"] == 3


def test_a_fleet_with_everything(files, capsys):
    (files / "link.csv").write_text("time_s,bytes_per_s\n0,100000\n10,50000\n")
    (files / "mahimahi.down").write_text("1\n2\n10\n")
    data = found(
        capsys, "--clients", "20", "--machines", "t1=4", "--workers", "t1=2", "--queue-limit", "3", "--batch", "t1=4,5ms,0.3",
        "--variation", "0.2", "--trace", "t0:t1=link.csv", "--trace", "t1:t0=mahimahi.down", "--jitter", "t0:t1=1ms", "--loss",
        "t0:t1=1%", "--fail", "t1=5s,6s", "--lose", "--rate", "150", "--requests", "3000", "--csv", "requests.csv", "--picture",
        "found.png", "--or-plan", "local.json", "--migration-cost", "1s", "-o", "found.json",
    )  # fmt: skip
    assert data["completed"] + data["dropped"] + data["lost"] == 3000
    assert len((files / "requests.csv").read_text().splitlines()) == 1 + data["completed"]
    assert (files / "found.png").stat().st_size > 10_000
    assert json.loads((files / "found.json").read_text()) == data


def test_for_people(files, capsys):
    code, out, _ = call(capsys, "--rate", "5")
    assert code == 0
    assert out.startswith("1000 requests in ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rate", "0"), "a rate of 0.0 requests per second"),
        (("--batch", "t1=3"), "--batch 3: 1 values between commas, 2 to 3 are needed"),
        (("--batch", "3,5ms"), "--batch 3,5ms: write NAME=VALUE"),
        (("--workers", "t1=many"), "--workers: 'many' is not a whole number"),
        (("--loss", "t0:t1=some"), "--loss: 'some' is not a share"),
        (("--jitter", "t0:t1=5"), "'5' has no unit"),
        (("--fail", "moon=1s,2s"), "there is no 'moon'"),
        (("--trace", "t0:t1=none.csv"), "cannot read the trace none.csv"),
        (("--queue-limit", "t9=3"), "queue_limit: there is no 't9'"),
        (("--topology", "none.yaml"), "none.yaml: cannot be read"),
        (("--warmup", "-1"), "a warm-up of -1"),
    ],
)
def test_bad_input_is_one_line(files, capsys, arguments, message):
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_plan_by_hand_needs_a_topology(files, capsys):
    assert "names no topology; give one" in call(capsys, plan="by_hand.json")[2]
