"""A fleet of 1,000 cameras that share 20 edge servers and one cloud: which plan carries how many pictures a second?

    python examples/cameras.py [--out out] [--seed 0] [--quick]

Every camera sends periodic pictures, at a phase of its own, through MobileNetV2: all on the camera, all at the edge, all in the
cloud, or split: by the plan that is best for one request alone, and by one made as if each camera had only its share of all. Real: the
network, its FLOPs and bytes. Synthetic: the speeds of the machines (experiments.py), the links, and the fleet. A queue holds four
requests; more are dropped. Writes cameras.png and cameras.csv.
"""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from experiments import declared, finish, link, options

import splitinfer
from cluster.topology import Compute, TierSpec, Topology
from splitinfer import Plan, simulator
from splitinfer.planner import baseline_plans

CODECS = ("raw", "zstd", "fp16")
TOPOLOGY = Topology(
    (TierSpec("camera", Compute(factor=20)), TierSpec("edge", Compute(factor=1)), TierSpec("cloud", Compute(factor=0.1))),
    (link("camera", "edge", 10, 0.003), link("edge", "cloud", 400, 0.015)),
)
WORKERS = 8
"""Of the cloud."""
COLORS = {"camera only": "#7f7f7f", "edge only": "#ff7f0e", "cloud only": "#1f77b4"}


def shares(cameras: int, edges: int) -> Topology:
    """What one camera has if all of them work at once: the machines above are so many times slower, their links narrower."""
    each = cameras // edges
    camera, edge, cloud = TOPOLOGY.tiers
    tiers = camera, replace(edge, compute=Compute(factor=each)), replace(cloud, compute=Compute(factor=0.1 * cameras / WORKERS))
    return Topology(tiers, (TOPOLOGY.links[0], link("edge", "cloud", 400 / each, 0.015)))


def plans(cameras: int, edges: int) -> tuple[splitinfer.Profile, dict[str, Plan]]:
    """Each tier alone, the best for one request, and the one that carries most where every camera has its share."""
    profile = declared(splitinfer.capture(*splitinfer.zoo.mobilenet_v2()), CODECS)
    found = {name: plan for name, plan in baseline_plans(profile, TOPOLOGY, CODECS).items() if name in COLORS}
    found["best for one request"] = splitinfer.plan(profile, TOPOLOGY, codecs=CODECS, compare=False)
    found["best for its share"] = splitinfer.plan(profile, shares(cameras, edges), "interval", codecs=CODECS, compare=False)
    return profile, found


def main() -> None:
    chosen = options(__doc__ or "", "cameras")
    cameras, edges, seconds = (100, 2, 4) if chosen.quick else (1000, 20, 20)
    profile, found = plans(cameras, edges)
    rates = np.array([0.05, 0.2, 0.5, 1.0]) if chosen.quick else np.array([0.1, 0.3, 0.5, 1.0, 1.3, 1.7, 2.0, 2.5, 3.0])
    rows: list[dict[str, object]] = []
    for name, plan in found.items():
        for rate in rates.tolist():
            system = simulator.System(clients=cameras, machines={"edge": edges}, workers={"cloud": WORKERS}, queue_limit=4)
            arrivals = simulator.Periodic(1 / rate)
            count = int(cameras * max(1, rate * seconds))
            seen = splitinfer.simulate(
                plan, profile, TOPOLOGY, arrivals, requests=count, warmup=count // 4, seed=chosen.seed, system=system
            )  # fmt: skip
            answered = seen.completed / count
            busy = {tier: seen.tiers[tier].utilisation if tier in seen.tiers else 0.0 for tier in ("camera", "edge", "cloud")}
            latency = seen.latency_s
            rows.append({
                "plan": name, "pictures_per_s_per_camera": rate, "answered": answered, "p50_s": latency.p50 if latency else float("nan"),
                "p95_s": latency.p95 if latency else float("nan"), **{f"busy_{tier}": share for tier, share in busy.items()},
            })  # fmt: skip
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    table = []
    for name, plan in found.items():
        mine = [row for row in rows if row["plan"] == name]
        color = COLORS.get(name, "#2ca02c" if name == "best for one request" else "#d62728")
        left.plot(rates, [1e3 * row["p95_s"] for row in mine], "o-", ms=4, color=color, label=name)
        right.plot(rates, [row["answered"] for row in mine], "o-", ms=4, color=color)
        carried = max((row["pictures_per_s_per_camera"] for row in mine if row["answered"] > 0.999), default=0.0)
        where = " + ".join(f"{len(stage.layers)} {stage.tier}" for stage in plan.stages)
        idle = mine[0]["p50_s"]
        table.append([name, where, f"{1e3 * idle:.0f}", f"{carried:g}", f"{float(carried) * cameras:g}"])
    left.set(xscale="log", yscale="log", xlabel="pictures per second and camera", ylabel="latency of those answered, 95th percentile, ms")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    left.legend(frameon=False)
    right.set(xscale="log", xlabel="pictures per second and camera", ylabel="share of pictures answered", ylim=(0, 1.05))
    for axis in (left, right):
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(which="major", color="#dddddd", lw=0.7)
    left.set_title(f"{cameras} cameras, {edges} edge servers, one cloud", loc="left")
    print(f"{cameras} cameras, {edges} edge servers, one cloud of {WORKERS} workers; simulated, machines and links are declared.\n")
    finish(figure, rows, table, ["plan", "layers", "median ms, idle", "carries /s each", "in all /s"], chosen.out / "cameras")


if __name__ == "__main__":
    main()
