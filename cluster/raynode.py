"""One Ray node as a set of processes: how ``ray start`` is called, and how exactly its processes are found and ended.

``ray start`` leaves its processes behind, workers come and go, and a recorded pid can be reused. So each process of a node
bears a mark in its environment, drawn by lot; what bears it belongs to the node, whatever a record says, and nothing else does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from cluster.errors import ClusterError
from cluster.launch import OBJECT_STORE_NBYTES, TIER_LABEL

MARK = "SPLITINFER_NODE"
DASHBOARD_PORT = 8265
"""Where ``ray job submit`` finds the head, on the head's own machine."""
_START_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Node:
    """The Ray node of one tier, on the machine where this is used."""

    tier: str
    address: str
    """Its IP address."""
    home: Path
    """Where it keeps its session, sockets and logs; made here. Short: the path of a socket has at most 107 bytes."""
    mark: str
    cpus: int


def start(node: Node, role: Sequence[str], settings: Mapping[str, str]) -> subprocess.Popen[str]:
    """Call ``ray start`` as head (`role` "--head", ...) or worker ("--address", ...); `finish` waits for it."""
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", *role, "--node-ip-address", node.address, "--num-cpus", str(node.cpus),
        "--labels", f"{TIER_LABEL}={node.tier}", "--object-store-memory", str(OBJECT_STORE_NBYTES), "--temp-dir", str(node.home),
        "--disable-usage-stats", "--include-log-monitor", "false", "--min-worker-port", "0", "--max-worker-port", "0",
        "--dashboard-agent-listen-port", "0",
    ]  # fmt: skip
    node.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    # SPT_NOENV: workers rename themselves, and would write their new title over their environment, the mark included.
    marked = own | dict(settings) | {MARK: node.mark, "SPT_NOENV": "1"}
    with (node.home / "start.log").open("w", encoding="utf-8") as log:  # a file, not a pipe: the node's own processes keep it open
        return subprocess.Popen(  # noqa: S603 - ours
            command, env=marked, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )


def head_role(port: int) -> list[str]:
    """What makes a node the head. Jobs can be submitted where Ray's dashboard is installed; it listens on this machine only."""
    dashboard = str(find_spec("aiohttp_cors") is not None).lower()
    place = ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(DASHBOARD_PORT)]
    return ["--head", "--port", str(port), "--include-dashboard", dashboard, *place]


def finish(node: Node, process: subprocess.Popen[str]) -> None:
    """Wait until the node runs. Raises ClusterError with what it said last."""
    try:
        failed = process.wait(_START_TIMEOUT_S) != 0
    except subprocess.TimeoutExpired:
        failed = True
    if failed:
        said = (node.home / "start.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ClusterError(f"the Ray node of tier '{node.tier}' did not start: {said[-1] if said else 'it said nothing'}")


def processes(mark: str) -> list[psutil.Process]:
    """All processes of this user that bear a mark, this one excepted."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.Error, OSError):  # it has ended, or is another user's
            continue
    return found


def end(mark: str) -> int:
    """Kill, until none is left, what bears a mark; how many processes there were. Raises ClusterError where some do not end."""
    killed: set[int] = set()
    deadline = time.monotonic() + _END_TIMEOUT_S
    while found := processes(mark):  # new ones may appear while old ones still start some
        if time.monotonic() > deadline:
            raise ClusterError(f"processes {sorted(process.pid for process in found)} do not end; see 'ps'")
        for process in found:
            try:
                process.kill()  # psutil looks at the start time first: a pid that was reused meanwhile is spared
            except psutil.NoSuchProcess:
                continue
            killed.add(process.pid)
        psutil.wait_procs(found, timeout=1.0)
    return len(killed)
