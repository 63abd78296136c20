"""How long a cluster takes to come up and to go, and a stranger to be refused: three nodes on this machine, and in namespaces (root).

    python benchmarks/launch.py

Raw seconds, because nothing is compared; beside each the time in which this machine imports Ray, as a measure of it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tabulate import tabulate

from cluster import certs, client, lifecycle, raynode
from cluster.errors import ClusterError
from cluster.security import write_token
from cluster.testbed import Testbed, namespaces
from cluster.topology import Topology

ROUNDS = 3
TOPOLOGY = Topology.loads("""
version: 1
tiers: [{name: device, compute: measured}, {name: edge, compute: measured}, {name: cloud, compute: measured}]
links: [{between: [device, edge], preset: LAN}, {between: [edge, cloud], preset: LAN}]
""")


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def refused(address: str, token: Path, tls: Path | None) -> float:
    def ask() -> None:
        try:
            client.members(address, token, tls)
        except ClusterError:
            return
        raise AssertionError("a stranger was let in")

    return seconds(ask)


def measure(tls: Path | None, scratch: Path) -> dict[str, float]:
    found = {}
    found["up"] = seconds(lambda: lifecycle.up_local(TOPOLOGY, name="bench", tls=tls))
    record = lifecycle.state.load("bench")
    try:
        token = Path(record.token)
        found["let in"] = seconds(lambda: client.members(record.address, token, tls))
        found["wrong token"] = refused(record.address, scratch / "wrong", tls)
        found["other TLS"] = refused(record.address, token, None if tls else scratch / "tls")
    finally:
        found["down"] = seconds(lambda: lifecycle.down("bench"))
    assert raynode.processes(record.mark) == []
    found["import ray"] = seconds(lambda: subprocess.run([sys.executable, "-c", "import ray"], check=True))
    return found


def in_namespaces() -> tuple[float, float]:
    """Up and down of a testbed: a network namespace, shaped links and a Ray node for each tier."""
    made: list[Testbed] = []
    up_s = seconds(lambda: made.append(Testbed.up(TOPOLOGY)))
    return up_s, seconds(made[0].down)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        os.environ["XDG_STATE_HOME"] = folder
        write_token(scratch / "wrong")
        certs.make(scratch / "tls")
        rows = []
        for name, tls in (("token", None), ("token and TLS", scratch / "tls")):
            rounds = [measure(tls, scratch) for _ in range(ROUNDS)]
            rows.append([name, *(f"{statistics.median(each[key] for each in rounds):.2f}" for key in rounds[0])])
        print(tabulate(rows, ["three nodes, median seconds", *rounds[0]], disable_numparse=True))
    if lack := namespaces.missing():
        print(f"namespaces: not measured, {lack}")
        return
    up_s, down_s = (statistics.median(each) for each in zip(*(in_namespaces() for _ in range(ROUNDS)), strict=True))
    left = sum(name.startswith("splitinfer") for name in namespaces.listed())
    print(f"in namespaces: up {up_s:.2f}, down {down_s:.2f}, namespaces left {left}")


if __name__ == "__main__":
    main()
