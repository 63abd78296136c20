"""``splitinfer demo``: two models over three tiers on this machine."""

from __future__ import annotations

import argparse
from typing import Any

from splitinfer.commands.common import command, emit, positive


def add(table: Any) -> None:
    """Declare the command."""
    added = command(table, "demo", run, "two models over three tiers on this machine: plans, requests, predicted beside measured")
    added.add_argument("--requests", type=positive, default=20, help="requests for each row (default 20)")


def run(options: argparse.Namespace) -> int:
    """Two models over three tiers: plans, requests, predicted beside measured."""
    from splitinfer.demo import run_demo

    report = run_demo(options.requests, show=_quiet if options.json else print)
    if options.json:
        emit(report)
    return 0


def _quiet(*_: object) -> None:
    """Nothing but the JSON goes to standard output."""
