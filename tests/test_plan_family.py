"""The plan family: for every set of machines that are left, the first possible plan is the optimum of what is left."""

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import call, refused
from test_planner import CHAIN, CODECS, a_profile, a_topology, cases, everything, metered_cases, walk

import partitioners as p
import splitinfer
from cluster.tiers import PeerSpec
from cluster.topology import Compute, LinkSpec, TierSpec, Topology
from splitinfer.calibrations import Calibration, Measured
from splitinfer.errors import PlanError
from splitinfer.family import Loss, first_possible, load_family, losses, needs, plan_family, save_family
from splitinfer.planner import plan
from splitinfer.plans import INPUT, Plan, PlannedBlock, PlannedExit
from splitinfer.profiles import Framework, LayerLayout

SLOW = a_topology([10, 3, 1], [(1e5, 1e5, 0.001), (1e5, 1e5, 0.01)])


def subsets(names):
    return (set(chosen) for count in range(len(names) + 1) for chosen in itertools.combinations(names, count))


def beyond(topology):
    return [tier.name for tier in topology.tiers[1:]]


def best_latency(profile, topology, alive):
    """Over all placements on the first tier and those alive, over either way; what is dead is passed like a tier without layers."""
    best, names = float("inf"), [layer.name for layer in profile.layers]
    for line in topology.lines():
        factors = [tier.compute.factor or 1.0 for tier in line.tiers]
        links = [(link.up_bytes_per_s, link.down_bytes_per_s, link.latency_s) for link in line.links]
        living = [place for place, tier in enumerate(line.tiers) if place == 0 or tier.name in alive]
        for tiers in itertools.product(living, repeat=len(names)):
            cost = walk(profile, factors, links, dict(zip(names, tiers, strict=True)))
            best = min(best, cost if cost is not None else best)
    return best


def check_latency(case):
    profile, topology = case
    family = plan_family(profile, topology, codecs=CODECS)
    for alive in subsets(beyond(topology)):
        made = first_possible(family, alive)
        assert needs(made) <= alive
        assert made.cost.latency_s == pytest.approx(best_latency(profile, topology, alive), rel=1e-9, abs=1e-12)
        assert made.certificate["status"] == "optimal"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases())
def test_what_is_left_is_used_as_well_as_it_can_be(case):
    check_latency(case)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, derandomize=True)
@given(cases())
def test_what_is_left_is_used_as_well_as_it_can_be_at_length(case):
    check_latency(case)


def best_of_everything(profile, topology, goal):
    """Tiers that are left -> the least cost over all placements and codecs that fit in memory; only where there is one."""
    names, crossing = [layer.name for layer in profile.layers], [tensor.name for tensor in profile.tensors]
    best = {}
    for tiers in itertools.product(range(len(topology.tiers)), repeat=len(names)):
        place = dict(zip(names, tiers, strict=True))
        for codecs in itertools.product(CODECS, repeat=len(crossing)):
            found = everything(profile, topology, place, dict(zip(crossing, codecs, strict=True)))
            if found is None or any(
                t.memory_bytes is not None and h > t.memory_bytes for t, h in zip(topology.tiers, found["held"], strict=True)
            ):
                continue
            used = frozenset(topology.tiers[tier].name for tier in tiers if tier)
            best[used] = min(best.get(used, float("inf")), found[goal])
    return best


def check_metered(case):
    """Latency, interval and energy under memory limits; over a dead tier, too, each link carries requests of its own."""
    profile, topology, goal, _ = case
    best = best_of_everything(profile, topology, goal)
    try:
        family = plan_family(profile, topology, goal, CODECS)
    except PlanError:
        assert not best
        return
    for alive in subsets(beyond(topology)):
        made, possible = first_possible(family, alive), [value for used, value in best.items() if used <= alive]
        assert (made is None) == (not possible)
        if made is not None:
            value = {"latency": made.cost.latency_s, "interval": made.cost.interval_s, "energy": made.cost.energy_j}[goal]
            assert value == pytest.approx(min(possible), rel=2e-6, abs=1e-9)
            assert made.certificate["status"] == "optimal"
            if made.stages[0].tier == "t0":
                place = {layer: made.tiers.index(stage.tier) for stage in made.stages for layer in stage.layers}
                choice = {tensor.name: made.codec_of(tensor.name) for tensor in profile.tensors}
                assert made.cost.latency_s == pytest.approx(everything(profile, topology, place, choice)["latency"], rel=1e-9)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(metered_cases())
