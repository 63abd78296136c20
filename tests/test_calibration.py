"""Calibration: what each codec loses, told by the split model itself; plans within an accuracy budget; repairs."""

import json
from dataclasses import replace

import pytest
import torch

import splitinfer
from cluster.topology import Compute, LinkSpec, TierSpec, Topology
from splitinfer import Plan, codecs, demo
from splitinfer.calibrations import Calibration
from splitinfer.errors import PlanError, ProfileError, UsageError
from splitinfer.learn.accuracy import accurate_plan
from splitinfer.learn.calibrate import calibrate
from splitinfer.learn.metrics import Score
from splitinfer.pipeline import Pipeline

NAMES = ("raw", "zstd", "int8", "int4/channel+zstd", "int2/block64+zstd")
SLOW = Topology((TierSpec("device", Compute(factor=50)), TierSpec("cloud", Compute())), (LinkSpec(("device", "cloud"), 2e4, 2e4, 0.001),))


@pytest.fixture(scope="module")
def digits():
    """A trained network, its graph and held-out images with labels."""
    torch.manual_seed(0)
    model, images, labels = demo.trained_digits(epochs=3)
    return splitinfer.capture(model, (images[:1],)), model, images[:120], labels[:120].tolist()


@pytest.fixture(scope="module")
def table(digits):
    graph, _, images, labels = digits
    return calibrate(graph, [image[None] for image in images[:30]], labels=labels[:30], codec_names=NAMES)


@pytest.fixture(scope="module")
def profiled(digits):
    return splitinfer.profile(digits[0], codec_names=NAMES, repeats=3)


def halves(graph, tensor):
    """The stages before and behind the layer that makes a tensor."""
    order = list(graph.layers)
    place = order.index(graph.tensors[tensor].producer) + 1
    return [order[:place], order[place:]]


def cut_tensors(graph):
    """Tensors that cross alone where the graph is cut behind their layer."""
    return [cut.tensors[0] for cut in graph.cuts() if cut.possible and len(cut.tensors) == 1]


class TestTable:
    def test_the_loss_is_that_of_the_split_model(self, digits, table):
        """The oracle: stages that really send this one tensor through this codec."""
        graph, _, images, labels = digits
        checked = 0
        for tensor in cut_tensors(graph):
            for codec in ("int8", "int2/block64+zstd"):
                pipeline = Pipeline.local(graph, Plan.by_hand(graph, halves(graph, tensor), codecs={tensor: codec}))
                guesses = torch.cat([pipeline(image[None]) for image in images[:30]]).argmax(-1)
                right = (guesses == torch.tensor(labels[:30])).float().mean().item()
                assert table.rows[tensor][codec].drop == pytest.approx(max(0.0, baseline(digits) - right), abs=1e-6)
                checked += 1
        assert checked >= 6

    def test_lossless_codecs_lose_nothing(self, table):
        assert table.lossless == ("raw", "zstd")
        assert all(row[codec].drop == row[codec].error == 0 for row in table.rows.values() for codec in table.lossless)

    def test_bytes_are_those_of_the_packets(self, digits, table):
        graph, _, images, _ = digits
        tensor = cut_tensors(graph)[1]
        sent = []
        pipeline = Pipeline.local(graph, Plan.by_hand(graph, halves(graph, tensor), codecs={tensor: "int8"}))
        for image in images[:30]:
            first = pipeline.runners[0].run(pipeline.request((image[None],), {}).data)
            sent.append(len(first.onward))
        header = len(first.onward) - table_bytes(graph, tensor, images[29][None])
        assert sum(sent) / len(sent) == pytest.approx(table.rows[tensor]["int8"].nbytes + header, abs=1)

    def test_fewer_bits_lose_more_of_the_tensor(self, table):
        for row in table.rows.values():
            if row["int8"].error > 0:
                assert row["int8"].error < row["int4/channel+zstd"].error < row["int2/block64+zstd"].error

    def test_times_of_a_profile_are_kept(self, digits, profiled):
        graph, _, images, _ = digits
        one = calibrate(graph, [images[:1]], profiled, codec_names=("int8",), tensors=cut_tensors(graph)[:1])
        name = cut_tensors(graph)[0]
        assert (one.rows[name]["int8"].encode_s, one.rows[name]["int8"].decode_s) == profiled.measurements[0].codec_s[name]["int8"]

    def test_images_are_tried_as_images(self, digits):
        """Pixels of sixteenths are pixels of 8 bits: an honest rival sends the input as what it is."""
        graph, _, images, _ = digits
        inputs = [spec.name for spec in graph.tensors.values() if spec.producer == "<input>"]
        table = calibrate(graph, [images[:1]], tensors=[*inputs, cut_tensors(graph)[1]])
        assert {"uint8", "dct90"} <= set(table.rows[inputs[0]])
        assert not {"uint8", "dct90"} & set(table.rows[cut_tensors(graph)[1]])
        assert table.rows[inputs[0]]["uint8"].nbytes < table.rows[inputs[0]]["raw"].nbytes

    def test_no_time_left_leaves_tensors_out(self, digits):
        graph, _, images, _ = digits
        assert len(calibrate(graph, [images[:1]], codec_names=("raw", "int8"), budget_s=0.0).rows) == 1

    def test_bad_wishes(self, digits):
        graph, _, images, _ = digits
        with pytest.raises(UsageError, match="at least one sample"):
            calibrate(graph, [])
        with pytest.raises(UsageError, match="has no tensor 'nothing'"):
            calibrate(graph, [images[:1]], tensors=["nothing"])
        with pytest.raises(UsageError, match="3 labels for 1 samples"):
            calibrate(graph, [images[:1]], labels=[1, 2, 3])
        with pytest.raises(UsageError, match="no metric 'beauty'"):
            calibrate(graph, [images[:1]], metric="beauty")
        with pytest.raises(UsageError, match="a sample is a tensor"):
            calibrate(graph, ["image"])


