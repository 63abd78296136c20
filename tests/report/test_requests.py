"""The bars of one request, against the plan's own cost and schedules drawn by hand."""

from dataclasses import replace

import pytest
from random_plans import a_profile, a_topology, random_case
from small_plans import measured

from cluster.topology import PeerSpec
from partitioners.errors import Infeasible
from splitinfer.planner import plan
from splitinfer.plans import INPUT
from splitinfer.profiles import Framework
from splitinfer.report.compare import parts_of
from splitinfer.report.request import PARTS, Bar, idle_request, laid_out, measured_request
from splitinfer.simulator import simulate
from splitinfer.simulator.steps import HELD, Compute, Parallel, Program, Transfer


def test_parts_are_those_of_the_cost_function():
    """Two computations that share no code, part by part; a tensor in pieces counts as its own part in both."""
    split = 0
    for seed in range(60):
        profile, topology, made = random_case(seed)
        found = idle_request(made, profile, topology)
        assert found.latency_s == pytest.approx(made.cost.latency_s, rel=1e-9), seed
        for part, seconds in parts_of(made.cost).items():
            assert found.parts[part] == pytest.approx(seconds, rel=1e-6, abs=1e-9), (seed, part)
        assert found.up_nbytes == pytest.approx(made.cost.up_nbytes), seed
        split += len(made.stages) > 1
    assert split > 10


def test_the_same_as_the_simulator_with_pieces_that_overlap():
    streamed = 0
    for seed in range(80, 110):
        profile, topology, made = random_case(seed, in_pieces=True)
        found = idle_request(made, profile, topology)
        assert found.latency_s == pytest.approx(simulate(made, profile, topology, requests=1, expected=True).latency_s.mean, rel=1e-9)
        assert sum(found.parts.values()) == pytest.approx(found.latency_s)
        if any(crossing.streamed for crossing in made.crossings):
            streamed += 1
            assert found.parts["transfer"] > 0
            assert found.rest_s is None
    assert streamed > 3


def test_a_request_drawn_by_hand():
    """::

    t0         CC           10 ms x 2
    t0 -> t1     UUUU~      1000 B at 25 kB/s, and 5 ms
    t1                C     10 ms
    t1 -> t0           B~   50 B at 10 kB/s, and 5 ms
    """
    tensors = [("in", INPUT, ("a",), 9_000, False), ("x", "a", ("b",), 1_000, False), ("y", "b", (), 50, True)]
    profile = a_profile({"a": 0.01, "b": 0.01}, tensors)
    topology = a_topology([2, 1], [(25_000, 10_000, 0.005)])

    def strategy(problem):
        if len(problem.tiers) < 2:
            raise Infeasible("both are wanted")
        return {op.name: problem.tiers[-1 if op.name == "b" else 0].name for op in problem.ops}

    found = idle_request(plan(profile, topology, codecs=["raw"], strategy=strategy), profile, topology)
    assert [(bar.lane, bar.kind, round(bar.start_s, 9), round(bar.seconds, 9)) for bar in found.bars] == [
        ("t0", "compute", 0.0, 0.02),
        ("t0 → t1", "wire", 0.02, 0.045),
        ("t1", "compute", 0.065, 0.01),
        ("t1 → t0", "return", 0.075, 0.01),
    ]
    assert found.lanes == ("t0", "t0 → t1", "t1", "t1 → t0")
    assert found.rest_s == pytest.approx(0.02)  # half of the 20 ms on t0 is stretch


def test_layers_that_machines_share_drawn_by_hand():
    """::

    t0            CC|HHHH....|          20 ms of its own, 40 ms of its share, then waiting
    t0 -> tablet    |U~      |          1000 B at 100 kB/s, and 5 ms
    tablet          |  PPPPPP|          50 ms
    tablet -> t0    |        BB~        1000 B at 50 kB/s, and 5 ms
    """
    plain = a_topology([2, 1], [(25_000, 10_000, 0.005)])
    tablet = PeerSpec(replace(plain.tiers[1], name="tablet"), up_bytes_per_s=100_000, down_bytes_per_s=50_000, latency_s=0.005)
    topology = replace(plain, tiers=(replace(plain.tiers[0], peers=(tablet,)), plain.tiers[1]))
    peer = (Transfer("t0:tablet", 1000), Compute("tablet", "", 0.05), Transfer("tablet:t0", 1000))
    group = Parallel(((Compute(HELD, "", 0.04),), peer))
    found = laid_out(Program((Compute("t0", "", 0.02, after_s=0.001, groups=(group,)),)), topology, "t0")
    assert [(bar.lane, bar.kind, round(bar.start_s, 9), round(bar.seconds, 9)) for bar in found.bars] == [
        ("t0", "compute", 0.0, 0.02),
        ("t0", "compute", 0.02, 0.04),
        ("t0 → tablet", "exchange", 0.02, 0.015),
        ("tablet", "compute", 0.035, 0.05),
        ("tablet → t0", "exchange", 0.085, 0.025),
        ("t0", "framework", 0.11, 0.001),
    ]
    assert found.latency_s == pytest.approx(0.111)
    assert {part: round(seconds, 9) for part, seconds in found.parts.items() if seconds} == {
        "compute": 0.07, "exchange": 0.04, "framework": 0.001,
    }  # fmt: skip
    assert found.up_nbytes == 0  # towards the cloud
    assert found.rest_s is None


def test_what_is_no_declared_sleep():
    profile = a_profile({"a": 0.01}, [("in", INPUT, ("a",), 10, False), ("y", "a", (), 50, True)], wake_s=0.002, framework=Framework(0.003))
    found = idle_request(plan(profile, a_topology([4], []), codecs=["raw"]), profile, a_topology([4], []))
    assert found.latency_s == pytest.approx(4 * 0.012 + 0.003)
    assert found.rest_s == pytest.approx(0.012 + 0.003)


def test_a_measured_request_adds_up():
    found = measured_request(measured())
    assert set(found.parts) == set(PARTS)
    assert sum(found.parts.values()) == pytest.approx(0.2)
    assert found.parts["framework"] == pytest.approx(0.03)
    assert found.bars == (Bar("t0", "compute", 0.0, pytest.approx(0.12)), Bar("t0 sends", "wire", pytest.approx(0.13), 0.05, 10_000))
    assert found.rest_s == pytest.approx(0.2 - 0.095)
