"""``splitinfer testbed``: device, edge and cloud as network namespaces of this machine, with real links and Ray nodes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitinfer.commands.common import captured_with_learned, command, emit, learned_argument, model_arguments, positive, show, watched

if TYPE_CHECKING:
    from cluster.testbed import Testbed


def add(table: Any) -> None:
    """Declare the command and its three actions."""
    text = "run a plan on real hosts: the tiers as network namespaces of this machine (root, Linux)"
    actions = table.add_parser("testbed", help=text, description=text[0].upper() + text[1:] + ".").add_subparsers(
        title="actions", required=True, metavar="ACTION"
    )
    up = command(actions, "up", run_up, "build the hosts and links of a topology, and start a Ray node on each host")
    up.add_argument("topology", type=Path, metavar="YAML", help="tiers and links (docs/cluster-yaml.md)")
    up.add_argument("--name", help="lower-case letters and digits (default: drawn by lot)")
    added = command(actions, "run", run_plan, "run a plan on the testbed: latency and bytes, predicted beside measured")
    model_arguments(added)
    learned_argument(added)
    added.add_argument("--plan", type=Path, required=True, metavar="JSON")
    added.add_argument("--requests", type=positive, default=20, help="requests with the sample input (default 20)")
    added.add_argument("--name", help="of the testbed, where several are up")
    down = command(actions, "down", run_down, "end a testbed and all that belongs to it, however much of it is left")
    down.add_argument("name", nargs="?", metavar="NAME", help="where several are up")


def run_up(options: argparse.Namespace) -> int:
    """Build a testbed and leave it running."""
    from cluster.testbed import Testbed
    from cluster.topology import Topology

    testbed = Testbed.up(Topology.load(options.topology), options.name)
    if options.json:
        emit(_described(testbed))
        return 0
    hosts = ", ".join(f"{node.tier} ({node.address})" for node in testbed.nodes)
    links = ", ".join(f"{' - '.join(wire.between)} by {wire.shaping}" for wire in testbed.wires)
    print(f"testbed {testbed.name} is up: {hosts}")
    print(f"links shaped: {links or 'none'}")
    print(f"splitinfer testbed run MODEL --plan PLAN    runs a plan; ip netns exec {testbed.nodes[0].namespace} COMMAND    anything else")
    print(f"splitinfer testbed down {testbed.name}    ends it")
    return 0


def run_plan(options: argparse.Namespace) -> int:
    """Run a plan on a testbed."""
    from cluster.testbed import Testbed
    from splitinfer.plans import Plan

    testbed = Testbed.attach(options.name)
    plan = Plan.load(options.plan)
    graph = captured_with_learned(options, plan)[1]  # before this process moves to where no network leads outside
    with testbed.driver():
        from splitinfer.runtime.hosts import run_on_testbed

        report = run_on_testbed(graph, plan, testbed, options.requests, progress=watched(options))
    show(report, options)
    return 0


def run_down(options: argparse.Namespace) -> int:
    """End a testbed."""
    from cluster.testbed import down, names
    from splitinfer.errors import UsageError

    if options.name is not None and options.name not in names():
        raise UsageError(f"no testbed {options.name!r:.40} is up; up: {', '.join(names()) or 'none'}")
    name = down(options.name)
    emit({"name": name}) if options.json else print(f"testbed {name} is down")
    return 0


def _described(testbed: Testbed) -> dict[str, Any]:
    return {
        "name": testbed.name,
        "hosts": [{"tier": node.tier, "address": node.address, "namespace": node.namespace} for node in testbed.nodes],
        "links": [{"between": list(wire.between), "shaping": wire.shaping} for wire in testbed.wires],
    }
