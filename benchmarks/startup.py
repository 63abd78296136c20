"""Wall time of starting: importing, the command's help, planning, and deploying.

    python benchmarks/startup.py [--rounds 7] [--deploys 3] [--json]

Imports and helps are fresh processes that take turns; the figure is the median of their wall times, interpreter and all.
The target for the help is at most 8 times a process that imports argparse, json and dataclasses. Planning is the time
inside this process from a saved profile of ResNet-50: reading the file, then `splitinfer.plan` and `splitinfer.plan_family`
in turns, over three tiers and over four, and four codecs. Deploying is three stages of ResNet-50 from `deploy` until the
stages are ready, on a cluster that runs already and with the start of one; the first request is listed apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from tabulate import tabulate

PYTHON = sys.executable
PROCESSES = {
    "python: argparse, json, dataclasses": [PYTHON, "-c", "import argparse, json, dataclasses"],
    "python: import splitinfer": [PYTHON, "-c", "import splitinfer"],
    "python: import torch": [PYTHON, "-c", "import torch"],
    "splitinfer --help": [str(Path(PYTHON).with_name("splitinfer")), "--help"],
    "python -m splitinfer --help": [PYTHON, "-m", "splitinfer", "--help"],
}
PLAIN, TARGET = "python: argparse, json, dataclasses", 8.0
TIERS = ("device", "edge", "cloud")
CLUSTER = Path(__file__).parent.parent / "examples" / "cluster.yaml"


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def processes(rounds: int) -> dict[str, float]:
    """Median wall seconds of each command; the first round only fills the caches of files."""
    seconds: dict[str, list[float]] = {name: [] for name in PROCESSES}
    for _ in range(rounds + 1):
        for name, command in PROCESSES.items():
            seconds[name].append(timed(lambda command=command: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)))
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def planning(rounds: int) -> dict[str, float]:
    import splitinfer
    from cluster.topology import Topology

    model, args, kwargs = splitinfer.zoo.resnet50()
    three = Topology.load(CLUSTER)
    device, edge, cloud = three.tiers
    fog, over = replace(edge, name="fog"), replace(three.links[0], between=("fog", edge.name))
    four = replace(three, tiers=(device, fog, edge, cloud), links=(replace(over, between=(device.name, "fog")), over, three.links[1]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.json"
        splitinfer.profile(splitinfer.capture(model, args, kwargs), repeats=5).save(path)
        read = [timed(lambda: splitinfer.Profile.load(path)) for _ in range(rounds)]
        profile = splitinfer.Profile.load(path)
    found: dict[str, list[float]] = {"reading the profile": read}
    for _ in range(rounds):
        for topology in (three, four):
            what = f"{len(topology.tiers)} tiers, {len(profile.codecs)} codecs, {len(profile.layers)} layers"
            for make in (splitinfer.plan, splitinfer.plan_family):
                seconds = timed(lambda make=make, topology=topology: make(profile, topology, codecs=profile.codecs))
                found.setdefault(f"splitinfer.{make.__name__}: {what}", []).append(seconds)
    return {name: statistics.median(times) for name, times in found.items()}


def deploying(rounds: int) -> dict[str, float]:
    import splitinfer
    from cluster.launch import LocalCluster
    from cluster.topology import Compute, LinkSpec, TierSpec, Topology
    from splitinfer.plans import Plan
    from splitinfer.verify import balanced_stages

    model, args, kwargs = splitinfer.zoo.resnet50()
    graph = splitinfer.capture(model, args, kwargs)
    links = tuple(LinkSpec(pair, 1e12, 1e12, 0.0) for pair in pairwise(TIERS))
    topology = Topology(tuple(TierSpec(name, Compute()) for name in TIERS), links)
    plan = Plan.by_hand(graph, balanced_stages(graph, len(TIERS)), TIERS)
    started, answered, cold = [], [], []
    for _ in range(rounds):
        start = time.perf_counter()
        with LocalCluster(TIERS) as cluster:
            up = time.perf_counter()
            with splitinfer.deploy(graph, plan, topology, cluster=cluster) as pipeline:
                started.append(time.perf_counter() - up)
                cold.append(time.perf_counter() - start)
                answered.append(timed(lambda pipeline=pipeline: pipeline(*args, **kwargs)))
    return {
        "deploy: three stages, cluster already up": statistics.median(started),
        "deploy: three stages, cluster start included": statistics.median(cold),
        "first request after that": statistics.median(answered),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--deploys", type=int, default=3, help="cluster starts (default 3; 0: none)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = processes(options.rounds)
    found = started | planning(options.rounds) | (deploying(options.deploys) if options.deploys else {})
    helps = {name: started[name] / started[PLAIN] for name in started if "--help" in name}
    if options.json:
        print(json.dumps({"seconds": found, "help_ratio": helps, "target": TARGET, "met": max(helps.values()) <= TARGET}))
        return
    rows = [[name, f"{seconds * 1e3:.1f}", f"{seconds / started[PLAIN]:.1f}" if name in started else ""] for name, seconds in found.items()]
    print(tabulate(rows, ["", "median ms", "times a plain start"], disable_numparse=True, colalign=("left", "right", "right")))
    verdict = "met" if max(helps.values()) <= TARGET else "not met"
    print(f"\ntarget: the help takes at most {TARGET:g} times a plain start: {verdict} (worst {max(helps.values()):.1f})")


if __name__ == "__main__":
    main()
