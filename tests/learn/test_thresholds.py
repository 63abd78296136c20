"""Thresholds and reach: expectations recounted request by request, and nothing better on the grid."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import splitinfer
from cluster.topology import Compute, LinkSpec, TierSpec, Topology
from splitinfer.errors import PlanError, UsageError
from splitinfer.learn import apply_exits, choose_thresholds, record_exits
from splitinfer.learn.reach import Passing
from splitinfer.planner import plan
from splitinfer.plans import INPUT, PlannedExit
from splitinfer.profiles import LayerProfile, Measurement, Profile, TensorProfile

RAW = ("raw",)


def a_chain(seconds, nbytes, heads):
    """Layers l0, l1, ... in a row; `heads`: place -> seconds of a head there. Answers take 40 bytes, confidences 4."""
    names = [f"l{place}" for place in range(len(seconds))]
    layers, tensors, together = dict(zip(names, seconds, strict=True)), [("x", INPUT, names[:1], nbytes[0], False)], []
    for place, name in enumerate(names):
        after = names[place + 1 : place + 2]
        if place in heads:
            layers[f"h{place}"] = heads[place]
            tensors += [(f"a{place}", f"h{place}", [], 40, True), (f"c{place}", f"h{place}", [], 4, True)]
            together.append(((name, f"h{place}"), "a head"))
            after = [*after, f"h{place}"]
        tensors.append((f"t{place}", name, after, nbytes[place + 1] if place + 1 < len(names) else 40, place + 1 == len(names)))
    specs = tuple(TensorProfile(n, p, tuple(c), (1,), "float32", b, r, {"raw": b}) for n, p, c, b, r in tensors)
    measured = Measurement(
        None, "test machine", "cpu", 1, 1.0, 0.0, layers, dict.fromkeys(layers, 0.0), {t.name: {"raw": (0.0, 0.0)} for t in specs}
    )
    rows = tuple(LayerProfile(name, 1, 1, 0, 0) for name in layers)
    return Profile("test", "f" * 16, False, rows, specs, tuple(together), (measured,), 0)


def an_exit(place, output, reach):
    return PlannedExit(f"h{place}", f"a{place}", f"c{place}", output, 0.5, reach)


def one_request(profile, factors, links, place, ends_at):
    """Seconds of one request that ends at the head of layer `ends_at`, or at the last layer; walked layer by layer."""
    seconds, tensors = profile.measurements[0].seconds, {tensor.name: tensor for tensor in profile.tensors}
    chain = [name for name in seconds if name.startswith("l")]
    total, tier = 0.0, 0
    for index, name in enumerate(chain):
        arriving = tensors["x" if index == 0 else f"t{index - 1}"]
        for link in links[tier : place[name]]:
            total += arriving.nbytes / link[0] + link[1]
        tier = place[name]
        total += seconds[name] * factors[tier]
        if f"h{index}" in seconds:
            total += seconds[f"h{index}"] * factors[tier]
        if index == ends_at:
            break
    return total + sum(40 / link[0] + link[1] for link in links[:tier])


@st.composite
def cases(draw):
    number = lambda low, high: draw(st.floats(low, high, allow_nan=False))  # noqa: E731
    count, tiers = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    heads = {place: number(0, 0.01) for place in draw(st.sets(st.integers(0, count - 2), max_size=2))}
    profile = a_chain([number(0, 0.1) for _ in range(count)], [draw(st.integers(0, 10_000)) for _ in range(count)], heads)
    factors = [number(1, 20) for _ in range(tiers)]
    links = [(number(1e4, 1e7), number(0, 0.05)) for _ in range(tiers - 1)]
    ends = draw(st.lists(st.sampled_from([*sorted(heads), None]), min_size=1, max_size=12))
    return profile, sorted(heads), factors, links, ends


def check_expectation(case):
    profile, heads, factors, links, ends = case
    chain = [layer.name for layer in profile.layers if layer.name.startswith("l")]
    output = f"t{len(chain) - 1}"
    share = [sum(end is None or end > place for end in ends) / len(ends) for place in heads]
    topology = Topology(
        tuple(TierSpec(f"t{i}", Compute(factor=f)) for i, f in enumerate(factors)),
        tuple(LinkSpec((f"t{i}", f"t{i + 1}"), rate, rate, latency) for i, (rate, latency) in enumerate(links)),
    )
    exits = [an_exit(place, output, reach) for place, reach in zip(heads, share, strict=True)]
    made = plan(profile, topology, codecs=RAW, exits=exits)

    def mean(place):
        return sum(one_request(profile, factors, links, place, end) for end in ends) / len(ends)

    tier = {name: int(stage.tier[1:]) for stage in made.stages for name in stage.layers}
    assert made.cost.latency_s == pytest.approx(mean(tier), rel=1e-9, abs=1e-12)
    choices = itertools.combinations_with_replacement(range(len(factors)), len(chain))
    assert made.cost.latency_s == pytest.approx(min(mean(dict(zip(chain, places, strict=True))) for places in choices), rel=1e-9, abs=1e-12)
    parts = made.cost
    assert parts.framework_s == pytest.approx(0, abs=1e-9)
    assert parts.compute_s == pytest.approx(
        sum(sum(run_of(profile, factors, tier, end)) for end in ends) / len(ends), rel=1e-9, abs=1e-12
    )


def run_of(profile, factors, tier, end):
    for name, seconds in profile.measurements[0].seconds.items():
        if end is None or int(name[1:]) <= end:
            yield seconds * factors[tier[name]]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases())
def test_the_expected_latency_is_the_mean_over_requests_and_no_placement_has_a_lower_one(case):
    check_expectation(case)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, derandomize=True)
@given(cases())
def test_the_same_at_length(case):
    check_expectation(case)


class TestReach:
    CHAIN = a_chain([0.1, 0.2, 0.3, 0.4], [10, 20, 30, 40], {0: 0.01, 2: 0.02})

    def test_what_runs_before_and_behind_each_exit(self):
        passing = Passing(self.CHAIN, [an_exit(0, "t3", 0.4), an_exit(2, "t3", 0.1)])
        reach = {layer.name: passing.layer(layer.name) for layer in self.CHAIN.layers}
        assert reach == {"l0": 1, "h0": 1, "l1": 0.4, "l2": 0.4, "h2": 0.4, "l3": 0.1}
        returned = {tensor.name: passing.returned(tensor) for tensor in self.CHAIN.tensors if tensor.returned}
        assert returned == {"a0": 0.6, "c0": 0, "a2": pytest.approx(0.75), "c2": 0, "t3": 1}

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(PlanError, match="the profile has no exit 'h1'; apply the exits to the graph before it is profiled"):
            Passing(self.CHAIN, [an_exit(1, "t3", 0.4)])
        with pytest.raises(PlanError, match=r"0.9 of the requests go on behind 'h2'; 0.4 get there: exits go in order"):
            Passing(self.CHAIN, [an_exit(0, "t3", 0.4), an_exit(2, "t3", 0.9)])


@pytest.fixture(scope="module")
def measured(digits, heads):
    """The profile of the digits CNN with both heads, its times replaced: nothing here depends on this machine's clock."""
    applied = apply_exits(digits.graph, heads)
    profile = splitinfer.profile(applied, repeats=2, budget_s=0.5, codec_names=RAW)
    own = profile.measurements[0]
    seconds = {layer.name: 1e-4 + layer.flops * 1e-9 for layer in profile.layers}
    free = {name: {"raw": (0.0, 0.0)} for name in own.codec_s}
    return replace(profile, measurements=(replace(own, seconds=seconds, wake_s=0.0, codec_s=free),))


