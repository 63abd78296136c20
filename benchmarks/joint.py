"""Cut, tier, codec and bit-width chosen together, against "plan in fp32, then quantise".

    python benchmarks/joint.py [--mbps 1 5 20] [--budget 0.5] [--quick] [--json]

The same models, links and accuracy budget, three ways:

- raw: the best plan where every tensor travels as it is;
- then quantised: that placement, each of its tensors with the best codec that the budget allows;
- joint: the placement chosen together with the codecs.

Latency and interval are predicted from the profile, times of the codecs included; the accuracy is measured end to end on
held-out samples, against labels, for the two networks that are trained here. Their device is a microcontroller that
cannot hold the whole network, and the raw image may not leave it (it is smaller than any activation, so without that
wish the answer is "send the image"). MobileNetV2 has random weights ("shape only"): its rows show sizes and times, with
codecs down to 8 bits allowed on any tensor.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from tabulate import tabulate

import partitioners
import splitinfer
from cluster.topology import Compute, LinkSpec, TierSpec, Topology
from splitinfer import Plan, demo, zoo
from splitinfer.calibrations import Calibration
from splitinfer.graph import Graph
from splitinfer.learn.accuracy import accurate_plan, answers
from splitinfer.learn.calibrate import Call, as_call, calibrate
from splitinfer.learn.metrics import Score
from splitinfer.line_problem import grouped
from splitinfer.profiles import Profile
from splitinfer.trained import trained_digits, trained_vit

SLOWER = {"digits CNN": 20.0, "digits ViT": 20.0, "MobileNetV2": 12.0}
"""How many times slower than this machine the device is: with a microcontroller for the digits, a small board for photographs."""
MEMORY_NBYTES = {"digits CNN": 160_000, "digits ViT": 300_000}
CODECS = ("raw", "zstd", "fp16", "bf16+zstd", "int8", "int8/channel+zstd", "int6/channel+zstd", "int4/channel+zstd", "int4/block64+zstd",
          "int3/block64+zstd", "int2/block64+zstd")  # fmt: skip
CALIBRATED = 120
"""Of the held-out images; the accuracy is measured on the other 330."""
SHAPE_ONLY = ("raw", "zstd", "fp16", "int8")
LATENCY_S = 0.01


@dataclass(frozen=True)
class Row:
    model: str
    mbps: float
    objective: str
    way: str
    cost_ms: float
    gain: float
    """The raw plan's cost over its own."""
    over_then: float
    """The cost of the raw plan, quantised afterwards, over its own."""
    device_layers: int
    sent: str
    lost: float | None
    """Accuracy, measured; None for shapes only."""


@dataclass(frozen=True)
class Case:
    name: str
    graph: Graph
    profile: Profile
    calibration: Calibration | None
    held_out: Sequence[Call]
    labels: Sequence[int]
    budget: float
    kept: int
    """Layers whose inputs may not leave the device."""

    def row(self, mbps: float, objective: str, way: str, made: Plan, raw: Plan, then: Plan) -> Row:
        cost, before, quantised = (_cost(each, objective) for each in (made, raw, then))
        layers = sum(len(stage.layers) for stage in made.stages if stage.tier == "device")
        sent = ", ".join(f"{crossing.codec} {crossing.nbytes:,.0f} B" for crossing in made.crossings) or "nothing"
        return Row(self.name, mbps, objective, way, cost * 1e3, before / cost, quantised / cost, layers, sent, self._lost(made))

    def _lost(self, made: Plan) -> float | None:
        if self.calibration is None:
            return None
        if made.accuracy is not None and made.accuracy.measured is not None:
            return made.accuracy.measured
        score = Score("auto", answers(self.graph, None, self.held_out), self.labels)
        return score.drop(answers(self.graph, made, self.held_out))

    def rows(self, mbps: float, objective: str) -> list[Row]:
        topology = _topology(self.name, mbps)
        raw = splitinfer.plan(self.profile, topology, objective, ["raw"], keep_on_device=self.kept)
        names = list(self.profile.codecs) if self.calibration else SHAPE_ONLY
        wishes = {"calibration": self.calibration, "max_accuracy_drop": self.budget} if self.calibration else {}
        then = splitinfer.plan(self.profile, topology, objective, names, strategy=placed_as(raw, self.profile),
                               keep_on_device=self.kept, **wishes)  # fmt: skip
        if self.calibration is None:
            joint = splitinfer.plan(self.profile, topology, objective, names)
        else:
            joint = accurate_plan(self.graph, self.held_out, self.profile, topology, self.calibration, max_accuracy_drop=self.budget,
                                  labels=self.labels, objective=objective, codecs=names, keep_on_device=self.kept)  # fmt: skip
        return [self.row(mbps, objective, way, made, raw, then) for way, made in (("raw", raw), ("then quantised", then), ("joint", joint))]


