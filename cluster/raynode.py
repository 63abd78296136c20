"""One Ray node as a set of processes: how it is started and kept alive, and how exactly its processes are found and ended.

``ray start`` leaves its processes behind, workers come and go, and a recorded pid can be reused. So each process of a node
bears a mark in its environment, drawn by lot; what bears it belongs to the node, whatever a record says, and nothing else does.
Marks nest: MARK/edge/3, the third life of the tier 'edge', belongs to MARK/edge, which its keeper (keeper.py) bears, and to
MARK, the whole cluster.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from cluster.errors import ClusterError
from cluster.launch import OBJECT_STORE_NBYTES, TIER_LABEL

MARK = "SPLITINFER_NODE"
DASHBOARD_PORT = 8265
"""Where ``ray job submit`` finds the head, on the head's own machine."""
START_TIMEOUT_S = 120.0
START_LOG, KEEPER_LOG = "start.log", "keeper.log"
"""In a node's home: what ``ray start`` said last, and when the node ended, how, and when it was started again."""
_END_TIMEOUT_S, _END_POLL_S = 10.0, 0.1


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
    head: str
    """Where the cluster's head listens, "host:port"; the node at this address is the head."""
    dashboard: bool = False
    """Whether the head takes jobs."""
    prefix: tuple[str, ...] = ()
    """What comes before each command, for a node that lives in a network namespace."""

    @property
    def role(self) -> list[str]:
        """What makes ``ray start`` start a head, or another node."""
        host, _, port = self.head.rpartition(":")
        if host != self.address:
            return ["--address", self.head]
        dashboard = ["--include-dashboard", str(self.dashboard).lower(), "--dashboard-host", "127.0.0.1"]
        return ["--head", "--port", port, *dashboard, "--dashboard-port", str(DASHBOARD_PORT)]


def has_dashboard() -> bool:
    """Whether jobs can be submitted to a head that runs here: Ray's dashboard is an extra of it."""
    return find_spec("aiohttp_cors") is not None


def start(node: Node, settings: Mapping[str, str], *options: str) -> subprocess.Popen[str]:
    """Start the node and the keeper that starts it again whenever it ends; `finish` waits until it runs.

    `settings` come on top of this process's environment, `options` are further ones of ``ray start``.
    """
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", *node.role, "--node-ip-address", node.address, "--num-cpus", str(node.cpus),
        "--labels", f"{TIER_LABEL}={node.tier}", "--object-store-memory", str(OBJECT_STORE_NBYTES), "--temp-dir", str(node.home),
        "--disable-usage-stats", "--include-log-monitor", "false", "--min-worker-port", "0", "--max-worker-port", "0",
        "--dashboard-agent-listen-port", "0", *options,
    ]  # fmt: skip
    awaited = "" if "--head" in node.role else node.head
    keeper = [*node.prefix, sys.executable, "-m", "cluster.keeper", str(node.home), awaited, *command]
    node.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (node.home / START_LOG).unlink(missing_ok=True)
    own = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    # SPT_NOENV: workers rename themselves, and would write their new title over their environment, the mark included.
    marked = own | dict(settings) | {MARK: node.mark, "SPT_NOENV": "1"}
    with (node.home / KEEPER_LOG).open("a", encoding="utf-8") as log:
        return subprocess.Popen(  # noqa: S603 - ours
            keeper, env=marked, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )


def start_all(nodes: Sequence[Node], settings: Mapping[str, str]) -> None:
    """Start the head, which is the last, then the others side by side, and wait for them. Raises ClusterError."""
    *others, head = nodes
    finish(head, start(head, settings))
    for node, process in [(node, start(node, settings)) for node in others]:
        finish(node, process)


def finish(node: Node, process: subprocess.Popen[str]) -> None:
    """Wait until the node runs. Raises ClusterError with what it said last."""
    try:
        failed = process.wait(START_TIMEOUT_S) != 0
    except subprocess.TimeoutExpired:
        failed = True
    if failed:
        said = _last_line(node.home / START_LOG) or _last_line(node.home / KEEPER_LOG) or "it said nothing"
        raise ClusterError(f"the Ray node of tier '{node.tier}' did not start: {said}")


def processes(mark: str) -> list[psutil.Process]:
    """All processes of this user that bear a mark or one within it, this one excepted."""
    return list(_bearers(mark))


def named(mark: str, names: Collection[str]) -> dict[int, str]:
    """Those processes of a mark that have one of these names, by their pid."""
    found = {}
    for process in processes(mark):
        with contextlib.suppress(psutil.Error):  # it has ended
            found[process.pid] = process.name()
    return {pid: name for pid, name in found.items() if name in names}


def kill(node: Node, *, keeper: bool = False) -> int:
    """Kill a node as it stands (SIGKILL), to see what happens; how many processes there were.

    Its keeper starts it again, unless it is killed, too: `revive` does then.
    """
    if keeper:
        return end(node.mark)
    found = [process for process, borne in _bearers(node.mark).items() if borne != node.mark]
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return len(found)


def revive(node: Node, settings: Mapping[str, str]) -> None:
    """Start a node anew, and its keeper; what is left of it ends first. Raises ClusterError."""
    end(node.mark)
    finish(node, start(node, settings))


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
        psutil.wait_procs(found, timeout=_END_POLL_S)
    return len(killed)


def _bearers(mark: str) -> dict[psutil.Process, str]:
    """Each process that belongs to a mark, and the mark that it bears itself."""
    found = {}
    for process in psutil.process_iter():
        try:
            borne = process.environ().get(MARK, "")
        except (psutil.Error, OSError):  # it has ended, or is another user's
            continue
        if f"{borne}/".startswith(f"{mark}/") and process.pid != os.getpid():
            found[process] = borne
    return found


def _last_line(path: Path) -> str:
    if not path.exists():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