def baseline(digits):
    _, model, images, labels = digits
    with torch.no_grad():
        return (model(images[:30]).argmax(-1) == torch.tensor(labels[:30])).float().mean().item()


def table_bytes(graph, tensor, image):
    """Bytes of one sample's frame: encoded by hand from the stage's own output."""
    from splitinfer.codecs.packet import Frame
    from splitinfer.stages import carve

    stage = carve(graph, halves(graph, tensor)[0])
    value = stage(graph.bind((image,), {})[0], {})[tensor]
    return Frame.encode(tensor, value, codecs.get("int8")).wire_nbytes


class TestMetrics:
    def test_against_plain_torch(self):
        torch.manual_seed(1)
        one, two = torch.randn(6, 4), torch.randn(6, 4)
        rows, references = [row[None] for row in one], [row[None] for row in two]
        moved = (one.argmax(1) != two.argmax(1)).float().mean().item()
        assert Score("top1", references).drop(rows) == pytest.approx(moved)
        p, q = two.softmax(1), one.softmax(1)
        assert Score("kl", references).drop(rows) == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-5)
        assert Score("auto", references).name == "top1"
        assert Score("auto", [torch.randn(1, 3, 8, 8)]).name == "relative"
        labels = two.argmax(1).tolist()
        assert Score("auto", references, labels).drop(rows) == pytest.approx(moved)
        assert Score("auto", references, [(label + 1) % 4 for label in labels]).drop(rows) == 0  # gains count as nothing

    def test_a_metric_of_ones_own(self):
        def apart(output, reference):
            return float((output - reference).abs().max())

        score = Score(apart, [torch.zeros(1, 2)])
        assert (score.name, score.drop([torch.tensor([[0.0, 3.0]])])) == ("apart", 3.0)


