"""``splitinfer profile``: measure layers and codecs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from splitinfer.commands.common import (
    captured_with_learned,
    command,
    learned_argument,
    measured,
    model_arguments,
    named_topology,
    positive,
    registered,
    save,
    show,
    split_names,
)


def add(table: Any) -> None:
    """Declare the command."""
    added = command(table, "profile", run, "measure a model's layers and codecs")
    model_arguments(added)
    learned_argument(added)
    added.add_argument("--topology", type=Path, metavar="YAML", help="measure on the tiers' own nodes, and the calls between them")
    added.add_argument("--threads", type=positive, help="torch threads without a topology (default 1)")
    added.add_argument("--codecs", help="codecs to measure, as in docs/codecs.md, or 'suggested' (default raw,zstd,fp16,int8)")
    added.add_argument("-o", "--output", type=Path, metavar="JSON", help="write the profile here")


def run(options: argparse.Namespace) -> int:
    """Measure layers and codecs."""
    names = registered(split_names(options.codecs)) if options.codecs else None
    profile = measured(captured_with_learned(options)[1], named_topology(options), options, names)
    save(profile.to_json(), options.output)
    show(profile, options)
    return 0