def test_every_objective_is_the_best_of_what_is_left(case):
    check_metered(case)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True)
@given(metered_cases())
def test_every_objective_is_the_best_of_what_is_left_at_length(case):
    check_metered(case)


def check_order(profile, topology, objective):
    family, goal = plan_family(profile, topology, objective, CODECS), p.Objective.of(objective)
    assert family[0] == plan(profile, topology, objective, CODECS)
    values = [goal.value(made.cost) for made in family]
    assert values == sorted(values)
    chosen = []
    for alive in subsets(beyond(topology)):
        made = first_possible(family, alive)
        chosen.append(made)
        assert goal.value(made.cost) == min(value for value, each in zip(values, family, strict=True) if needs(each) <= alive)
    assert all(made in chosen for made in family)
    assert len({needs(made) for made in family}) == len(family)
    assert all(made.fingerprint == profile.fingerprint and made.topology == topology.to_dict() for made in family)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases(), st.sampled_from(["latency", "interval", "energy + 0.1*latency"]))
def test_a_family_is_in_order_without_a_plan_too_many_and_begins_with_the_plan(case, objective):
    check_order(*case, objective)


def test_a_plan_that_serves_two_losses_is_listed_once():
    """Two layers elsewhere save 450 ms of 600, one at most 270; t1 holds one and is 300 ms away and back, t2 one and 400 ms."""
    far = a_topology([10, 1, 1], [(1e12, 1e12, 0.15), (1e12, 1e12, 0.05)])
    topology = replace(far, tiers=(far.tiers[0], *(replace(tier, memory_bytes=100) for tier in far.tiers[1:])))
    found = losses(CHAIN, topology, codecs=["raw"])
    assert [loss.machines for loss in found] == [(), ("t1",), ("t2",)]
    assert [stage.tier for stage in found[0].plan.stages] == ["t0", "t1", "t2"]
    assert found[1].plan is found[2].plan
    check_order(CHAIN, topology, "latency")


def test_a_line_of_three():
    """10 x 30 ms on t0 with 4 ms for 400 bytes over either link; or 60 ms on t1; t2 is taken over t1's links where t1 is dead."""
    found = losses(CHAIN, SLOW, codecs=["raw"])
    assert [loss.machines for loss in found] == [(), ("t2",), ("t1", "t2")]
    assert [[stage.tier for stage in loss.plan.stages] for loss in found] == [["t0", "t2"], ["t0", "t1"], ["t0"]]
    family = [loss.plan for loss in found]
    assert family == plan_family(CHAIN, SLOW, codecs=["raw"]) == splitinfer.plan_family(CHAIN, SLOW, codecs=["raw"])
    assert family[0].crossings[0].links == (0, 1)  # without t1 there is nothing to change: its network carries
    assert first_possible(family, {"t2"}) == first_possible(family, {"t1", "t2"}) == family[0]
    assert first_possible(family, {"t1"}) == family[1]
    assert first_possible(family, ()) == family[2]
    assert [needs(made) for made in family] == [{"t2"}, {"t1"}, set()]


def test_where_the_device_is_best_it_is_the_family():
    (made,) = plan_family(CHAIN, a_topology([1, 1, 1], [(1e3, 1e3, 0.1)] * 2), codecs=["raw"])
    assert [stage.tier for stage in made.stages] == ["t0"]


