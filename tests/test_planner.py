"""Profile + Topology -> Plan: against brute force, honest baselines, limits, files."""

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.topology import Compute, LinkSpec, TierSpec, Topology
from splitinfer.errors import PlanError, ProfileError
from splitinfer.planner import baseline_plans, plan
from splitinfer.plans import INPUT, Plan
from splitinfer.profiles import Framework, LayerProfile, Measurement, Profile, TensorProfile

CODECS = ("raw", "int8")


def a_profile(seconds, tensors, *, sent=None, codec_s=None, together=(), framework=None, weights=None, wake_s=0.0, packet_nbytes=0):
    """`tensors`: (name, producer, consumers, nbytes, returned)."""
    layers = tuple(LayerProfile(name, 10, (weights or {}).get(name, 100), 0, 0) for name in seconds)
    specs = tuple(
        TensorProfile(name, producer, consumers, (1,), "float32", nbytes, returned,
                      (sent or {}).get(name) or {"raw": nbytes, "int8": max(1, nbytes // 4)})
        for name, producer, consumers, nbytes, returned in tensors
    )  # fmt: skip
    coding = codec_s or {t.name: dict.fromkeys(CODECS, (0.0, 0.0)) for t in specs}
    measured = Measurement(None, "test machine", "cpu", 1, sum(seconds.values()), wake_s, seconds, dict.fromkeys(seconds, 0.0), coding)
    return Profile("test", "f" * 16, False, layers, specs, tuple(together), (measured,), packet_nbytes, framework or Framework())


def a_topology(factors, links, direct=None):
    tiers = tuple(TierSpec(f"t{i}", Compute(factor=f)) for i, f in enumerate(factors))
    specs = tuple(LinkSpec((f"t{i}", f"t{i + 1}"), up, down, latency) for i, (up, down, latency) in enumerate(links))
    return Topology(tiers, specs, direct and LinkSpec(("t0", f"t{len(factors) - 1}"), *direct))


@st.composite
def cases(draw):
    tiers = draw(st.integers(1, 4))
    count = draw(st.integers(1, 5 if tiers < 4 else 4))
    number = lambda low, high: draw(st.floats(low, high, allow_nan=False))  # noqa: E731
    names = [f"l{i}" for i in range(count)]
    tensors, codec_s = [], {}
    for i, name in enumerate([INPUT, *names]):
        later = names[i:]
        consumers = tuple(c for c in later if draw(st.booleans())) if later else ()
        if name == INPUT:
            consumers = tuple(dict.fromkeys((names[0], *consumers)))
        elif later and not consumers:
            consumers = (later[0],)
        returned = name == names[-1] or (name != INPUT and draw(st.booleans()))
        tensors.append((f"x{i}", name, consumers, draw(st.integers(0, 10_000)), returned))
        codec_s[f"x{i}"] = {codec: (number(0, 0.02), number(0, 0.02)) for codec in CODECS}
    for i, name in enumerate(names[1:], 1):  # every layer needs something
        if not any(name in t[2] for t in tensors[: i + 1]):
            n, p, c, b, r = tensors[i]
            tensors[i] = (n, p, (*c, name), b, r)
    topology = a_topology(
        [number(1, 20) for _ in range(tiers)],
        [(number(1e4, 1e7), number(1e4, 1e7), number(0, 0.05)) for _ in range(tiers - 1)],
        (number(1e4, 1e7), number(1e4, 1e7), number(0, 0.05)) if tiers > 2 and draw(st.booleans()) else None,
    )
    return a_profile({name: number(0, 0.1) for name in names}, tensors, codec_s=codec_s), topology


def walk(profile, factors, links, place):
    """The latency of a placement, counted tensor by tensor as the runtime would meet them; None where data flows back."""
    base = profile.measurements[0]
    total = sum(base.seconds[name] * factors[tier] for name, tier in place.items())
    up, down = set(), set()
    for tensor in profile.tensors:
        home = 0 if tensor.producer == INPUT else place[tensor.producer]
        users = {place[c] for c in tensor.consumers}
        if any(user < home for user in users):
            return None
        crossed = range(home, max(users, default=home))
        up |= set(crossed)
        if crossed:
            total += min(
                base.codec_s[tensor.name][codec][0] * factors[home]
                + sum(tensor.sent_nbytes[codec] / links[j][0] for j in crossed)
                + sum(base.codec_s[tensor.name][codec][1] * factors[user] for user in users if user != home)
                for codec in CODECS
            )
        if tensor.returned:
            total += base.codec_s[tensor.name]["raw"][0] * factors[home]  # results are encoded raw
            total += sum(tensor.sent_nbytes["raw"] / links[j][1] for j in range(home))
            down |= set(range(home))
    if 0 in place.values():  # the first stage decodes its raw inputs
        total += sum(base.codec_s[t.name]["raw"][1] * factors[0] for t in profile.tensors if t.producer == INPUT)
    return total + sum(links[j][2] for j in up) + sum(links[j][2] for j in down)


def brute_force(profile, topology):
    best = float("inf")
    for line in topology.lines():
        factors = [tier.compute.factor or 1.0 for tier in line.tiers]
        links = [(link.up_bytes_per_s, link.down_bytes_per_s, link.latency_s) for link in line.links]
        names = [layer.name for layer in profile.layers]
        for tiers in itertools.product(range(len(factors)), repeat=len(names)):
            cost = walk(profile, factors, links, dict(zip(names, tiers, strict=True)))
            best = min(best, cost if cost is not None else best)
    return best


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases())
def test_the_plan_is_as_good_as_the_best_of_all_placements(case):
    profile, topology = case
    made = plan(profile, topology, codecs=CODECS)
    assert made.cost.latency_s == pytest.approx(brute_force(profile, topology), rel=1e-9, abs=1e-12)
    assert made.certificate["status"] == "optimal"


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, derandomize=True)
@given(cases())
def test_the_plan_is_as_good_as_the_best_of_all_placements_at_length(case):
    profile, topology = case
    assert plan(profile, topology, codecs=CODECS).cost.latency_s == pytest.approx(brute_force(profile, topology), rel=1e-9, abs=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases())
def test_the_breakdown_adds_up_and_no_baseline_beats_the_plan(case):
    profile, topology = case
    made = plan(profile, topology, codecs=CODECS)
    cost = made.cost
    parts = (cost.compute_s, cost.encode_s, cost.wire_s, cost.decode_s, cost.return_s, cost.framework_s)
    assert sum(parts) == pytest.approx(cost.latency_s, abs=1e-12)
    assert cost.framework_s == pytest.approx(0, abs=1e-9)
    assert all(rival.cost.latency_s >= cost.latency_s * (1 - 1e-9) for rival in made.baselines if rival.cost)
    assert {f"{tier.name} only" for tier in topology.tiers} <= {rival.name for rival in made.baselines}


CHAIN = a_profile(
    {"a": 0.01, "b": 0.02, "c": 0.03},
    [("in", INPUT, ("a",), 60_000, False), ("x", "a", ("b",), 80_000, False), ("y", "b", ("c",), 400, False), ("z", "c", (), 40, True)],
)
SLOW_LINK = a_topology([10, 1], [(1e5, 1e5, 0.001)])


def test_splits_behind_the_waist():
    made = plan(CHAIN, SLOW_LINK, codecs=["raw"])
    assert [(stage.tier, stage.layers) for stage in made.stages] == [("t0", ("a", "b")), ("t1", ("c",))]
    (crossing,) = made.crossings
    assert (crossing.tensor, crossing.codec, crossing.links, crossing.nbytes) == ("y", "raw", (0,), 400)
    # 10 x (10 + 20) ms here, 400 B at 100 kB/s and 1 ms, 30 ms there, 40 B back and 1 ms: 336.4 ms
    assert made.cost.latency_s == pytest.approx(0.3 + 0.004 + 0.001 + 0.03 + 0.0004 + 0.001)
    assert "Splitting helps" in str(made)


def test_device_only_is_a_normal_plan():
    made = plan(CHAIN, a_topology([1, 1], [(1e3, 1e3, 0.1)]), codecs=["raw"])
    assert [stage.tier for stage in made.stages] == ["t0"]
    assert made.crossings == ()
    assert "Splitting does not help here: t0 only is best" in str(made)


def test_calls_between_stages_are_paid_once_per_stage():
    slow_calls = replace(CHAIN, framework=Framework(call_s=0.05, s_per_byte=0.0, measured=True))
    one = plan(slow_calls, a_topology([1, 1], [(1e3, 1e3, 0.1)]), codecs=["raw"])
    two = plan(slow_calls, SLOW_LINK, codecs=["raw"])
    assert one.cost.framework_s == pytest.approx(0.05)
    assert len(two.stages) == 2
    assert two.cost.framework_s == pytest.approx(0.1)


def test_a_skipped_tier_costs_one_call_not_two():
    profile = replace(CHAIN, framework=Framework(call_s=0.002, measured=True))
    made = plan(profile, a_topology([10, 500, 1], [(1e5, 1e5, 0.0), (1e9, 1e9, 0.0)]), codecs=["raw"])
    assert [stage.tier for stage in made.stages] == ["t0", "t2"]
    assert made.crossings[0].links == (0, 1)
    assert made.cost.framework_s == pytest.approx(0.004)
    assert made.cost.up_nbytes == 2 * 400


def test_the_direct_link_is_taken_where_it_is_better():
    around = a_topology([10, 500, 1], [(1e3, 1e3, 0.0), (1e3, 1e3, 0.0)], (1e6, 1e6, 0.001))
    made = plan(CHAIN, around, codecs=["raw"])
    assert made.tiers == ("t0", "t2")


def test_layers_that_belong_together_are_not_divided():
    tied = replace(CHAIN, together=((("a", "b", "c"), "a buffer"),))
    made = plan(tied, SLOW_LINK, codecs=["raw"])
    assert len(made.stages) == 1


def test_memory_limits_are_respected_and_explained():
    small = replace(SLOW_LINK, tiers=(replace(SLOW_LINK.tiers[0], memory_bytes=150), SLOW_LINK.tiers[1]))
    made = plan(CHAIN, small, codecs=["raw"])
    assert sum(stage.weight_nbytes for stage in made.stages if stage.tier == "t0") <= 150
    device_only = next(rival for rival in made.baselines if rival.name == "t0 only")
    assert device_only.cost is None
    assert "on 't0', which allows" in device_only.why_not
    none = replace(SLOW_LINK, tiers=tuple(replace(tier, memory_bytes=10) for tier in SLOW_LINK.tiers))
    with pytest.raises(PlanError, match=r"no plan fits: .* of weights on 't."):
        plan(CHAIN, none, codecs=["raw"])


def test_unknown_wishes_are_refused():
    with pytest.raises(PlanError, match="objective 'beauty' is not known"):
        plan(CHAIN, SLOW_LINK, "beauty")
    with pytest.raises(PlanError, match="codec 'int3' is not there to choose; measured are raw, int8"):
        plan(CHAIN, SLOW_LINK, codecs=["raw", "int3"])


def test_a_partitioner_of_ones_own():
    def last(problem):
        return {op.name: op.pinned or problem.tiers[-1].name for op in problem.ops}

    made = plan(CHAIN, SLOW_LINK, codecs=["raw"], strategy=last)
    assert made.certificate["status"] == "feasible"
    best = plan(CHAIN, SLOW_LINK, codecs=["raw"])
    assert made.cost.latency_s >= best.cost.latency_s


def test_baselines_are_plans_too():
    plans = baseline_plans(CHAIN, SLOW_LINK, CODECS)
    assert set(plans) == {"t0 only", "t1 only"}
    assert plans["t1 only"].crossings[0].codec == "int8"  # the compressed input
    listed = {rival.name: rival.cost for rival in plan(CHAIN, SLOW_LINK, codecs=CODECS).baselines}
    assert all(listed[name] == made.cost for name, made in plans.items())


def test_known_codecs_are_those_of_the_registry():
    from splitinfer import codecs
    from splitinfer.planner import KNOWN_CODECS

    assert codecs.names() == KNOWN_CODECS


class TestTimes:
    def test_sources_are_named(self):
        topology = a_topology([3, 1], [(1e5, 1e5, 0.0)])
        made = plan(CHAIN, topology, codecs=["raw"])
        assert made.times_from == {"t0": "3 x measured on test machine, 1 thread", "t1": "measured on test machine, 1 thread"}

    def test_a_tiers_own_node_comes_first(self):
        own = replace(CHAIN.measurements[0], tier="t1", machine="node one", seconds={"a": 0.5, "b": 0.5, "c": 0.5})
        profile = replace(CHAIN, measurements=(*CHAIN.measurements, own))
        tier = TierSpec("t1", Compute())
        assert profile.times(tier).seconds == own.seconds
        assert "measured on its node (node one)" in profile.times(tier).source

    def test_a_machine_preset_gives_roofline_times_and_says_the_interval(self):
        times = CHAIN.times(TierSpec("pi", Compute(preset="raspberry-pi-4")))
        assert times.source.startswith("roofline of raspberry-pi-4, between")
        assert all(seconds > 0 for seconds in times.seconds.values())


class TestFiles:
    def test_round_trips(self):
        assert Profile.from_json(CHAIN.to_json()) == CHAIN
        made = plan(CHAIN, SLOW_LINK, codecs=CODECS)
        assert Plan.from_json(made.to_json()) == made

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d.update(version=7), "not a plan of version 1"),
            (lambda d: d.pop("stages"), "malformed plan: 'stages'"),
            (lambda d: d["stages"][0].update(colour="red"), "'stages' has an unknown key 'colour'"),
            (lambda d: d["stages"][0].update(tier="moon"), "a stage runs on 'moon'"),
            (lambda d: d["crossings"][0].pop("codec"), "malformed plan"),
        ],
    )
    def test_malformed_plans(self, change, message):
        data = json.loads(plan(CHAIN, SLOW_LINK, codecs=["raw"]).to_json())
        change(data)
        with pytest.raises(PlanError, match=message):
            Plan.from_json(json.dumps(data))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d.update(version=2), "not a profile of version 1"),
            (lambda d: d["measurements"][0]["seconds"].pop("b"), "differ in 'b'"),
            (lambda d: d["measurements"][0]["seconds"].update(b=-1.0), "negative or not finite"),
            (lambda d: d.pop("tensors"), "malformed profile"),
        ],
    )
    def test_malformed_profiles(self, change, message):
        data = json.loads(CHAIN.to_json())
        change(data)
        with pytest.raises(ProfileError, match=message):
            Profile.from_json(json.dumps(data))

    def test_not_json_and_not_there(self, tmp_path):
        with pytest.raises(PlanError, match="a plan is JSON"):
            Plan.from_json("{")
        with pytest.raises(ProfileError, match="cannot read the profile"):
            Profile.load(tmp_path / "none.json")
