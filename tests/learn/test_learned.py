"""What was learned, in one file and on the command line; plans with it, measured end to end and repaired."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import splitinfer
from cluster.topology import Compute, LinkSpec, TierSpec, Topology
from splitinfer import Pipeline, Plan, verify_split
from splitinfer.calibrations import Calibration
from splitinfer.codecs.packet import Packet
from splitinfer.errors import CutError, PlanError, UsageError
from splitinfer.learn import Learned, accurate_plan, apply_exits, learned_plan, record_exits, train_exit
from splitinfer.learn.editing import without_exits
from splitinfer.learn.learned import tensor_behind
from splitinfer.learn.reach import fitted
from splitinfer.verify import as_module

CODECS = ("raw", "int8", "int2/block64+zstd")
SLOW = Topology(
    (TierSpec("device", Compute(factor=30), memory_bytes=200_000), TierSpec("cloud", Compute())),
    (LinkSpec(("device", "cloud"), 20_000, 20_000, 0.02),),
)
KEPT = "features.2"


def times_replaced(profile):
    """Its times replaced: nothing here depends on this machine's clock."""
    own = profile.measurements[0]
    seconds = {layer.name: 1e-4 + layer.flops * 1e-9 for layer in profile.layers}
    free = {name: dict.fromkeys(CODECS, (0.0, 0.0)) for name in own.codec_s}
    return replace(profile, measurements=(replace(own, seconds=seconds, wake_s=0.0, codec_s=free),))


@pytest.fixture(scope="module")
def both(digits, bottleneck):
    """A bottleneck and two exits on top of it, with the profile of all."""
    narrow = bottleneck.apply(digits.graph)
    heads = tuple(train_exit(narrow, name, digits.train, steps=100) for name in ("relu", "bottleneck_max_pool2d_encode"))
    learned = Learned((bottleneck,), heads, record_exits(narrow, heads, digits.record))
    full = learned.apply(digits.graph)
    profile = times_replaced(splitinfer.profile(full, repeats=2, budget_s=0.5, codec_names=CODECS))
    return SimpleNamespace(learned=learned, narrow=narrow, graph=full, profile=profile)


def changed(digits, graph, made, images):
    """Share of the answers that are not the unsplit model's, and the shares that end at each exit."""
    pipeline = Pipeline.local(graph, made)
    found = [pipeline.traced(image) for image in images.split(1)]
    with torch.no_grad():
        whole = digits.model(images).argmax(1)
    apart = np.mean([int(answer.argmax()) != int(said) for (answer, _), said in zip(found, whole, strict=True)])
    ends = [trace.exit for _, trace in found]
    return apart, {name: ends.count(name) / len(ends) for name in set(ends) - {""}}


class TestUnusedHeads:
    def test_they_are_neither_priced_nor_run(self, digits, both):
        """A plan without exits used to pay for the heads: their layers, their weights and the answers that nobody took."""
        bare = fitted(both.profile, both.narrow)
        expected = splitinfer.plan(bare, SLOW, codecs=CODECS)
        made = splitinfer.plan(both.profile, SLOW, codecs=CODECS)
        assert made.cost == expected.cost
        assert made.stages == expected.stages
        assert [rival.cost for rival in made.baselines] == [rival.cost for rival in expected.baselines]
        pipeline = Pipeline.local(both.graph, made)
        held = {layer for parts in pipeline.stages for within in parts for part in within for layer in part.layers}
        assert held == set(both.narrow.layers)
        assert verify_split(both.graph, as_module(both.narrow), replace(made, crossings=())).exact

    def test_one_of_two(self, digits, both):
        exits = [both.learned.heads[0].planned(both.graph, 0.9, 0.3)]
        made = splitinfer.plan(both.profile, SLOW, codecs=CODECS, exits=exits)
        layers = {layer for stage in made.stages for layer in stage.layers}
        assert layers == set(both.graph.layers) - {both.learned.heads[1].layer}
        assert [each.layer for each in made.exits] == [both.learned.heads[0].layer]
        answer, _ = Pipeline.local(both.graph, made).traced(digits.held_out[:1])
        assert answer.shape == (1, 10)

    def test_dropping_heads_gives_back_the_graph(self, digits, heads):
        applied = apply_exits(digits.graph, heads)
        assert applied.exits == tuple(head.layer for head in heads)
        assert without_exits(applied, applied.exits).fingerprint == digits.graph.fingerprint
        assert set(without_exits(applied, applied.exits).weights) == set(digits.graph.weights)

    def test_other_layers_may_not_be_left_out(self, both):
        made = splitinfer.plan(both.profile, SLOW, codecs=CODECS)
        less = replace(made, stages=(replace(made.stages[0], layers=made.stages[0].layers[1:]), *made.stages[1:]))
        with pytest.raises(CutError, match=r"layers are in no stage, the first is 'features\.0'"):
            Pipeline.local(both.graph, less)