def test_each_line_is_solved_once(monkeypatch):
    solved, solve = [], p.solve
    monkeypatch.setattr(p, "solve", lambda problem, *rest: solved.append([t.name for t in problem.tiers]) or solve(problem, *rest))
    topology = a_topology([10, 3, 2, 1], [(1e5, 1e5, 0.001)] * 3, (1e4, 1e4, 0.1))
    plan(CHAIN, topology, codecs=CODECS)
    alone, solved[:] = list(solved), []
    assert len(plan_family(CHAIN, topology, codecs=CODECS)) > 2
    assert sorted(solved) == sorted(alone)
    assert len(solved) == 2**3 + 2  # of the whole line, and of the direct one
    solved.clear()
    plan(CHAIN, topology, "interval", codecs=CODECS)
    assert len(solved) == 4 + 2  # to a stream, a tier without layers costs nothing


class TestNoPlan:
    """The device holds two layers of three, so that it cannot do without both others."""

    SMALL = replace(SLOW, tiers=(replace(SLOW.tiers[0], memory_bytes=250), *SLOW.tiers[1:]))

    def test_it_says_why(self):
        found = losses(CHAIN, self.SMALL, codecs=["raw"])
        assert [loss.machines for loss in found if loss.plan is None] == [("t1", "t2")]
        assert found[-1].why_not.startswith("no plan fits: ")
        assert "250" in found[-1].why_not
        family = plan_family(CHAIN, self.SMALL, codecs=["raw"])
        assert len(family) == 2
        assert first_possible(family, ()) is None

    def test_a_limit_on_latency_counts_for_each_member(self):
        found = losses(CHAIN, SLOW, codecs=["raw"], within={"latency": 0.5})
        assert [loss.plan and loss.plan.cost.latency_s <= 0.5 for loss in found] == [True, True, None]
        assert "latency_s is at least 0.6" in found[-1].why_not

    def test_none_at_all_is_an_error_as_for_one_plan(self):
        with pytest.raises(PlanError, match="no plan fits: latency_s is at least"):
            plan_family(CHAIN, SLOW, codecs=["raw"], within={"latency": 0.01})
        with pytest.raises(PlanError, match="codec 'int3' is not there to choose"):
            plan_family(CHAIN, SLOW, codecs=["int3"])


class TestWishes:
    """The other keywords of `plan` hold for each member."""

    def test_layers_kept_on_the_device(self):
        fast = a_topology([10, 1, 1], [(1e9, 1e9, 0.0), (1e4, 1e4, 0.0)])
        family = plan_family(CHAIN, fast, codecs=["raw"], keep_on_device=1)
        assert [made.stages[0].layers for made in family] == [("a",), ("a", "b"), ("a", "b", "c")]
        assert {made.kept_layers for made in family} == {1}

    def test_an_accuracy_budget(self):
        rows = {t.name: {c: Measured(t.sent_nbytes[c], 0.0, 0.0, e, e) for c, e in (("raw", 0.0), ("int8", 0.02))} for t in CHAIN.tensors}
        calibration = Calibration("test", "f" * 16, "top1", 9, ("raw",), rows)
        for budget, lossy in ((0.03, True), (0.01, False)):
            family = plan_family(CHAIN, SLOW, codecs=CODECS, calibration=calibration, max_accuracy_drop=budget)
            assert all(made.accuracy.predicted <= budget for made in family)
            assert ("int8" in {crossing.codec for made in family for crossing in made.crossings}) == lossy
            assert {made.accuracy.budget for made in family} == {budget}

    def test_early_exits(self):
        profile = a_profile(
            {"a": 0.01, "head": 0.001, "b": 0.05},
            [("in", INPUT, ("a",), 90_000, False), ("x", "a", ("head", "b"), 9_000, False), ("early", "head", (), 4, True),
             ("sure", "head", (), 4, True), ("y", "b", (), 4, True)],
            together=((("a", "head"), "an exit"),),
        )  # fmt: skip
        profile = replace(profile, exits=("head",))
        exits = (PlannedExit("head", "early", "sure", "y", 0.5, 0.25),)
        family = plan_family(profile, SLOW, codecs=["raw"], exits=exits)
        assert len(family) > 1
        assert all(made.exits == exits for made in family)
        assert family[-1].cost.latency_s == pytest.approx(0.11 + 0.25 * 0.5)  # of four requests one goes on, on the device
        assert plan_family(profile, SLOW, codecs=["raw"])[-1].cost.latency_s == pytest.approx(0.6)

    def test_a_strategy_of_ones_own_and_no_baselines(self):
        class Last:  # a callable that is no key of a dictionary
            __hash__ = None

            def __call__(self, problem):
                return {op.name: op.pinned or problem.tiers[-1].name for op in problem.ops}

        family = plan_family(CHAIN, SLOW, codecs=["raw"], strategy=Last(), compare=False)
        assert [[stage.tier for stage in made.stages] for made in family] == [["t0"]]
        assert {made.certificate["status"] for made in family} == {"feasible"}
        assert family[0].baselines == ()

    def test_baselines_are_of_what_is_left(self):
        without = first_possible(plan_family(CHAIN, SLOW, codecs=["raw"]), {"t1"})
        assert [rival.name for rival in without.baselines] == ["t0 only", "t1 only", "first layer here, rest on t1"]

    @pytest.mark.parametrize("direct", [(1e6, 1e6, 0.0), (1e3, 1e3, 1.0)])
    def test_baselines_take_the_better_way(self, direct):
        """60,000 bytes there and 40 back, 60 ms of work between."""
        topology = a_topology([10, 3, 1], [(1e5, 1e5, 0.001), (1e5, 1e5, 0.01)], direct)
        (cost,) = (rival.cost for rival in plan(CHAIN, topology, codecs=["raw"]).baselines if rival.name == "t2 only")
        assert cost.latency_s == pytest.approx(min(60_040 / direct[0] + 2 * direct[2], 2 * (60_040 / 1e5 + 0.011)) + 0.06)


