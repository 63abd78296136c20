"""Layers that several machines share: an idle request takes what the plan says, and a busy system what one machine at a time can do."""

from dataclasses import replace
from random import Random

import pytest
from random_plans import a_profile
from shared_plans import shared_case

from cluster.tiers import PeerSpec
from cluster.topology import Compute, LinkSpec, TierSpec, Topology
from splitinfer import lines
from splitinfer.errors import PlanError, UsageError
from splitinfer.planner import plan
from splitinfer.plans import INPUT, Plan, PlannedBlock, PlannedStage
from splitinfer.profiles import Framework, LayerLayout, Profile
from splitinfer.simulator import Batching, ClosedLoop, Failure, Poisson, System, simulate
from splitinfer.simulator.segments import Segment
from splitinfer.simulator.shared import Sharing


def idle_s(made, profile, topology):
    return simulate(made, profile, topology, ClosedLoop(1), requests=1, expected=True).latency_s.mean


@pytest.fixture
def solved(monkeypatch):
    """The solver's blocks of the stages that became plans: a plan's file says less about channels and heads."""
    found = []

    def planned_blocks(blocks, *more):
        found.append((blocks, made := lines_planned_blocks(blocks, *more)))
        return made

    lines_planned_blocks = lines.planned_blocks
    monkeypatch.setattr(lines, "planned_blocks", planned_blocks)
    return found


def check_rows(seeds):
    kinds = {"blocks": 0, "linked": 0, "peer is a tier": 0, "second tier": 0}
    for seed in seeds:
        profile, topology = shared_case(seed, ("rows",))
        made = plan(profile, topology, compare=False)
        again = Plan.from_json(made.to_json()), Profile.from_json(profile.to_json()), topology
        assert idle_s(*again) == pytest.approx(made.cost.latency_s, rel=1e-9), seed
        blocks = [(stage, block) for stage in made.stages for block in stage.blocks if sum(map(bool, block.shares)) > 1]
        kinds["blocks"] += len(blocks)
        kinds["linked"] += sum(bool(block.exchange_after) for _, block in blocks)
        kinds["peer is a tier"] += sum(block.workers[-1] in made.tiers and block.shares[-1] > 0 for _, block in blocks)
        kinds["second tier"] += sum(stage.tier != made.tiers[0] for stage, _ in blocks)
    return kinds


def test_rows_take_what_the_plan_predicts():
    assert all(check_rows([*range(40), 48]).values())


def check_units(seeds, solved):
    """Blocks that stand for one of the solver's: exactly. Several in one: by how much what the plan's file says of them misses."""
    alone, off = 0, []
    for seed in seeds:
        profile, topology = shared_case(seed, ("channels", "heads"))
        solved.clear()
        made = plan(profile, topology, compare=False)
        used = [blocks for blocks, planned in solved if planned and planned in [stage.blocks for stage in made.stages]]
        linked = any(block.leaves != "whole" for blocks in used for block in blocks)
        ratio = idle_s(Plan.from_json(made.to_json()), profile, topology) / made.cost.latency_s
        if linked:
            off.append(abs(ratio - 1))
        else:
            assert ratio == pytest.approx(1, rel=1e-9), seed
            alone += any(sum(map(bool, block.shares)) > 1 for blocks in used for block in blocks)
    return alone, off


def test_channels_and_heads_take_what_the_plan_predicts(solved):
    alone, off = check_units(range(40), solved)
    assert alone > 5
    assert len(off) > 5
    assert max(off) < 0.1


@pytest.mark.slow
def test_shared_layers_take_what_the_plan_predicts_at_length(solved):
    check_rows(range(1000, 1200))
    check_units(range(1000, 1200), solved)


def test_linked_blocks_of_channels_and_heads_take_what_they_cost_the_solver(solved):
    """With their borders, ways and shares, that is: the file of a plan has none of them."""
    seen = 0
    for seed in range(40):
        profile, topology = shared_case(seed, ("channels", "heads"))
        profile = replace(profile, framework=Framework(), measurements=(replace(profile.measurements[0], wake_s=0.0),))
        solved.clear()
        made = plan(profile, Topology(topology.tiers[:1]) if not topology.tiers[0].peers[-1].tier else topology, compare=False)
        blocks = next((blocks for blocks, planned in solved if planned and planned == made.stages[0].blocks), ())
        if len(made.stages) > 1 or all(block.leaves == "whole" for block in blocks):
            continue
        sharing = Sharing(profile, topology, "t0", [layer.name for layer in profile.layers])
        segments = [as_segment(block, profile) for block in blocks]
        whole_s = sum(sharing.seconds[0][name] for name in set(made.stages[0].layers) - {n for s in segments for n in s.layers})
        parts, run = 0.0, []
        for segment in segments:
            run.append(segment)
            if segment.leaves == "whole":
                parts, run = parts + sharing.seconds_of(run), []
        coding = made.cost.encode_s + made.cost.decode_s  # of the model's inputs and outputs: the host's, beside its own share
        assert parts + whole_s <= made.cost.latency_s * (1 + 1e-9)
        assert parts + whole_s >= (made.cost.latency_s - coding) * (1 - 1e-9)
        seen += 1
    assert seen > 2