class TestFile:
    def test_round_trip(self, digits, both, tmp_path):
        both.learned.save(tmp_path / "l")
        loaded = Learned.load(tmp_path / "l")
        assert str(loaded) == str(both.learned)
        assert loaded.to_dict() == both.learned.to_dict()
        assert loaded.apply(digits.graph).fingerprint == both.graph.fingerprint
        assert np.array_equal(loaded.recorded.confidence, both.learned.recorded.confidence)
        assert np.array_equal(loaded.recorded.wrong, both.learned.recorded.wrong)

    def test_a_single_part_is_learned_too(self, digits, bottleneck, heads, tmp_path):
        bottleneck.save(tmp_path / "b")
        heads[0].save(tmp_path / "h")
        assert Learned.load(tmp_path / "b").apply(digits.graph).fingerprint == bottleneck.apply(digits.graph).fingerprint
        assert Learned.load(tmp_path / "h").apply(digits.graph).fingerprint == apply_exits(digits.graph, heads[:1]).fingerprint

    def test_what_the_plan_uses(self, digits, both):
        graphs = both.learned.graphs(digits.graph)
        assert [len(graph.layers) - len(digits.graph.layers) for graph in graphs] == [0, 2, 4]
        for graph in graphs:
            made = Plan.by_hand(graph, [list(graph.layers)])
            assert both.learned.apply(digits.graph, made).fingerprint == graph.fingerprint

    def test_hostile_files(self, both, tmp_path):
        path = tmp_path / "l"
        with pytest.raises(PlanError, match="cannot read the learned part"):
            Learned.load(path)
        both.learned.save(path)
        data = path.read_bytes()
        path.write_bytes(data[:-1])
        with pytest.raises(PlanError, match="is no learned part: truncated"):
            Learned.load(path)
        packet = Packet.unpack(data)
        inner = bytearray(packet.frames[0].decode(splitinfer.codecs.packet.Limits()).numpy().tobytes())
        for frames, message in (
            ((replace(packet.frames[-1], name="5"), *packet.frames), "its record is not of its exits"),
            (packet.frames[-1:], "its record is not of its exits"),
            ((splitinfer.codecs.packet.Frame.encode("0", torch.zeros(3), splitinfer.codecs.get("raw")),), "it holds no bytes"),
            ((splitinfer.codecs.packet.Frame.encode("0", torch.tensor(list(inner[:40]), dtype=torch.uint8), splitinfer.codecs.get("raw")),),
             "is no learned part: truncated"),
        ):  # fmt: skip
            path.write_bytes(replace(packet, frames=frames).pack())
            with pytest.raises(PlanError, match=message):
                Learned.load(path)
        path.write_bytes(replace(packet, meta={"part": "model"}).pack())
        with pytest.raises(PlanError, match="it holds 'model'"):
            Learned.load(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"wrong": np.zeros((2, 3))}, "2 heads, arrays of shapes"),
            ({"confidence": np.full((2, 3), np.nan)}, "a confidence is not finite"),
            ({"wrong": np.full((3, 3), 1.5)}, "a share is not between 0 and 1"),
            ({"wrong": np.zeros((3, 3), dtype=np.float32)}, "2 heads, arrays of shapes"),
            ({"confidence": np.zeros((2, 0)), "wrong": np.zeros((3, 0))}, "2 heads, arrays of shapes"),
        ],
    )
    def test_hostile_records(self, both, tmp_path, change, message):
        record = replace(both.learned.recorded, **{"confidence": np.zeros((2, 3)), "wrong": np.zeros((3, 3)), **change})
        replace(both.learned, recorded=record).save(tmp_path / "l")
        with pytest.raises(PlanError, match=message):
            Learned.load(tmp_path / "l")

    def test_layers_name_tensors(self, digits):
        assert tensor_behind(digits.graph, "features.2") == "relu"
        assert tensor_behind(digits.graph, "relu") == "relu"
        with pytest.raises(CutError, match=r"has no layer or tensor 'blocks\.2'; layers like it: \['features\.2'"):
            tensor_behind(digits.graph, "blocks.2")
        with pytest.raises(CutError, match=r"layer 'classifier\.3' gives 0 tensors to others"):
            tensor_behind(digits.graph, "classifier.3")