SHARED = replace(
    a_profile(
        {"conv": 0.1, "dense": 0.1},
        [("in", INPUT, ("conv",), 100, False), ("x", "conv", ("dense",), 100, False), ("y", "dense", (), 4, True)],
        framework=Framework(0.0001, 0.0, True),
    ),
    layouts={name: (LayerLayout("rows", 100),) for name in ("conv", "dense")},
)


def beside(*peers, memory_bytes=None):
    """A device with these peers, all of one speed, and an edge half as fast again behind a slow link."""
    device = TierSpec("device", Compute(factor=6), memory_bytes=memory_bytes, peers=peers)
    return Topology((device, TierSpec("edge", Compute(factor=4))), (LinkSpec(("device", "edge"), 1e6, 1e6, 0.01),))


def tablet(name="tablet"):
    return PeerSpec(TierSpec(name, Compute(factor=6)), 1e9, 1e9, 1e-4)


def blocks(made):
    return [block for stage in made.stages for block in stage.blocks]


class TestPeers:
    def test_without_them_nothing_is_shared(self):
        topology = beside(tablet())
        found = losses(SHARED, topology, codecs=["raw"])
        assert [loss.machines for loss in found] == [(), ("tablet",), ("edge", "tablet")]
        family = [loss.plan for loss in found]
        assert family[0] == plan(SHARED, topology, codecs=["raw"])
        assert needs(family[0]) == {"tablet"}
        assert [block.workers for block in blocks(family[0])] == [("device", "tablet")]
        assert [[stage.tier for stage in made.stages] for made in family] == [["device"], ["edge"], ["device"]]
        assert not blocks(family[1])
        assert family[1].cost == plan(SHARED, topology, codecs=["raw"], vertical=False).cost

    def test_they_are_lost_together(self):
        """A peer that dies alone is shared out anew at run time; the family knows all of them, or none."""
        family = plan_family(SHARED, beside(tablet("p1"), tablet("p2")), codecs=["raw"])
        assert [needs(made) for made in family] == [{"p1", "p2"}, {"edge"}, set()]
        assert first_possible(family, {"p1"}) is family[2]

    def test_another_tiers_machine_is_a_peer_as_long_as_it_lives(self):
        topology = beside(PeerSpec(tier="edge"), tablet())
        family = plan_family(SHARED, topology, codecs=["raw"])
        assert needs(family[0]) == {"edge", "tablet"}
        without_edge = first_possible(family, {"tablet"})
        (block,) = blocks(without_edge)
        assert block.workers == ("device", "edge", "tablet")  # as the topology names them, so that it can be deployed
        assert block.shares[1] == 0
        assert Plan.from_json(without_edge.to_json()) == without_edge
        assert without_edge.cost == plan(SHARED, Topology((replace(topology.tiers[0], peers=(tablet(),)),)), codecs=["raw"]).cost
        without_tablet = first_possible(family, {"edge"})
        only_edge = replace(topology, tiers=(replace(topology.tiers[0], peers=(PeerSpec(tier="edge"),)), topology.tiers[1]))
        assert without_tablet.cost == plan(SHARED, only_edge, codecs=["raw"]).cost

    def test_what_no_machine_can_hold_alone(self):
        layouts = {name: (LayerLayout("channels", 100, takes="whole", weight_nbytes_per_unit=1.0),) for name in ("conv", "dense")}
        limited = replace(tablet(), machine=TierSpec("tablet", Compute(factor=6), memory_bytes=150))
        topology = replace(beside(limited, memory_bytes=150), tiers=beside(limited, memory_bytes=150).tiers[:1], links=())
        found = losses(replace(SHARED, layouts=layouts), topology, codecs=["raw"])
        assert [(loss.machines, loss.plan is None) for loss in found] == [((), False), (("tablet",), True)]
        assert "150" in found[1].why_not

    def test_without_vertical_splits_they_do_not_count(self):
        family = plan_family(SHARED, beside(tablet()), codecs=["raw"], vertical=False)
        assert [needs(made) for made in family] == [{"edge"}, set()]

    def test_a_share_of_what_only_one_layer_divides_is_a_need_too(self):
        made = plan(SHARED, beside(tablet()), codecs=["raw"])
        one = PlannedBlock(("conv", "dense"), "rows", (5, 0, 0), ("device", "a", "b"), {"conv": (4, 1, 0)}, {"dense": (4, 0, 1)})
        for block, helpers in ((one, {"a", "b"}), (replace(one, inner_shares={}), {"a"}), (replace(one, exchange_after={}), {"b"})):
            assert needs(replace(made, stages=(replace(made.stages[0], blocks=(block,)),))) == helpers


