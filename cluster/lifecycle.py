"""Clusters that outlive the command that started them: on this machine, on hosts reached by SSH, or somebody else's.

The head lives in the highest tier, as in a LocalCluster. Whatever happens on the way up, `down` knows what to end: the
record comes first, and a node's processes bear its mark (raynode.py).
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from cluster import certs, raynode, ssh, state
from cluster.client import Member, connect, members, settings
from cluster.doctor import check_versions
from cluster.errors import ClusterError, not_one_of
from cluster.launch import TIER_LABEL
from cluster.probe import open_probes
from cluster.security import write_token
from cluster.state import Record
from cluster.topology import Topology

_MOST_TIERS = 200
_PORT = 6379


def up_local(topology: Topology, *, name: str = "default", tls: Path | None = None, cpus: int | None = None) -> Record:
    """One Ray node per tier on this machine (Linux), each with an address of its own on the loopback.

    `tls` is a directory of certificates, `cpus` what each node offers to its actors. Raises ClusterError, and leaves
    nothing running then.
    """
    tiers = [tier.name for tier in topology.tiers]
    hosts = {tier: f"127.0.0.{index + 2}" for index, tier in enumerate(tiers)}
    address = f"{hosts[tiers[-1]]}:{_free_port(hosts[tiers[-1]])}"
    record = _claimed(name, "local", _labels(topology), address, tls, hosts, {}, cpus or os.cpu_count() or 1)
    try:
        _start_here(record)
    except BaseException as error:
        _undo(name, error)
        raise
    return record


def up_ssh(topology: Topology, hosts: ssh.Hosts, *, name: str = "default", tls: Path | None = None, wheel: Path | None = None) -> Record:
    """One Ray node per tier on hosts reached by SSH, through Ray's own launcher; `wheel` (default: made here) is shipped to each.

    Raises ClusterError, and ends what it started on every host that answers.
    """
    tiers = [tier.name for tier in topology.tiers]
    hosts.check(tiers)
    addresses = {tier: hosts.addresses[tier] for tier in tiers}
    record = _claimed(name, "ssh", _labels(topology), f"{addresses[tiers[-1]]}:{_PORT}", tls, addresses, hosts.reach(), 0)
    try:
        if tls is not None:
            certs.check_hosts(tls, list(record.hosts.values()))
        ssh.launch(record, hosts, wheel or ssh.make_wheel(record.home))
        ssh.check(record)
    except BaseException as error:
        _undo(name, error)
        raise
    return record


def adopt(topology: Topology, address: str, token: Path, *, name: str = "default", tls: Path | None = None) -> Record:
    """Remember a running cluster by its head's address; its nodes bear the tiers' labels. Raises ClusterError."""
    labels = {tier.name: dict(tier.node) or {TIER_LABEL: tier.name} for tier in topology.tiers}
    there = members(address, token, tls)
    for tier, wanted in labels.items():
        if not any(wanted.items() <= member.labels.items() for member in there):
            raise ClusterError(f"no live node at {address} has the labels {wanted} of tier '{tier}'; start one with 'ray start --labels'")
    record = Record(name, "address", labels, address, str(token.resolve()), _absolute(tls), state.draw_mark(), {}, {}, 0)
    with connected(record), open_probes(labels) as probes:
        check_versions(probes.facts())
    state.claim(name)
    record.save()
    return record


def down(name: str | None = None) -> Record:
    """End all that `up` started under a name, however much of it is left; a cluster of somebody else's is only forgotten.

    Raises ClusterError where a host cannot be reached; the record stays then, to try again.
    """
    record = state.load(name)
    if record.kind == "ssh":
        ssh.stop(record)
        raynode.end(f"{record.mark}/launcher")
    elif record.kind == "local":
        raynode.end(record.mark)
        shutil.rmtree(_sessions(record), ignore_errors=True)
    record.forget()
    return record


def kill(record: Record, tier: str, *, keeper: bool = False) -> int:
    """Kill a tier's node on this machine (raynode.kill). Raises ClusterError."""
    return raynode.kill(_node(record, tier), keeper=keeper)


def revive(record: Record, tier: str) -> None:
    """Start a tier's node on this machine anew (raynode.revive). Raises ClusterError."""
    raynode.revive(_node(record, tier), _settings(record))


def live(record: Record) -> list[Member]:
    """The live nodes of a cluster. Raises ClusterError."""
    return members(record.address, Path(record.token), Path(record.tls) if record.tls else None)


def connected(record: Record) -> AbstractContextManager[None]:
    """This process as a client of a cluster (client.connect)."""
    return connect(record.address, token=Path(record.token), tls=Path(record.tls) if record.tls else None)


def _undo(name: str, error: BaseException) -> None:
    """End what a failed `up` started. Raises ClusterError that tells both where that fails, too."""
    try:
        down(name)
    except ClusterError as another:
        raise ClusterError(f"{error}; and then {another}") from error


def _claimed(
    name: str, kind: Literal["local", "ssh"], labels: Mapping[str, Mapping[str, str]], address: str, tls: Path | None,
    hosts: Mapping[str, str], reach: Mapping[str, str], cpus: int,
) -> Record:  # fmt: skip
    """The record of a new cluster, with a token of its own."""
    home = state.claim(name)
    try:
        write_token(home / "token")
        record = Record(name, kind, labels, address, str(home / "token"), _absolute(tls), state.draw_mark(), hosts, reach, cpus)
        record.save()
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    return record


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


def _start_here(record: Record) -> None:
    if record.tls is not None:
        certs.check_hosts(Path(record.tls), list(record.hosts.values()))
    _sessions(record).mkdir(mode=0o700)  # fails where somebody was there before us
    raynode.start_all([_node(record, tier) for tier in record.tiers], _settings(record))


def _node(record: Record, tier: str) -> raynode.Node:
    """A tier's node on this machine. Raises ClusterError where it runs elsewhere, or there is none."""
    if record.kind != "local":
        raise ClusterError(f"the nodes of cluster {record.name!r} were not started on this machine; 'splitinfer cluster up' does that")
    if tier not in record.hosts:
        raise ClusterError(not_one_of(tier, record.tiers, "tier"))
    home = _sessions(record) / str(record.tiers.index(tier))
    mark, dashboard = f"{record.mark}/{tier}", raynode.has_dashboard()
    return raynode.Node(tier, record.hosts[tier], home, mark, record.cpus, record.address, dashboard)


def _settings(record: Record) -> dict[str, str]:
    return settings(Path(record.token), Path(record.tls) if record.tls else None)


def _sessions(record: Record) -> Path:
    """Where the nodes keep sockets and logs: the paths of sockets are limited, so not in the user's home."""
    return Path("/tmp", f"splitinfer-{record.mark[:12]}")  # noqa: S108 - made with mode 700, or refused


def _labels(topology: Topology) -> dict[str, dict[str, str]]:
    """Of the nodes that are started here, whatever nodes the topology names elsewhere."""
    if len(topology.tiers) > _MOST_TIERS:
        raise ClusterError(f"a cluster has at most {_MOST_TIERS} tiers; this topology has {len(topology.tiers)}")
    return {tier.name: {TIER_LABEL: tier.name} for tier in topology.tiers}


def _free_port(address: str) -> int:
    with socket.socket() as trial:
        trial.bind((address, 0))
        port: int = trial.getsockname()[1]
        return port