class TestPlans:
    def test_the_budget_is_kept_and_choice_is_joint(self, profiled, table):
        free = splitinfer.plan(profiled, SLOW, codecs=NAMES)
        limited = {"codecs": NAMES, "calibration": table}
        within = {budget: splitinfer.plan(profiled, SLOW, max_accuracy_drop=budget, **limited) for budget in (0.0, 0.02, 1.0)}
        for budget, made in within.items():
            losses = [table.drop(crossing.tensor, crossing.codec) for crossing in made.crossings]
            assert sum(losses) == pytest.approx(made.cost.error)
            assert made.cost.error <= budget + 1e-9
        assert within[0.0].cost.latency_s >= within[0.02].cost.latency_s >= within[1.0].cost.latency_s
        assert within[1.0].cost.latency_s == pytest.approx(free.cost.latency_s, rel=0.05)  # bytes: mean of samples, not of one

    def test_a_loss_that_the_sum_hides_is_repaired(self, digits, profiled, table):
        """The story: losses measured alone said that 2 bits cost nothing, and the whole plan lost a third of the answers."""
        graph, _, images, labels = digits
        innocent = replace(
            table, rows={tensor: {name: replace(cell, drop=0.0) for name, cell in row.items()} for tensor, row in table.rows.items()}
        )
        two_bits = "int2/block64+zstd"
        destroyed = {tensor: {**row, two_bits: replace(row[two_bits], nbytes=1.0)} for tensor, row in innocent.rows.items()}
        held_out = [image[None] for image in images[60:]]
        made = accurate_plan(
            graph, held_out, profiled, SLOW, replace(innocent, rows=destroyed), max_accuracy_drop=0.0, labels=labels[60:],
        )  # fmt: skip
        assert made.accuracy.measured <= 0.0
        assert made.accuracy.samples == 60
        pipeline = Pipeline.local(graph, made)
        split = torch.cat([pipeline(image) for image in held_out]).argmax(-1)
        with torch.no_grad():
            whole = digits[1](images[60:]).argmax(-1)
        truth = torch.tensor(labels[60:])
        assert (split == truth).sum() >= (whole == truth).sum()

    def test_raising_forbids_the_combination(self, table):
        tensor = next(iter(table.rows))
        pairs = [(tensor, "int8"), (tensor, "int2/block64+zstd")]
        raised = table.raised(pairs, 0.5)
        assert sum(raised.drop(*pair) for pair in pairs) >= 0.5 - 1e-12
        assert raised.rows[tensor]["raw"] == table.rows[tensor]["raw"]

    def test_unfitting_wishes(self, profiled, table):
        with pytest.raises(PlanError, match="needs a calibration"):
            splitinfer.plan(profiled, SLOW, max_accuracy_drop=0.1)
        with pytest.raises(PlanError, match="of another model"):
            splitinfer.plan(profiled, SLOW, calibration=replace(table, fingerprint="0" * 16), max_accuracy_drop=0.1)


class TestFiles:
    def test_round_trip(self, table):
        assert Calibration.from_json(table.to_json()) == table
        assert "median accuracy drop" in str(table)

    def test_odd_tables_print_too(self, table):
        """A codec that sends nothing divided by zero."""
        tensor, row = next(iter(table.rows.items()))
        nothing = replace(table, rows={tensor: {**row, "int8": replace(row["int8"], nbytes=0)}})
        for odd in (nothing, replace(table, rows={}), replace(table, rows={tensor: {}})):
            assert Calibration.from_json(odd.to_json()) == odd
            assert str(odd).startswith("DigitsCNN: ")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d.update(version=7), "not a calibration of version 1"),
            (lambda d: d.pop("rows"), "malformed calibration"),
            (lambda d: next(iter(d["rows"].values()))["int8"].update(drop=-1), r"int8\.drop' is -1; it must be zero or more"),
            (lambda d: next(iter(d["rows"].values()))["int8"].update(nbytes="1"), r"int8\.nbytes' is '1'; it must be a finite number"),
            (lambda d: next(iter(d["rows"].values()))["int8"].update(colour=1), "has an unknown key 'colour'"),
            (lambda d: d.update(lossless="raw"), "'lossless' is 'raw'; it must be a list"),
            (lambda d: d.update(samples="30"), "'samples' is '30'; it must be a whole number"),
            (lambda d: d.update(fingerprint=None), "'fingerprint' is None; it must be text"),
        ],
    )
    def test_malformed(self, table, change, message):
        data = json.loads(table.to_json())
        change(data)
        with pytest.raises(ProfileError, match=message):
            Calibration.from_json(json.dumps(data))