def as_segment(block, profile):
    layers = [name for name in block.ops if not name.startswith("<")]
    takes = dict(zip(block.ops, block.takes, strict=True))
    ways = [next(way for way in profile.layouts[n] if (way.axis, way.takes) == (block.axis, takes[n])) for n in layers]
    return Segment(tuple(layers), tuple(ways), block.shares, block.leaves)


# One convolution of ten rows, three by three, between two equal machines.
ROWS = {"conv": (LayerLayout("rows", 10, kernel=3, padding=1),)}
CONV = replace(
    a_profile({"conv": 1.0}, [("in", INPUT, ("conv",), 1000, False), ("out", "conv", (), 500, True)]), layouts=ROWS
)  # fmt: skip


def two_machines(up=100.0, down=50.0, latency=0.5, factor=1.0, **of_peer):
    peer = PeerSpec(TierSpec("helper", Compute(factor=factor), **of_peer), up, down, latency)
    return Topology((TierSpec("host", Compute(), peers=(peer,)),))


def halves(shares=(5, 5), **block):
    planned = PlannedBlock(("conv",), "rows", shares, ("host", "helper"), **block)
    return Plan("test", "f" * 16, ("host",), (PlannedStage("stage0", "host", ("conv",), blocks=(planned,)),))


def test_by_hand():
    """The helper gets 6 rows of 100 bytes, computes 5 of 10 rows, and sends 5 rows of 50 bytes back::

    host    CCCCC|                                0.5 s
    helper  >>>>>>~~~~~CCCCC<<<<<~~~~~|           6 s, 0.5 s; 0.5 s; 5 s, 0.5 s
    """
    assert idle_s(halves(), CONV, two_machines()) == pytest.approx(12.5, rel=1e-12)
    assert idle_s(halves((9, 1)), CONV, two_machines()) == pytest.approx(2 + 0.5 + 0.1 + 1 + 0.5, rel=1e-12)
    assert idle_s(halves((10, 0)), CONV, two_machines()) == pytest.approx(1.0, rel=1e-12)


def test_linked_rows_by_hand():
    """The helper fetches one row of 20 bytes from the host, over 100 bytes per second."""
    profile = a_profile(
        {"one": 1.0, "two": 1.0},
        [("in", INPUT, ("one",), 1000, False), ("x", "one", ("two",), 200, False), ("out", "two", (), 500, True)],
    )
    profile = replace(profile, layouts={"one": ROWS["conv"], "two": ROWS["conv"]})
    block = PlannedBlock(("one", "two"), "rows", (5, 5), ("host", "helper"), {"one": (5, 5)})
    made = Plan("test", "f" * 16, ("host",), (PlannedStage("stage0", "host", ("one", "two"), blocks=(block,)),))
    first = 6 + 0.5 + 0.5
    assert idle_s(made, profile, two_machines()) == pytest.approx(first + (0.2 + 0.5) + 0.5 + 5 + 0.5, rel=1e-12)


def test_a_group_is_one_request_at_a_time():
    """The host waits for its helper: it begins the next request only then, as the plan's interval says."""
    found = simulate(halves(), CONV, two_machines(), ClosedLoop(3), requests=40)
    assert found.throughput_per_s == pytest.approx(1 / 12.5)
    assert found.tiers["host"].utilisation == pytest.approx(1)
    assert found.tiers["helper"].utilisation == pytest.approx(0.5 / 12.5)
    assert found.links["host:helper"].utilisation == pytest.approx(6 / 12.5)
    assert found.links["host:helper"].nbytes == pytest.approx(40 * 600)
    assert found.links["helper:host"].nbytes == pytest.approx(40 * 250)


