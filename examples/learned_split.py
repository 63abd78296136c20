"""Learned compression on scikit-learn's digits: what a bottleneck and early exits do for the best plan at 1 Mbps.

    python examples/learned_split.py

Two networks are trained here, the digits CNN and a small vision transformer, and planned over a device that must keep
the image to itself and cannot hold the whole network, and the cloud behind 1 Mbps. Four plans each: the best without
learning, with a bottleneck, with early exits, and with both. Accuracies, bytes and shares of answers that stay on the device
come from held-out images that ran one by one through the plan's stages; latencies are the plans' predictions, with --measure
beside requests through Ray actors over a throttled link.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tabulate import tabulate
from torch import Tensor, nn

import splitinfer
from cluster import LocalCluster, Topology
from splitinfer.learn import apply_exits, choose_thresholds, record_exits, train_bottleneck, train_exit

CODECS = ("raw", "zstd", "int8")
BUDGET = 0.01
"""Share of answers that may differ from the whole network's because of the exits."""
TOPOLOGY = """
version: 1
tiers:
  - {{name: device, compute: {{factor: 10}}, memory: {memory} kB}}
  - {{name: cloud, compute: measured}}
links:
  - {{between: [device, cloud], up: 1 Mbps, latency: 5 ms}}
"""
GAP_S = 0.05  # each measured request meets idle machines, as a latency is meant


class Block(nn.Module):
    """Attention and a perceptron, normalised before each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class TinyViT(nn.Module):
    """Sixteen patches of 2x2 pixels, four blocks of width 48."""

    def __init__(self, width: int = 48, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.places = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


@dataclass(frozen=True)
class Network:
    """What is trained, and where it may learn more."""

    make: Callable[[], nn.Module]
    epochs: int
    memory_kb: int
    """Of the device: less than the whole network takes."""
    kept: str
    """The layers up to this one stay on the device, and so does the image."""
    narrow: str
    """Layer behind which the bottleneck sits."""
    channels: int
    exits: tuple[str, ...]
    """Layers behind which the exits sit."""


NETWORKS = {
    "CNN": Network(splitinfer.zoo.DigitsCNN, 12, 160, "features.2", "features.6", 8, ("features.2", "features.6")),
    "ViT": Network(TinyViT, 60, 200, "blocks.0.add#2", "blocks.0.add#2", 12, ("blocks.0.add#2", "blocks.1.add#2")),
}


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 8, 8) in 0..1 and labels, in three parts: to train on, to record confidences on, held out."""

    train: Tensor
    record: Tensor
    held_out: Tensor
    train_labels: Tensor
    held_out_labels: Tensor


@dataclass(frozen=True)
class Row:
    """One plan's figures."""

    network: str
    plan: str
    split: str
    accuracy: float
    agreement: float
    """Share of answers equal to the whole network's."""
    stays: float
    """Share of answers that the device gave alone."""
    nbytes: float
    """Over the link, mean of all requests."""
    packet_nbytes: float
    """The same of the requests that sent something."""
    predicted_ms: float
    measured_ms: float | None = None


def digits() -> Digits:
    data = load_digits()
    images, labels = torch.tensor(data.images[:, None] / 16, dtype=torch.float32), torch.tensor(data.target)
    seen, held_out, seen_labels, held_out_labels = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    return Digits(seen[:1000], seen[1000:], held_out, seen_labels[:1000], held_out_labels)


def trained(network: Network, data: Digits) -> nn.Module:
    torch.manual_seed(0)
    model = network.make().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, network.epochs)
    for _ in range(network.epochs):
        for chosen in torch.randperm(len(data.train)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(data.train[chosen]), data.train_labels[chosen]).backward()
            optimiser.step()
        schedule.step()
    return model.eval()


def output_of(graph: splitinfer.Graph, layer: str) -> str:
    """The tensor that a layer gives to the next."""
    return next(tensor.name for tensor in graph.tensors.values() if tensor.producer == layer and tensor.consumers)


