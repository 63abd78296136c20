"""Two families of plans for MobileNetV2 on a device, an edge machine and the cloud: every trade-off of latency against
energy, and the best plan for every bandwidth of the uplink.

    python examples/pareto.py [--out out] [--profile profile.json]

The seconds are measured here, the device emulated as a machine six times slower than this one; the energy is modelled
from the watts and joules declared below. Writes pareto.png, bandwidth_table.png and bandwidth_table.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

import splitinfer
from cluster.launch import LocalCluster
from cluster.topology import Compute, LinkSpec, TierSpec, Topology
from partitioners import Problem, Solution, baseline_solutions
from partitioners.parametric import BandwidthTable, Span, bandwidth_table
from partitioners.pareto import Front, pareto_front
from splitinfer import Profile, demo
from splitinfer.planner import problems

mpl.use("Agg")
import matplotlib.pyplot as plt

MBPS = 1e6 / 8
CODECS = ("raw", "zstd", "fp16", "int8")
# Declared, not measured: a phone's processor, a small computer and a server while they compute; a byte on Wi-Fi and on
# an access network.
TOPOLOGY = Topology(
    (
        TierSpec("device", Compute(factor=6), watts=2.0),
        TierSpec("edge", Compute(factor=2), watts=15.0),
        TierSpec("cloud", Compute(), watts=150.0),
    ),
    (
        LinkSpec(("device", "edge"), 20 * MBPS, 50 * MBPS, 0.005, joules_per_byte=1e-7),
        LinkSpec(("edge", "cloud"), 100 * MBPS, 100 * MBPS, 0.010, joules_per_byte=2e-8),
    ),
)
STRATEGY = "blocks"
"""MobileNetV2 narrows to one tensor many times, so the dynamic programme over the blocks between is the quickest exact one."""
SLOWEST, FASTEST = 0.1, 1000.0
"""Of the device's uplink, in Mbps."""
SHADES = ("#e4e4e4", "#dbe9f6", "#dff0d8", "#fdebd0", "#eadcf2", "#d9f0ee", "#f8dcdc", "#f3f0c8")


def measured_profile() -> Profile:
    """MobileNetV2 with batch-norm statistics of photographs, so that its activations look like activations."""
    torch.set_num_threads(1)  # this process stands for the device
    model, _, _ = splitinfer.zoo.mobilenet_v2()
    photos = demo.photographs()
    demo.calibrate_batch_norm(model, photos)
    graph = splitinfer.capture(model, (), {"pixel_values": photos[:1]})
    with LocalCluster([tier.name for tier in TOPOLOGY.tiers]) as cluster:
        return splitinfer.profile(graph, TOPOLOGY, cluster=cluster)


def line_rate(mbps: float, profile: Profile) -> float:
    """Bytes/s of a link as the planner sees it: the wire, and behind it the framework's own time for each byte."""
    return 1 / (1 / (mbps * MBPS) + profile.framework.s_per_byte)


def wire_mbps(rate: float, profile: Profile) -> float:
    """Inverse of `line_rate`."""
    return 1 / (1 / rate - profile.framework.s_per_byte) / MBPS


