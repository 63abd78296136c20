"""When does splitting pay? MobileNetV2 between a slow device and the cloud, over uplinks from 0.1 to 1000 Mbps.

    python examples/bandwidth_sweep.py [--requests 5] [--points 33] [--no-measure]

The curves are predictions: the device alone, the cloud alone with a losslessly compressed photograph, and the best plan
with lossless codecs or with fp16 and int8 allowed. The markers are measurements: real requests through Ray actors over
throttled links, the device emulated as a machine six times slower than this one. Writes out/bandwidth_sweep.png and
out/bandwidth_sweep.csv.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from tabulate import tabulate

import splitinfer
from cluster.launch import LocalCluster
from cluster.topology import Compute, LinkSpec, TierSpec, Topology
from splitinfer import Graph, Plan, Profile, demo
from splitinfer.planner import baseline_plans
from splitinfer.runtime.measure import wait_for_calm

mpl.use("Agg")
import matplotlib.pyplot as plt

OUT = Path("out")
FACTOR, DOWN_MBPS, LATENCY_S = 6, 50, 0.010
MEASURED_MBPS = (5.0, 20.0, 100.0)
LOSSLESS, LOSSY = ("raw", "zstd"), ("raw", "zstd", "fp16", "int8")
CURVES = {  # color and marker
    "device only": ("#7f7f7f", "s"),
    "cloud only, input compressed": ("#1f77b4", "^"),
    "best plan, lossless": ("#2ca02c", "o"),
    "best plan, int8 allowed": ("#d62728", "D"),
}
SHADES = {"device only": "#e4e4e4", "split": "#dff0d8", "cloud only": "#dbe9f6"}


@dataclass(frozen=True)
class Row:
    mbps: float
    curve: str
    plan: Plan
    measured_s: float | None = None

    @property
    def shape(self) -> str:
        """Where the plan computes."""
        tiers = [stage.tier for stage in self.plan.stages]
        return "split" if len(tiers) > 1 else f"{tiers[0]} only"


def topology(mbps: float) -> Topology:
    device, cloud = TierSpec("device", Compute(factor=FACTOR)), TierSpec("cloud", Compute())
    return Topology((device, cloud), (LinkSpec(("device", "cloud"), mbps * 1e6 / 8, DOWN_MBPS * 1e6 / 8, LATENCY_S),))


def plans(profile: Profile, mbps: float) -> dict[str, Plan]:
    """The plan behind each curve."""
    here = topology(mbps)
    alone = baseline_plans(profile, here, LOSSLESS)
    best = [splitinfer.plan(profile, here, codecs=codecs) for codecs in (LOSSLESS, LOSSY)]
    return dict(zip(CURVES, [alone["device only"], alone["cloud only"], *best], strict=True))


def photograph_model() -> Graph:
    """MobileNetV2 whose activations look like activations, for one photograph."""
    model, _, _ = splitinfer.zoo.mobilenet_v2()
    photos = demo.photographs()
    demo.calibrate_batch_norm(model, photos)
    return splitinfer.capture(model, (), {"pixel_values": photos[:1]})


def measured(graph: Graph, rows: Sequence[Row], cluster: LocalCluster, requests: int) -> Iterator[Row]:
    """Real requests for each row; rows of the same work share one deployment."""
    found: dict[object, float] = {}
    for row in rows:
        key = row.plan.stages, row.plan.crossings, row.mbps if row.plan.crossings else None
        if key not in found:
            found[key] = _seconds(graph, row, cluster, requests)
        yield Row(row.mbps, row.curve, row.plan, found[key])


def _seconds(graph: Graph, row: Row, cluster: LocalCluster, requests: int) -> float:
    args, kwargs = graph.example
    totals = []
    with splitinfer.deploy(graph, row.plan, topology(row.mbps), cluster=cluster) as pipeline:
        wait_for_calm()
        for _ in range(2 + requests):
            time.sleep(0.1)  # each request meets idle machines, as the profile assumes
            totals.append(pipeline.traced(*args, **kwargs)[1].total_s)
    return statistics.median(totals[2:])


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["uplink_mbps", "curve", "shape", "predicted_ms", "measured_ms", "up_bytes"])
        for row in rows:
            seen = f"{row.measured_s * 1e3:.2f}" if row.measured_s is not None else ""
            writer.writerow([f"{row.mbps:.4g}", row.curve, row.shape, f"{_ms(row.plan):.2f}", seen, round(row.plan.cost.up_nbytes)])


def _ms(plan: Plan) -> float:
    return plan.cost.latency_s * 1e3


def draw(path: Path, sweep: Sequence[Row], points: Sequence[Row]) -> None:
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (top, strips) = plt.subplots(2, 1, figsize=(9, 6.2), sharex=True, height_ratios=[9, 1], layout="constrained")
    for curve, (color, marker) in CURVES.items():
        line = [row for row in sweep if row.curve == curve]
        # Baselines are dashed and hollow, on top: where a best plan is one of them, both stay visible.
        bold = curve.startswith("best")
        top.plot([row.mbps for row in line], [_ms(row.plan) for row in line], "-" if bold else "--", color=color, lw=2.6 if bold else 1.6,
                 zorder=3 if bold else 4, label=curve)  # fmt: skip
        dots = [row for row in points if row.curve == curve]
        look = {"ms": 8, "mec": "white", "mew": 1.2} if bold else {"ms": 12, "mfc": "none", "mec": color, "mew": 1.8}
        top.plot([row.mbps for row in dots], [row.measured_s * 1e3 for row in dots], marker, color=color, zorder=6, **look)
    if points:
        top.plot([], [], "o", color="black", ms=8, mec="white", mew=1.2, label="markers: measured over throttled links")
    best = list(CURVES)[-1]
    alone = _ms(next(row.plan for row in sweep if row.curve == "device only"))
    top.set(yscale="log", ylim=(0.8 * min(_ms(row.plan) for row in sweep), 8 * alone), ylabel="latency of one request, ms")
    top.set_yticks([50, 100, 200, 500, 1000], labels=["50", "100", "200", "500", "1000"])
    top.minorticks_off()
    top.grid(which="major", color="#dddddd", lw=0.7)
    top.set_axisbelow(True)
    top.legend(loc="upper right", frameon=True, framealpha=0.95, edgecolor="none")
    top.set_title(f"MobileNetV2, one photograph: a device {FACTOR} times slower than the cloud, {LATENCY_S * 1e3:g} ms away", loc="left")
    _shade(top, [row for row in sweep if row.curve == best], 0.45)
    for height, curve in enumerate(list(CURVES)[2:]):
        _strip(strips, [row for row in sweep if row.curve == curve], height)
    strips.set(xscale="log", xlim=(sweep[0].mbps, sweep[-1].mbps), ylim=(-0.5, 1.5), xlabel="uplink, Mbps")
    strips.set_yticks([0, 1], labels=["lossless", "int8 allowed"])
    strips.set_xticks([0.1, 1, 10, 100, 1000], labels=["0.1", "1", "10", "100", "1000"])
    strips.tick_params(axis="y", length=0)
    strips.spines[:].set_visible(False)
    strips.set_title("where the best plan runs (shaded above: int8 allowed)", loc="left", fontsize=10)
    figure.savefig(path, dpi=150)


def _regimes(rows: Sequence[Row]) -> Iterator[tuple[str, float, float]]:
    """Stretches of uplink where the same shape wins; borders half-way between points on the log scale."""
    at = np.log10([row.mbps for row in rows])
    edges = 10 ** np.concatenate([at[:1], (at[:-1] + at[1:]) / 2, at[-1:]])
    for shape, group in groupby(range(len(rows)), lambda index: rows[index].shape):
        places = list(group)
        yield shape, float(edges[places[0]]), float(edges[places[-1] + 1])


def _shade(axes: Axes, rows: Sequence[Row], alpha: float) -> None:
    for shape, left, right in _regimes(rows):
        axes.axvspan(left, right, color=SHADES[shape], alpha=alpha, lw=0, zorder=0)


def _strip(axes: Axes, rows: Sequence[Row], height: int) -> None:
    """Which shape is best, as a bar with its name where there is room."""
    for shape, left, right in _regimes(rows):
        axes.barh(height, right - left, left=left, height=0.86, color=SHADES[shape], edgecolor="white", lw=1.5)
        if right / left > 1.8:
            axes.text((left * right) ** 0.5, height, shape, ha="center", va="center", fontsize=9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=5, help="for each marker (default 5)")
    parser.add_argument("--points", type=int, default=33, help="of each curve (default 33)")
    parser.add_argument("--no-measure", action="store_true", help="predictions only")
    options = parser.parse_args()
    torch.set_num_threads(1)  # this process stands for the device
    graph = photograph_model()
    points: list[Row] = []
    with LocalCluster(["device", "cloud"]) as cluster:
        profile = splitinfer.profile(graph, topology(1.0), cluster=cluster)
        if not options.no_measure:
            chosen = [Row(mbps, curve, plan) for mbps in MEASURED_MBPS for curve, plan in plans(profile, mbps).items()]
            points = list(measured(graph, chosen, cluster, options.requests))
    uplinks = np.geomspace(0.1, 1000, options.points).tolist()
    sweep = [Row(mbps, curve, plan) for mbps in uplinks for curve, plan in plans(profile, mbps).items()]
    OUT.mkdir(exist_ok=True)
    write_csv(OUT / "bandwidth_sweep.csv", [*sweep, *points])
    draw(OUT / "bandwidth_sweep.png", sweep, points)
    if points:
        rows = [
            [f"{row.mbps:g}", row.curve, row.shape, f"{_ms(row.plan):.1f}", f"{row.measured_s * 1e3:.1f}",
             f"{row.plan.cost.latency_s / row.measured_s - 1:+.0%}"]
            for row in points
        ]  # fmt: skip
        print(tabulate(rows, ["uplink Mbps", "curve", "runs on", "predicted ms", "measured ms", "error"], disable_numparse=True))
    print(f"\nwrote {OUT / 'bandwidth_sweep.png'} and {OUT / 'bandwidth_sweep.csv'}")


if __name__ == "__main__":
    main()
