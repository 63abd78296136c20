"""Layers shared by two machines against one, on two single-threaded processes of this machine: predicted and measured.

    python benchmarks/vertical.py [--section speed|predicted|crossovers|memory] [--rounds 15] [--json]

speed       VGG-16's convolutional part by rows, and a BERT layer by heads and channels at several lengths, the links not paced; the
            ways take turns. The BERT layer's limit is T1 / (T1 / 2 + exchange): half the work and what its messages took.
predicted   the planner's own plans of both over paced links of 1000, 100 and 20 Mbps, predicted beside measured.
crossovers  the planner's choice against each fixed layout, over links of 1e5 to 1e9 bytes per second; no machine is measured.
memory      bytes of weights that each machine was promised, and by how much its process grew.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from tabulate import tabulate
from torch import nn

import splitinfer as si
from cluster.launch import LocalCluster
from cluster.topology import Topology
from splitinfer import zoo
from splitinfer.plans import Plan, PlannedBlock
from splitinfer.runtime.measure import wait_for_calm
from splitinfer.shards import apportion, units

_LENGTHS = (32, 64, 128, 256, 384)


def main() -> None:
    """Run the sections asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--section", choices=("speed", "predicted", "crossovers", "memory"), action="append")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="folder for the picture of the crossovers")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, Any]]] = {}
    for section in options.section or ("speed", "predicted", "crossovers", "memory"):
        found[section] = SECTIONS[section](options)
        if not options.json:
            print(f"\n{section}\n\n{tabulate([_shown(row) for row in found[section]], 'keys', disable_numparse=True)}")
    if options.json:
        print(json.dumps(found))


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: _text(name, value) for name, value in row.items()}


def _text(name: str, value: Any) -> str:
    if name.endswith("_s") and isinstance(value, float):
        return f"{value * 1e3:.1f} ms"
    return f"{value:,.3g}" if isinstance(value, float) else str(value)


# -- what is measured


def convolutions() -> si.Graph:
    """VGG-16 without its classifier."""
    model, _, _ = zoo.vgg16()
    return si.capture(model.features, (torch.randn(1, 3, 224, 224),))


def bert_layer(length: int) -> si.Graph:
    """One layer of BERT-base: 768 wide, 12 heads, 3072 in the MLP."""
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = BertLayer(BertConfig(attn_implementation="sdpa"))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made = self.layer(x)
            return made[0] if isinstance(made, tuple) else made

    return si.capture(Layer().eval(), (torch.randn(1, length, 768),))


def _topology(bytes_per_s: float, latency_s: float = 0.0, peers: int = 1) -> Topology:
    many = "".join(
        f"      - {{name: b{i}, compute: {{factor: 1}}, up: {bytes_per_s} B/s, latency: {latency_s} s}}\n" for i in range(peers)
    )
    return Topology.loads(f"version: 2\ntiers:\n  - name: a\n    compute: {{factor: 1}}\n    peers:\n{many}")


def shared(graph: si.Graph, axis: str, shares: Sequence[int], exchange_after: Sequence[str] = ()) -> Plan:
    """The whole graph as one block; rows are shared out anew behind each exchange."""
    layers = tuple(graph.layers)
    block = PlannedBlock(
        layers, axis, apportion(units(graph, layers, axis), shares), ("a", "b0"), {name: tuple(shares) for name in exchange_after}
    )
    return _in_one(graph, block)


def _in_one(graph: si.Graph, *blocks: PlannedBlock) -> Plan:
    plan = Plan.by_hand(graph, [list(graph.layers)], ["a"])
    return replace(plan, stages=(replace(plan.stages[0], blocks=blocks),))


def _poolings(graph: si.Graph) -> list[str]:
    return [name for name, layer in graph.layers.items() if any("max_pool" in str(graph.nodes[op].target) for op in layer.ops)]


def _measured(graph: si.Graph, plans: Mapping[str, Plan], topology: Topology, rounds: int, *, paced: bool) -> dict[str, dict[str, float]]:
    """Median seconds of computing and exchanging of the stage, by plan; the plans take turns."""
    traces: dict[str, list[si.Trace]] = {name: [] for name in plans}
    args, kwargs = graph.example
    with LocalCluster(["a"]) as cluster, ExitStack() as stack:
        pipes = {name: stack.enter_context(si.deploy(graph, plan, topology, cluster=cluster, paced=paced)) for name, plan in plans.items()}
        wait_for_calm()
        for _ in range(rounds + 3):
            for name, pipe in pipes.items():
                traces[name].append(pipe.traced(*args, **kwargs)[1])
    kinds = ("compute", "exchange")
    found = {}
    for name, each in traces.items():
        medians = {kind: statistics.median(trace.seconds(kind) for trace in each[3:]) for kind in kinds}
        both = statistics.median(sum(trace.seconds(kind) for kind in kinds) for trace in each[3:])
        found[name] = medians | {"both": both, "total": statistics.median(trace.total_s for trace in each[3:])}
    return found


# -- sections


def speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One machine against two."""
    graph = convolutions()
    plans = {"one": Plan.by_hand(graph, [list(graph.layers)], ["a"]), "two": shared(graph, "rows", (1, 1), _poolings(graph)[:-1])}
    rows = [_speed_row("VGG-16 convolutions", _measured(graph, plans, _topology(1e12), options.rounds, paced=False))]
    for length in _LENGTHS:
        graph = bert_layer(length)
        plans = {"one": Plan.by_hand(graph, [list(graph.layers)], ["a"]), "two": shared(graph, "heads", (1, 1))}
        rows.append(_speed_row(f"BERT layer, {length} tokens", _measured(graph, plans, _topology(1e12), options.rounds, paced=False)))
    return rows


def _speed_row(name: str, found: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    one, two = found["one"]["both"], found["two"]
    limit = one / (one / 2 + two["exchange"])
    times = one / two["both"]
    return {
        "model": name, "one_s": one, "two_s": two["both"], "of it exchange_s": two["exchange"], "times faster": times, "limit": limit,
        "of the limit": times / limit,
    }  # fmt: skip


def predicted(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The planner's plans over paced links."""
    rows = []
    for name, graph in (("VGG-16 convolutions", convolutions()), ("BERT layer, 128 tokens", bert_layer(128))):
        for mbps in (1000, 100, 20):
            topology = _topology(mbps * 125e3, 0.001)
            with LocalCluster(["a"]) as cluster:
                profile = si.profile(graph, topology, cluster=cluster, codec_names=["raw"])
            chosen = si.plan(profile, topology, codecs=("raw",))
            found = _measured(graph, {"chosen": chosen}, topology, options.rounds, paced=True)["chosen"]
            cost = chosen.cost
            assert cost is not None
            blocks = [f"{block.axis} {'+'.join(map(str, block.shares))}" for stage in chosen.stages for block in stage.blocks]
            plain = {each.name: each.cost for each in chosen.baselines}.get("no vertical split") or cost
            rows.append({
                "model": name, "Mbps": mbps, "blocks": "; ".join(blocks) or "none", "predicted_s": cost.latency_s,
                "measured_s": found["total"], "error": cost.latency_s / found["total"] - 1, "without blocks, predicted_s": plain.latency_s,
            })  # fmt: skip
    return rows


def crossovers(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The choice against each fixed layout, predicted."""
    import partitioners as p
    from splitinfer.planner import problems

    rows = []
    for name, graph in (("VGG-16 convolutions", convolutions()), ("BERT layer, 128 tokens", bert_layer(128))):
        profile = si.profile(graph, codec_names=["raw"], repeats=5)
        for exponent in range(20, 37):
            rate = 10 ** (exponent / 4)
            (problem,) = problems(profile, _topology(rate, 0.0005), ("raw",)).values()
            solution = p.solve(problem)
            fixed = {axis: _only(problem, axis) for axis in ("rows", "channels", "heads")}
            plain = float(solution.baselines.get("no division", solution.value))
            rows.append({
                "model": name, "bytes_per_s": f"{rate:.2e}", "chosen_s": solution.value, "whole_s": plain,
                **{f"{axis}_s": value for axis, value in fixed.items()},
                "chosen": "+".join(dict.fromkeys(block.axis for block in solution.blocks)) or "whole",
                "worse than the best": solution.value / min(plain, *fixed.values()) - 1 > 1e-9,
            })  # fmt: skip
    if options.out is not None:
        _picture(rows, options.out)
    return rows


def _only(problem: Any, axis: str) -> float:
    """With the layouts of one axis alone: the best with these, whole layers included."""
    import partitioners as p

    ops = tuple(replace(op, layouts=tuple(layout for layout in op.layouts if layout.axis == axis)) for op in problem.ops)
    return p.solve(replace(problem, ops=ops)).value


def _picture(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = plt.subplots(1, len(models), figsize=(6 * len(models), 4), squeeze=False)
    for ax, model in zip(axes[0], models, strict=True):
        own = [row for row in rows if row["model"] == model]
        rates = [float(row["bytes_per_s"]) for row in own]
        for key, style in (("whole_s", ":"), ("rows_s", "--"), ("channels_s", "--"), ("heads_s", "--"), ("chosen_s", "-")):
            width = 3 if key == "chosen_s" else 1.5
            ax.plot(rates, [row[key] * 1e3 for row in own], style, label=key.removesuffix("_s"), lw=width, alpha=0.7)
        ax.set(xscale="log", xlabel="link, bytes per second", ylabel="predicted latency, ms", title=model)
        ax.legend()
    figure.tight_layout()
    figure.savefig(folder / "crossovers.png", dpi=120)


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What each process holds."""
    del options
    rows = []
    for name, graph, plan in (
        ("VGG-16 convolutions, rows", (one := convolutions()), shared(one, "rows", (1, 1), _poolings(one)[:-1])),
        ("BERT layer, heads 2:1", (two := bert_layer(128)), shared(two, "heads", (2, 1))),
    ):
        args, kwargs = graph.example
        whole = sum(layer.weight_nbytes for layer in graph.layers.values())
        with LocalCluster(["a"]) as cluster, si.deploy(graph, plan, _topology(1e12), cluster=cluster, paced=False) as pipe:
            pipe(*args, **kwargs)
            (host,), (group,) = pipe.info(), pipe.groups.values()
            told = [("a", host), *((group.names[w], ray.get(actor.info.remote())) for w, actor in group.workers.items())]
            for machine, info in told:
                grown = info["private_nbytes"] - info["empty_nbytes"]
                share = info["weight_nbytes"] / whole
                rows.append({"model": name, "machine": machine, "promised bytes": info["weight_nbytes"], "of all weights": share,
                             "process grew by, with activations": grown})  # fmt: skip
    return rows


SECTIONS = {"speed": speed, "predicted": predicted, "crossovers": crossovers, "memory": memory}

if __name__ == "__main__":
    main()
