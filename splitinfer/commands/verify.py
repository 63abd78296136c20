"""``splitinfer verify``: compare the split model with the whole one."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from splitinfer.commands.common import captured_with_learned, command, learned_argument, model_arguments, positive, show, watched


def shares(text: str) -> list[int]:
    """``5,3,2``."""
    return [int(share) for share in text.split(",")]


def add(table: Any) -> None:
    """Declare the command."""
    added = command(table, "verify", run, "compare the split model with the whole one")
    model_arguments(added)
    learned_argument(added)
    where = added.add_mutually_exclusive_group()
    where.add_argument("--stages", type=positive, metavar="K", help="K stages cut nearest to equal FLOPs (default 2)")
    where.add_argument("--plan", type=Path, metavar="JSON", help="the stages and codecs of a plan")
    where.add_argument("--all-cuts", action="store_true", help="two stages at every possible cut")
    where.add_argument("--workers", type=positive, metavar="K", help="divide every block that can be divided over K workers")
    added.add_argument("--shares", type=shares, metavar="A,B,..", help="relative shares of the workers (default: equal ones)")
    added.add_argument("--axis", choices=("auto", "rows", "channels", "heads"), help="what to divide (default: auto)")


def run(options: argparse.Namespace) -> int:
    """Compare the split model with the whole one; 1 where they differ."""
    if options.workers:
        return _vertical(options)
    if options.shares or options.axis:
        from splitinfer.errors import UsageError

        raise UsageError("--shares and --axis belong to a vertical split: add --workers")
    from splitinfer.plans import Plan
    from splitinfer.verify import as_module, balanced_stages, verify_all_cuts, verify_split

    planned = Plan.load(options.plan) if options.plan else None
    model, graph = captured_with_learned(options, planned)
    whole = as_module(graph) if options.learned else model.module  # nobody but the graph has the bottlenecks
    if options.all_cuts:
        verdict = verify_all_cuts(graph, whole, progress=watched(options))
    else:
        plan = planned or Plan.by_hand(graph, balanced_stages(graph, options.stages or 2))
        verdict = verify_split(graph, whole, replace(plan, exits=()))
        if plan.exits:
            note = "the early exits were not asked: 'splitinfer plan --samples' measures what they change"
            verdict = replace(verdict, note="; ".join(filter(None, (verdict.note, note))))
    show(verdict, options)
    return 0 if verdict.exact else 1


def _vertical(options: argparse.Namespace) -> int:
    """Compare the vertically divided model with the whole one; 1 where they differ by more than the tolerance."""
    from splitinfer.errors import UsageError
    from splitinfer.shards.verdict import verify_shards
    from splitinfer.verify import as_module

    weights = options.shares or [1] * options.workers
    if len(weights) != options.workers:
        raise UsageError(f"--shares names {len(weights)} workers, --workers {options.workers}")
    model, graph = captured_with_learned(options)
    whole = as_module(graph) if options.learned else model.module
    verdict = verify_shards(graph, whole, weights, options.axis or "auto")
    show(verdict, options)
    return 0 if verdict.close else 1
