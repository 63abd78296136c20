"""Bottlenecks: accuracy and bytes on held-out digits, equality with plain torch, files, errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from splitinfer import Pipeline, capture, codecs, verify_split, zoo
from splitinfer.codecs.packet import Frame, Kind, Packet
from splitinfer.errors import CutError, InputError, PlanError, UsageError
from splitinfer.learn import Bottleneck, train_bottleneck
from splitinfer.learn.bottleneck import _Trainer
from splitinfer.plans import Plan
from splitinfer.verify import verify_all_cuts


def narrow_of(graph, bottleneck):
    (found,) = [tensor for tensor in graph.tensors.values() if tensor.producer == bottleneck.layers[0]]
    return found


def cut_in_it(graph, bottleneck, codec="raw"):
    order = list(graph.layers)
    place = order.index(bottleneck.layers[0]) + 1
    return Plan.by_hand(graph, [order[:place], order[place:]], codecs={narrow_of(graph, bottleneck).name: codec})


def as_modules(bottleneck, convolution):
    """Encoder and decoder as ordinary modules."""
    encode, decode = (
        nn.Conv2d(b, a, 1) if convolution else nn.Linear(b, a) for a, b in (bottleneck.encode_weight.shape, bottleneck.decode_weight.shape)
    )
    with torch.no_grad():
        for module, weight, bias in (
            (encode, bottleneck.encode_weight, bottleneck.encode_bias), (decode, bottleneck.decode_weight, bottleneck.decode_bias)
        ):  # fmt: skip
            module.weight.copy_(weight.reshape(module.weight.shape))
            module.bias.copy_(bias)
    return nn.Sequential(encode, decode, *([nn.ReLU()] if bottleneck.rectified else [])).eval()


def digits_with(model, bottleneck):
    """The digits CNN with the bottleneck behind its first pooling."""
    return nn.Sequential(*model.features[:7], as_modules(bottleneck, True), *model.features[7:], *model.classifier).eval()


class TestOnDigits:
    def test_a_quarter_of_the_channels_keeps_the_accuracy_and_cuts_the_bytes(self, digits, bottleneck):
        graph = bottleneck.apply(digits.graph)
        pipeline = Pipeline.local(graph, cut_in_it(graph, bottleneck, "int8"))
        answers = torch.cat([pipeline(image) for image in digits.held_out.split(1)]).argmax(1)
        right = [float((said == digits.labels).float().mean()) for said in (digits.whole, answers)]
        assert right[0] - right[1] <= 0.01
        assert float((answers == digits.whole).float().mean()) >= 0.98
        narrow, full = narrow_of(graph, bottleneck), digits.graph.tensors["max_pool2d"]
        assert narrow.sample_shape == (1, 16, 4, 4)
        assert narrow.nbytes * 4 == full.nbytes

    def test_the_packet_gets_smaller_accordingly(self, digits, bottleneck):
        graph = bottleneck.apply(digits.graph)
        order = list(digits.graph.layers)
        place = order.index("features.6") + 1
        without = Plan.by_hand(digits.graph, [order[:place], order[place:]], codecs={"max_pool2d": "int8"})
        sent = []
        for made, plan in ((graph, cut_in_it(graph, bottleneck, "int8")), (digits.graph, without)):
            pipeline = Pipeline.local(made, plan)
            requests = [pipeline.request((image,), {}).data for image in digits.held_out[:20].split(1)]
            packets = [Packet.unpack(pipeline.runners[0].run(data).onward) for data in requests]
            sent.append(sum(frame.nbytes for packet in packets for frame in packet.frames))
        assert sent[0] < 0.45 * sent[1]  # a ReLU's zeros compress, the narrow tensor has none; both carry headers

    def test_every_split_equals_the_model_with_the_modules_in_it(self, digits, bottleneck):
        graph, eager = bottleneck.apply(digits.graph), digits_with(digits.model, bottleneck)
        assert verify_all_cuts(graph, eager).exact
        verdict = verify_split(graph, eager, cut_in_it(graph, bottleneck))
        assert verdict.exact
        assert verdict.calls == 3  # batches of one, two and three

    def test_names_stay_and_weights_are_neither_moved_nor_marked(self, digits, bottleneck):
        graph = bottleneck.apply(digits.graph)
        added = [name for name in graph.layers if name not in digits.graph.layers]
        assert added == ["bottleneck.max_pool2d.encode", "bottleneck.max_pool2d.decode"]
        assert [name for name in graph.layers if name not in added] == list(digits.graph.layers)
        assert digits.graph.tensors.keys() < graph.tensors.keys()
        assert all(graph.weights[name] is weight for name, weight in digits.graph.weights.items())
        assert all(parameter.grad is None for parameter in digits.model.parameters())
        assert graph.fingerprint != digits.graph.fingerprint

    def test_training_helps_and_says_so(self, bottleneck):
        assert bottleneck.last_loss < bottleneck.first_loss
        assert str(bottleneck).startswith("bottleneck at 'max_pool2d': 64 -> 16 channels for int8, loss ")

    def test_labels_and_two_bottlenecks_in_a_row(self, digits, bottleneck):
        first = bottleneck.apply(digits.graph)
        second = train_bottleneck(first, "relu", digits.train[:100], 8, labels=digits.train_labels[:100], steps=3)
        both = second.apply(first)
        assert [name for name in both.layers if name.startswith("bottleneck")] == [*second.layers, *bottleneck.layers]
        order = list(both.layers)
        assert Pipeline.local(both, Plan.by_hand(both, [order[:4], order[4:10], order[10:]]))(digits.held_out[:5]).shape == (5, 10)


def test_at_the_input_of_a_static_graph():
    class Colours(nn.Module):
        def __init__(self):
            super().__init__()
            self.between, self.one, self.two = nn.Identity(), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, image, scale):
            seen = self.between(image)
            return {"map": self.two(torch.relu(self.one(seen))) * scale, "least": seen.amin()}

    torch.manual_seed(0)
    model = Colours().eval()
    samples = [(torch.rand(1, 3, 6, 6), torch.rand(1)) for _ in range(6)]
    graph = capture(model, samples[0])
    made = train_bottleneck(graph, "image", samples, 2, steps=3, batch=4)
    model.between = as_modules(made, True)
    applied = made.apply(graph)
    assert next(iter(applied.layers)) == made.layers[0]
    verdict = verify_split(applied, model, cut_in_it(applied, made), calls=[(sample, {}) for sample in samples])
    assert (verdict.exact, verdict.calls) == (True, 6)


def test_it_starts_from_principal_components(digits):
    made = train_bottleneck(digits.graph, "max_pool2d", digits.train[:200], 8, steps=0)
    with torch.no_grad():
        features = digits.model.features[:7](torch.cat(digits.train[:200]))
    rows = features.movedim(1, -1).reshape(-1, 64).double().numpy()
    mean = rows.mean(0)
    directions = np.linalg.svd(rows - mean, full_matrices=False)[2][:8]
    expected = np.maximum((rows - mean) @ directions.T @ directions + mean, 0)
    with torch.no_grad():
        restored = as_modules(made, True)(features).movedim(1, -1).reshape(-1, 64).numpy()
    assert np.allclose(restored, expected, atol=1e-4)


def test_equal_seeds_give_equal_weights(digits):
    one, two, other = (train_bottleneck(digits.graph, "relu_3", digits.train[:100], 4, steps=5, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.encode_weight, two.encode_weight)
    assert torch.equal(one.decode_bias, two.decode_bias)
    assert not torch.equal(one.encode_weight, other.encode_weight)


@pytest.mark.parametrize("shape", [(1, 16, 8, 8), (3, 40, 24)])
def test_the_noise_is_one_step_of_the_codec(shape):
    torch.manual_seed(0)
    values = torch.randn(shape) * torch.linspace(0.1, 5, shape[1]).reshape(1, -1, *[1] * (len(shape) - 2))
    trainer = _Trainer.__new__(_Trainer)
    trainer.bits, trainer.random = 8, torch.Generator().manual_seed(0)
    noise = torch.stack([trainer._rounding(values) for _ in range(200)])
    one_by_one = torch.stack([codecs.get("int8").decode(codecs.get("int8").encode(row[None]))[0] for row in values])
    largest, rounded = noise.abs().amax(0), (one_by_one - values).abs()
    channel = 1 if len(shape) == 4 else 2
    inner = [d for d in range(1, len(shape)) if d != channel]
    assert (rounded.amax(inner) <= largest.amax(inner) * 1.1).all()
    assert (largest.amax(inner) <= rounded.amax(inner) * 2).all()


class Tokens(nn.Module):
    """Sequences of any length, an integer input, three results."""

    def __init__(self):
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(50, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        self.between = nn.Identity()  # where a test puts the bottleneck
        self.head = nn.Linear(24, 5)

    def forward(self, tokens):
        x = self.embed(tokens)
        x = self.between(x + torch.tanh(self.first(x)))
        x = x + torch.tanh(self.second(x))
        return {"logits": self.head(x.mean(1)), "states": x, "unit": nn.functional.normalize(x[:, 0], dim=1), "index": x.sum(-1).argmax(1)}


class TestOnSequences:
    @pytest.fixture
    def tokens(self):
        torch.manual_seed(0)
        model = Tokens().eval()
        samples = [torch.randint(0, 50, (1, length)) for length in (6, 9) for _ in range(20)]
        batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=2)
        graph = capture(model, (torch.randint(0, 50, (2, 7)),), dynamic_shapes={"tokens": {0: batch, 1: length}})
        first, last = (name for name in graph.tensors if name.startswith("add"))
        return model, graph, samples, first, last

    def test_a_linear_bottleneck_with_dynamic_length_is_exact(self, tokens):
        model, graph, samples, first, _ = tokens
        made = train_bottleneck(graph, first, samples, 6, steps=20, batch=8)
        assert made.axis == -1
        assert made.last_loss < made.first_loss
        model.between = as_modules(made, False)
        applied = made.apply(graph)
        calls = [((sample,), {}) for sample in (samples[0], samples[-1], torch.cat(samples[:3]))]
        assert verify_split(applied, model, cut_in_it(applied, made), calls=calls).exact

    def test_what_it_cannot_do_is_said(self, tokens):
        _, graph, samples, first, last = tokens
        with pytest.raises(CutError, match=r"no tensor 'ad' between its layers; tensors like it"):
            train_bottleneck(graph, "ad", samples)
        with pytest.raises(CutError, match="'tokens' is int64; only a floating tensor"):
            train_bottleneck(graph, "tokens", samples)
        with pytest.raises(CutError, match=f"'{last}' is a result of Tokens"):
            train_bottleneck(graph, last, samples)
        with pytest.raises(CutError, match=rf"cannot narrow the 24 channels of '{first}' to 24; choose 1 to 23"):
            train_bottleneck(graph, first, samples, 24)
        with pytest.raises(CutError, match=f"'{first}' has 3 dimensions; a bottleneck takes axis 1 of maps"):
            train_bottleneck(graph, first, samples, axis=1)
        with pytest.raises(UsageError, match="no measure 'top1' to match by"):
            train_bottleneck(graph, first, samples, match="top1")
        with pytest.raises(InputError, match="learning needs samples"):
            train_bottleneck(graph, first, [])
        with pytest.raises(InputError, match="3 labels for 40 rows"):
            train_bottleneck(graph, first, samples, labels=[1, 2, 3])
        with pytest.raises(CutError, match="labels need a single result"):
            train_bottleneck(graph, first, samples, labels=[0] * 40)
        with pytest.raises(InputError, match=r"has dtype torch\.float32"):
            train_bottleneck(graph, first, [torch.zeros(1, 4)])


def test_a_dynamic_number_of_channels_and_a_stateful_model_are_refused():
    class Wide(nn.Module):
        def forward(self, x):
            return torch.relu(torch.relu(x) * 2).sum(1)

    varies = {"x": {1: torch.export.Dim("channels", min=2)}}
    graph = capture(Wide().eval(), (torch.rand(2, 6, 4, 4),), dynamic_shapes=varies, granularity="op")
    name = list(graph.tensors)[1]
    with pytest.raises(CutError, match=r"has s\d+ channels in dimension 1; a bottleneck needs a fixed number"):
        train_bottleneck(graph, name, [torch.rand(2, 6, 4, 4)])

    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            return self.two(self.one(x)) + self.calls

    graph = capture(Counts().eval(), (torch.rand(1, 4),))
    with pytest.raises(CutError, match="changes its own buffers when called"):
        train_bottleneck(graph, "linear", [torch.rand(1, 4)])


class TestFiles:
    def test_round_trip(self, digits, bottleneck, tmp_path):
        bottleneck.save(tmp_path / "b")
        loaded = Bottleneck.load(tmp_path / "b")
        assert str(loaded) == str(bottleneck)
        assert loaded.apply(digits.graph).fingerprint == bottleneck.apply(digits.graph).fingerprint
        for name in ("encode_weight", "encode_bias", "decode_weight", "decode_bias"):
            assert torch.equal(getattr(loaded, name), getattr(bottleneck, name))

    def test_other_graphs_and_other_weights_are_refused(self, digits, bottleneck):
        untrained = zoo.digits()[0]
        other = capture(untrained, (digits.held_out[:1],), dynamic_shapes="batch")
        assert other.fingerprint == digits.graph.fingerprint
        with pytest.raises(CutError, match="was learned for other weights of DigitsCNN"):
            bottleneck.apply(other)
        with pytest.raises(CutError, match="was learned for a graph"):
            bottleneck.apply(capture(untrained, (digits.held_out[:1],)))
        with pytest.raises(CutError, match="weights for 64 channels; 'relu' has 32"):
            replace(bottleneck, tensor="relu").apply(digits.graph)

    @pytest.mark.parametrize(
        "damage",
        [lambda data: data[:-1], lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], lambda data: b"", lambda data: b"PK" + data],
    )
    def test_damaged_files(self, bottleneck, tmp_path, damage):
        bottleneck.save(tmp_path / "b")
        (tmp_path / "b").write_bytes(damage((tmp_path / "b").read_bytes()))
        with pytest.raises(PlanError, match="is no bottleneck"):
            Bottleneck.load(tmp_path / "b")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"axis": 0}, "'axis' is 0"), ({"axis": "1"}, "'axis' is '1'"), ({"bits": True}, "'bits' is True"),
            ({"rectified": 1}, "'rectified' is 1"), ({"digest": None}, "'digest' is None"), ({"extra": 1}, "expected"),
            ({"part": "exit"}, "is no bottleneck"),
        ],
    )  # fmt: skip
    def test_hostile_facts(self, bottleneck, tmp_path, change, message):
        bottleneck.save(tmp_path / "b")
        packet = Packet.unpack((tmp_path / "b").read_bytes())
        (tmp_path / "b").write_bytes(replace(packet, meta={**packet.meta, **change}).pack())
        with pytest.raises(PlanError, match=message):
            Bottleneck.load(tmp_path / "b")

    def test_hostile_weights(self, bottleneck, tmp_path):
        bottleneck.save(tmp_path / "b")
        packet = Packet.unpack((tmp_path / "b").read_bytes())
        raw = codecs.get("raw")
        huge = bytearray(raw.encode(torch.zeros(4, 4)))
        huge[8:16] = (1 << 40).to_bytes(8, "little")  # declares far more than it holds
        for frame in (
            Frame.encode("encode_weight", torch.zeros(16, 65), raw), Frame.encode("encode_weight", torch.zeros(16, 64).double(), raw),
            Frame.encode("encode_weight", torch.zeros(16, 64), codecs.get("zstd")), Frame("encode_weight", "raw", (bytes(huge),)),
            Frame.encode("another", torch.zeros(16, 64), raw),
        ):  # fmt: skip
            (tmp_path / "b").write_bytes(replace(packet, frames=(frame, *packet.frames[1:])).pack())
            with pytest.raises(PlanError, match="malformed bottleneck"):
                Bottleneck.load(tmp_path / "b")

    def test_what_is_not_there_or_too_large(self, tmp_path):
        with pytest.raises(PlanError, match="cannot read the bottleneck"):
            Bottleneck.load(tmp_path / "none")
        with (tmp_path / "sparse").open("wb") as file:
            file.truncate((1 << 30) + 1)
        with pytest.raises(PlanError, match=r"holds 1,073,741,825 bytes; a bottleneck takes at most"):
            Bottleneck.load(tmp_path / "sparse")
        (tmp_path / "request").write_bytes(Packet(Kind.REQUEST, "a").pack())
        with pytest.raises(PlanError, match="is no bottleneck"):
            Bottleneck.load(tmp_path / "request")
