"""Predicted against measured bytes of every packet: the demo's models, each codec, three stages, whole and in pieces.

The profile measured one input, and every tensor of it before any codec touched it. On the first link its packet should weigh
what the plan says but for padding to 16 bytes; behind a lossy codec the second stage computes other values, and other inputs have
other contents. Run: python benchmarks/packets.py [--codecs NAMES] [--json]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

import splitinfer as si
from splitinfer import codecs, zoo
from splitinfer.demo import calibrate_batch_norm, photographs
from splitinfer.plans import Plan
from splitinfer.profiles import Profile
from splitinfer.trained import trained_digits
from splitinfer.verify import balanced_stages


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codecs", default="raw,zstd,fp16,int8,int6/channel+zstd1,int4/channel+zstd3,int2/channel+zstd3,eb0.01,topk0.1")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [codecs.get(name).name for name in options.codecs.split(",")]
    rows = [row for name, (model, inputs) in models().items() for row in measured(name, model, inputs, names)]
    if options.json:
        print(json.dumps(rows))
        return
    head = ["model", "codec", "in pieces", "link", "predicted bytes", "same input", "worst of other inputs"]
    shown = [[r["model"], r["codec"], r["pieces"], r["link"], f"{r['nbytes']:,.0f}", f"{r['same']:+.0f} B ({r['same'] / r['nbytes']:+.2%})",
              f"{r['other_share']:+.1%}"] for r in rows]  # fmt: skip
    print(tabulate(shown, head, disable_numparse=True, colalign=("left", "left", *["right"] * 5)))
    for lossless in (True, False):
        own = [r for r in rows if codecs.get(r["codec"]).lossless == lossless]
        for link in ("first", "second"):
            worst = max((r for r in own if r["link"] == link), key=lambda r: abs(r["same"]))
            kind = "lossless" if lossless else "lossy"
            print(f"{kind}, {link} link, profiled input: worst {worst['same']:+.0f} bytes ({worst['codec']} on {worst['model']})")


def models() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """The demo's, with inputs of which the first is profiled."""
    digits, pictures, _ = trained_digits()
    mobilenet, _, _ = zoo.mobilenet_v2()
    photos = photographs()
    calibrate_batch_norm(mobilenet, photos)
    return {"digits CNN": (digits, pictures[:8]), "MobileNetV2": (mobilenet, photos)}


def measured(name: str, model: nn.Module, inputs: torch.Tensor, names: list[str]) -> list[dict[str, Any]]:
    """One row for each codec."""
    graph = si.capture(model, (inputs[:1],))
    profile = si.profile(graph, codec_names=names, repeats=1, budget_s=1.0)
    order = list(graph.layers)
    early = [place + 1 for place, cut in enumerate(graph.cuts()) if cut.possible][2:6:3]  # where tensors are large
    ways = {"": balanced_stages(graph, 3), "yes": [order[: early[0]], order[early[0] : early[1]], order[early[1] :]]}
    rows = []
    for codec, (pieces, stages) in ((codec, way) for codec in names for way in ways.items()):
        plan = Plan.by_hand(graph, stages, ("device", "edge", "cloud"), dict.fromkeys(graph.tensors, codec))
        if pieces and not any(codec in profile.measurements[0].pieces.get(each.tensor, {}) for each in plan.crossings):
            continue
        plan = replace(plan, crossings=tuple(replace(each, streamed=bool(pieces)) for each in plan.crossings))
        pipeline = si.Pipeline.local(graph, plan)
        found = [packets(pipeline.traced(x[None])[1]) for x in inputs]
        for link, name_of_link in enumerate(("first", "second")):
            nbytes = predicted(profile, plan, codec, link)
            own, *others = [each[link] - nbytes for each in found]
            rows.append({
                "model": name, "codec": codec, "pieces": pieces, "link": name_of_link, "nbytes": nbytes, "same": own,
                "other_share": max(others, key=abs) / nbytes,
            })  # fmt: skip
    return rows


def predicted(profile: Profile, plan: Plan, codec: str, link: int) -> float:
    """Bytes of the packets on one link, as the planner counts them."""
    total = float(profile.packet_nbytes)
    for crossing in plan.crossings:
        if link in crossing.links:
            spec = next(tensor for tensor in profile.tensors if tensor.name == crossing.tensor)
            pieces = profile.measurements[0].pieces.get(spec.name, {}).get(codec) if crossing.streamed else None
            total += sum(nbytes for _, nbytes, _ in pieces) if pieces else spec.sent_nbytes[codec]
    return total


def packets(trace: si.Trace) -> list[int]:
    """Bytes on each link, in order."""
    return [span.nbytes for span in trace.spans if span.kind == "wire" and span.stage != "source"]


if __name__ == "__main__":
    main()
