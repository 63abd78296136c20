"""``splitinfer verify``: compare the split model with the whole one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from splitinfer.commands.common import captured, command, model_arguments, positive, show, watched


def add(table: Any) -> None:
    """Declare the command."""
    added = command(table, "verify", run, "compare the split model with the whole one, bit for bit")
    model_arguments(added)
    where = added.add_mutually_exclusive_group()
    where.add_argument("--stages", type=positive, metavar="K", help="K stages cut nearest to equal FLOPs (default 2)")
    where.add_argument("--plan", type=Path, metavar="JSON", help="the stages and codecs of a plan")
    where.add_argument("--all-cuts", action="store_true", help="two stages at every possible cut")


def run(options: argparse.Namespace) -> int:
    """Compare the split model with the whole one; 1 where they differ."""
    from splitinfer.plans import Plan
    from splitinfer.verify import balanced_stages, verify_all_cuts, verify_split

    model, graph = captured(options)
    if options.all_cuts:
        verdict = verify_all_cuts(graph, model.module, progress=watched(options))
    else:
        plan = Plan.load(options.plan) if options.plan else Plan.by_hand(graph, balanced_stages(graph, options.stages or 2))
        verdict = verify_split(graph, model.module, plan)
    show(verdict, options)
    return 0 if verdict.exact else 1
