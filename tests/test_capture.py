"""nn.Module -> Graph: names, cuts, refusals; the split model equals the eager one bit for bit."""

import copy

import networkx as nx
import odd_models
import pytest
import torch
from odd_models import made
from torch import nn

from splitinfer import capture, zoo
from splitinfer.errors import CaptureError, CutError, InputError
from splitinfer.pipeline import Pipeline
from splitinfer.plans import INPUT, Plan
from splitinfer.stages import carve
from splitinfer.verify import compare, verify_all_cuts, verify_split


def leaves(result):
    return torch.utils._pytree.tree_leaves(result)


def every_cut_is_exact(model, *args, dynamic=None, **kwargs):
    graph = capture(model, args, kwargs, dynamic)
    verdict = verify_all_cuts(graph, model)
    assert verdict.exact, verdict
    assert verdict.calls == sum(cut.possible for cut in graph.cuts())
    return graph


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(5))


class TestEveryCutEqualsEager:
    def test_digits(self):
        model, args, _ = zoo.digits()
        every_cut_is_exact(model, *args)

    def test_two_inputs_three_outputs_tied(self):
        model, args, _ = zoo.two_inputs_tied()
        graph = every_cut_is_exact(model, *args)
        assert len(graph.input_tensors) == 2
        assert sum(tensor.returned for tensor in graph.tensors.values()) == 3

    def test_lstm_with_dynamic_batch(self):
        model, args, _ = zoo.lstm()
        every_cut_is_exact(model, *args, dynamic="batch")

    @pytest.mark.parametrize("family", [zoo.gpt2, zoo.t5, zoo.bert], ids=lambda f: f.__name__)
    def test_transformers(self, family):
        model, args, kwargs = family()
        every_cut_is_exact(model, *args, **kwargs)

    def test_writing_in_place_through_views(self):
        every_cut_is_exact(made(odd_models.InPlaceThroughViews), torch.randn(2, 3, 8, 8))

    def test_control_flow_operator(self):
        model = made(odd_models.Branching)
        graph = every_cut_is_exact(model, X)
        pipeline = Pipeline.local(graph, Plan.by_hand(graph, [list(graph.layers)]))
        for x in (X.abs() * 5, -X.abs() * 5):  # both branches
            assert torch.equal(pipeline(x), model(x))

    def test_gru_and_its_state(self):
        every_cut_is_exact(made(odd_models.Recurrent), torch.randn(2, 5, 8))

    def test_complex_activations(self):
        every_cut_is_exact(made(odd_models.Spectral), torch.randn(2, 3, 16))

    def test_slices_with_gaps_keep_their_strides(self):
        every_cut_is_exact(made(odd_models.SlicedAttention), torch.randn(2, 7, 32))

    def test_torch_transformer_encoder(self):
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        torch.manual_seed(0)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
        x = torch.randn(2, 5, 16)
        graph = capture(model, (x,))
        fused = verify_split(graph, model, Plan.by_hand(graph, [list(graph.layers)]))
        assert not fused.exact
        assert fused.max_abs_difference < 1e-5
        assert "set_fastpath_enabled(False)" in fused.note
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            every_cut_is_exact(model, x)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)

    def test_channels_last_weights(self):
        model = made(odd_models.InPlaceThroughViews).to(memory_format=torch.channels_last)
        every_cut_is_exact(model, torch.randn(2, 3, 9, 7).to(memory_format=torch.channels_last))

    def test_double_precision(self):
        model, (x,), _ = zoo.digits()
        every_cut_is_exact(model.double(), x.double())

    def test_bfloat16(self):
        model, (x,), _ = zoo.digits()
        every_cut_is_exact(model.bfloat16(), x.bfloat16())


