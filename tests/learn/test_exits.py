"""Early exits: heads against plain torch, what is served and what is not run, files, errors."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from cluster import LocalCluster, Topology
from splitinfer import Pipeline, capture, deploy, verify_split, zoo
from splitinfer.codecs.packet import Packet
from splitinfer.errors import CutError, PlanError, UsageError
from splitinfer.learn import ExitHead, apply_exits, record_exits, train_exit
from splitinfer.pipeline import whole
from splitinfer.plans import Plan
from splitinfer.sizes import sizes_at

NEVER = 2.0


def by_hand(head, features):
    """The head in plain torch: logits and the largest probability."""
    pooled = functional.adaptive_avg_pool2d(features, head.grid).flatten(1) if features.dim() == 4 else features
    inner = functional.linear(pooled, head.inner_weight, head.inner_bias).relu()
    logits = functional.linear(inner, head.outer_weight, head.outer_bias)
    return logits, logits.softmax(-1).amax(-1)


def outputs_of(graph, images):
    stage = whole(graph)
    tensors, dimensions = graph.bind((images,), {})
    return stage(tensors, sizes_at(graph, stage.sizes, dimensions))


def features_at(digits, name, images):
    with torch.no_grad():
        return digits.model.features[: {"relu": 3, "max_pool2d": 7, "max_pool2d_1": 11}[name]](images)


@pytest.fixture(scope="module")
def applied(digits, heads):
    return apply_exits(digits.graph, heads)


def split(applied, heads, thresholds, place="features.5"):
    """Two stages, cut behind a layer: the first head is inside the first stage, the second in the other."""
    order = list(applied.layers)
    at = order.index(place) + 1
    made = Plan.by_hand(applied, [order[:at], order[at:]], ["device", "cloud"])
    return replace(made, exits=tuple(head.planned(applied, threshold) for head, threshold in zip(heads, thresholds, strict=True)))


class TestServed:
    def test_answers_of_the_heads_are_those_of_plain_torch(self, digits, heads, applied):
        outputs = outputs_of(applied, digits.held_out)
        for head in heads:
            exit_ = head.planned(applied, 1.0)
            logits, sure = by_hand(head, features_at(digits, head.tensor, digits.held_out))
            assert torch.equal(outputs[exit_.answer], logits)
            assert torch.equal(outputs[exit_.confidence], sure)

    def test_no_exit_taken_is_the_model_bit_for_bit(self, digits, heads, applied):
        for plan in (split(applied, heads, [NEVER, NEVER]), replace(split(applied, heads, [NEVER, NEVER]), exits=())):
            verdict = verify_split(applied, digits.model, plan)
            assert verdict.exact
            _, trace = Pipeline.local(applied, plan).traced(digits.held_out[:1])
            assert (trace.exit, trace.degraded) == ("", False)

    def test_a_confident_answer_is_the_heads_own_and_the_rest_does_not_run(self, digits, heads, applied):
        pipeline = Pipeline.local(applied, split(applied, heads, [0.9, 0.9]))
        sure = by_hand(heads[0], features_at(digits, "relu", digits.held_out))[1] >= 0.9
        ran = {"behind the exit": 0, "cloud": 0}
        count = lambda key: lambda *_: ran.__setitem__(key, ran[key] + 1)  # noqa: E731
        assert [len(parts) for parts in pipeline.stages] == [2, 2]
        pipeline.stages[0][1][0].module.register_forward_hook(count("behind the exit"))
        pipeline.stages[1][0][0].module.register_forward_hook(count("cloud"))
        for image, confident in zip(digits.held_out.split(1), sure.tolist(), strict=True):
            before = dict(ran)
            answer, trace = pipeline.traced(image)
            if confident:
                assert (trace.exit, trace.degraded) == ("exit.relu", False)
                assert torch.equal(answer, by_hand(heads[0], features_at(digits, "relu", image))[0])
                assert ran == before
            else:
                assert trace.exit in ("exit.max_pool2d_1", "")
                assert ran == {key: value + 1 for key, value in before.items()}
        assert 0 < sure.sum() < len(sure)

    def test_nothing_is_sent_when_exiting(self, digits, heads, applied):
        pipeline = Pipeline.local(applied, split(applied, heads, [0.9, NEVER]))
        sent = [pipeline.runners[0].run(pipeline.request((image,), {}).data) for image in digits.held_out.split(1)]
        sure = by_hand(heads[0], features_at(digits, "relu", digits.held_out))[1] >= 0.9
        assert [step.onward is None for step in sent] == sure.tolist()
        for step in sent:
            if step.exit:
                assert [frame.name for frame in step.results] == ["linear_1"]
            else:
                assert not step.results
                assert [frame.name for frame in Packet.unpack(step.onward).frames] == ["relu_1"]  # neither answer nor confidence

    def test_the_recorded_reach_is_the_counted_share(self, digits, heads, applied):
        recorded = record_exits(digits.graph, heads, digits.held_out.split(1))
        for thresholds in ([0.8, 0.9], [0.99, 0.5], [None, 0.95], [0.6, None]):
            used = [head for head, threshold in zip(heads, thresholds, strict=True) if threshold is not None]
            graph = apply_exits(digits.graph, used)
            exits = tuple(head.planned(graph, t) for head, t in zip(heads, thresholds, strict=True) if t is not None)
            order = list(graph.layers)
            pipeline = Pipeline.local(graph, replace(Plan.by_hand(graph, [order[:8], order[8:]]), exits=exits))
            found = [pipeline.traced(image) for image in digits.held_out.split(1)]
            ended = [trace.exit for _, trace in found]
            names = [head.layer for head in heads]
            counted = [1 - sum(end in names[: place + 1] for end in ended) / len(ended) for place in range(2)]
            assert counted == pytest.approx(recorded.reach(thresholds), abs=1e-12)
            changed = (torch.cat([answer for answer, _ in found]).argmax(1) != digits.whole).float().mean()
            assert recorded.drop(thresholds) == pytest.approx(float(changed), abs=1e-7)

    def test_a_batch_exits_only_when_all_its_rows_are_confident(self, digits, heads, applied):
        pipeline = Pipeline.local(applied, split(applied, heads, [0.9, NEVER]))
        sure = by_hand(heads[0], features_at(digits, "relu", digits.held_out))[1] >= 0.9
        yes, no = digits.held_out[sure][:3], digits.held_out[~sure][:1]
        assert pipeline.traced(yes)[1].exit == "exit.relu"
        answer, trace = pipeline.traced(torch.cat([yes, no]))
        assert trace.exit == ""
        with torch.no_grad():
            assert torch.equal(answer, digits.model(torch.cat([yes, no])))

    def test_without_network_the_last_exit_on_the_device_answers(self, digits, heads, applied):
        pipeline = Pipeline.local(applied, split(applied, heads, [0.9, 0.9]))
        sure = by_hand(heads[0], features_at(digits, "relu", digits.held_out))[1] >= 0.9
        for image, confident in zip(digits.held_out[:60].split(1), sure.tolist(), strict=False):
            answer, trace = pipeline.degraded(image)
            assert torch.equal(answer, by_hand(heads[0], features_at(digits, "relu", image))[0])
            assert (trace.exit, trace.degraded) == ("exit.relu", not confident)
            assert trace.to_dict()["degraded"] is trace.degraded

    def test_of_two_exits_on_the_device_the_last_one_is_asked(self, digits, heads, applied):
        pipeline = Pipeline.local(applied, split(applied, heads, [NEVER, NEVER], place="classifier.0"))
        assert [len(parts) for parts in pipeline.stages] == [3, 1]
        answer, trace = pipeline.degraded(digits.held_out[:1])
        assert (trace.exit, trace.degraded) == ("exit.max_pool2d_1", True)
        assert torch.equal(answer, by_hand(heads[1], features_at(digits, "max_pool2d_1", digits.held_out[:1]))[0])

    def test_degraded_where_the_device_has_everything_or_nothing(self, digits, heads, applied):
        image = digits.held_out[:1]
        whole_here = Plan.by_hand(applied, [list(applied.layers)], ["device"])
        alone = Pipeline.local(applied, replace(whole_here, exits=split(applied, heads, [NEVER, NEVER]).exits))
        answer, trace = alone.degraded(image)
        with torch.no_grad():
            assert torch.equal(answer, digits.model(image))
        assert (trace.exit, trace.degraded) == ("", False)
        second = replace(split(applied, heads, [NEVER, NEVER], place="features.0"), exits=(heads[1].planned(applied, 0.5),))
        later = Pipeline.local(applied, second)
        with pytest.raises(PlanError, match="without network 'device' can give no answer: the plan has no early exit there"):
            later.degraded(image)

    def test_with_a_bottleneck(self, digits, bottleneck):
        narrow = bottleneck.apply(digits.graph)
        head = train_exit(narrow, "bottleneck_max_pool2d_encode", digits.train[:300], steps=60)
        both = apply_exits(narrow, [head])
        order = list(both.layers)
        at = order.index("bottleneck.max_pool2d.decode")
        assert order[at - 1] == head.layer
        made = Plan.by_hand(both, [order[:at], order[at:]], codecs={"bottleneck_max_pool2d_encode": "int8"})
        pipeline = Pipeline.local(both, replace(made, exits=(head.planned(both, 0.9),)))
        ends = [pipeline.traced(image)[1].exit for image in digits.held_out[:80].split(1)]
        assert set(ends) == {head.layer, ""}


class TestTraining:
    def test_it_learns_the_models_answers(self, heads):
        for head in heads:
            assert head.last_loss < 0.1 * head.first_loss
            assert str(head).startswith(f"exit at '{head.tensor}': ")

    def test_equal_seeds_give_equal_heads(self, digits):
        one, two, other = (train_exit(digits.graph, "relu_2", digits.train[:80], steps=5, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(one.outer_weight, two.outer_weight)
        assert not torch.equal(one.outer_weight, other.outer_weight)

    def test_entropy_and_labels(self, digits):
        head = train_exit(digits.graph, "relu", digits.train[:200], digits.train_labels[:200], confidence="entropy", hidden=8, steps=20)
        applied = apply_exits(digits.graph, [head])
        exit_ = head.planned(applied, 0.5)
        outputs = outputs_of(applied, digits.held_out)
        probabilities = outputs[exit_.answer].double().softmax(-1)
        expected = 1 + (probabilities * probabilities.log()).sum(-1) / torch.tensor(10.0).log()
        assert torch.allclose(outputs[exit_.confidence].double(), expected, atol=1e-5)
        with pytest.raises(UsageError, match="no confidence 'margin'; choose one of softmax, entropy"):
            train_exit(digits.graph, "relu", digits.train[:2], confidence="margin")

    def test_sequences_and_a_static_graph(self):
        class Reader(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.mix, self.head = nn.Embedding(20, 12), nn.Linear(12, 12), nn.Linear(12, 3)

            def forward(self, tokens):
                x = self.embed(tokens)
                return self.head(torch.tanh(self.mix(x)).mean(1))

        torch.manual_seed(0)
        model, samples = Reader().eval(), [torch.randint(0, 20, (1, 5)) for _ in range(30)]
        graph = capture(model, (samples[0],))
        head = train_exit(graph, "embedding", samples, steps=10, hidden=4)
        applied = apply_exits(graph, [head])
        order = list(applied.layers)
        assert verify_split(applied, model, Plan.by_hand(applied, [order[:2], order[2:]])).exact
        answer = outputs_of(applied, samples[0])[head.planned(applied, 1).answer]
        with torch.no_grad():
            pooled = model.embed(samples[0]).mean(1)
        assert torch.allclose(answer, by_hand(head, pooled)[0])


class TestRefused:
    def test_models_whose_answer_a_head_cannot_give(self):
        model, args, _ = zoo.two_inputs_tied()
        graph = capture(model, args)
        with pytest.raises(CutError, match=r"returns 3 tensors .*; an early exit stands for a single one"):
            train_exit(graph, "relu", [args])

    def test_tensors_that_are_passed_by(self):
        class Skip(nn.Module):
            def __init__(self):
                super().__init__()
                self.one, self.two, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

            def forward(self, x):
                a = self.one(x)
                return self.head(a + torch.relu(self.two(a)))

        graph = capture(Skip().eval(), (torch.rand(1, 6),))
        with pytest.raises(CutError, match="an exit at 'linear_1' is not possible: 'linear' passes it by"):
            train_exit(graph, "linear_1", [torch.rand(1, 6)])
        with pytest.raises(CutError, match="'x' is the model's input"):
            train_exit(graph, "x", [torch.rand(1, 6)])

    def test_two_heads_of_one_layer_and_heads_of_other_graphs(self, digits, heads):
        with pytest.raises(CutError, match="two exits read tensors of one layer"):
            apply_exits(digits.graph, [heads[0], heads[0]])
        with pytest.raises(CutError, match="the exit at 'relu' was learned for a graph"):
            apply_exits(apply_exits(digits.graph, heads[1:]), heads[:1])
        with pytest.raises(CutError, match="features, which it does not have"):
            apply_exits(digits.graph, [replace(heads[0], grid=1)])
        with pytest.raises(CutError, match="apply the exit to it first"):
            heads[0].planned(digits.graph, 1.0)

    def test_a_plan_whose_exits_the_graph_does_not_have(self, digits, heads, applied):
        plan = split(applied, heads, [0.9, 0.9])
        bare = Plan.by_hand(digits.graph, [list(digits.graph.layers)])
        with pytest.raises(PlanError, match=r"DigitsCNN does not make 'exit_relu_answer' of the plan's exit 'exit\.relu'; apply"):
            Pipeline.local(digits.graph, replace(bare, exits=plan.exits))
        with pytest.raises(PlanError, match=r"stands for 'logits' alone; DigitsCNN returns \['linear_1'\]"):
            Pipeline.local(applied, replace(plan, exits=(replace(plan.exits[0], output="logits"),)))

    def test_plans_with_exits_as_files(self, applied, heads):
        plan = split(applied, heads, [0.9, 0.95])
        assert Plan.from_json(plan.to_json()) == plan
        with pytest.raises(PlanError, match=r"'exits\[0\]' has an unknown key 'treshold'"):
            Plan.from_json(plan.to_json().replace('"threshold"', '"treshold"'))


class TestFiles:
    def test_round_trip(self, digits, heads, tmp_path):
        heads[0].save(tmp_path / "h")
        loaded = ExitHead.load(tmp_path / "h")
        assert str(loaded) == str(heads[0])
        assert torch.equal(loaded.inner_weight, heads[0].inner_weight)
        assert apply_exits(digits.graph, [loaded]).fingerprint == apply_exits(digits.graph, heads[:1]).fingerprint

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"grid": 999}, "grid 999"), ({"confidence": "margin"}, "confidence 'margin'"), ({"output": 3}, "'output' is 3"),
            ({"part": "bottleneck"}, "is no exit"),
        ],
    )  # fmt: skip
    def test_hostile_files(self, heads, tmp_path, change, message):
        heads[0].save(tmp_path / "h")
        packet = Packet.unpack((tmp_path / "h").read_bytes())
        (tmp_path / "h").write_bytes(replace(packet, meta={**packet.meta, **change}).pack())
        with pytest.raises(PlanError, match=message):
            ExitHead.load(tmp_path / "h")
        (tmp_path / "h").write_bytes(replace(packet, frames=(*packet.frames[:3], replace(packet.frames[1], name="outer_bias"))).pack())
        with pytest.raises(PlanError, match="malformed exit"):
            ExitHead.load(tmp_path / "h")


@pytest.mark.slow
def test_on_ray_a_confident_answer_crosses_no_link(digits, heads, applied):
    topology = Topology.loads("""
