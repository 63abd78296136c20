"""``splitinfer cluster``: Ray nodes for the tiers of a topology, on this machine or on hosts reached by SSH; their health; certificates."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitinfer.commands.common import command, emit, positive

if TYPE_CHECKING:
    from cluster.state import Record


def add(table: Any) -> None:
    """Declare the command and its actions."""
    text = "Ray nodes for the tiers: here, on hosts reached by SSH, or somebody else's"
    actions = table.add_parser("cluster", help=text, description=text + ".").add_subparsers(
        title="actions", required=True, metavar="ACTION"
    )
    up = command(actions, "up", run_up, "start a Ray node for each tier, which stays when this command ends")
    up.add_argument("topology", type=Path, metavar="YAML", help="tiers and links (docs/cluster-yaml.md)")
    up.add_argument("--name", default="default", help="lower-case letters and digits (default: default)")
    where = up.add_mutually_exclusive_group()
    where.add_argument("--hosts", type=Path, metavar="YAML", help="a machine for each tier, reached by SSH (docs/cluster.md)")
    where.add_argument("--address", metavar="HOST:PORT", help="use the cluster whose head listens there; needs --token")
    up.add_argument("--token", type=Path, metavar="FILE", help="with --address: the cluster's token")
    up.add_argument("--tls", type=Path, metavar="DIR", help="encrypt Ray's channels, with certificates of 'splitinfer cluster certs'")
    up.add_argument("--wheel", type=Path, metavar="FILE", help="with --hosts: what is installed there (default: made from the source)")
    up.add_argument("--cpus", type=positive, metavar="N", help="on this machine: what each node offers (default: all)")
    for name, run, what in (
        ("status", run_status, "each node's load and memory, the measured links, what runs where"),
        ("down", run_down, "end a cluster and all that belongs to it, however much of it is left"),
        ("doctor", run_doctor, "look for what is wrong, and say what to do; exit code 1 where something is"),
    ):
        command(actions, name, run, what).add_argument("name", nargs="?", metavar="NAME", help="where several are up")
    certs = command(actions, "certs", run_certs, "make an authority and a certificate for the nodes, for --tls")
    certs.add_argument("directory", type=Path, metavar="DIR")
    certs.add_argument("--host", action="append", default=[], metavar="HOST", help="address or name that it is valid for; repeat for each")
    certs.add_argument("--days", type=positive, default=365, help="until it expires (default 365)")


def run_up(options: argparse.Namespace) -> int:
    """Bring a cluster up and leave it running."""
    from cluster import lifecycle, ssh
    from cluster.topology import Topology

    topology = Topology.load(options.topology)
    if options.address:
        from splitinfer.errors import UsageError

        if options.token is None:
            raise UsageError("--address needs --token FILE, the token of that cluster")
        record = lifecycle.adopt(topology, options.address, options.token, name=options.name, tls=options.tls)
    elif options.hosts:
        record = lifecycle.up_ssh(topology, ssh.Hosts.load(options.hosts), name=options.name, tls=options.tls, wheel=options.wheel)
    else:
        record = lifecycle.up_local(topology, name=options.name, tls=options.tls, cpus=options.cpus)
    _show_up(record, options)
    return 0


def run_status(options: argparse.Namespace) -> int:
    """What there is, and how busy."""
    from cluster.probe import actors, open_probes

    with _connected(options.name) as record, open_probes(record.labels) as probes:
        nodes, rates, living = probes.facts(), probes.rates(), actors(record.labels)
    if options.json:
        emit({"name": record.name, "address": record.address, "nodes": [asdict(each) for each in nodes],
              "links": [asdict(each) for each in rates], "actors": [asdict(each) for each in living]})  # fmt: skip
        return 0
    from tabulate import tabulate

    from cluster.units import format_bandwidth, format_bytes, format_seconds

    rows = [
        [node.tier, node.address, f"{node.load:.1f} of {node.cpus}",
         f"{format_bytes(node.memory_used_nbytes)} of {format_bytes(node.memory_nbytes)}",
         ", ".join(each.name for each in living if each.tier == node.tier) or "-"]
        for node in nodes
    ]  # fmt: skip
    print(f"cluster {record.name}, head at {record.address}\n")
    print(tabulate(rows, ["tier", "address", "load", "memory", "runs"], disable_numparse=True))
    if rates:
        shown = [
            [f"{rate.source} -> {rate.target}", format_seconds(rate.round_trip_s), format_bandwidth(rate.bytes_per_s)] for rate in rates
        ]
        print("\n" + tabulate(shown, ["link", "round trip of a call", "measured rate"], disable_numparse=True))
    return 0


def run_down(options: argparse.Namespace) -> int:
    """End a cluster."""
    from cluster import lifecycle

    record = lifecycle.down(options.name)
    if options.json:
        emit({"name": record.name})
    else:
        print(f"cluster {record.name} is " + ("forgotten; it still runs" if record.kind == "address" else "down"))
    return 0


def run_doctor(options: argparse.Namespace) -> int:
    """Look for what is wrong."""
    from cluster.doctor import examine
    from cluster.probe import open_probes

    with _connected(options.name) as record, open_probes(record.labels) as probes:
        findings = examine(record.tiers, probes.facts(), tls=bool(record.tls))
    wrong = [finding for finding in findings if not finding.ok]
    if options.json:
        emit({"name": record.name, "ok": not wrong, "findings": [asdict(each) for each in findings]})
        return int(bool(wrong))
    from tabulate import tabulate

    rows = [[each.tier, each.check, "ok" if each.ok else "WRONG", each.found] for each in findings]
    print(tabulate(rows, ["tier", "check", "", "found"], disable_numparse=True))
    print("\nnothing is wrong" if not wrong else "\n".join(["", *(f"{each.tier}: {each.check}: {each.advice}" for each in wrong)]))
    return int(bool(wrong))


def run_certs(options: argparse.Namespace) -> int:
    """Make certificates."""
    from cluster import certs

    certs.make(options.directory, options.host, days=options.days)
    if options.json:
        emit({"directory": str(options.directory), "hosts": [*certs.LOOPBACK, *options.host], "days": options.days})
        return 0
    valid = ", ".join(["this machine's loopback", *options.host])
    print(f"{options.directory} holds a certificate for {valid}; it expires in {options.days} days")
    print(f"keep {certs.AUTHORITY_KEY} on this machine; no node needs it")
    return 0


@contextmanager
def _connected(name: str | None) -> Iterator[Record]:
    from cluster import lifecycle, state

    record = state.load(name)
    with lifecycle.connected(record):
        yield record


def _show_up(record: Record, options: argparse.Namespace) -> None:
    if options.json:
        emit({"name": record.name, "address": record.address, "token": record.token, "tls": record.tls, "hosts": dict(record.hosts)})
        return
    nodes = ", ".join(f"{tier} ({address})" for tier, address in record.hosts.items()) or ", ".join(record.tiers)
    print(f"cluster {record.name} is up, head at {record.address}: {nodes}")
    print(f"channels {'encrypted' if record.tls else 'not encrypted (--tls)'}; the token is in {record.token}")
    print(f"splitinfer cluster status {record.name}    shows it; splitinfer cluster down {record.name}    ends it")