def placed_as(made: Plan, profile: Profile) -> Callable[[partitioners.Problem], Mapping[str, str]]:
    """A strategy that repeats a plan's placement on the line of its tiers, and refuses the others."""
    op_of = grouped(profile)
    where = {op_of[layer]: stage.tier for stage in made.stages for layer in stage.layers}

    def repeat(problem: partitioners.Problem) -> Mapping[str, str]:
        tiers = [tier.name for tier in problem.tiers]
        if not set(where.values()) <= set(tiers):
            raise partitioners.Infeasible(f"a line without {', '.join(sorted(set(where.values()) - set(tiers)))}")
        first = tiers[0] if tiers[0] in where.values() else tiers[-1]  # the entry is on the device iff something is
        return {op.name: op.pinned or where.get(op.name, first) for op in problem.ops}

    return repeat


def _cost(made: Plan, objective: str) -> float:
    assert made.cost is not None
    return made.cost.latency_s if objective == "latency" else made.cost.interval_s


def _topology(model: str, mbps: float) -> Topology:
    tiers = (TierSpec("device", Compute(factor=SLOWER[model]), memory_bytes=MEMORY_NBYTES.get(model)), TierSpec("cloud", Compute()))
    return Topology(tiers, (LinkSpec(("device", "cloud"), mbps * 1e6 / 8, mbps * 1e6 / 8, LATENCY_S),))


def cases(budget: float, quick: bool) -> Iterator[Case]:
    for name, train, epochs in (("digits CNN", trained_digits, 12), ("digits ViT", trained_vit, 40)):
        model, images, labels = train(4 if quick else epochs)
        graph = splitinfer.capture(model, (images[:1],))
        measured = splitinfer.profile(graph, codec_names=CODECS, repeats=10)
        seen, samples = 20 if quick else CALIBRATED, [as_call(image[None]) for image in images]
        table = calibrate(graph, samples[:seen], measured, labels=labels[:seen].tolist(), codec_names=CODECS)
        yield Case(name, graph, measured, table, samples[CALIBRATED:], labels[CALIBRATED:].tolist(), budget, kept=1)
    model, _, kwargs = zoo.mobilenet_v2()
    photographs = demo.photographs()
    demo.calibrate_batch_norm(model, photographs)
    graph = splitinfer.capture(model, (), {**kwargs, "pixel_values": photographs[:1]})
    yield Case("MobileNetV2", graph, splitinfer.profile(graph, codec_names=SHAPE_ONLY, repeats=9), None, [], [], budget, kept=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbps", type=float, nargs="+", default=[1.0, 5.0, 20.0])
    parser.add_argument("--budget", type=float, default=0.5, help="accuracy that may be lost, in points of per cent")
    parser.add_argument("--quick", action="store_true", help="barely trained networks, few samples")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for case in cases(options.budget / 100, options.quick):
        found = [row for mbps in options.mbps for objective in ("latency", "interval") for row in case.rows(mbps, objective)]
        rows += found
        if not options.json:
            print(f"{table(found)}\n", flush=True)
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))


def table(rows: Sequence[Row]) -> str:
    shown = [
        [r.model, f"{r.mbps:g}", r.objective, r.way, f"{r.cost_ms:.2f}", f"{r.gain:.2f}", f"{r.over_then:.2f}", r.device_layers, r.sent,
         "shape only" if r.lost is None else f"{r.lost:.2%}"]
        for r in rows
    ]  # fmt: skip
    head = ["model", "Mbps", "objective", "way", "cost ms", "raw / this", "quantised / this", "layers on device", "sent", "accuracy lost"]
    return tabulate(shown, head, disable_numparse=True)


if __name__ == "__main__":
    main()