version: 1
tiers: [{name: device, compute: measured}, {name: edge, compute: measured}, {name: cloud, compute: measured}]
links:
  - {between: [device, edge], up: 10 Mbps, latency: 5 ms}
  - {between: [edge, cloud], up: 10 Mbps, latency: 5 ms}
""")
    order = list(applied.layers)
    made = Plan.by_hand(applied, [order[:6], order[6:14], order[14:]], ["device", "edge", "cloud"])
    plan = replace(made, exits=tuple(head.planned(applied, 0.95) for head in heads))
    local = Pipeline.local(applied, plan)
    links = {"exit.relu": 0, "exit.max_pool2d_1": 1, "": 2}
    seen = set()
    with LocalCluster(["device", "edge", "cloud"]) as cluster, deploy(applied, plan, topology, cluster=cluster) as pipeline:
        held = [sum(part.weight_nbytes for within in parts for part in within) for parts in local.stages]
        assert [stage["weight_nbytes"] for stage in pipeline.info()] == held
        for image in digits.held_out.split(1):
            expected, traced = local.traced(image)
            if traced.exit in seen and len(seen) < 3:
                continue  # until one of each kind has been through
            answer, trace = pipeline.traced(image)
            assert torch.equal(answer, expected)
            assert (trace.exit, trace.nbytes("wire")) == (traced.exit, pytest.approx(traced.nbytes("wire"), abs=40 * links[traced.exit]))
            for kind in ("wire", "return"):
                assert len([span for span in trace.spans if span.kind == kind]) == links[trace.exit]
            seen.add(trace.exit)
            if len(seen) == 3:
                break
    assert seen == set(links)