SLOW = Topology(
    (TierSpec("device", Compute(factor=10)), TierSpec("cloud", Compute(factor=1))), (LinkSpec(("device", "cloud"), 125_000, 125_000, 0.01),)
)


@pytest.fixture(scope="module")
def recorded(digits, heads):
    return record_exits(digits.graph, heads, digits.record)


class TestChosen:
    def test_nothing_on_the_grid_is_better(self, digits, heads, recorded, measured):
        chosen = choose_thresholds(digits.graph, heads, recorded, measured, SLOW, max_drop=0.01, candidates=4, codecs=RAW, keep_on_device=3)
        rivals = []
        for used in itertools.product((False, True), repeat=2):
            kept = [head for head, one in zip(heads, used, strict=True) if one]
            graph = apply_exits(digits.graph, kept)
            layers, tensors, own = graph.layers.keys(), graph.tensors.keys(), measured.measurements[0]
            part = replace(
                measured, fingerprint=graph.fingerprint, layers=tuple(row for row in measured.layers if row.name in layers),
                tensors=tuple(
                    replace(t, consumers=tuple(c for c in t.consumers if c in layers)) for t in measured.tensors if t.name in tensors
                ),
                together=tuple(row for row in measured.together if set(row[0]) <= layers),
                measurements=(replace(own, seconds={name: own.seconds[name] for name in layers}),),
            )  # fmt: skip
            values = [sorted(set(row)) if one else [None] for row, one in zip(recorded.confidence, used, strict=True)]
            spaced = [[row[round(place * (len(row) - 1) / 3)] for place in range(4)] if row != [None] else row for row in values]
            for thresholds in itertools.product(*spaced):
                if recorded.drop(thresholds) <= 0.01:
                    reach = recorded.reach(thresholds)
                    reach = [max(r, 1 / (recorded.requests + 2)) for r in reach]
                    exits = [h.planned(graph, t, r) for h, t, r in zip(heads, thresholds, reach, strict=True) if t is not None]
                    rivals.append(plan(part, SLOW, codecs=RAW, keep_on_device=3, exits=exits).cost.latency_s)
        assert chosen.plan.cost.latency_s == pytest.approx(min(rivals), rel=1e-9)
        assert chosen.plans < len(rivals)
        assert chosen.plan.cost.latency_s < max(rivals)

    def test_the_budget_is_kept_and_held_out_answers_are_near_it(self, digits, heads, recorded, measured):
        chosen = choose_thresholds(digits.graph, heads, recorded, measured, SLOW, max_drop=0.02, codecs=RAW, keep_on_device=3)
        assert chosen.drop <= 0.02
        assert chosen.plan.exits
        assert sum(chosen.shares.values()) == pytest.approx(1)
        pipeline = splitinfer.Pipeline.local(chosen.graph, chosen.plan)
        found = [pipeline.traced(image) for image in digits.held_out.split(1)]
        changed = np.mean([int(answer.argmax()) != int(said) for (answer, _), said in zip(found, digits.whole, strict=True)])
        assert changed <= 0.02 + 2 * (0.02 * 0.98 / len(found)) ** 0.5  # a share of 450 is uncertain by that much
        stays = np.mean([trace.exit != "" for _, trace in found])
        assert stays == pytest.approx(1 - chosen.shares[""], abs=0.08)
        chosen.plan.check(chosen.graph)

    def test_a_budget_of_nothing_still_plans(self, digits, heads, recorded, measured):
        strict = choose_thresholds(digits.graph, heads, recorded, measured, SLOW, max_drop=0.0, codecs=RAW, keep_on_device=3)
        assert strict.drop <= 0
        loose = choose_thresholds(digits.graph, heads, recorded, measured, SLOW, max_drop=1.0, codecs=RAW, keep_on_device=3)
        assert loose.plan.cost.latency_s <= strict.plan.cost.latency_s
        assert loose.shares[""] == 0

    def test_labels(self, digits, heads):
        recorded = record_exits(digits.graph, heads, digits.record, digits.record_labels)
        assert recorded.labelled
        assert "accuracy" in str(recorded)
        ends = recorded.ends([0.9, None])
        assert set(ends) <= {0, 2}
        lost = [recorded.wrong[end, i] - recorded.wrong[2, i] for i, end in enumerate(ends)]
        assert recorded.drop([0.9, None]) == pytest.approx(np.mean(lost))

    def test_what_cannot_be_chosen(self, digits, heads, recorded, measured):
        with pytest.raises(UsageError, match=r"recorded are exits at \['relu', 'max_pool2d_1'\]; asked for are \['relu'\]"):
            choose_thresholds(digits.graph, heads[:1], recorded, measured, SLOW)
        with pytest.raises(UsageError, match="more than 100,000 choices"):
            choose_thresholds(digits.graph, heads, recorded, measured, SLOW, candidates=1000)
        with pytest.raises(PlanError, match="the profile is of another graph"):
            choose_thresholds(digits.graph, heads, recorded, replace(measured, fingerprint="0" * 16), SLOW)
        tight = Topology(tuple(replace(tier, memory_bytes=10) for tier in SLOW.tiers), SLOW.links)
        with pytest.raises(PlanError, match="no plan fits"):
            choose_thresholds(digits.graph, heads, recorded, measured, tight, codecs=RAW)
