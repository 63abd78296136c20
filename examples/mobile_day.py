"""A day of a phone on a mobile network, with and without re-planning.

    python examples/mobile_day.py [--out out] [--seed 0] [--trace day.csv] [--quick]

The phone sends a picture through ResNet-18 about every 20 seconds. With re-planning each request takes, of the few plans that are
best at some bandwidth, the one that the rule of switching chooses for the link of that moment; without, the one plan that is best at
the day's mean rate, or whole on the phone, or whole in the cloud. Synthetic: the day. A Markov chain changes between 5G, 4G, 3G and
CAT1 every 30 seconds, towards 4G and 5G in towns and less on the way to work and back (8 to 9 and 17 to 18 o'clock); around the uplink rate
that is published for each (`cluster.presets`) the rate varies log-normally, correlated over some minutes. With `--trace` the day is a
file of yours: a CSV of seconds and bytes/s, or a Mahimahi packet-delivery trace. Real: the network, its FLOPs and bytes. Machines are
declared (experiments.py). Writes mobile_day.png and mobile_day.csv.
"""

from __future__ import annotations

from random import Random

import matplotlib.pyplot as plt
import numpy as np
from experiments import MBPS, declared, finish, link, options

import splitinfer
from cluster.presets import link_preset
from cluster.topology import Compute, TierSpec, Topology
from cluster.traces import Trace, load_trace
from splitinfer import Plan, Profile, simulator

CODECS = ("raw", "zstd", "fp16")
STATES = ("5G", "4G", "3G", "CAT1")
TOWN = ((0.96, 0.04, 0.0, 0.0), (0.04, 0.92, 0.04, 0.0), (0.0, 0.15, 0.80, 0.05), (0.0, 0.0, 0.3, 0.7))
"""From each state to each other, every 30 seconds."""
MOVING = ((0.60, 0.40, 0.0, 0.0), (0.06, 0.70, 0.22, 0.02), (0.0, 0.20, 0.65, 0.15), (0.0, 0.0, 0.25, 0.75))
STEP_S, DAY_S = 30, 24 * 3600
COLORS = {"re-planned": "#2ca02c", "one plan": "#d62728", "phone only": "#7f7f7f", "cloud only": "#1f77b4"}


def made_up_day(seed: int, seconds: int) -> Trace:
    """The uplink of a day, in steps of 30 seconds; equal seeds give equal days."""
    chance = Random(seed)
    state, swing, rates = 0, 0.0, []
    for step in range(seconds // STEP_S):
        hour = step * STEP_S / 3600 % 24
        chain = MOVING if 8 <= hour < 9 or 17 <= hour < 18 else TOWN
        state = chance.choices(range(len(STATES)), chain[state])[0]
        swing = 0.9 * swing + chance.gauss(0, 0.15)  # a standard deviation of a third
        rates.append(link_preset(STATES[state]).up_bytes_per_s * np.exp(swing))
    return Trace(tuple(float(STEP_S * i) for i in range(len(rates))), tuple(rates), float(STEP_S * len(rates)))


def topology(bytes_per_s: float) -> Topology:
    phone, cloud = TierSpec("phone", Compute(factor=5), watts=3.0), TierSpec("cloud", Compute(factor=0.2))
    return Topology((phone, cloud), (link("phone", "cloud", bytes_per_s / MBPS, 0.020, 20),))


def family(profile: Profile) -> list[Plan]:
    """The plans that are best at some uplink from 0.05 to 100 Mbps, each once."""
    found: dict[object, Plan] = {}
    for mbps in np.geomspace(0.05, 100, 24).tolist():
        plan = splitinfer.plan(profile, topology(mbps * MBPS), codecs=CODECS, compare=False)
        found.setdefault((plan.stages, plan.crossings), plan)
    return list(found.values())


def main() -> None:
    chosen = options(__doc__ or "", "mobile_day")
    seconds = 2 * 3600 if chosen.quick else DAY_S
    day = load_trace(chosen.trace) if chosen.trace else made_up_day(chosen.seed, seconds)
    profile = declared(splitinfer.capture(*splitinfer.zoo.resnet18()), CODECS)
    mean = topology(day.mean_bytes_per_s)
    best, others = splitinfer.plan(profile, mean, codecs=CODECS), family(profile)
    whole = splitinfer.planner.baseline_plans(profile, mean, CODECS)
    system = simulator.System(links={"phone:cloud": simulator.Conditions(trace=day)}, queue_limit=10)
    requests = seconds // 20
    runs: dict[str, simulator.Simulation] = {}
    for name, plan in {"one plan": best, "re-planned": best, "phone only": whole["phone only"], "cloud only": whole["cloud only"]}.items():
        replanning = simulator.Replanning(tuple(others), migration_cost_s=0.05) if name == "re-planned" else None
        runs[name] = splitinfer.simulate(
            plan, profile, mean, simulator.Poisson(1 / 20), requests=requests, seed=chosen.seed, system=system, replanning=replanning
        )  # fmt: skip
    slots = np.arange(0, seconds, 900)
    rows: list[dict[str, object]] = []
    for name, run in runs.items():
        slot = np.searchsorted(slots, run.requests.arrival_s, side="right") - 1
        for i, start in enumerate(slots.tolist()):
            mine = run.requests.latency_s[slot == i]
            p50, p95 = np.percentile(mine, [50, 95]).tolist() if len(mine) else (float("nan"), float("nan"))
            rows.append({"from_s": start, "plan": name, "answered": len(mine), "p50_s": p50, "p95_s": p95})
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(11, 6.4), layout="constrained", sharex=True, height_ratios=(2, 3))
    times = np.arange(0, seconds, STEP_S)
    top.step(times / 3600, [day.rate_at(t) / MBPS for t in times.tolist()], where="post", color="#444444", lw=0.7)
    top.set(yscale="log", ylabel="uplink, Mbps")
    top.set_title("a given trace" if chosen.trace else "a made-up day: a Markov chain over published rates", loc="left")
    for name, color in COLORS.items():
        mine = [row for row in rows if row["plan"] == name]
        bottom.plot(
            (slots + 450) / 3600, [1e3 * row["p95_s"] for row in mine], ":" if name.endswith("only") else "-", color=color, label=name, lw=2
        )
    bottom.set(yscale="log", ylabel="latency, ms: 95th percentile\nof each quarter of an hour", xlabel="hour", xlim=(0, seconds / 3600))
    for axis in (top, bottom):
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(which="major", color="#dddddd", lw=0.7)
    bottom.legend(frameon=False, ncols=4)
    table = [
        [name, *(f"{1e3 * getattr(run.latency_s, key):.0f}" for key in ("mean", "p50", "p95", "p99")), str(len(run.switches)),
         str(sum(run.dropped.values())), f"{run.energy_j / run.completed:.2f}"]
        for name, run in runs.items() if run.latency_s
    ]  # fmt: skip
    print(f"{requests:,} requests in {seconds / 3600:g} hours, {len(others)} plans to choose from; energy is the phone's computing.\n")
    head = ["plan", "mean ms", "p50", "p95", "p99", "changes", "dropped", "J each"]
    finish(figure, rows, table, head, chosen.out / "mobile_day")


if __name__ == "__main__":
    main()