class TestFiles:
    def test_names_tell_what_is_lost(self, tmp_path):
        named = save_family(losses(CHAIN, SLOW, codecs=["raw"]), tmp_path / "new" / "family")
        assert list(named) == ["plan.json", "plan-without-t2.json", "plan-t0-only.json"]
        assert load_family(tmp_path / "new" / "family") == list(named.values())
        save_family(losses(CHAIN, SLOW, codecs=["raw"]), tmp_path / "new" / "family")  # again

    def test_several_losses(self, tmp_path):
        ever_faster = a_topology([1000, 100, 10, 1], [(1e9, 1e9, 0.0)] * 3)
        named = save_family(losses(CHAIN, ever_faster, codecs=["raw"]), tmp_path)
        assert list(named) == ["plan.json", "plan-without-t3.json", "plan-without-t2+t3.json", "plan-t0-only.json"]
        assert load_family(tmp_path) == list(named.values())

    def test_plans_of_another_family_are_not_mixed_in(self, tmp_path):
        found = losses(CHAIN, SLOW, codecs=["raw"])
        save_family(found, tmp_path)
        with pytest.raises(PlanError, match=r"holds plan-t0-only\.json, which is no plan of this family; remove it"):
            save_family(found[:1], tmp_path)
        replace(found[0].plan, fingerprint="0" * 16).save(tmp_path / "plan-without-t2.json")
        with pytest.raises(PlanError, match="mixes plans: test ffffffffffffffff for latency and test 0000000000000000 for latency"):
            load_family(tmp_path)
        (tmp_path / "plan-without-t2.json").write_text("{")
        with pytest.raises(PlanError, match="a plan is JSON"):
            load_family(tmp_path)

    def test_no_folder(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(PlanError, match=r"cannot write plans to .*file: "):
            save_family([Loss((), plan(CHAIN, SLOW, codecs=["raw"]))], tmp_path / "file")
        with pytest.raises(PlanError, match="cannot read the plan"):
            load_family(tmp_path)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "profile.json").write_text(CHAIN.to_json())
    (tmp_path / "cluster.yaml").write_text("""
version: 1
tiers: [{name: device, compute: {factor: 10}}, {name: edge, compute: {factor: 3}}, {name: cloud, compute: {factor: 1}}]
links: [{between: [device, edge], up: 800 kbps, latency: 1 ms}, {between: [edge, cloud], up: 800 kbps, latency: 10 ms}]
""")
    return "--profile", str(tmp_path / "profile.json"), "--topology", str(tmp_path / "cluster.yaml"), "--codecs", "raw"


