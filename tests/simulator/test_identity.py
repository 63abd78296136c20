"""A request that meets no other takes as long as the plan says; the two computations share no code."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from random_plans import CODECS, a_profile, a_topology, random_case, random_profile

import splitinfer
from cluster.topology import Topology
from splitinfer.calibrations import Calibration, Measured
from splitinfer.errors import PlanError, ProfileError
from splitinfer.learn.reach import Passing
from splitinfer.planner import plan
from splitinfer.plans import INPUT, Crossing, Plan, PlannedStage
from splitinfer.profiles import Framework, Profile
from splitinfer.simulator import ClosedLoop, simulate
from splitinfer.simulator.work import Work, exit_levels


def idle_s(made, profile, topology, **options):
    return simulate(made, profile, topology, ClosedLoop(1), requests=1, **options).latency_s.mean


def check(seed, in_pieces=False):
    profile, topology, made = random_case(seed, in_pieces)
    made, profile = Plan.from_json(made.to_json()), Profile.from_json(profile.to_json())  # the files are enough
    found = idle_s(made, profile, topology, expected=True)
    assert found == pytest.approx(made.cost.latency_s, rel=1e-9), seed
    return made


def test_an_idle_request_takes_what_the_plan_predicts():
    plans = [check(seed) for seed in range(160)]
    # The cases are what they should be.
    assert sum(len(made.stages) > 1 for made in plans) > 20
    assert sum(bool(made.exits) for made in plans) > 8
    assert sum(len(crossing.links) > 1 for made in plans for crossing in made.crossings) > 8
    assert {crossing.codec for made in plans for crossing in made.crossings} == set(CODECS)


@pytest.mark.slow
def test_an_idle_request_takes_what_the_plan_predicts_at_length():
    for seed in range(1000, 5000):
        check(seed)


def test_tensors_in_pieces_overlap_as_planned():
    """Each over one hop. Where a tensor in pieces passes a tier that works, the plan counts as if it were encoded there again."""
    streamed = 0
    for seed in range(80, 120):
        made = random_case(seed, in_pieces=True)[2]
        used = {made.tiers.index(stage.tier) for stage in made.stages}
        if not any(each.streamed and used & set(each.links[1:]) for each in made.crossings):
            check(seed, in_pieces=True)
            streamed += sum(each.streamed for each in made.crossings)
    assert streamed > 8


def test_the_ways_a_request_can_end_average_to_what_is_expected():
    seen = 0
    for seed in range(60, 120):
        profile, topology, made = random_case(seed)
        if made.exits:
            programs = Work(made, profile, topology).programs()
            assert sum(program.share for program in programs) == pytest.approx(1)
            times = [alone_s(program, topology) for program in programs]
            mean = sum(program.share * time_s for program, time_s in zip(programs, times, strict=True))
            assert mean == pytest.approx(made.cost.latency_s, rel=1e-9)
            assert times == sorted(times)
            seen += 1
    assert seen > 8


def alone_s(program, topology):
    """Added up step by step."""
    links = {}
    for spec in [*topology.links, *filter(None, [topology.direct])]:
        low, high = spec.between
        links |= {f"{low}:{high}": (spec.up_bytes_per_s, spec), f"{high}:{low}": (spec.down_bytes_per_s, spec)}
    total = program.delay_s
    for step in program.steps:
        if step.resource in links:
            rate, spec = links[step.resource]
            total += step.nbytes / rate + spec.latency_s + step.after_s
        else:
            total += step.layers_s + step.coding_s + step.wake_s + step.after_s
    return total


def test_energy_and_money_are_the_plans_where_the_framework_costs_nothing():
    for seed in range(20):
        profile, topology, made = random_case(seed)
        profile = replace(profile, packet_nbytes=0, framework=Framework(), measurements=(replace(profile.measurements[0], wake_s=0.0),))
        tiers = tuple(replace(tier, watts=2.0 + i, price_per_s=0.1 + i) for i, tier in enumerate(topology.tiers))
        links = tuple(replace(link, joules_per_byte=1e-6 * (1 + i), price_per_byte=1e-7) for i, link in enumerate(topology.links))
        topology = Topology(tiers, links)
        made = plan(profile, topology, "latency + 0.1*energy", CODECS)
        found = simulate(made, profile, topology, requests=1, expected=True)
        assert (found.energy_j, found.money) == pytest.approx((made.cost.energy_j, made.cost.money), rel=1e-9)


CHAIN = a_profile(
    {"a": 0.01, "b": 0.02, "c": 0.03},
    [("in", INPUT, ("a",), 60_000, False), ("x", "a", ("b",), 80_000, False), ("y", "b", ("c",), 400, False), ("z", "c", (), 40, True)],
    wake_s=0.001, packet_nbytes=100, framework=Framework(0.002, 1e-6, True),
)  # fmt: skip


def test_by_hand():
    topology = a_topology([10, 1], [(1e5, 2e5, 0.001)])
    made = plan(CHAIN, topology, codecs=["raw"])
    assert [stage.layers for stage in made.stages] == [("a", "b"), ("c",)]
    # Here: a call, 60 kB handed over, 10 x (10 + 20 + 1) ms. 500 B up and their latency, 500 B of framework, a call, 31 ms
    # there. 140 B back at twice the rate, their latency and framework.
    there = 0.002 + 0.06 + 0.31 + 0.005 + 0.001 + 0.0005 + 0.002 + 0.031
    assert idle_s(made, CHAIN, topology) == pytest.approx(there + 0.0007 + 0.001 + 0.00014, rel=1e-12)


def test_two_stages_on_one_tier_hand_raw_tensors_over():
    """A plan by hand may have them; between them tensors are encoded raw and decoded, and a call is paid."""
    profile = replace(CHAIN, measurements=(replace(CHAIN.measurements[0], codec_s={
        name: {"raw": (0.001, 0.002), "int8": (0.1, 0.2)} for name in ("in", "x", "y", "z")
    }),))  # fmt: skip
    stages = (PlannedStage("one", "t0", ("a",)), PlannedStage("two", "t0", ("b",)), PlannedStage("three", "t1", ("c",)))
    made = Plan("test", "f" * 16, ("t0", "t1"), stages, (Crossing("y", "b", "int8", (0,), 400, 100),))
    steps = Work(made, profile, a_topology([10, 1], [(1e5, 1e5, 0.0)])).programs()[0].steps
    assert [(step.resource, round(step.coding_s, 9)) for step in steps if step.resource in ("t0", "t1")] == [
        ("t0", 0.03), ("t0", 1.02), ("t1", 0.201)
    ]  # fmt: skip
    assert [step.nbytes for step in steps if ":" in step.resource] == [200, 140]
    assert steps[0].after_s == pytest.approx(0.002 + 80_100e-6)


class TestRefusals:
    TOPOLOGY = a_topology([10, 1], [(1e5, 1e5, 0.0)])

    def test_plan_and_profile_of_two_models(self):
        made = replace(plan(CHAIN, self.TOPOLOGY, codecs=["raw"]), fingerprint="0" * 16)
        with pytest.raises(PlanError, match="made for test 0000000000000000, the profile is of test ffff"):
            simulate(made, CHAIN, self.TOPOLOGY)

    def test_a_tier_that_is_not_there(self):
        made = plan(CHAIN, self.TOPOLOGY, codecs=["raw"])
        with pytest.raises(PlanError, match="uses tier 't1'; the topology has t0"):
            simulate(made, CHAIN, a_topology([1], []))

    def test_no_crossing(self):
        made = replace(plan(CHAIN, self.TOPOLOGY, codecs=["raw"]), crossings=())
        with pytest.raises(PlanError, match="'y' leaves its tier, and the plan has no crossing"):
            simulate(made, CHAIN, self.TOPOLOGY)

    def test_a_codec_that_only_a_calibration_knows(self):
        raw = plan(CHAIN, self.TOPOLOGY, codecs=["raw"])
        made = replace(raw, crossings=(replace(raw.crossings[0], codec="int3"),))
        with pytest.raises(ProfileError, match="no times of codec 'int3' on 'y'; give the calibration"):
            simulate(made, CHAIN, self.TOPOLOGY)
        calibration = Calibration("test", "f" * 16, "top1", 1, (), {"y": {"int3": Measured(50, 0.5, 0.25, 0.0, 0.0)}})
        longer = idle_s(made, CHAIN, self.TOPOLOGY, calibration=calibration) - idle_s(raw, CHAIN, self.TOPOLOGY)
        assert longer == pytest.approx(10 * 0.5 + 0.25, abs=0.01)


def test_levels_of_exits_are_those_by_which_the_planner_counts():
    for seed in range(40):
        profile, exits = random_profile(Random(seed))
        passing, levels = Passing(profile, exits), exit_levels(profile, tuple(exits))
        reach = [1.0, *(each.reach for each in exits)]
        assert all(passing.layer(layer.name) == reach[levels.get(layer.name, 0)] for layer in profile.layers)


HERE = Path(splitinfer.__file__).parent


def test_it_shares_no_code_with_the_cost_function():
    """Neither by an import of its own nor, without re-planning, by anybody else's; and it needs no torch."""
    code = (
        "import splitinfer, sys; from splitinfer import simulator; splitinfer.simulate; "
        "names = ('partitioners', 'splitinfer.lines', 'splitinfer.line_problem', 'torch', 'ray', 'matplotlib'); "
        "print([name for name in names if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout == "[]\n"
    sources = [path.read_text() for path in (HERE / "simulator").glob("*.py")]
    imports = {line.strip() for source in sources for line in source.splitlines() if "import" in line and "partitioners" in line}
    assert {line.split("  #")[0] for line in imports} == {"from partitioners.switching import Switching"}
    assert not any("splitinfer.line" in source or "learn.reach" in source for source in sources)