def test_the_interval_is_the_plans():
    seen = 0
    for seed in range(24):
        profile, topology = shared_case(seed, ("rows",))
        profile = replace(profile, framework=Framework(), packet_nbytes=0, measurements=(replace(profile.measurements[0], wake_s=0.0),))
        topology = Topology(
            tuple(replace(tier, peers=tuple(p for p in tier.peers if p.machine)) for tier in topology.tiers), topology.links
        )
        made = plan(profile, topology, compare=False)
        if any(stage.blocks for stage in made.stages):
            # Few seconds fall to the last requests, which run out: many requests, and a closed loop that keeps all busy.
            found = simulate(made, profile, topology, ClosedLoop(8), requests=400, warmup=50)
            assert 1 / found.throughput_per_s == pytest.approx(made.cost.interval_s, rel=1e-6), seed
            seen += 1
    assert seen > 5


def test_a_fleet_has_helpers_of_its_own():
    found = simulate(halves(), CONV, two_machines(), ClosedLoop(5), requests=20, system=System(clients=5))
    assert found.latency_s.max == pytest.approx(12.5)


def test_energy_counts_the_host_while_it_waits_and_what_a_helper_declares():
    topology = two_machines(watts=3.0)
    topology = Topology((replace(topology.tiers[0], watts=2.0),))
    assert simulate(halves(), CONV, topology, requests=1).energy_j == pytest.approx(12.5 * 2 + 0.5 * 3)


class TestFailures:
    def test_what_is_lost_on_the_way_to_a_helper_ends_the_request_and_frees_the_host(self):
        system = System(failures=(Failure("host:helper", 1.0, 2.0),), retry=False)
        found = simulate(halves(), CONV, two_machines(), ClosedLoop(1), requests=3, system=system)
        assert found.lost == {"host:helper": 1}
        assert found.latency_s.max == found.latency_s.min == pytest.approx(12.5)

    def test_what_a_helper_loses_is_done_again(self):
        system = System(failures=(Failure("helper", 6.7, 8.0),))
        # Computing began at 6.5 and is missed at 7.0; it waits until 8.0, half a second of work, then 5.5 s of the way back.
        assert simulate(halves(), CONV, two_machines(), requests=1, system=system).latency_s.mean == pytest.approx(14.0)

    def test_a_host_that_fails_does_all_of_it_again(self):
        system = System(failures=(Failure("host", 1.0, 2.0),))
        # Missed when all would have ended, at 12.5.
        assert simulate(halves(), CONV, two_machines(), requests=1, system=system).latency_s.mean == pytest.approx(25.0)

    def test_both_fail_and_the_next_request_is_served(self):
        system = System(failures=(Failure("host", 1.0, 2.0), Failure("helper", 6.6, 6.8)), retry=False)
        found = simulate(halves(), CONV, two_machines(), ClosedLoop(1), requests=3, system=system)
        assert found.lost == {"helper": 1}
        assert found.completed == 2


class TestRefusals:
    def test_other_machines(self):
        with pytest.raises(PlanError, match=r"shared by \['host', 'helper'\]; the topology gives 'host' the machines \['host'\]"):
            simulate(halves(), CONV, Topology((TierSpec("host", Compute()),)))

    def test_no_way_to_share(self):
        with pytest.raises(PlanError, match="no way to share the layers from 'conv' to 'conv' by rows"):
            simulate(halves(), replace(CONV, layouts={}), two_machines())

    def test_shares_of_other_units(self):
        with pytest.raises(PlanError, match="no way to share"):
            simulate(halves((5, 6)), CONV, two_machines())

    def test_batches(self):
        with pytest.raises(UsageError, match="batching: 'host' shares layers"):
            simulate(halves(), CONV, two_machines(), system=System(batching={"host": Batching(4)}))


def test_equal_seeds_are_equal_where_work_varies():
    system = System(variation=0.5)
    runs = [simulate(halves(), CONV, two_machines(), Poisson(0.05), requests=50, seed=Random(1).randint(0, 9), system=system) for _ in "ab"]
    assert runs[0].to_dict() == runs[1].to_dict()


def test_links_of_a_peer_that_is_a_tier_have_a_name_of_their_own():
    tiers = (TierSpec("host", Compute(factor=2), peers=(PeerSpec(tier="cloud"),)), TierSpec("cloud", Compute()))
    topology = Topology(tiers, (LinkSpec(("host", "cloud"), 1e5, 1e5, 0.001),))
    block = PlannedBlock(("conv",), "rows", (5, 5), ("host", "cloud"))
    made = Plan("test", "f" * 16, ("host", "cloud"), (PlannedStage("stage0", "host", ("conv",), blocks=(block,)),))
    found = simulate(made, CONV, topology, requests=1)
    assert set(found.links) == {"host:cloud/layers", "cloud:host/layers"}
    assert found.latency_s.mean == pytest.approx(max(1.0, 0.006 + 0.001 + 0.5 + 0.0025 + 0.001))
