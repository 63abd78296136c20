"""A large tensor over one link, in one packet and in pieces: what the overlap of encoding, wire and decoding saves.

Two Ray nodes of this machine, the link between them paced. Predicted from the profile's pieces, measured as medians of traces; the
pipelines take turns. Run: python benchmarks/overlap.py [--rates 100,500] [--codecs NAMES] [--slowdown 4] [--requests 20] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from tabulate import tabulate

import splitinfer as si
from cluster.launch import LocalCluster
from cluster.topology import Topology
from splitinfer import codecs, zoo
from splitinfer.demo import calibrate_batch_norm, photographs
from splitinfer.overlap import overlapped_s
from splitinfer.plans import Plan
from splitinfer.runtime.measure import wait_for_calm

_TIERS = ("device", "cloud")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", default="100,500", help="Mbps")
    parser.add_argument("--codecs", default="zstd,int8,int4/channel+zstd3")
    parser.add_argument("--slowdown", type=float, default=4.0, help="of the sender against this machine")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [codecs.get(name).name for name in options.codecs.split(",")]
    model, _, _ = zoo.mobilenet_v2()
    photos = photographs()
    calibrate_batch_norm(model, photos)
    graph = si.capture(model, (), {"pixel_values": photos[:1]})
    with LocalCluster(_TIERS) as cluster:
        profile = si.profile(graph, _topology(100, options.slowdown), cluster=cluster, codec_names=names)
        rows = [
            row for rate in options.rates.split(",") for name in names
            for row in measured(graph, profile, cluster, _topology(float(rate), options.slowdown), name, options.requests)
        ]  # fmt: skip
    if options.json:
        print(json.dumps(rows))
        return
    head = ["Mbps", "codec", "sent bytes", "in one ms", "predicted", "in pieces ms", "predicted", "pieces / one"]
    shown = [[f"{r['mbps']:g}", r["codec"], f"{r['nbytes']:,.0f}", _ms(r["whole_s"]), _ms(r["whole_predicted_s"]), _ms(r["pieces_s"]),
              _ms(r["pieces_predicted_s"]), f"{r['pieces_s'] / r['whole_s']:.2f}"] for r in rows]  # fmt: skip
    print(tabulate(shown, head, disable_numparse=True, colalign=("right", "left", *["right"] * 6)))


def _topology(mbps: float, slowdown: float) -> Topology:
    return Topology.loads(
        f"version: 1\ntiers:\n  - {{name: device, compute: {{factor: {slowdown}}}}}\n  - {{name: cloud, compute: {{factor: 1}}}}\n"
        f"links:\n  - {{between: [device, cloud], up: {mbps} Mbps, latency: 2 ms}}\n"
    )


def measured(
    graph: si.Graph, profile: si.Profile, cluster: LocalCluster, topology: Topology, codec: str, requests: int
) -> list[dict[str, Any]]:
    """One row: the cut with the largest tensor that the profile has in pieces."""
    order = list(graph.layers)
    base = profile.measurements[0]
    cuts = list(graph.cuts())
    single = [at for at, cut in enumerate(cuts) if cut.possible and len(cut.tensors) == 1 and codec in base.pieces.get(cut.tensors[0], {})]
    if not single:
        return []
    place = max(single, key=lambda at: cuts[at].nbytes)
    plan = Plan.by_hand(graph, [order[: place + 1], order[place + 1 :]], _TIERS, dict.fromkeys(graph.tensors, codec))
    (crossing,) = plan.crossings
    link, slow = topology.links[0], topology.tiers[0].compute.factor or 1.0
    made, read = (profile.pieces(profile.times(tier), crossing.tensor, codec) for tier in topology.tiers)
    both = [(encode_s, nbytes, decode_s) for (encode_s, nbytes, _), (*_, decode_s) in zip(made, read, strict=True)]
    encode_s, decode_s = base.codec_s[crossing.tensor][codec]
    nbytes = next(tensor for tensor in profile.tensors if tensor.name == crossing.tensor).sent_nbytes[codec]
    traces: dict[bool, list[si.Trace]] = {False: [], True: []}
    with ExitStack() as stack:
        plans = {streamed: replace(plan, crossings=(replace(crossing, streamed=streamed),)) for streamed in traces}
        pipes = {streamed: stack.enter_context(si.deploy(graph, made, topology, cluster=cluster)) for streamed, made in plans.items()}
        wait_for_calm()
        args, kwargs = graph.example
        for _ in range(requests + 3):
            for streamed, pipe in pipes.items():
                traces[streamed].append(pipe.traced(*args, **kwargs)[1])
    took = {streamed: statistics.median(_transfer_s(trace) for trace in found[3:]) for streamed, found in traces.items()}
    return [{
        "mbps": link.up_bytes_per_s / 125_000, "codec": codec, "nbytes": nbytes, "whole_s": took[False], "pieces_s": took[True],
        "whole_predicted_s": slow * encode_s + nbytes / link.up_bytes_per_s + decode_s + link.latency_s,
        "pieces_predicted_s": overlapped_s(both, [1 / link.up_bytes_per_s]) + link.latency_s,
    }]  # fmt: skip


def _transfer_s(trace: si.Trace) -> float:
    """Encoding, wire and decoding between the two stages."""
    first, last = ("stage0", ("encode", "wire", "transfer")), ("stage1", ("decode", "transfer"))
    return sum(span.seconds for span in trace.spans if any(span.stage == stage and span.kind in kinds for stage, kinds in (first, last)))


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


if __name__ == "__main__":
    main()
