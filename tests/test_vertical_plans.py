"""Plans that share layers with peers: the ways of layers against the layers themselves, and whole plans against the model."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.utils import _pytree as pytree

import splitinfer as si
from cluster.topology import Topology
from splitinfer import zoo
from splitinfer.errors import PlanError
from splitinfer.parts import carved, weight_nbytes
from splitinfer.plans import Plan
from splitinfer.profiles import Profile
from splitinfer.shards.ways import ways
from splitinfer.stages import carve


def topology(rate: str = "1000 Mbps", memory: str = "", cloud: bool = True) -> Topology:
    limit = f", memory: {memory}" if memory else ""
    tier = "  - {name: cloud, compute: {factor: 1}}\n" if cloud else ""
    link = "links:\n  - {between: [phone, cloud], up: 2 Mbps, down: 8 Mbps, latency: 5 ms}\n" if cloud else ""
    return Topology.loads(
        f"version: 2\ntiers:\n  - name: phone\n    compute: {{factor: 20}}\n{f'    memory: {memory}' if memory else ''}\n    peers:\n"
        f"      - {{name: tablet, compute: {{factor: 10}}, up: {rate}, latency: 1 us{limit}}}\n"
        f"      - {{name: watch, compute: {{factor: 40}}, up: {rate}, latency: 1 us{limit}}}\n{tier}{link}"
    )


@pytest.fixture(scope="module")
def measured() -> dict[str, tuple[torch.nn.Module, si.Graph, Profile]]:
    found = {}
    for name in ("vgg16_small", "llama", "mobilenet_v2"):
        model, args, kwargs = getattr(zoo, name)()
        graph = si.capture(model, args, kwargs)
        found[name] = model, graph, si.profile(graph, codec_names=["raw", "int8"], repeats=1, budget_s=1.0)
    return found


@pytest.mark.parametrize("name", ["vgg16_small", "inception", "resnet18"])
def test_rows_that_a_layer_does_not_need_may_be_anything(name: str) -> None:
    """Kernel, stride and padding name exactly the input rows that some output rows depend on."""
    graph = si.capture(*zoo.__dict__[name]())
    checked = 0
    for layer, (way, *_) in ways(graph).items():
        stage = carve(graph, (layer,))
        if way.axis != "rows" or len(stage.inputs) != 1 or len(stage.outputs) != 1:
            continue
        shape = [size if isinstance(size, int) else 1 for size in graph.tensors[stage.inputs[0]].shape]
        rows = way.input_units or way.units
        assert shape[2] == rows
        generator = torch.Generator().manual_seed(checked)
        plain = torch.rand(shape, generator=generator)
        start, stop = way.units // 3, way.units // 3 + 1 + way.units // 4
        low = max(0, start * way.stride - way.padding)
        high = min(rows, (stop - 1) * way.stride - way.padding + way.kernel)
        other = torch.rand(shape, generator=generator) * 1000
        other[:, :, low:high] = plain[:, :, low:high]
        (one,), (two,) = (stage({stage.inputs[0]: x}, {}).values() for x in (plain, other))
        assert one.shape[2] == way.units
        assert torch.equal(one[:, :, start:stop], two[:, :, start:stop]), (layer, way)
        if way.kernel > 1 and high - low < rows:  # and no row too many
            for edge in (low, high - 1):
                other = plain.clone()
                other[:, :, edge] += 1000.0
                (three,) = stage({stage.inputs[0]: other}, {}).values()
                assert not torch.equal(one[:, :, start:stop], three[:, :, start:stop]), (layer, way, edge)
        checked += 1
    assert checked > 8


@pytest.mark.parametrize(("name", "axis"), [("vgg16_small", "rows"), ("llama", "heads"), ("mobilenet_v2", "rows")])
def test_a_plan_that_shares_layers_answers_as_the_model_does(measured: dict, name: str, axis: str) -> None:
    model, graph, profile = measured[name]
    plan = si.plan(profile, topology(cloud=name == "vgg16_small"), codecs=("raw",))
    blocks = [block for stage in plan.stages for block in stage.blocks]
    assert axis in {block.axis for block in blocks}, str(plan)
    assert Plan.from_json(plan.to_json()) == plan
    args, kwargs = graph.example
    pairs = zip(
        pytree.tree_leaves(model(*args, **kwargs)), pytree.tree_leaves(si.Pipeline.local(graph, plan)(*args, **kwargs)), strict=True
    )
    assert all((one - two).abs().max() <= 1e-5 * one.abs().max() for one, two in pairs if isinstance(one, torch.Tensor))
    text = str(plan)
    assert "no vertical split" in text
    assert "A vertical split helps" in text


def test_slower_links_end_the_sharing_and_no_choice_is_worse_than_none(measured: dict) -> None:
    _, _, profile = measured["llama"]
    costs, shared = [], []
    for rate in ("10 Gbps", "100 Mbps", "1 Mbps", "10 kbps"):
        plan = si.plan(profile, topology(rate, cloud=False), codecs=("raw",))
        alone = si.plan(profile, topology(rate, cloud=False), codecs=("raw",), vertical=False)
        assert plan.cost is not None
        assert alone.cost is not None
        assert plan.cost.latency_s <= alone.cost.latency_s * (1 + 1e-9)
        costs.append(plan.cost.latency_s)
        shared.append(sum(len(block.layers) for stage in plan.stages for block in stage.blocks))
    assert all(one <= two * (1 + 1e-9) for one, two in pairwise(costs))
    assert shared[0] > 0
    assert shared[-1] == 0


def test_what_no_machine_can_hold_alone_is_made_to_fit(measured: dict) -> None:
    _, graph, profile = measured["llama"]
    whole = sum(layer.weight_nbytes for layer in profile.layers)
    limit = 6 * whole // 10
    small = topology("100 Mbps", memory=f"{limit} B", cloud=False)
    with pytest.raises(PlanError, match="no plan fits"):
        si.plan(profile, small, codecs=("raw",), vertical=False)
    plan = si.plan(profile, small, codecs=("raw",))
    parts = carved(graph, plan)[0]
    held = [weight_nbytes(parts, worker) for worker in range(3)]
    assert max(held) <= limit
    assert sum(held) >= whole


def test_layers_that_must_stay_on_the_device_are_not_given_to_its_peers(measured: dict) -> None:
    _, _, profile = measured["vgg16_small"]
    plan = si.plan(profile, topology(cloud=False), codecs=("raw",), keep_on_device=5)
    kept = {layer.name for layer in profile.layers[:5]}
    assert any(stage.blocks for stage in plan.stages)
    assert not kept & {layer for stage in plan.stages for block in stage.blocks for layer in block.layers}


def test_profiles_without_ways_share_nothing(measured: dict) -> None:
    _, _, profile = measured["llama"]
    plan = si.plan(replace(profile, layouts={}), topology(cloud=False), codecs=("raw",))
    assert not any(stage.blocks for stage in plan.stages)
    assert Profile.from_json(profile.to_json()).layouts == profile.layouts
