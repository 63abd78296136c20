"""Ray nodes inside namespaces, and this process as their driver."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ClusterError
from cluster.launch import OBJECT_STORE_NBYTES, TIER_LABEL, node_environment, reread_settings
from cluster.security import environment
from cluster.testbed.namespaces import within

PORT = 6379
_START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Node:
    """The Ray node of one tier."""

    tier: str
    namespace: str
    address: str
    """Its IP address in the testbed."""
    home: Path
    """Where it keeps its session: sockets and logs."""


def start(head: Node, others: list[Node], token: Path, cpus: int) -> None:
    """Start the head, then the others side by side. Raises ClusterError with what a node said last."""
    settings = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | node_environment(token)
    _finish(head, _launch(head, ["--head", "--port", str(PORT), "--include-dashboard", "false"], settings, cpus))
    started = [(node, _launch(node, ["--address", f"{head.address}:{PORT}"], settings, cpus)) for node in others]
    for node, process in started:
        _finish(node, process)


@contextlib.contextmanager
def connected(node: Node, head: Node, token: Path) -> Iterator[None]:
    """This process as a driver on `node`, whose namespace the calling thread must have entered. Raises ClusterError."""
    with environment(node_environment(token)):
        import ray

        if ray.is_initialized():
            raise ClusterError("this process is already connected to Ray; call ray.shutdown() first")
        reread_settings()
        try:
            ray.init(address=f"{head.address}:{PORT}", _node_ip_address=node.address, logging_level=logging.ERROR, log_to_driver=False)
            yield
        finally:
            ray.shutdown()
    reread_settings()


def _launch(node: Node, role: list[str], settings: Mapping[str, str], cpus: int) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", *role, "--node-ip-address", node.address, "--num-cpus", str(cpus),
        "--labels", f"{TIER_LABEL}={node.tier}", "--object-store-memory", str(OBJECT_STORE_NBYTES), "--temp-dir", str(node.home),
        "--disable-usage-stats", "--include-log-monitor", "false",
    ]  # fmt: skip
    node.home.mkdir(parents=True, exist_ok=True)
    log = (node.home / "start.log").open("w+", encoding="utf-8")
    with log:  # a file, not a pipe: the node's own processes keep it open
        return subprocess.Popen(  # noqa: S603 - ours
            within(node.namespace, command), env=settings, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip


def _finish(node: Node, process: subprocess.Popen[str]) -> None:
    try:
        failed = process.wait(_START_TIMEOUT_S) != 0
    except subprocess.TimeoutExpired:
        failed = True
    if failed:
        said = (node.home / "start.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ClusterError(f"the Ray node of tier '{node.tier}' did not start: {said[-1] if said else 'it said nothing'}")