FACTORIES = '''
import torch
from splitinfer import demo

def model():
    torch.manual_seed(0)
    net, images, labels = demo.trained_digits(epochs=1)
    return net, (images[:1],), {}

def samples():
    torch.manual_seed(0)
    net, images, labels = demo.trained_digits(epochs=1)
    return [image[None] for image in images[:16]], labels[:16]
'''


def test_on_the_command_line(tmp_path, capsys):
    from splitinfer.cli import main

    factories, profile, table, plan = (tmp_path / name for name in ("factories.py", "profile.json", "calibration.json", "plan.json"))
    factories.write_text(FACTORIES)
    (tmp_path / "cluster.yaml").write_text(
        "version: 1\ntiers: [{name: device, compute: {factor: 50}}, {name: cloud, compute: measured}]\n"
        "links: [{between: [device, cloud], up: 160 kbps, latency: 1 ms}]\n"
    )
    model, samples = f"{factories}:model", f"{factories}:samples"
    assert main(["profile", model, "--codecs", "raw,int8,int4", "-o", str(profile)]) == 0
    assert main(["calibrate", model, "--samples", samples, "--profile", str(profile), "--codecs", "raw,int8,int4", "-o", str(table)]) == 0
    capsys.readouterr()
    assert main(["plan", model, "--profile", str(profile), "--topology", str(tmp_path / "cluster.yaml"), "--calibration", str(table),
                 "--max-accuracy-drop", "1%", "--samples", samples, "--json", "-o", str(plan)]) == 0  # fmt: skip
    printed = json.loads(capsys.readouterr().out)
    assert printed["accuracy"]["measured"] <= 0.01 == printed["accuracy"]["budget"]
    assert Plan.load(plan).accuracy.metric == "accuracy"
    assert main(["calibrate", model, "--samples", f"{factories}:nothing"]) == 2
    assert "has no factory 'nothing'" in capsys.readouterr().err


class TestBugs:
    """Each tells its story."""

    def test_an_answer_that_is_no_number_is_the_worst_answer(self):
        """NaN was left out of the error and won argmax for class 0: a plan that answered NaN kept every budget."""
        reference, broken = torch.tensor([[3.0, 1.0]]), torch.full((1, 2), float("nan"))
        for name in ("top1", "kl", "relative"):
            assert Score(name, [reference]).drop([broken]) >= 1
        assert Score("auto", [reference], [0]).drop([broken]) == 1

    def test_inputs_that_shadow_a_builtin(self):
        """fx renames 'input' to 'input_1' in a stage, and every nn.Sequential has one: KeyError."""
        torch.manual_seed(0)
        graph = splitinfer.capture(torch.nn.Sequential(torch.nn.Linear(4, 4)).eval(), (torch.randn(1, 4),))
        sample = torch.randn(1, 4)
        rows = calibrate(graph, [sample], codec_names=("raw", "int2"), metric="relative").rows
        (name,) = rows
        coded = codecs.get("int2").decode(codecs.get("int2").encode(sample))
        model = Pipeline.local(graph, Plan.by_hand(graph, [list(graph.layers)]))
        expected = (model(coded) - model(sample)).norm() / model(sample).norm()
        assert rows[name]["int2"].drop == pytest.approx(expected.item(), rel=1e-5)

    def test_budget_and_measurement_share_their_unit(self, digits, profiled, table):
        """A table in nats was checked against a share of answers."""
        graph, _, images, _ = digits
        with pytest.raises(UsageError, match="measured 'accuracy' and the budget would be checked by 'kl'"):
            accurate_plan(graph, [images[:1]], profiled, SLOW, table, max_accuracy_drop=0.1, metric="kl")

    def test_a_pair_without_a_row_is_not_raised(self, table):
        """Falling back to raw on a tensor that was not tried ended in a KeyError."""
        assert table.raised([("not tried", "raw")], 0.5) == table
