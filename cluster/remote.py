"""What runs on a host that is reached by SSH: ``python -m cluster.remote start|check|stop HOME``.

It starts and ends the host's Ray node; on the head, `check` waits for the others and compares the nodes' versions.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import raynode, ssh
from cluster.client import connect, members, settings
from cluster.doctor import check_versions
from cluster.errors import ClusterError
from cluster.launch import TIER_LABEL
from cluster.probe import open_probes

_JOIN_TIMEOUT_S = 180.0  # a small board that imports Ray for the first time takes a minute
_POLL_S = 1.0
_BOOTSTRAP = ("ray_bootstrap_config.yaml", "ray_bootstrap_key.pem")
"""What ``ray up`` puts into the head's home, a private key among it."""


def main(action: str, home: Path) -> None:
    """Start this host's node, check the cluster, or end the node and all that belongs to it. Raises ClusterError."""
    shipped = home / "shipped"
    node = json.loads((shipped / "node.json").read_text(encoding="utf-8"))
    tls = shipped if node["tls"] else None
    if action == "check":
        check(node, shipped / "token", tls)
        return
    tier = own_tier(node["hosts"])
    mark = f"{node['mark']}/{tier}"
    sessions = Path("/tmp", f"splitinfer-{node['mark'][:12]}-{node['tiers'].index(tier)}")  # noqa: S108 - made with mode 700, or refused
    raynode.end(mark)
    shutil.rmtree(sessions, ignore_errors=True)
    if action == "start":
        sessions.mkdir(mode=0o700)
        _start(node, tier, sessions, mark, settings(shipped / "token", tls))
    elif tier == node["tiers"][-1]:
        for name in _BOOTSTRAP:
            Path.home().joinpath(name).unlink(missing_ok=True)
        ssh.forget_launch(node["mark"])


def check(node: Mapping[str, Any], token: Path, tls: Path | None) -> None:
    """Wait until every tier's node has joined. Raises ClusterError where one does not, or their versions differ."""
    deadline = time.monotonic() + _JOIN_TIMEOUT_S
    while missing := set(node["tiers"]) - {member.tier for member in members(node["address"], token, tls)}:
        if time.monotonic() > deadline:
            raise ClusterError(
                f"the nodes of {', '.join(sorted(missing))} did not join within {_JOIN_TIMEOUT_S:g} s; can the head reach them by SSH, "
                f"and they port {node['address'].rpartition(':')[2]} of it?"
            )
        time.sleep(_POLL_S)
    with connect(node["address"], token=token, tls=tls), open_probes({tier: {TIER_LABEL: tier} for tier in node["tiers"]}) as probes:
        check_versions(probes.facts())


def own_tier(hosts: Mapping[str, str]) -> str:
    """The tier whose address is this machine's. Raises ClusterError."""
    for tier, address in hosts.items():
        with socket.socket() as trial:
            try:
                trial.bind((address, 0))
            except OSError:
                continue
            return tier
    raise ClusterError(f"none of {', '.join(hosts.values())} is an address of {socket.gethostname()}; give the hosts' own addresses")


def _start(node: Mapping[str, Any], tier: str, sessions: Path, mark: str, wanted: Mapping[str, str]) -> None:
    # Ray opens its own directory to everybody: the one around it stays closed.
    here = raynode.Node(tier, node["hosts"][tier], sessions / "0", mark, os.cpu_count() or 1, node["address"], raynode.has_dashboard())
    options = ["--autoscaling-config", str(Path.home() / _BOOTSTRAP[0])] if tier == node["tiers"][-1] else []
    # Ray's second autoscaler takes the head of a local provider for a worker, and then starts one worker too few.
    raynode.finish(here, raynode.start(here, dict(wanted) | {"RAY_enable_autoscaler_v2": "0"}, *options))


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except ClusterError as error:
        sys.exit(f"cluster.remote: {error}")
