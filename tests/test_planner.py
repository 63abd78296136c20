"""Profile + Topology -> Plan: against brute force, honest baselines, limits, files."""

import itertools
import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.topology import Compute, LinkSpec, TierSpec, Topology
from splitinfer.errors import PlanError, ProfileError
from splitinfer.planner import baseline_plans, plan, problems
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
    assert "tier 't0' holds 300 bytes, 150 over the limit of 150" in device_only.why_not
    none = replace(SLOW_LINK, tiers=tuple(replace(tier, memory_bytes=10) for tier in SLOW_LINK.tiers))
    with pytest.raises(PlanError, match=r"no plan fits: .* memory_bytes of tier 't1' is at least 300, 290 over the limit of 10"):
        plan(CHAIN, none, codecs=["raw"])


def everything(profile, topology, place, choice):
    """Latency, interval, energy and weights held of one placement and one choice of codecs, counted as they happen; None
    where data flows back. No packet headers, no framework, no waking, as in `cases`."""
    base, tiers, links = profile.measurements[0], topology.tiers, topology.links
    busy, up, down = [0.0] * len(tiers), [0.0] * len(links), [0.0] * len(links)
    held, used, joules = [0] * len(tiers), set(), 0.0
    for layer in profile.layers:
        busy[place[layer.name]] += base.seconds[layer.name] * tiers[place[layer.name]].compute.factor
        held[place[layer.name]] += layer.weight_nbytes
    coding = [[side * tier.compute.factor for side in (1, 1)] for tier in tiers]
    for tensor in profile.tensors:
        home = 0 if tensor.producer == INPUT else place[tensor.producer]
        users = {place[c] for c in tensor.consumers} - {home}
        if any(user < home for user in users):
            return None
        codec = choice[tensor.name]
        encode, decode = base.codec_s[tensor.name][codec]
        if users:
            busy[home] += encode * coding[home][0]
            for user in users:
                busy[user] += decode * coding[user][1]
            for j in range(home, max(users)):
                up[j] += tensor.sent_nbytes[codec] / links[j].up_bytes_per_s
                joules += tensor.sent_nbytes[codec] * links[j].joules_per_byte
                used.add(("up", j))
        if tensor.returned:
            busy[home] += base.codec_s[tensor.name]["raw"][0] * coding[home][0]
            for j in range(home):
                down[j] += tensor.sent_nbytes["raw"] / links[j].down_bytes_per_s
                joules += tensor.sent_nbytes["raw"] * links[j].joules_per_byte
                used.add(("down", j))
        if tensor.producer == INPUT and 0 in place.values():
            busy[0] += base.codec_s[tensor.name]["raw"][1] * coding[0][1]
    energy = joules + sum(seconds * tier.watts for seconds, tier in zip(busy, tiers, strict=True))
    latency = sum([*busy, *up, *down]) + sum(links[j].latency_s for _, j in used)
    return {"latency": latency, "interval": max([*busy, *up, *down]), "energy": energy, "held": held}


def best_of_everything(profile, topology, goal, within):
    names, crossing = [layer.name for layer in profile.layers], [t.name for t in profile.tensors]
    best = None
    for tiers in itertools.product(range(len(topology.tiers)), repeat=len(names)):
        place = dict(zip(names, tiers, strict=True))
        for codecs in itertools.product(CODECS, repeat=len(crossing)):
            found = everything(profile, topology, place, dict(zip(crossing, codecs, strict=True)))
            if found is None or any(found[name] > limit * (1 + 1e-9) for name, limit in within.items()):
                continue
            if any(t.memory_bytes is not None and h > t.memory_bytes for t, h in zip(topology.tiers, found["held"], strict=True)):
                continue
            value = sum(weight * found[name] for name, weight in goal.items())
            best = value if best is None else min(best, value)
    return best


@st.composite
def metered_cases(draw):
    profile, topology = draw(cases().filter(lambda case: len(case[0].layers) <= 3 and len(case[1].tiers) <= 3))
    number = lambda low, high: draw(st.floats(low, high, allow_nan=False))  # noqa: E731
    memory = st.none() | st.sampled_from([0, 100, 200, 300])
    tiers = tuple(replace(t, watts=number(0, 10), memory_bytes=m or None) for t in topology.tiers for m in [draw(memory)])
    links = tuple(replace(link, joules_per_byte=number(0, 1e-5)) for link in topology.links)
    return profile, Topology(tiers, links), draw(st.sampled_from(["latency", "interval", "energy"])), number(1.0, 3.0)