class TestStructure:
    def test_layers_have_the_users_names(self):
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        assert list(graph.layers) == [f"features.{i}" for i in range(11)] + [f"classifier.{i}" for i in range(4)]

    def test_second_call_of_a_module_is_numbered_and_functions_named(self):
        model, _, kwargs = zoo.resnet18()
        names = list(capture(model, (), kwargs).layers)
        assert "resnet.encoder.stages.0.layers.0.layer.0.convolution" in names
        assert "resnet.encoder.stages.0.layers.0.add" in names

    def test_operators_on_request(self):
        model, args, _ = zoo.two_inputs_tied()
        coarse, fine = capture(model, args), capture(model, args, granularity="op")
        assert len(fine.layers) > len(coarse.layers)
        assert "mix.0.linear" in fine.layers
        assert sorted(fine.layer_of) == sorted(coarse.layer_of)
        assert verify_all_cuts(fine, model).exact

    def test_the_dag_is_acyclic_and_carries_every_tensor(self):
        model, _, kwargs = zoo.resnet18()
        graph = capture(model, (), kwargs)
        assert nx.is_directed_acyclic_graph(graph.dag)
        on_edges = {name for _, _, names in graph.dag.edges(data="tensors") for name in names}
        assert on_edges == {tensor.name for tensor in graph.tensors.values() if tensor.consumers}
        assert list(graph.dag.successors(INPUT)) == ["resnet.embedder.embedder.convolution"]

    def test_tensor_bytes_are_those_of_real_activations(self):
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        first = carve(graph, ["features.0"])
        (name, value), = first({"images": args[0]}, {}).items()
        assert graph.tensors[name].nbytes == value.nbytes
        assert graph.tensors[name].shape == tuple(value.shape)

    def test_dynamic_dimensions_are_symbols(self):
        model, args, _ = zoo.digits()
        graph = capture(model, args, dynamic_shapes="batch")
        assert all(isinstance(tensor.shape[0], str) for tensor in graph.tensors.values())
        assert graph.tensors["images"].sample_shape == (1, 1, 8, 8)

    def test_fingerprint_names_structure_not_weights(self):
        one, args, _ = zoo.digits()
        torch.manual_seed(99)
        other = zoo.DigitsCNN().eval()
        assert capture(one, args).fingerprint == capture(other, args).fingerprint
        assert capture(one, (torch.cat([args[0], args[0]]),)).fingerprint != capture(one, args).fingerprint

    def test_tied_weights_are_held_once_in_a_stage(self):
        model, args, _ = zoo.two_inputs_tied()
        graph = capture(model, args)
        held = sum(parameter.nbytes for parameter in model.parameters()) + sum(buffer.nbytes for buffer in model.buffers())
        assert carve(graph, graph.layers).weight_nbytes == held == graph.weight_nbytes

    def test_a_stage_owns_only_its_own_weights(self):
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        assert carve(graph, ["features.0", "features.1"]).weight_nbytes == sum(
            tensor.nbytes for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items()
            if name.startswith(("features.0.", "features.1.")) and "num_batches" not in name
        )

    def test_sequence_length_may_vary_too(self):
        model, _, kwargs = zoo.gpt2()
        batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=2, max=512)
        wide = {name: torch.cat([tokens, tokens]) for name, tokens in kwargs.items()}
        graph = capture(model, (), wide, {"input_ids": {0: batch, 1: length}})
        stages = [list(graph.layers)[:20], list(graph.layers)[20:]]
        calls = [((), {"input_ids": torch.randint(0, 1000, shape)}) for shape in ((1, 3), (2, 24), (5, 17))]
        assert verify_split(graph, model, Plan.by_hand(graph, stages), calls=calls).exact


class TestCuts:
    def test_a_cut_names_what_crosses(self):
        model, args, _ = zoo.two_inputs_tied()
        graph = capture(model, args)
        cut = graph.cut_after("image.0")
        assert set(cut.tensors) == {"conv2d", "tokens"}  # the second input is still needed
        assert cut.nbytes == sum(graph.tensors[name].nbytes for name in cut.tensors)

    def test_unknown_layer_suggests_near_ones(self):
        model, args, _ = zoo.digits()
        with pytest.raises(CutError, match=r"no cut after 'block.3'.*features.3"):
            capture(model, args).cut_after("block.3")

    def test_backward_flow_is_refused_by_name(self):
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        order = list(graph.layers)
        with pytest.raises(CutError, match="data flows forward only"):
            graph.check_stages([order[5:], order[:5]])

    def test_missing_and_doubled_layers(self):
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        order = list(graph.layers)
        with pytest.raises(CutError, match=r"2 of 15 layers are in no stage, the first is 'classifier.2'"):
            graph.check_stages([order[:13]])
        with pytest.raises(CutError, match=r"'features.0' is in stage 0 and in stage 1"):
            graph.check_stages([order, ["features.0"]])

    def test_what_depends_on_data_crosses_as_a_tensor(self):
        model = made(odd_models.DataDependentSize)
        graph = capture(model, (X,))
        assert verify_all_cuts(graph, model).exact
        for x in (X.abs(), -X.abs(), X * 0):
            order = list(graph.layers)
            pipeline = Pipeline.local(graph, Plan.by_hand(graph, [order[:1], order[1:]]))
            assert torch.equal(pipeline(x), model(x))


class TestState:
    def test_a_changing_buffer_stays_in_one_stage_and_says_why(self):
        model = made(odd_models.Feedback)
        graph = capture(model, (X,))
        order = list(graph.layers)
        blocked = [order.index(cut.after) + 1 for cut in graph.cuts() if not cut.possible]
        assert graph.stateful
        assert blocked
        with pytest.raises(CutError, match="buffer 'memory' changes at every call and lives in one stage"):
            graph.cut_after(order[blocked[0] - 1])
        for place in range(1, len(order)):
            if place in blocked:
                with pytest.raises(CutError, match="must stay together"):
                    Plan.by_hand(graph, [order[:place], order[place:]])
            else:
                calls = [((X * step,), {}) for step in range(4)]
                assert verify_split(graph, model, Plan.by_hand(graph, [order[:place], order[place:]]), calls=calls).exact

    def test_calls_add_up_as_in_the_eager_module(self):
        model = made(odd_models.Counter)
        graph = capture(model, (X,))
        eager = copy.deepcopy(model)
        order = list(graph.layers)
        place = next(index for index, cut in enumerate(graph.cuts()) if cut.possible) + 1
        pipeline = Pipeline.local(graph, Plan.by_hand(graph, [order[:place], order[place:]]))
        for step in range(4):
            assert torch.equal(pipeline(X * step), eager(X * step)), f"call {step}"

    def test_the_users_own_buffers_are_left_alone(self):
        model = made(odd_models.Counter)
        graph = capture(model, (X,))
        Pipeline.local(graph, Plan.by_hand(graph, [list(graph.layers)]))(X)
        assert model.calls.item() == 0

    def test_a_stateless_model_has_no_state(self):
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        assert not graph.stateful
        assert graph.together == ()