def with_times_of(first: splitinfer.Profile, second: splitinfer.Profile) -> splitinfer.Profile:
    """A profile with another's times wherever both have them: plans are compared by what they do, not by a drift of the machine."""
    merged = [
        replace(two, wake_s=one.wake_s, seconds={**two.seconds, **one.seconds}, codec_s={**two.codec_s, **one.codec_s})
        for one, two in zip(first.measurements, second.measurements, strict=True)
    ]
    return replace(second, measurements=tuple(merged), framework=first.framework)


Planned = dict[str, tuple[splitinfer.Graph, splitinfer.Plan]]


def plans(graph: splitinfer.Graph, network: Network, data: Digits, topology: Topology, cluster: LocalCluster | None) -> Planned:
    """The four plans, each with the graph that it is for."""
    wishes = {"codecs": CODECS, "keep_on_device": network.kept}

    def measured(of: splitinfer.Graph) -> splitinfer.Profile:
        where = {"topology": topology, "cluster": cluster} if cluster is not None else {}
        return splitinfer.profile(of, codec_names=CODECS, budget_s=3, **where)

    def with_exits(of: splitinfer.Graph) -> tuple[splitinfer.Graph, splitinfer.Plan]:
        heads = [train_exit(of, output_of(of, layer), train, hidden=32) for layer in network.exits]
        recorded = record_exits(of, heads, record)
        profile = with_times_of(first, measured(apply_exits(of, heads)))
        chosen = choose_thresholds(of, heads, recorded, profile, topology, max_drop=BUDGET, **wishes)
        return chosen.graph, chosen.plan

    first = measured(graph)
    train, record = data.train.split(1), data.record.split(1)
    narrow = train_bottleneck(graph, output_of(graph, network.narrow), train, network.channels).apply(graph)
    return {
        "no learning": (graph, splitinfer.plan(first, topology, **wishes)),
        "bottleneck": (narrow, splitinfer.plan(with_times_of(first, measured(narrow)), topology, **wishes)),
        "exits": with_exits(graph),
        "both": with_exits(narrow),
    }


def evaluated(name: str, made: Planned, model: nn.Module, data: Digits) -> list[Row]:
    """All held-out images, one by one through the stages of each plan."""
    with torch.no_grad():
        whole = model(data.held_out).argmax(1)
    accuracy = float((whole == data.held_out_labels).float().mean())
    rows = [Row(name, "whole network", "-", accuracy, 1.0, 0.0, 0.0, 0.0, float("nan"))]
    for label, (graph, plan) in made.items():
        pipeline = splitinfer.Pipeline.local(graph, plan)
        answers, traces = zip(*(pipeline.traced(image) for image in data.held_out.split(1)), strict=True)
        said = torch.cat(answers).argmax(1)
        sent = [trace.nbytes() for trace in traces]
        crossing = ", ".join(f"{c.producer} as {c.codec}" for c in plan.crossings) or "nothing crosses"
        rows.append(Row(
            name, label, crossing, float((said == data.held_out_labels).float().mean()), float((said == whole).float().mean()),
            sum(not n for n in sent) / len(sent), statistics.fmean(sent), statistics.fmean([n for n in sent if n] or [0]),
            plan.cost.latency_s * 1e3,
        ))  # fmt: skip
    return rows


def on_ray(made: Planned, topology: Topology, cluster: LocalCluster, images: Tensor) -> Mapping[str, float]:
    """Mean latency in seconds of requests through each plan's actors, in turn."""
    found: dict[str, list[float]] = {label: [] for label in made}
    with ExitStack() as stack:
        pipelines = {
            label: stack.enter_context(splitinfer.deploy(graph, plan, topology, cluster=cluster)) for label, (graph, plan) in made.items()
        }
        for number, image in enumerate([images[:1], images[:1], *images.split(1)]):
            for label, pipeline in pipelines.items():
                time.sleep(GAP_S)
                _, trace = pipeline.traced(image)
                if number > 1:  # the first two warm up
                    found[label].append(trace.total_s)
    return {label: statistics.fmean(seconds) for label, seconds in found.items()}


