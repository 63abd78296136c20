"""Memory of each stage's process beside the bytes of its weights: what a stage costs a machine.

    python benchmarks/memory.py [--requests 5] [--json]

ResNet-50 and MobileNetV2 in three stages of about equal FLOPs, each a Ray actor. "Above empty" is the private memory of
the stage's process above that of the same process before its stage was loaded (Python, torch and Ray), right after the
start and again after some requests, when activations, packets and the caches of operators have come on top, and the
freed memory that a stage keeps. Private memory is what no other process shares: the stage file, which lies once on a
node in Ray's object store, does not count.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from itertools import pairwise

from tabulate import tabulate

from cluster.launch import LocalCluster
from cluster.topology import Compute, LinkSpec, TierSpec, Topology
from splitinfer import capture, deploy, zoo
from splitinfer.plans import Plan
from splitinfer.verify import balanced_stages

MODELS = ("resnet50", "mobilenet_v2")
TIERS = ("device", "edge", "cloud")


@dataclass(frozen=True)
class Row:
    model: str
    stage: str
    empty_nbytes: int
    """Private memory before the stage was loaded."""
    weight_nbytes: int
    started_nbytes: int
    """Above empty, right after the start."""
    served_nbytes: int
    """Above empty, after the requests."""


def topology() -> Topology:
    links = tuple(LinkSpec(pair, 1e12, 1e12, 0.0) for pair in pairwise(TIERS))
    return Topology(tuple(TierSpec(name, Compute()) for name in TIERS), links)


def measure(name: str, requests: int, cluster: LocalCluster) -> list[Row]:
    model, args, kwargs = getattr(zoo, name)()
    graph = capture(model, args, kwargs)
    plan = Plan.by_hand(graph, balanced_stages(graph, len(TIERS)), TIERS)
    with deploy(graph, plan, topology(), cluster=cluster) as pipeline:
        started = pipeline.info()
        for _ in range(requests):
            pipeline(*args, **kwargs)
        served = pipeline.info()
    return [
        Row(name, one["stage"], one["empty_nbytes"], one["weight_nbytes"],
            one["private_nbytes"] - one["empty_nbytes"], two["private_nbytes"] - two["empty_nbytes"])
        for one, two in zip(started, served, strict=True)
    ]  # fmt: skip


def table(rows: list[Row], requests: int) -> str:
    body = []
    for row in rows:
        sizes = (row.empty_nbytes, row.weight_nbytes, row.started_nbytes, row.served_nbytes)
        ratios = (row.started_nbytes / row.weight_nbytes, row.served_nbytes / row.weight_nbytes)
        body.append([row.model, row.stage, *(f"{nbytes / 1e6:.1f}" for nbytes in sizes), *(f"{ratio:.2f}" for ratio in ratios)])
    after = f"after {requests} requests MB"
    head = ["model", "stage", "empty MB", "weights MB", "above empty MB", after, "ratio", "ratio after"]
    return tabulate(body, head, disable_numparse=True, colalign=("left", "left", *["right"] * 6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with LocalCluster(TIERS) as cluster:
        rows = [row for name in MODELS for row in measure(name, options.requests, cluster)]
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        print(table(rows, options.requests))


if __name__ == "__main__":
    main()
