"""Divided equals whole for the families of the zoo, at 2 to 5 workers with uneven shares, odd sizes and dynamic batches."""

import itertools
import json
import random

import pytest
import torch
from division import TOLERANCE, error, run_part
from torch import nn

from splitinfer import capture, zoo
from splitinfer.cli import main
from splitinfer.errors import ShardError
from splitinfer.flops import layer_flops
from splitinfer.shards import divide, dump_program, load_program, plan_blocks, run_local, units
from splitinfer.shards.flops import shard_flops
from splitinfer.shards.picture import draw_tiles
from splitinfer.shards.verdict import verify_shards
from splitinfer.sizes import sizes_at

QUICK = (zoo.vgg16_small, zoo.inception, zoo.llama, zoo.gpt2, zoo.digits)
SLOW = (zoo.resnet18, zoo.resnet50, zoo.mobilenet_v2, zoo.vit, zoo.bert, zoo.whisper, zoo.t5, zoo.lstm, zoo.two_inputs_tied)
AXES = ("auto", "rows", "channels", "heads")


def shares_of(count, seed):
    chosen = random.Random(seed)
    return [chosen.randint(1, 9) for _ in range(count)]


def odd(family):
    """The family on images of 65 x 47 where it takes any, with batch norms that let the signal through."""
    model, args, kwargs = family()
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.weight.abs().max() < 0.5:  # else a deep one would compare zeros
            nn.init.uniform_(module.weight, 0.8, 1.6, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.2, generator=generator)
    if family in (zoo.inception, zoo.resnet18, zoo.resnet50, zoo.mobilenet_v2):
        image = torch.rand(1, 3, 65, 47, generator=torch.Generator().manual_seed(3))
        return model, (image,) if args else (), {"pixel_values": image} if kwargs else {}
    return model, args, kwargs


@pytest.mark.parametrize("family", QUICK, ids=lambda f: f.__name__)
def test_three_workers(family):
    model, args, kwargs = odd(family)
    graph = capture(model, args, kwargs, "batch")
    verdict = verify_shards(graph, model, [5, 3, 2], fresh=1)
    assert verdict.close, str(verdict)
    assert verdict.sharded_layers > len(graph.layers) // 2


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, "batch"], ids=["static", "dynamic"])
@pytest.mark.parametrize("family", QUICK + SLOW, ids=lambda f: f.__name__)
def test_every_axis_and_number_of_workers(family, dynamic):
    model, args, kwargs = odd(family)
    graph = capture(model, args, kwargs, dynamic)
    for axis, count in itertools.product(AXES, range(2, 6)):
        if not plan_blocks(graph, axis).blocks:
            continue
        shares = shares_of(count, f"{family.__name__} {axis} {count}")
        verdict = verify_shards(graph, model, shares, axis, fresh=1)
        assert verdict.close, f"{axis}, {shares}: {verdict}"