class TestRefusals:
    def test_training_mode_by_name(self):
        model, args, _ = zoo.digits()
        model.features[4].train()
        with pytest.raises(CaptureError, match=r"training mode \(features.4\); call model.eval\(\)"):
            capture(model, args)

    def test_random_operator_by_module_name(self):
        with pytest.raises(CaptureError, match=r"'blocks.noise' uses the random operator aten.randn_like"):
            capture(made(odd_models.Noisy), (X,))

    def test_dropout_that_ignores_eval(self):
        class Forgets(nn.Module):
            def forward(self, x):
                return nn.functional.dropout(x, 0.5)

        with pytest.raises(CaptureError, match="random operator"):
            capture(Forgets().eval(), (X,))

    def test_control_flow_on_data_names_module_and_remedy(self):
        with pytest.raises(CaptureError, match=r"(?s)module 'inner.1' cannot be captured.*torch.cond"):
            capture(made(odd_models.DataDependentFlow), (X,))

    def test_writing_to_an_input(self):
        with pytest.raises(CaptureError, match="writes to its input 'x'"):
            capture(made(odd_models.WritesInput), (X,))

    def test_a_sample_the_model_does_not_take(self):
        model, _, _ = zoo.digits()
        with pytest.raises(CaptureError, match=r"does not take its own sample.*features.0"):
            capture(model, (torch.zeros(1, 3, 8, 8),))

    def test_unknown_word_for_dynamic_shapes(self):
        model, args, _ = zoo.digits()
        with pytest.raises(CaptureError, match=r"'batch' or what torch\.export takes"):
            capture(model, args, dynamic_shapes="everything")


class TestCalls:
    @pytest.fixture
    def graph(self):
        return capture(made(odd_models.PassesThrough), (X, 2), {"mask": X > 0, "extra": None})

    def test_structure_constants_and_inputs_come_back(self, graph):
        model = made(odd_models.PassesThrough)
        order = list(graph.layers)
        pipeline = Pipeline.local(graph, Plan.by_hand(graph, [order[:1], order[1:]]))
        got, expected = pipeline(X, 2, mask=X > 0, extra=None), model(X, 2, mask=X > 0, extra=None)
        assert got.keys() == expected.keys()
        assert isinstance(got["y"][1], tuple)
        assert got["rows"] == 3
        assert got["none"] is None
        assert compare(leaves(expected), leaves(got)) == (0.0, True)

    def test_keyword_order_does_not_matter(self, graph):
        pipeline = Pipeline.local(graph, Plan.by_hand(graph, [list(graph.layers)]))
        assert torch.equal(pipeline(X, 2, extra=None, mask=X > 0)["y"][0], pipeline(X, 2, mask=X > 0, extra=None)["y"][0])

    @pytest.mark.parametrize(
        ("args", "kwargs", "message"),
        [
            ((X, 3), {"mask": X > 0, "extra": None}, r"args\[1\] was fixed to 2 at capture; got 3"),
            ((X, 2), {"mask": X > 0}, "keyword arguments"),
            ((X.double(), 2), {"mask": X > 0, "extra": None}, r"args\[0\] has dtype torch.float64; .* torch.float32"),
            ((X[:, :3], 2), {"mask": X > 0, "extra": None}, "size 3 in dimension 1; the model was captured with 4"),
            ((X[0], 2), {"mask": X > 0, "extra": None}, "has 1 dimensions; the model was captured with 2"),
            ((X, 2), {"mask": None, "extra": None}, r"structure|must be a tensor"),
            (("x", 2), {"mask": X > 0, "extra": None}, "must be a tensor; got str"),
        ],
    )
    def test_a_call_that_does_not_fit(self, graph, args, kwargs, message):
        with pytest.raises(InputError, match=message):
            graph.bind(args, kwargs)

    def test_dynamic_sizes_must_agree(self):
        model, args, _ = zoo.two_inputs_tied()
        graph = capture(model, args, dynamic_shapes="batch")
        pixels, tokens = args
        with pytest.raises(InputError, match=r"another input has 2 there"):
            graph.bind((torch.cat([pixels] * 2), torch.cat([tokens] * 3)), {})

    def test_results_are_the_callers_to_change(self, graph):
        pipeline = Pipeline.local(graph, Plan.by_hand(graph, [list(graph.layers)]))
        got = pipeline(X, 2, mask=X > 0, extra=None)["y"][0]
        got += 1
        assert torch.equal(got - 1, pipeline(X, 2, mask=X > 0, extra=None)["y"][0] + 1 - 1)
