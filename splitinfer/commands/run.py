"""``splitinfer run``: run a plan, or a family of plans, on Ray."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitinfer.commands.common import (
    captured_with_learned,
    command,
    emit,
    learned_argument,
    model_arguments,
    named_topology,
    positive,
    save,
    watched,
)

if TYPE_CHECKING:
    from cluster.topology import Topology
    from splitinfer.plans import Plan
    from splitinfer.runtime.serve import RunReport
    from splitinfer.runtime.serve_family import FamilyReport


def add(table: Any) -> None:
    """Declare the command."""
    added = command(table, "run", run, "run a plan, or a family of plans, on Ray")
    model_arguments(added)
    learned_argument(added)
    what = added.add_mutually_exclusive_group(required=True)
    what.add_argument("--plan", type=Path, metavar="JSON")
    what.add_argument("--family", type=Path, metavar="DIR", help="plans of 'splitinfer plan --family': keep answering while machines die")
    added.add_argument("--cluster", metavar="NAME", help="of 'splitinfer cluster up' (default: nodes on this machine, for this run)")
    added.add_argument("--topology", type=Path, metavar="YAML", help="other tiers and links than those that the plan was made for")
    added.add_argument("--requests", type=positive, default=10, help="requests with the sample input (default 10)")
    added.add_argument("--in-flight", type=positive, default=1, help="requests under way at once (default 1)")
    added.add_argument("--trace", type=Path, metavar="JSON", help="write when what ran where, for chrome://tracing and ui.perfetto.dev")


def run(options: argparse.Namespace) -> int:
    """Run a plan, or a family of plans."""
    report = _family(options) if options.family else _plan(options)
    emit(report.to_dict()) if options.json else print(report)
    return 1 if report.to_dict().get("errors") else 0


def _plan(options: argparse.Namespace) -> RunReport:
    from cluster import lifecycle, state
    from splitinfer.plans import Plan
    from splitinfer.runtime.serve import run_requests
    from splitinfer.tracing import chrome_trace

    plan = Plan.load(options.plan)
    topology = named_topology(options) or _planned_topology(plan)
    graph = captured_with_learned(options, plan)[1]
    with lifecycle.connected(state.load(options.cluster)) if options.cluster else nullcontext():
        report = run_requests(graph, plan, topology, options.requests, options.in_flight, progress=watched(options))
    if options.trace:
        save(json.dumps(chrome_trace(report.traces)), options.trace)
    return report


def _family(options: argparse.Namespace) -> FamilyReport:
    from splitinfer.errors import UsageError
    from splitinfer.family import load_family
    from splitinfer.runtime.serve_family import run_family

    if options.trace:
        raise UsageError("--trace shows the requests of one plan; give --plan")
    plans = load_family(options.family)
    topology = named_topology(options) or _planned_topology(plans[0])
    graph = captured_with_learned(options, plans[0])[1]
    return run_family(graph, plans, topology, options.requests, options.in_flight, cluster=options.cluster, progress=watched(options))


def _planned_topology(plan: Plan) -> Topology:
    from cluster.topology import Topology
    from splitinfer.errors import UsageError

    if plan.topology is None:
        raise UsageError("the plan was made by hand and names no topology; give --topology")
    return Topology.from_dict(plan.topology)