def draw(path: Path, rows: Sequence[Row]) -> None:
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row.network for row in rows))
    figure, panels = plt.subplots(1, len(names), figsize=(6 * len(names), 4.2), layout="constrained", squeeze=False)
    for axes, name in zip(panels[0], names, strict=True):
        own = [row for row in rows if row.network == name and row.plan != "whole network"]
        colours = ["#7f7f7f", "#1f77b4", "#ff7f0e", "#2ca02c"]
        axes.bar([row.plan for row in own], [row.predicted_ms for row in own], color=colours, width=0.62)
        for place, row in enumerate(own):
            text = f"{row.predicted_ms:.1f} ms predicted\n{row.nbytes:,.0f} bytes\n{row.stays:.0%} stay\n{row.accuracy:.1%} right"
            top = max(row.predicted_ms, row.measured_ms or 0)
            axes.annotate(text, (place, top), xytext=(0, 5), textcoords="offset points", ha="center", va="bottom", fontsize=8.5)
            if row.measured_ms is not None:
                axes.plot([place], [row.measured_ms], "k_", ms=26, mew=2, label="measured over Ray" if not place else None)
        whole = next(row for row in rows if row.network == name)
        axes.set_title(f"{name}, {whole.accuracy:.1%} right as a whole", loc="left")
        axes.set_ylim(0, 1.45 * max(row.predicted_ms for row in own))
        axes.set_ylabel("expected latency of one request at 1 Mbps, ms")
        axes.spines[["top", "right"]].set_visible(False)
        if any(row.measured_ms for row in own):
            axes.legend(frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)


def table(rows: Sequence[Row]) -> str:
    def ms(value: float | None) -> str:
        return "" if value is None or value != value else f"{value:.1f}"

    body = [
        [row.network, row.plan, row.split, f"{row.accuracy:.2%}", f"{row.agreement:.2%}", f"{row.stays:.1%}", f"{row.nbytes:,.0f}",
         f"{row.packet_nbytes:,.0f}", ms(row.predicted_ms), ms(row.measured_ms)]
        for row in rows
    ]  # fmt: skip
    head = ["network", "plan", "what crosses", "accuracy", "as whole", "stays on device", "bytes, mean", "bytes, if sent",
            "predicted ms", "measured ms"]  # fmt: skip
    return tabulate(body, head, disable_numparse=True, colalign=("left", "left", "left", *["right"] * 7))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="also send requests through Ray actors over a throttled link")
    parser.add_argument("--requests", type=int, default=90, help="with --measure, about so many for each plan (default 90)")
    parser.add_argument("--networks", default=",".join(NETWORKS), help=f"some of {', '.join(NETWORKS)} (default all)")
    parser.add_argument("--out", type=Path, default=Path("out/learned_split.png"), help="the picture")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(1)  # this process stands for the device
    data = digits()
    rows: list[Row] = []
    with ExitStack() as stack:
        cluster = stack.enter_context(LocalCluster(["device", "cloud"])) if options.measure else None
        for name in options.networks.split(","):
            network = NETWORKS[name]
            topology = Topology.loads(TOPOLOGY.format(memory=network.memory_kb))
            model = trained(network, data)
            graph = splitinfer.capture(model, (data.held_out[:1],), dynamic_shapes="batch")
            made = plans(graph, network, data, topology, cluster)
            found = evaluated(name, made, model, data)
            if cluster is not None:
                measured = on_ray(made, topology, cluster, data.held_out[:: max(1, len(data.held_out) // options.requests)])
                found = [Row(**asdict(row) | {"measured_ms": measured[row.plan] * 1e3 if row.plan in measured else None}) for row in found]
            rows += found
    draw(options.out, rows)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print(f"{table(rows)}\n\nwrote {options.out}")


if __name__ == "__main__":
    main()