class TestPlans:
    WISHES = {"codecs": CODECS, "keep_on_device": KEPT}  # noqa: RUF012 - read only

    def test_measured_is_what_the_pipeline_loses(self, digits, both):
        heads = both.learned.heads[:1]
        learned = Learned(both.learned.bottlenecks, heads, record_exits(both.narrow, heads, digits.record))
        profile = fitted(both.profile, learned.apply(digits.graph))
        made = accurate_plan(
            digits.graph, digits.held_out.split(1), profile, SLOW, max_accuracy_drop=0.03, learned=learned, **self.WISHES
        )  # fmt: skip
        graph = learned.apply(digits.graph, made)
        apart, ends = changed(digits, graph, made, digits.held_out)
        assert made.accuracy.measured == pytest.approx(apart, abs=1e-9)
        assert made.accuracy.measured <= 0.03
        assert made.exits
        assert {name: share for name, share in made.accuracy.ended.items() if share} == ends
        assert made.accuracy.samples == len(digits.held_out)
        assert f"{sum(ends.values()):.1%} end at an early exit" in str(made)

    def test_what_was_learned_is_taken_where_it_pays(self, digits, both):
        plain = splitinfer.plan(fitted(both.profile, digits.graph), SLOW, codecs=("raw",), keep_on_device=KEPT)
        used = learned_plan(digits.graph, both.learned, both.profile, SLOW, max_accuracy_drop=0.02, codecs=("raw",), keep_on_device=KEPT)
        assert used.cost.latency_s < plain.cost.latency_s
        assert (used.accuracy.measured, used.accuracy.metric) == (None, "top1")
        assert "not measured, for want of samples" in str(used)
        fast = replace(SLOW, tiers=tuple(replace(tier, memory_bytes=None, compute=Compute()) for tier in SLOW.tiers))
        alone = learned_plan(digits.graph, Learned(both.learned.bottlenecks), fitted(both.profile, both.narrow), fast, codecs=("raw",))
        assert alone.fingerprint == digits.graph.fingerprint  # with all on the device the bottleneck is a cost, nothing else
        assert alone.accuracy is None

    def test_a_record_that_promises_too_much_is_repaired(self, digits, both):
        """The story: confidences recorded on easy samples let all requests leave at once, and a third of the answers changed."""
        easy = both.learned.recorded
        learned = replace(both.learned, recorded=replace(easy, wrong=np.zeros_like(easy.wrong)))
        wishes = {"max_accuracy_drop": 0.02, "learned": learned, **self.WISHES, "codecs": ("raw",)}
        believed = learned_plan(digits.graph, learned, both.profile, SLOW, max_accuracy_drop=0.02, codecs=("raw",), keep_on_device=KEPT)
        assert changed(digits, both.graph, believed, digits.held_out)[0] > 0.02
        made = accurate_plan(digits.graph, digits.held_out.split(1), both.profile, SLOW, **wishes)
        assert made.accuracy.repairs > 0
        assert made.accuracy.measured <= 0.02
        graph = learned.apply(digits.graph, made)
        assert changed(digits, graph, made, digits.held_out)[0] == pytest.approx(made.accuracy.measured, abs=1e-9)

    def test_codecs_that_nobody_calibrated_are_innocent_until_measured(self, digits, both):
        made = accurate_plan(
            digits.graph, digits.held_out[:150].split(1), fitted(both.profile, digits.graph), SLOW, max_accuracy_drop=0.01,
            codecs=("raw", "int2/block64+zstd"), keep_on_device=KEPT,
        )  # fmt: skip
        assert changed(digits, digits.graph, made, digits.held_out[:150])[0] == pytest.approx(made.accuracy.measured, abs=1e-9)
        assert made.accuracy.measured <= 0.01

    def test_a_budget_of_nothing_ends_with_the_model_as_it_was(self, digits, both):
        images = digits.held_out[:100]
        promising = replace(both.learned.recorded, wrong=np.zeros_like(both.learned.recorded.wrong))
        made = accurate_plan(
            digits.graph, images.split(1), both.profile, SLOW, max_accuracy_drop=0.0, learned=replace(both.learned, recorded=promising),
            **self.WISHES,
        )  # fmt: skip
        assert made.accuracy.measured == 0
        assert changed(digits, both.learned.apply(digits.graph, made), made, images)[0] == 0

    def test_codecs_and_exits_share_the_budget(self, digits, both):
        table = Calibration(
            both.profile.model, both.profile.fingerprint, "top1", 10, ("raw",),
            {t.name: {name: splitinfer.calibrations.Measured(t.sent_nbytes[name], 0.0, 0.0, 0.0, 0.0 if name == "raw" else 0.015)
                      for name in ("raw", "int8")} for t in both.profile.tensors},
        )  # fmt: skip
        bare = Learned((), both.learned.heads, both.learned.recorded)
        made = splitinfer.learn.choose_thresholds(
            both.narrow, bare.heads, bare.recorded, both.profile, SLOW, max_drop=0.02, calibration=table, codecs=("raw", "int8"),
            keep_on_device=KEPT,
        )  # fmt: skip
        assert made.plan.cost.error + max(0, made.drop) <= 0.02 + 1e-9

    def test_what_does_not_fit_is_refused(self, digits, both):
        with pytest.raises(UsageError, match="early exits change answers; say how many may change"):
            learned_plan(digits.graph, both.learned, both.profile, SLOW)
        with pytest.raises(PlanError, match="the profile is not of the graph with all that was learned"):
            learned_plan(digits.graph, both.learned, fitted(both.profile, digits.graph), SLOW, max_accuracy_drop=0.1)
        with pytest.raises(PlanError, match="come without a record"):
            learned_plan(digits.graph, replace(both.learned, recorded=None), both.profile, SLOW, max_accuracy_drop=0.1)
        with pytest.raises(UsageError, match="record of the exits measured 'top1' and the budget would be checked by 'accuracy'"):
            accurate_plan(
                digits.graph, digits.held_out[:2].split(1), both.profile, SLOW, max_accuracy_drop=0.1, learned=both.learned, labels=[1, 2]
            )


