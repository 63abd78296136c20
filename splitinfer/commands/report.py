"""``splitinfer report``: one page about a plan."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitinfer.commands.common import (
    MODEL_HELP,
    captured_with_learned,
    command,
    emit,
    learned_argument,
    named_topology,
    positive,
    split_names,
    watched,
)

if TYPE_CHECKING:
    from cluster.topology import Topology
    from splitinfer.plans import Plan
    from splitinfer.report import Traces


def add(table: Any) -> None:
    """Declare the command."""
    added = command(table, "report", run, "write one page about a plan: graph, request in time, three clocks, bandwidths, trade-offs")
    added.add_argument("plan", type=Path, metavar="PLAN", help="from 'splitinfer plan -o'")
    added.add_argument("--profile", type=Path, required=True, metavar="JSON")
    added.add_argument("--topology", type=Path, metavar="YAML", help="other tiers and links than those that the plan was made for")
    measured = added.add_mutually_exclusive_group()
    measured.add_argument("--traces", type=Path, metavar="JSON", help="measured requests, from 'splitinfer run --trace'")
    measured.add_argument("--run", dest="model", metavar="MODEL", help=f"measure on Ray now; {MODEL_HELP}")
    added.add_argument("--requests", type=positive, default=10, metavar="N", help="requests to measure with --run (default 10)")
    added.add_argument("--dynamic-batch", action="store_true", help="with --run: let the first dimension of every input vary")
    added.add_argument("--trust-code", action="store_true", help="with --run: load a .pt2 file, which can run any code it holds")
    learned_argument(added)
    added.add_argument("--codecs", help="what other plans may use (default raw, zstd and what this plan uses)")
    added.add_argument("--link", metavar="FROM:TO", help="the link whose bandwidth varies (default the first tier's)")
    added.add_argument("--points", type=positive, default=25, metavar="N", help="bandwidths to plan for (default 25)")
    added.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="HTML", help="the page (default report.html)")


def run(options: argparse.Namespace) -> int:
    """Write the page."""
    from splitinfer.plans import Plan
    from splitinfer.profiles import Profile
    from splitinfer.report import examine

    plan, profile, topology = Plan.load(options.plan), Profile.load(options.profile), named_topology(options)
    found = examine(
        plan, profile, topology, _traces(options, plan, topology), codecs=split_names(options.codecs), link=options.link,
        points=options.points, progress=watched(options),
    )  # fmt: skip
    found.save(options.output)
    if options.json:
        emit(found.to_dict())
    else:
        print(f"{found}\n\nwrote {options.output}")
    return 0


def _traces(options: argparse.Namespace, plan: Plan, topology: Topology | None) -> Traces | None:
    """From the file, or from requests made now."""
    from splitinfer.report import Traces, load_traces

    if options.traces:
        return load_traces(options.traces)
    if options.model is None:
        return None
    from cluster.topology import Topology
    from splitinfer.errors import UsageError
    from splitinfer.runtime.serve import run_requests

    place = topology or (Topology.from_dict(plan.topology) if plan.topology else None)
    if place is None:
        raise UsageError("the plan was made by hand and names no topology; give --topology")
    graph = captured_with_learned(options, plan)[1]
    return Traces(run_requests(graph, plan, place, options.requests, progress=watched(options)).traces)