def by_weights(values: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """The points of a front that some weighted sum of its two costs minimises: the corners of its lower convex hull."""
    hull: list[tuple[float, ...]] = []
    for point in values:  # ascending in the first cost
        while len(hull) > 1 and _turns_right(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _turns_right(a: Sequence[float], b: Sequence[float], c: Sequence[float]) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) <= (b[1] - a[1]) * (c[0] - a[0])


def alone(problem: Problem) -> Mapping[str, tuple[float, float]]:
    """Latency and energy of each tier alone."""
    found = baseline_solutions(problem)
    return {name: (plan.cost.latency_s, plan.cost.energy_j) for name, plan in found.items() if isinstance(plan, Solution)}


def draw_front(path: Path, front: Front, singles: Mapping[str, tuple[float, float]]) -> None:
    figure, axes = plt.subplots(figsize=(8, 5.2), layout="constrained")
    hull = by_weights(front.values)
    for points, style, label in (
        (front.values, {"color": "#1f77b4", "marker": "o", "ms": 5}, f"exact front, {len(front.values)} plans"),
        (hull, {"color": "#d62728", "marker": "o", "ms": 11, "mfc": "none", "mew": 1.6}, f"reached by weighted sums, {len(hull)} plans"),
        (list(singles.values()), {"color": "black", "marker": "s", "ms": 8, "mfc": "none", "mew": 1.6}, "one tier alone"),
    ):
        latency, energy = np.array(points).T
        axes.plot(latency * 1e3, energy, linestyle="none", label=label, **style)
    latency, energy = np.array(front.values).T
    axes.step(latency * 1e3, energy, where="post", color="#1f77b4", lw=0.8, alpha=0.6)
    for name, (seconds, joules) in singles.items():
        axes.annotate(name, (seconds * 1e3, joules), xytext=(9, 5), textcoords="offset points")
    axes.set(yscale="log", xlabel="latency of one request, ms", ylabel="energy of one request, J (modelled from declared watts)")
    axes.margins(x=0.12)
    axes.set_title("MobileNetV2: latency against energy", loc="left")
    _finish(figure, axes, path)


def draw_table(path: Path, table: BandwidthTable, profile: Profile) -> None:
    figure, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
    rates = np.geomspace(table.spans[0].low, table.spans[-1].high, 400)
    mbps = [wire_mbps(rate, profile) for rate in rates]
    for i, span in enumerate(table.spans):
        left, right = wire_mbps(span.low, profile), wire_mbps(span.high, profile)
        axes.axvspan(left, right, color=SHADES[i % len(SHADES)], lw=0)
        axes.plot(mbps, [span.value(rate) * 1e3 for rate in rates], "--", color="#7f7f7f", lw=0.9)
        if right / left > 1.7:
            axes.text((left * right) ** 0.5, 0.02, words(span), transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=8)
    best = [table.at(rate).value(rate) * 1e3 for rate in np.clip(rates, table.spans[0].low, table.spans[-1].high)]
    axes.plot(mbps, best, color="#d62728", lw=2.4, label="the best plan; dashed: each plan at every rate")
    axes.set(xscale="log", yscale="log", xlim=(SLOWEST, FASTEST), ylim=(0.4 * min(best), 4 * max(best)))
    axes.set(xlabel="uplink of the device, Mbps", ylabel="latency of one request, ms")
    axes.set_xticks([0.1, 1, 10, 100, 1000], labels=["0.1", "1", "10", "100", "1000"])
    axes.set_title(f"MobileNetV2: {len(table.spans)} plans are all that this uplink ever needs", loc="left")
    _finish(figure, axes, path)


def words(span: Span) -> str:
    """Ops on each tier in use, and the codecs, in as many lines."""
    where = list(span.solution.placement.values())
    tiers = [f"{where.count(tier)} {tier}" for tier in span.solution.cost.tier_load_s if tier in where]
    return "\n".join([*tiers, ", ".join(sorted({crossing.codec for crossing in span.solution.codecs}))])


def _finish(figure: plt.Figure, axes: plt.Axes, path: Path) -> None:
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(which="major", color="#dddddd", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper right", frameon=True, framealpha=0.95, edgecolor="none")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for pictures and table (default out)")
    parser.add_argument("--profile", help="a saved profile of MobileNetV2 on three tiers, instead of measuring")
    options = parser.parse_args()
    profile = Profile.load(options.profile) if options.profile else measured_profile()
    problem = problems(profile, TOPOLOGY, CODECS)["device", "edge", "cloud"]
    options.out.mkdir(parents=True, exist_ok=True)

    table = bandwidth_table(problem, line_rate(SLOWEST, profile), line_rate(FASTEST, profile), strategy=STRATEGY)
    changes = ", ".join(f"{wire_mbps(rate, profile):.3g}" for rate in table.breakpoints)
    print(f"The best plan for every uplink; it changes at {changes} Mbps.\n{table}\n")
    (options.out / "bandwidth_table.json").write_text(json.dumps(table.to_dict(), indent=1), encoding="utf-8")
    draw_table(options.out / "bandwidth_table.png", table, profile)

    front = pareto_front(problem, ("latency", "energy"), strategy=STRATEGY)
    print(f"Latency in s against energy in J, the latter modelled from declared watts.\n{front}\n")
    print(f"A weighted sum reaches {len(by_weights(front.values))} of these points, whatever its weights.")
    draw_front(options.out / "pareto.png", front, alone(problem))
    print(f"wrote bandwidth_table.json, bandwidth_table.png and pareto.png in {options.out}/")


if __name__ == "__main__":
    main()