class TestCommand:
    def test_people_see_what_takes_the_plans_place(self, capsys, tmp_path, files):
        code, out, _ = call(capsys, "plan", *files, "--family", str(tmp_path / "family"), "-o", str(tmp_path / "best.json"))
        assert code == 0
        rows = [line.split() for line in out[out.index("lost") :].splitlines()]
        assert rows[2:5] == [
            ["nothing", "device", "(2", "layers)", "->", "cloud", "(1", "layers)", "360.80", "1.00", "plan.json"],
            ["cloud", "device", "(2", "layers)", "->", "edge", "(1", "layers)", "396.40", "1.10", "plan-without-cloud.json"],
            ["edge,", "cloud", "device", "(3", "layers)", "600.00", "1.66", "plan-device-only.json"],
        ]
        assert Plan.load(tmp_path / "best.json") == load_family(tmp_path / "family")[0]
        assert out.startswith(str(load_family(tmp_path / "family")[0]))

    def test_programs_get_one_object(self, capsys, tmp_path, files):
        code, out, _ = call(capsys, "plan", *files, "--family", str(tmp_path / "family"), "--within", "latency=500ms", "--json")
        found = json.loads(out)
        assert code == 0
        assert Plan.from_json(json.dumps(found["plan"])) == Plan.load(tmp_path / "family" / "plan.json")
        assert [row["lost"] for row in found["family"]] == [[], ["cloud"], ["edge", "cloud"]]
        assert [row["file"] for row in found["family"]] == ["plan.json", "plan-without-cloud.json", None]
        assert found["family"][1]["times_best"] == pytest.approx(0.3964 / 0.3608)
        assert "latency_s is at least 0.6" in found["family"][2]["why_not"]

    def test_a_loss_that_no_plan_survives_says_why(self, capsys, tmp_path, files):
        _, out, _ = call(capsys, "plan", *files, "--family", str(tmp_path / "family"), "--within", "latency=500ms")
        assert "edge, cloud  no plan fits: latency_s is at least 0.6" in out

    def test_peers_are_named_beside_their_tier(self, capsys, tmp_path):
        (tmp_path / "profile.json").write_text(SHARED.to_json())
        (tmp_path / "cluster.yaml").write_text(
            "version: 2\ntiers:\n  - name: device\n    compute: {factor: 6}\n"
            "    peers: [{name: tablet, compute: {factor: 6}, up: 8 Gbps, latency: 1 ms}]\n"
        )
        paths = "--profile", str(tmp_path / "profile.json"), "--topology", str(tmp_path / "cluster.yaml")
        _, out, _ = call(capsys, "plan", *paths, "--codecs", "raw", "--family", str(tmp_path / "family"))
        assert "nothing  device + tablet (2 layers)" in out
        assert sorted(path.name for path in (tmp_path / "family").iterdir()) == ["plan-device-only.json", "plan.json"]

    def test_what_needs_a_model_is_refused(self, capsys, files):
        message = "--family plans from the profile alone; leave --samples and --learned out"
        assert message in refused(capsys, "plan", "a:b", *files, "--family", "x", "--learned", "learned.spli")
