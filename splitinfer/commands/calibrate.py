"""``splitinfer calibrate``: measure what codecs do to the answers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from splitinfer.commands.common import (
    captured_with_learned,
    command,
    learned_argument,
    model_arguments,
    positive,
    registered,
    sample_arguments,
    save,
    show,
    split_names,
    watched,
)


def add(table: Any) -> None:
    """Declare the command."""
    added = command(table, "calibrate", run, "measure on samples what each codec does to the model's answers")
    model_arguments(added)
    learned_argument(added)
    sample_arguments(added, required=True)
    added.add_argument("--profile", type=Path, metavar="JSON", help="keep the codec times of this profile")
    added.add_argument("--codecs", help="codecs to try (default: from lossless to 2 bits, and codecs for images on images)")
    added.add_argument("--budget", type=positive, metavar="SECONDS", help="stop after this; what is left is sent without loss")
    added.add_argument("-o", "--output", type=Path, metavar="JSON", help="write the calibration here")


def run(options: argparse.Namespace) -> int:
    """Measure what codecs do to the answers."""
    from splitinfer.learn.calibrate import calibrate
    from splitinfer.models import load_samples
    from splitinfer.profiles import Profile

    names = registered(split_names(options.codecs)) or None
    profile = Profile.load(options.profile) if options.profile else None
    samples, labels = load_samples(options.samples)
    made = calibrate(
        captured_with_learned(options)[1], samples, profile, labels=labels, codec_names=names, metric=options.metric or "auto",
        budget_s=options.budget, progress=watched(options),
    )  # fmt: skip
    save(made.to_json(), options.output)
    show(made, options)
    return 0
