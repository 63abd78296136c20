"""Bandwidth x model x strategy: how much each way of cutting costs, against the exact plan.

    python examples/sweep.py [--out out] [--quick]

Four networks between a device, eight times slower than the cloud, and the cloud, over uplinks from 0.1 to 300 Mbps. The exact
plan stands beside published and plain strategies, and each machine alone. Real: the networks, their FLOPs, tensors and encoded bytes.
Declared: how fast machines and codecs are (experiments.py), so that the figures are the same on every computer. Random weights:
no accuracy is claimed, and only lossless codecs are used. Writes sweep.png and sweep.csv.
"""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
from experiments import declared, finish, link, options

import splitinfer
from cluster.topology import Compute, TierSpec, Topology
from splitinfer import Profile
from splitinfer.errors import PlanError
from splitinfer.planner import baseline_plans

MODELS = ("mobilenet_v2", "resnet18", "vgg16_small", "bert")
CODECS = ("raw", "zstd")
STRATEGIES = {"exact": "auto", "DADS": "dads", "Neurosurgeon": "neurosurgeon", "greedy": "greedy"}
STYLES = {
    "device only": ("#7f7f7f", ":"), "cloud only": ("#1f77b4", ":"), "greedy": ("#bcbd22", "--"), "Neurosurgeon": ("#ff7f0e", "--"),
    "DADS": ("#9467bd", "-."), "exact": ("#2ca02c", "-"),
}  # fmt: skip


def topology(mbps: float) -> Topology:
    return Topology((TierSpec("device", Compute(factor=8)), TierSpec("cloud", Compute())), (link("device", "cloud", mbps, 0.010, 50),))


def latencies(profile: Profile, mbps: float) -> Iterator[tuple[str, float]]:
    """What each strategy's plan is predicted to take; one that cannot plan this model is left out."""
    here = topology(mbps)
    for name, strategy in STRATEGIES.items():
        try:
            found = splitinfer.plan(profile, here, codecs=CODECS, strategy=strategy, compare=False)
        except PlanError:
            continue
        assert found.cost is not None
        yield name, found.cost.latency_s
    for name, alone in baseline_plans(profile, here, CODECS).items():
        assert alone.cost is not None
        yield name, alone.cost.latency_s


def main() -> None:
    chosen = options(__doc__ or "", "sweep")
    models = MODELS[1:3] if chosen.quick else MODELS
    uplinks = np.geomspace(0.1, 300, 4 if chosen.quick else 15)
    rows: list[dict[str, object]] = []
    for model in models:
        sample = getattr(splitinfer.zoo, model)()
        profile = declared(splitinfer.capture(*sample), CODECS)
        for mbps in uplinks.tolist():
            rows += [{"model": model, "uplink_mbps": mbps, "strategy": name, "latency_s": s} for name, s in latencies(profile, mbps)]
    figure, axes = plt.subplots(1, len(models), figsize=(4.1 * len(models), 4.4), layout="constrained", squeeze=False)
    table = []
    for axis, model in zip(axes[0], models, strict=True):
        mine = [row for row in rows if row["model"] == model]
        best = np.array([row["latency_s"] for row in mine if row["strategy"] == "exact"])
        for name, (color, dashes) in STYLES.items():
            curve = np.array([row["latency_s"] for row in mine if row["strategy"] == name])
            if len(curve) == len(best):
                axis.plot(uplinks, curve * 1e3, dashes, color=color, label=name, lw=2.4 if name == "exact" else 1.5)
                ratio = curve / best
                table.append([model, name, f"{ratio.max():.2f}", f"{np.exp(np.log(ratio).mean()):.2f}", f"{(ratio < 1.0005).mean():.0%}"])
        axis.set(xscale="log", yscale="log", title=model, xlabel="uplink, Mbps", ylim=(0.7e3 * best.min(), 6e3 * best.max()))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.tick_params(axis="y", which="minor", labelsize=7)
        axis.grid(which="major", color="#dddddd", lw=0.7)
    axes[0, 0].set_ylabel("latency of one request, ms")
    axes[0, -1].legend(frameon=False)
    print("How many times slower than the exact plan, over all uplinks; seconds are of declared machines.\n")
    finish(figure, rows, table, ["model", "strategy", "at worst", "in the mean", "equal to it"], chosen.out / "sweep")


if __name__ == "__main__":
    main()