@pytest.mark.slow
@pytest.mark.parametrize("family", [zoo.resnet18, zoo.mobilenet_v2, zoo.vgg16_small, zoo.inception], ids=lambda f: f.__name__)
def test_halos_exchanged_behind_random_layers(family):
    model, args, kwargs = odd(family)
    graph = capture(model, args, kwargs, "batch")
    layers = plan_blocks(graph, "rows").blocks[0].layers
    tensors, dimensions = graph.bind(*graph.example)
    expected = run_part(graph, layers, tensors, dimensions)
    for count in range(2, 6):
        after = random.Random(count).sample(layers, len(layers) // 3)
        block = divide(graph, layers, "rows", shares_of(count, count), exchange_after=after)
        got = run_local(block, tensors, sizes_at(graph, block.sizes, dimensions))
        assert error(list(expected.values()), [got[name] for name in expected]) <= TOLERANCE


def test_programs_travel():
    """As plain values and stage files, through JSON, and run the same."""
    for family, axis in ((zoo.llama, "heads"), (zoo.inception, "rows")):
        model, args, kwargs = family()
        graph = capture(model, args, kwargs, "batch")
        part = list(plan_blocks(graph, axis).blocks[0].layers)[:30]
        block = divide(graph, part, axis, [3, 2, 5], exchange_after=part[::7] if axis == "rows" else ())
        layers, dimensions = list(graph.layers), graph.bind(*graph.example)[1]
        tensors = graph.bind(*graph.example)[0]
        if part[0] != layers[0]:
            tensors |= run_part(graph, layers[: layers.index(part[0])], tensors, dimensions)
        loaded = {}
        for worker, program in block.programs.items():
            meta, stages = dump_program(program)
            loaded[worker] = load_program(json.loads(json.dumps(meta)), stages)
            assert loaded[worker].weight_nbytes == program.weight_nbytes
        sizes = sizes_at(graph, block.sizes, dimensions)
        before = run_local(block, tensors, sizes)
        object.__setattr__(block, "programs", loaded)
        after = run_local(block, tensors, sizes)
        assert all(torch.equal(before[name], after[name]) for name in block.outputs)
        with pytest.raises(ShardError, match="stage files"):
            load_program(meta, stages[1:])


def test_a_worker_that_hears_nothing_says_so():
    graph = capture(nn.Linear(4, 6).eval(), (torch.randn(2, 4),))
    block = divide(graph, graph.layers, "channels", [1, 1])
    running = block.programs[0].run(graph.bind(*graph.example)[0], {})
    next(running)
    with pytest.raises(ShardError, match="worker 0 waits for 'linear' of worker 1"):
        running.send({})


def test_dynamic_batches():
    model, args, kwargs = zoo.inception()
    graph = capture(model, args, kwargs, "batch")
    layers = plan_blocks(graph, "rows").blocks[0].layers
    block = divide(graph, layers, "rows", [1, 2])
    for batch in (1, 2, 5):
        images = torch.rand(batch, 3, 75, 75, generator=torch.Generator().manual_seed(batch))
        tensors, dimensions = graph.bind((images,), {})
        got = run_local(block, tensors, sizes_at(graph, block.sizes, dimensions))
        expected = run_part(graph, layers, tensors, dimensions)
        assert error(list(expected.values()), [got[name] for name in expected]) <= TOLERANCE


def test_reasons_name_the_operator():
    model, args, kwargs = zoo.inception()
    plan = plan_blocks(capture(model, args, kwargs), "rows")
    assert plan.whole_layers["mean"] == "mean: it reduces over all rows"
    assert [block.axis for block in plan.blocks] == ["rows"]
    model, args, kwargs = zoo.lstm()
    plan = plan_blocks(capture(model, args, kwargs))
    assert all("lstm" in plan.whole_layers[f"layers.{place}"] for place in range(6))
    with pytest.raises(ShardError, match="no axis 'depth'"):
        plan_blocks(capture(model, args, kwargs), "depth")


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.two(torch.relu(self.one(x))) + self.calls


def test_what_changes_a_buffer_stays_whole():
    model = Counting().eval()
    graph = capture(model, (torch.randn(2, 4),))
    verdict = verify_shards(graph, model, [1, 1])
    assert verdict.close
    assert any("buffer" in why for why in verdict.whole_layers.values())
    with pytest.raises(ShardError, match="buffer"):
        divide(graph, graph.layers, "channels", [1, 1])


def test_a_block_must_be_convex():
    model, args, kwargs = zoo.digits()
    graph = capture(model, args, kwargs)
    with pytest.raises(ShardError, match="lies between"):
        divide(graph, ["features.0", "features.3"], "channels", [1, 1])


class Modules(nn.Sequential):
    """Nine modules of two 3x3 convolutions and a pooling at a third and two thirds."""

    def __init__(self):
        layers, wide = [], 8
        for place in range(9):
            layers += [nn.Conv2d(wide if place else 3, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU()]
        super().__init__(*layers)


def test_halos_cost_what_the_rows_say():
    """FLOPs against the rows counted by hand: tile t of a chain of 18 convolutions has one more row of halo per layer behind."""
    graph = capture(Modules().eval(), (torch.randn(1, 3, 48, 16),))
    whole = sum(layer_flops(graph).values())
    rows = {2: [(0, 24), (24, 48)], 3: [(0, 16), (16, 32), (32, 48)]}
    for count, tiles in rows.items():
        block = divide(graph, graph.layers, "rows", [1] * count)
        per_layer = [2 * 16 * 9 * 8 * (3 if place == 0 else 8) for place in range(18)]
        expected = {
            worker: sum(flops * (min(48, stop + 17 - place) - max(0, start - 17 + place)) for place, flops in enumerate(per_layer))
            for worker, (start, stop) in enumerate(tiles)
        }
        assert shard_flops(graph, block) == expected
        assert sum(expected.values()) > whole
        every = divide(graph, graph.layers, "rows", [1] * count, exchange_after=list(graph.layers)[:-1])
        assert sum(shard_flops(graph, every).values()) == whole, "exchanged halos are computed once"


def test_a_picture_of_tiles(tmp_path):
    pytest.importorskip("matplotlib")
    model, args, kwargs = zoo.vgg16_small()
    graph = capture(model, args, kwargs)
    layers = list(graph.layers)[:10]
    draw_tiles(divide(graph, layers, "rows", [4, 2, 1]), tmp_path / "tiles.png")
    assert (tmp_path / "tiles.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ShardError, match="tiles are of rows"):
        draw_tiles(divide(graph, layers, "channels", [4, 2, 1]), tmp_path / "no.png")
    assert units(graph, layers, "rows").count == 16


def test_the_command(capsys):
    assert main(["verify", "splitinfer.zoo:digits", "--workers", "3", "--shares", "5,3,2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["max_relative_difference"] <= TOLERANCE
    assert said["sharded_layers"] == 14
    assert set(said["whole_layers"]) == {"classifier.0"}
    assert main(["verify", "splitinfer.zoo:digits", "--workers", "2", "--axis", "channels"]) == 0
    assert "divided by" in capsys.readouterr().out
    for wrong in (["--shares", "1,2"], ["--axis", "rows"], ["--workers", "2", "--shares", "1,2,3"], ["--workers", "2", "--axis", "heads"]):
        assert main(["verify", "splitinfer.zoo:digits", *wrong]) != 0
