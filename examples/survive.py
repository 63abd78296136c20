"""Requests while machines are killed: who answered each, and how fast.

    python examples/survive.py [--seconds 60] [--out out]

MobileNetV2 on a slow device, an edge machine and the cloud, each a Ray node of this machine. Plans are made for every loss of
machines beforehand. Then requests go on without a pause while first the process of a stage and then the whole node of the best
plan's machine is killed with SIGKILL. The device answers alone where nobody else can. Writes survive.png and survive.csv.
"""

from __future__ import annotations

import argparse
import csv
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import psutil
from tabulate import tabulate

import splitinfer
from cluster import lifecycle
from cluster.state import Record
from cluster.topology import Topology
from splitinfer import zoo
from splitinfer.family import needs
from splitinfer.runtime.resilient import ResilientPipeline

mpl.use("Agg")
import matplotlib.pyplot as plt

NAME = "survive"
TOPOLOGY = Topology.loads("""
version: 1
tiers:
  - {name: device, compute: {factor: 6}}
  - {name: edge, compute: {factor: 2}}
  - {name: cloud, compute: measured}
links:
  - {between: [device, edge], up: 20 Mbps, latency: 2 ms}
  - {between: [edge, cloud], up: 100 Mbps, latency: 5 ms}
""")


@dataclass(frozen=True)
class Answer:
    """One request."""

    at_s: float
    seconds: float
    by: str


def main() -> None:
    """Plan, run, kill, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    model, args, kwargs = zoo.mobilenet_v2()
    graph = splitinfer.capture(model, args, kwargs)
    profile = splitinfer.profile(graph, TOPOLOGY, repeats=5)
    family = splitinfer.plan_family(profile, TOPOLOGY, codecs=["raw", "int8"])
    for plan in family:
        print(f"needs {', '.join(sorted(needs(plan))) or 'the device alone'}: {plan.cost.latency_s * 1e3:.0f} ms predicted")

    record = lifecycle.up_local(TOPOLOGY, name=NAME)
    try:
        with splitinfer.resilient(graph, family, TOPOLOGY, cluster=NAME) as pipeline:
            pipeline.wait_for()
            start_s = time.monotonic()
            killer = threading.Thread(target=kill, args=(record, sorted(needs(family[0])), options.seconds, faults := []))
            killer.start()
            answers = asked(pipeline, options.seconds)
            killer.join()
            switches = [(switch.at_s - start_s, switch.plan or "the device alone", switch.why) for switch in pipeline.switches]
    finally:
        lifecycle.down(NAME)
    show(answers, [(what, at_s - start_s) for what, at_s in faults], switches, options.out)


def asked(pipeline: ResilientPipeline, seconds: float) -> list[Answer]:
    """The sample again and again; an error would end the script."""
    args, kwargs = pipeline.graph.example
    found, start_s = [], time.monotonic()
    while (now_s := time.monotonic() - start_s) < seconds:
        trace = pipeline.traced(*args, **kwargs)[1]
        found.append(Answer(now_s, trace.total_s, trace.answered_by))
    return found


def kill(record: Record, tiers: list[str], seconds: float, faults: list[tuple[str, float]]) -> None:
    """After a tenth of the time a stage's process, after a third a whole node."""
    time.sleep(seconds / 10)
    for process in psutil.process_iter(["cmdline"]):
        if "StageActor" in " ".join(process.info["cmdline"] or ()) and process.environ()["SPLITINFER_NODE"].startswith(record.mark):
            process.kill()
            faults.append(("a stage is killed", time.monotonic()))
            break
    time.sleep(seconds / 4)
    lifecycle.kill(record, tiers[0])
    faults.append((f"the {tiers[0]} is killed", time.monotonic()))


def show(answers: list[Answer], faults: list[tuple[str, float]], switches: list[tuple[float, str, str]], out: Path) -> None:
    """The table, the picture and the file."""
    rows = []
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for by in dict.fromkeys(answer.by for answer in answers):
        own = [answer for answer in answers if answer.by == by]
        seconds = sorted(answer.seconds for answer in own)
        rows.append([by, len(own), f"{seconds[len(own) // 2] * 1e3:.0f}", f"{seconds[-1] * 1e3:.0f}"])
        axes.plot([answer.at_s for answer in own], [answer.seconds * 1e3 for answer in own], ".", label=by)
    for what, at_s in faults:
        axes.axvline(at_s, color="tab:red", linewidth=1)
        axes.annotate(what, (at_s, 1), xycoords=("data", "axes fraction"), rotation=90, va="top", ha="right", fontsize="small")
    axes.set(xlabel="seconds", ylabel="latency, ms", yscale="log", title="Who answered, while machines were killed")
    axes.legend(loc="upper right")
    figure.savefig(out / "survive.png", dpi=150)
    with (out / "survive.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("at_s", "seconds", "by"), *((answer.at_s, answer.seconds, answer.by) for answer in answers)])
    print(tabulate(rows, ["answered by", "requests", "median ms", "longest ms"]))
    print(tabulate([[f"{at_s:.1f}", plan, f"{why:.100}"] for at_s, plan, why in switches if at_s > 0], ["s", "from then on", "because"]))
    print(f"{len(answers)} requests, none lost; {out / 'survive.png'}, {out / 'survive.csv'}")


if __name__ == "__main__":
    main()