def check_metered(case):
    """Each objective under memory limits; then the latency of that plan, or a little more, as a limit on energy."""
    profile, topology, name, slack = case
    best = best_of_everything(profile, topology, {name: 1}, {})
    if best is None:
        with pytest.raises(PlanError, match="no plan fits"):
            plan(profile, topology, name, CODECS)
        return
    made = plan(profile, topology, name, CODECS)
    value = {"latency": made.cost.latency_s, "interval": made.cost.interval_s, "energy": made.cost.energy_j}
    assert value[name] == pytest.approx(best, rel=2e-6, abs=1e-9)
    assert made.certificate["status"] == "optimal"
    quickest = plan(profile, topology, "latency", CODECS).cost.latency_s
    limited = plan(profile, topology, "energy", CODECS, within={"latency": quickest * slack + 1e-9})
    assert limited.cost.latency_s <= quickest * slack * (1 + 1e-6) + 2e-9
    best = best_of_everything(profile, topology, {"energy": 1}, {"latency": quickest * slack + 1e-9})
    assert limited.cost.energy_j == pytest.approx(best, rel=2e-6, abs=1e-9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(metered_cases())
def test_every_objective_is_as_good_as_the_best_of_all_plans(case):
    check_metered(case)


@pytest.mark.slow
@settings(max_examples=600, deadline=None, derandomize=True)
@given(metered_cases())
def test_every_objective_is_as_good_as_the_best_of_all_plans_at_length(case):
    check_metered(case)


def test_memory_steers_the_plan_rather_than_excluding_it():
    """Once, limits only threw plans away: the best split over memory fell back to a whole tier. Here a split fits."""
    tight = replace(SLOW_LINK, tiers=(replace(SLOW_LINK.tiers[0], memory_bytes=250), replace(SLOW_LINK.tiers[1], memory_bytes=250)))
    made = plan(CHAIN, tight, codecs=["raw"])
    assert [stage.weight_nbytes for stage in made.stages] == [200, 100]
    assert made.certificate["status"] == "optimal"
    assert "No single tier can do this alone." in str(made)


def test_the_interval_balances_tiers_and_links():
    made = plan(CHAIN, a_topology([1, 1], [(1e6, 1e6, 0.0)]), "interval", codecs=["raw"])
    assert [stage.layers for stage in made.stages] == [("a", "b"), ("c",)]
    assert made.cost.interval_s == pytest.approx(0.03)
    assert "interval ms" in str(made)


def test_a_limit_nobody_can_keep_names_both_numbers():
    with pytest.raises(PlanError, match=r"no plan fits: latency_s is at least 0\.3364, 0\.3354 over the limit of 0\.001"):
        plan(CHAIN, SLOW_LINK, "energy", ["raw"], within={"latency": 0.001})
    with pytest.raises(PlanError, match="cannot plan within 'beauty'"):
        plan(CHAIN, SLOW_LINK, within={"beauty": 1.0})


class TestPrivacy:
    FAST = a_topology([10, 1], [(1e9, 1e9, 0.0)])  # a link on which everything would go to t1

    def test_nothing_made_before_the_last_layer_kept_leaves(self):
        assert [stage.tier for stage in plan(CHAIN, self.FAST, codecs=["raw"]).stages] == ["t1"]
        for wish in (2, "2", "b"):
            made = plan(CHAIN, self.FAST, codecs=["raw"], keep_on_device=wish)
            assert made.stages[0].layers == ("a", "b")
            assert {crossing.producer for crossing in made.crossings} == {"b"}
            assert made.kept_layers == 2

    def test_a_skip_connection_keeps_its_end_on_the_device_too(self):
        skip = a_profile(
            {"a": 0.01, "b": 0.02, "c": 0.03, "d": 0.01},
            [("in", INPUT, ("a",), 60_000, False), ("x", "a", ("b", "c"), 80_000, False), ("y", "b", ("c",), 400, False),
             ("z", "c", ("d",), 40, False), ("out", "d", (), 4, True)],
        )  # fmt: skip
        made = plan(skip, self.FAST, codecs=["raw"], keep_on_device="b")
        assert made.stages[0].layers == ("a", "b", "c")

    def test_wrong_wishes(self):
        with pytest.raises(PlanError, match="no layer 'q' to keep"):
            plan(CHAIN, self.FAST, keep_on_device="q", codecs=["raw"])
        with pytest.raises(PlanError, match="cannot keep 9 layers on the device; the model has 3"):
            plan(CHAIN, self.FAST, keep_on_device=9, codecs=["raw"])


def test_an_interval_limit_over_a_skipped_tier_claims_nothing():
    """A line that skips a tier was refused for the sum of its links' loads, and another line's plan was called optimal."""
    profile = a_profile(
        {"a": 0.001, "b": 0.1},
        [("in", INPUT, ("a",), 10**6, False), ("x", "a", ("b",), 10_000, False), ("z", "b", (), 4, True)],
        framework=Framework(call_s=0.05, measured=True),
    )
    topology = a_topology([1, 1000, 0.1], [(1e5, 1e5, 0.0), (1e5, 1e5, 0.0)])
    assert plan(profile, topology, codecs=["raw"], within={"interval": 0.15}, keep_on_device=1).certificate["status"] == "feasible"


def test_a_strategy_that_refuses_one_line_plans_on_the_others():
    """The critical path wants two tiers; the line of the device alone has one, and its refusal ended the planning."""
    made = plan(CHAIN, a_topology([10, 1], [(1e6, 1e6, 0.0)]), "critical_path", ["raw"], strategy="critical_path")
    assert made.certificate["status"] == "feasible"


def test_problems_are_there_to_study():
    found = problems(CHAIN, a_topology([4, 2, 1], [(1e5, 1e5, 0.0)] * 2, (1e6, 1e6, 0.001)), ["raw"])
    assert set(found) == {("t0",), ("t0", "t1"), ("t0", "t2"), ("t0", "t1", "t2"), ("t0", "t2", "direct")}
    assert all(problem.relay == "forward" for problem in found.values())


def test_a_plan_of_version_1_is_still_read():
    data = json.loads(plan(CHAIN, SLOW_LINK, codecs=["raw"]).to_json())
    data["version"] = 1
    del data["limits"], data["kept_layers"]
    for cost in (data["cost"], *(rival["cost"] for rival in data["baselines"])):
        for name in ("interval_s", "critical_path_s", "energy_j", "money", "error"):
            del cost[name]
    old = Plan.from_json(json.dumps(data))
    assert old.stages == plan(CHAIN, SLOW_LINK, codecs=["raw"]).stages
    assert str(old)


def test_unknown_wishes_are_refused():
    with pytest.raises(PlanError, match="objective 'beauty': 'beauty' is not understood"):
        plan(CHAIN, SLOW_LINK, "beauty")
    with pytest.raises(PlanError, match="codec 'int3' is not there to choose; measured are raw, int8"):
        plan(CHAIN, SLOW_LINK, codecs=["raw", "int3"])

    with pytest.raises(PlanError, match="codec 'int3' is not there to choose"):
        problems(CHAIN, SLOW_LINK, codecs=["int3"])
    with pytest.raises(PlanError, match="codec 'int3' is not there to choose"):
        baseline_plans(CHAIN, SLOW_LINK, ["int3"])
    for limit in (-1, float("nan"), float("inf")):
        with pytest.raises(PlanError, match=r"cannot plan within latency = .*; a limit is a finite number, zero or more"):
            plan(CHAIN, SLOW_LINK, within={"latency": limit}, codecs=["raw"])
    for wish in (1.5, True):
        with pytest.raises(PlanError, match=r"cannot keep .* layers on the device; give a whole number or a layer's name"):
            plan(CHAIN, SLOW_LINK, keep_on_device=wish, codecs=["raw"])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_a_plan_with_one_odd_value_is_refused_or_can_be_used(data):
    """Values of the wrong type once came in by the file and crashed the printing."""
    made = json.loads(plan(CHAIN, SLOW_LINK, codecs=["raw"]).to_json())
    node = made
    while isinstance(node, dict | list) and node:
        holder, key = node, data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        node = holder[key]
        if data.draw(st.booleans()):
            break
    holder[key] = data.draw(st.sampled_from([None, True, -1, 10**400, float("nan"), "x", [], ["x"], {}, {"x": 1}]))
    with suppress(PlanError):
        read = Plan.from_json(json.dumps(made))
        assert str(read)
        assert Plan.from_json(read.to_json()) == read


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
            (lambda d: d.update(version=7), "not a plan of version 1 to"),
            (lambda d: d.pop("stages"), "malformed plan: 'stages' is missing"),
            (lambda d: d["stages"][0].update(colour="red"), r"'stages\[0\]' has an unknown key 'colour'"),
            (lambda d: d["stages"][0].update(tier="moon"), "a stage runs on 'moon'"),
            (lambda d: d["crossings"][0].pop("codec"), r"'crossings\[0\]\.codec' is missing"),
            (lambda d: d["stages"][0].update(layers=[]), r"'stages\[0\]\.layers' is empty"),
            (lambda d: d["stages"][0].update(layers="ab"), r"'stages\[0\]\.layers' is 'ab'; it must be a list"),
            (lambda d: d["stages"][0].update(seconds="1"), r"'stages\[0\]\.seconds' is '1'; it must be a finite number"),
            (lambda d: d["stages"][0].update(weight_nbytes=10**400), r"'stages\[0\]\.weight_nbytes' is 1000"),
            (lambda d: d.update(stages=[]), "'stages' is empty"),
            (lambda d: d["crossings"][0].update(links="0"), r"'crossings\[0\]\.links' is '0'; it must be a list"),
            (lambda d: d["crossings"][0].update(links=["0"]), r"'crossings\[0\]\.links\[0\]' is '0'; it must be a whole number"),
            (lambda d: d["crossings"][0].update(links=[]), r"'crossings\[0\]\.links' is \[\]"),
            (lambda d: d["crossings"][0].update(links=[1]), r"'crossings\[0\]\.links' is \[1\]; it must be links that follow each other"),
            (lambda d: d["cost"].update(latency_s=float("nan")), "'cost.latency_s' is nan; it must be a finite number"),
            (lambda d: d.update(cost=[1]), r"'cost' is \[1\]; it must be an object"),
            (lambda d: d["baselines"][0]["cost"].update(wire_s=None), r"'baselines\[0\]\.cost\.wire_s' is None"),
            (lambda d: d["certificate"].pop("status"), "'certificate.status' is missing"),
            (lambda d: d["certificate"].update(bound="low"), "'certificate.bound' is 'low'"),
            (lambda d: d.update(stateful="no"), "'stateful' is 'no'; it must be true or false"),
            (lambda d: d.update(kept_layers=True), "'kept_layers' is True; it must be a whole number"),
            (lambda d: d.update(limits={"speed": 1.0}), "'limits' has an unknown key 'speed'"),
            (lambda d: d.update(times_from={"t0": 3}), "'times_from.t0' is 3; it must be text"),
            (lambda d: d.update(version=True), "not a plan of version"),
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
            (lambda d: d.update(version=7), "not a profile of version 1"),
            (lambda d: d["measurements"][0]["seconds"].pop("b"), "differ in 'b'"),
            (lambda d: d["measurements"][0]["seconds"].update(b=-1.0), "negative or not finite"),
            (lambda d: d.pop("tensors"), "malformed profile: 'tensors' is missing"),
            (lambda d: d.update(measurements=[]), "it holds no layer or no measurement"),
            (lambda d: d["measurements"][0]["spread_s"].pop("b"), "differ in 'b'"),
            (lambda d: d["measurements"][0]["codec_s"].pop("x"), "measured no codec on 'x'"),
            (lambda d: d["measurements"][0]["codec_s"]["x"].update(raw=[1.0]), r"codec_s\.x\.raw' is \[1\.0\]; it must be a list of 2"),
            (lambda d: d["tensors"][0].update(consumers=["q"]), "speaks of a layer 'q' and has none"),
            (lambda d: d["layers"][0].update(flops="many"), r"'layers\[0\]\.flops' is 'many'; it must be a whole number"),
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
