"""Split equals whole for every family of the zoo, at every number of stages, static and with dynamic batch."""

import pytest

from splitinfer import capture, zoo
from splitinfer.flops import layer_flops
from splitinfer.plans import Plan
from splitinfer.stagefile import dump_stage, load_stage
from splitinfer.stages import carve
from splitinfer.verify import balanced_stages, compare, fresh_calls, verify_split

QUICK = (zoo.lstm, zoo.two_inputs_tied, zoo.t5, zoo.llama)


def check(family, dynamic, counts):
    model, args, kwargs = family()
    graph = capture(model, args, kwargs, dynamic)
    flops = layer_flops(graph)
    for count in counts:
        stages = balanced_stages(graph, count, flops)
        assert len(stages) == count
        assert all(sum(flops[name] for name in stage) > 0 for stage in stages), "a trivial stage"
        verdict = verify_split(graph, model, Plan.by_hand(graph, stages), fresh=1)
        assert verdict.exact, f"{count} stages: {verdict}"


@pytest.mark.parametrize("family", QUICK, ids=lambda f: f.__name__)
def test_three_and_six_stages(family):
    check(family, "batch", (3, 6))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, "batch"], ids=["static", "dynamic"])
@pytest.mark.parametrize("family", [f for f in zoo.FAMILIES if f is not zoo.digits], ids=lambda f: f.__name__)
def test_every_number_of_stages(family, dynamic):
    check(family, dynamic, range(2, 7))


@pytest.mark.parametrize("family", [zoo.two_inputs_tied, zoo.gpt2, zoo.lstm, zoo.mobilenet_v2], ids=lambda f: f.__name__)
def test_a_stage_file_brings_back_the_same_stage(family):
    model, args, kwargs = family()
    graph = capture(model, args, kwargs, "batch")
    half = list(graph.layers)[: len(graph.layers) // 2]
    stage = carve(graph, half)
    loaded = load_stage(dump_stage(stage))
    tensors, dimensions = graph.bind(*graph.example)
    from splitinfer.sizes import sizes_at

    sizes = sizes_at(graph, stage.sizes, dimensions)
    one, two = stage(tensors, sizes), loaded(tensors, sizes)
    assert compare(list(one.values()), list(two.values())) == (0.0, True)
    assert loaded.weight_nbytes == stage.weight_nbytes
    assert loaded.layers == stage.layers


def test_flops_of_known_layers():
    model, args, _ = zoo.digits()
    flops = layer_flops(capture(model, args))
    assert flops["features.0"] == 2 * 64 * 32 * 9  # 8x8 positions, 32 channels from 1, 3x3
    assert flops["features.3"] == 2 * 64 * 64 * 32 * 9
    assert flops["classifier.1"] == 2 * 256 * 64
    assert flops["features.2"] == 0


def test_flops_of_attention_and_recurrence_are_not_zero():
    model, args, kwargs = zoo.gpt2()
    attention = {n: f for n, f in layer_flops(capture(model, args, kwargs)).items() if n.endswith("scaled_dot_product_attention")}
    assert set(attention.values()) == {2 * 2 * 4 * 24 * 24 * 32}  # QK and AV: 4 heads, 24 x 24, 32 wide
    model, args, _ = zoo.lstm()
    recurrent = layer_flops(capture(model, args))["layers.0"]
    assert recurrent == 2 * 20 * (4 * 48) * (48 + 48)


def test_fresh_inputs_draw_integers_from_the_sample():
    model, args, _ = zoo.two_inputs_tied()
    graph = capture(model, args, dynamic_shapes="batch")
    for call, _ in fresh_calls(graph, 3):
        assert set(call[1].flatten().tolist()) <= set(args[1].flatten().tolist())
        assert call[0].shape[0] == call[1].shape[0]