DATA = """
import torch
from sklearn.datasets import load_digits
from splitinfer import demo

def images():
    data = load_digits()
    return torch.tensor(data.images[:, None] / 16, dtype=torch.float32), data.target.tolist()

def model():
    net, held_out, _ = demo.trained_digits(epochs=1)
    return net, (held_out[:1],), {}

def train():
    return list(images()[0][:300].split(1))

def held_out():
    return list(images()[0][300:400].split(1))
"""
YAML = """
version: 1
tiers: [{name: device, compute: {factor: 20}, memory: 200 kB}, {name: cloud, compute: measured}]
links: [{between: [device, cloud], up: 160 kbps, latency: 5 ms}]
"""


class TestCommandLine:
    @pytest.fixture
    def cli(self, tmp_path, capsys):
        from splitinfer.cli import main

        (tmp_path / "data.py").write_text(DATA)
        (tmp_path / "cluster.yaml").write_text(YAML)
        files = {name: str(tmp_path / name) for name in ("narrow.spli", "learned.spli", "profile.json", "plan.json", "cluster.yaml")}
        files |= {name: f"{tmp_path}/data.py:{name}" for name in ("model", "train", "held_out")}

        def call(*words):
            code = main([files.get(word, word) for word in words])
            printed = capsys.readouterr()
            return code, printed.out, printed.err

        return call

    MODEL = ("model", "--dynamic-batch")
    LEARNED = ("--learned", "learned.spli")

    def learn(self, cli):
        quick = ("--samples", "train", "--steps", "20", "--json")
        code, out, err = cli("learn", "bottleneck", *self.MODEL, *quick, "--layer", "features.6", "--channels", "8", "-o", "narrow.spli")
        assert code == 0, err
        assert json.loads(out)["bottlenecks"][0]["channels"] == 8
        code, out, err = cli("learn", "exits", *self.MODEL, *quick, "--layers", "features.2,features.6", "--learned", "narrow.spli",
                             "-o", "learned.spli")  # fmt: skip
        assert code == 0, err
        made = json.loads(out)
        assert [head["layer"] for head in made["exits"]] == ["exit.relu", "exit.max_pool2d"]
        assert made["recorded"]["samples"] == 75
        code, _, err = cli("learn", "exits", *self.MODEL, *quick, *self.LEARNED, "--layers", "relu", "-o", "narrow.spli")
        assert code == 2
        assert "already holds exits" in err

    def plan(self, cli):
        code, out, err = cli("plan", *self.MODEL, *self.LEARNED, "--profile", "profile.json", "--topology", "cluster.yaml",
                             "--codecs", "raw,int8", "--keep-on-device", "features.2", "--samples", "held_out",
                             "--max-accuracy-drop", "10%", "-o", "plan.json", "--json")  # fmt: skip
        assert code == 0, err
        plan = json.loads(out)
        assert plan["accuracy"]["measured"] <= 0.1
        assert plan["accuracy"]["samples"] == 100
        code, out, err = cli("verify", *self.MODEL, *self.LEARNED, "--plan", "plan.json", "--json")
        verdict = json.loads(out)
        lossy = any(crossing["codec"] != "raw" for crossing in plan["crossings"])
        assert (code, verdict["exact"]) == ((1, False) if lossy else (0, True)), err
        assert not plan["exits"] or "the early exits were not asked" in verdict["note"]

    def test_from_samples_to_a_verified_plan(self, cli, tmp_path):
        from splitinfer.models import load_model

        self.learn(cli)
        model = load_model(f"{tmp_path}/data.py:model")
        graph = Learned.load(tmp_path / "learned.spli").apply(splitinfer.capture(model.module, model.args, dynamic_shapes="batch"))
        splitinfer.profile(graph, codec_names=("raw", "int8"), repeats=2, budget_s=0.5).save(tmp_path / "profile.json")
        self.plan(cli)

    @pytest.mark.slow
    def test_with_a_profile_of_its_own_and_on_ray(self, cli):
        self.learn(cli)
        code, out, err = cli("profile", *self.MODEL, *self.LEARNED, "--codecs", "raw,int8", "-o", "profile.json", "--json")
        assert code == 0, err
        assert json.loads(out)["exits"] == ["exit.relu", "exit.max_pool2d"]
        self.plan(cli)
        code, out, err = cli("run", *self.MODEL, *self.LEARNED, "--plan", "plan.json", "--requests", "2", "--json")
        assert code == 0, err
        assert json.loads(out)["requests"] == 2

    def test_refusals(self, cli):
        code, _, err = cli("learn", "bottleneck", "model", "--samples", "train", "--layer", "features.99", "-o", "narrow.spli")
        assert (code, err.count("\n")) == (2, 1)
        assert "has no layer or tensor 'features.99'" in err
        code, _, err = cli("verify", "model", "--learned", "none.spli")
        assert (code, err.count("\n")) == (2, 1)
        assert "cannot read the learned part none.spli" in err
