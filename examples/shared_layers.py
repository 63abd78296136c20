"""One layer on several machines: three vertical splits, planned, run on Ray beside the whole model, and drawn.

    python examples/shared_layers.py [phones|llama|hybrid] [--no-measure] [--out DIR]

phones   the convolutions of VGG-16 by rows over four unequal phones, one of which has the picture
llama    a block of the Llama family on two machines: attention by heads, aligned to its key-value groups, then the MLP by columns
hybrid   MobileNetV2: rows of its first layers on two devices, the rest in the cloud

All machines are emulated on this computer: their links are paced, and slower ones stretch their work. With only two cores at hand
the four phones' own work takes turns, so what is measured there is longer than predicted. Writes out/tiles_<name>.png.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import splitinfer
from cluster.launch import LocalCluster
from cluster.topology import Topology
from splitinfer import zoo
from splitinfer.parts import divided
from splitinfer.shards.picture import draw_tiles

PHONES = """
version: 2
tiers:
  - name: phone
    compute: {factor: 6}
    peers:
      - {name: newer, compute: {factor: 4}, up: 200 Mbps, latency: 2 ms}
      - {name: older, compute: {factor: 9}, up: 100 Mbps, latency: 2 ms}
      - {name: oldest, compute: {factor: 12}, up: 50 Mbps, latency: 3 ms}
"""

TWO = """
version: 2
tiers:
  - name: left
    compute: {factor: 4}
    peers:
      - {name: right, compute: {factor: 4}, up: 1000 Mbps, latency: 0.2 ms}
"""

HYBRID = """
version: 2
tiers:
  - name: camera
    compute: {factor: 8}
    peers:
      - {name: neighbour, compute: {factor: 8}, up: 400 Mbps, latency: 1 ms}
  - {name: cloud, compute: {factor: 1}}
links:
  - {between: [camera, cloud], up: 6 Mbps, down: 20 Mbps, latency: 10 ms}
"""

Sample = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def phones() -> Sample:
    """VGG-16 without its classifier."""
    model, _, _ = zoo.vgg16()
    return model.features, (torch.rand(1, 3, 224, 224),), {}


def llama() -> Sample:
    """A block as wide as that of a model of one billion weights, on 96 tokens: 16 query heads in 4 groups."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=1, num_attention_heads=16, num_key_value_heads=4, vocab_size=1000
    )
    tokens = torch.randint(0, 1000, (1, 96), generator=torch.Generator().manual_seed(0))
    return LlamaModel(config).eval(), (), {"input_ids": tokens, "use_cache": False}


def hybrid() -> Sample:
    """MobileNetV2 on a photograph."""
    from splitinfer.demo import calibrate_batch_norm, photographs

    model, _, _ = zoo.mobilenet_v2()
    photos = photographs()
    calibrate_batch_norm(model, photos)
    return model, (), {"pixel_values": photos[:1]}


SCENES = {"phones": (phones, PHONES, ("raw",)), "llama": (llama, TWO, ("raw",)), "hybrid": (hybrid, HYBRID, ("raw", "zstd", "int8"))}


def main() -> None:
    """Show the scenes asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenes", nargs="*", choices=[*SCENES, []], default=list(SCENES))
    parser.add_argument("--no-measure", action="store_true", help="no requests through Ray")
    parser.add_argument("--requests", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.scenes:
        show(name, options)


def show(name: str, options: argparse.Namespace) -> None:
    """Plan, compare, draw and measure one scene."""
    factory, text, codecs = SCENES[name]
    (model, args, kwargs), topology = factory(), Topology.loads(text)
    graph = splitinfer.capture(model, args, kwargs)
    with LocalCluster([tier.name for tier in topology.tiers]) as cluster:
        profile = splitinfer.profile(graph, topology, cluster=cluster, codec_names=codecs)
        plan = splitinfer.plan(profile, topology, codecs=codecs)
        print(f"\n=== {name}\n\n{plan}")
        whole = pytree.tree_leaves(model(*args, **kwargs))[0]
        shared = pytree.tree_leaves(splitinfer.Pipeline.local(graph, plan)(*args, **kwargs))[0]
        print(f"largest difference from the whole model: {_apart(whole, shared):.1e} of its largest value")
        if not options.no_measure:
            with splitinfer.deploy(graph, plan, topology, cluster=cluster) as pipeline:
                traces = [pipeline.traced(*args, **kwargs)[1] for _ in range(options.requests + 2)][2:]
            assert plan.cost is not None  # every plan of the planner has one
            measured = statistics.median(trace.total_s for trace in traces)
            print(f"predicted {plan.cost.latency_s * 1e3:.1f} ms, measured {measured * 1e3:.1f} ms (median of {len(traces)} requests)")
    rows = next((block for stage in plan.stages for block in stage.blocks if block.axis == "rows"), None)
    if rows is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"tiles_{name}.png"
        draw_tiles(divided(graph, rows), path)
        print(f"tiles drawn in {path}")


def _apart(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one.detach() - two.detach()).abs().max() / one.detach().abs().max())


if __name__ == "__main__":
    main()
