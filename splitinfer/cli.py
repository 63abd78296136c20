"""The command ``splitinfer``. Parsing the command line loads neither torch nor ray.

Exit codes: 0 done; 1 a check failed (``verify`` found a difference); 2 bad input, in one line; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from splitinfer import commands

_MODEL_HELP = "package.module:factory or path/file.py:factory; the factory takes no arguments and returns (model, args, kwargs)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, 'head' for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:  # the last place: one line for people, a trace on request
        if options.debug or not _expected(error):
            raise
        print(f"splitinfer: {error}", file=sys.stderr)
        return 2


def _expected(error: Exception) -> bool:
    """Whether an error speaks to the user; anything else is a bug of ours and shows its trace."""
    from cluster.errors import ClusterError
    from partitioners.errors import PartitionerError
    from splitinfer.errors import SplitinferError

    return isinstance(error, ClusterError | PartitionerError | SplitinferError)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is for --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="splitinfer", description="Distributed split inference for PyTorch models.")
    parser.add_argument("--version", action="version", version=_version())
    table = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = _command(table, "demo", commands.demo, "two models over three tiers on this machine: plans, requests, predicted beside measured")
    demo.add_argument("--requests", type=_positive, default=20, help="requests for each row (default 20)")

    profile = _command(table, "profile", commands.profile, "measure a model's layers and codecs")
    _model_arguments(profile)
    profile.add_argument("--topology", type=Path, metavar="YAML", help="measure on the tiers' own nodes, and the calls between them")
    profile.add_argument("--threads", type=_positive, help="torch threads without a topology (default 1)")
    profile.add_argument("--codecs", help="codecs to measure, as in docs/codecs.md, or 'suggested' (default raw,zstd,fp16,int8)")
    profile.add_argument("-o", "--output", type=Path, metavar="JSON", help="write the profile here")

    calibrate = _command(table, "calibrate", commands.calibrate, "measure on samples what each codec does to the model's answers")
    _model_arguments(calibrate)
    _sample_arguments(calibrate, required=True)
    calibrate.add_argument("--profile", type=Path, metavar="JSON", help="keep the codec times of this profile")
    calibrate.add_argument("--codecs", help="codecs to try (default: from lossless to 2 bits, and codecs for images on images)")
    calibrate.add_argument("--budget", type=_positive, metavar="SECONDS", help="stop after this; what is left is sent without loss")
    calibrate.add_argument("-o", "--output", type=Path, metavar="JSON", help="write the calibration here")

    plan = _command(table, "plan", commands.plan, "choose where each layer runs")
    _model_arguments(plan, optional=True)
    plan.add_argument("--topology", type=Path, required=True, metavar="YAML", help="tiers and links (docs/cluster-yaml.md)")
    plan.add_argument("--profile", type=Path, metavar="JSON", help="a profile made before; without it the model is measured here")
    plan.add_argument("--objective", default="latency", help="latency, interval, critical_path, energy, money or 'latency + 0.2*energy'")
    plan.add_argument("--within", action="append", default=[], metavar="COST=LIMIT", help="keep a cost within a limit: latency=200ms")
    plan.add_argument("--keep-on-device", default=0, metavar="N|LAYER", help="the input and all made before layer N never leave the device")
    plan.add_argument("--codecs", help="codecs that a cut may use (default raw,zstd; with --calibration all that were tried)")
    plan.add_argument("--calibration", type=Path, metavar="JSON", help="what each codec loses, from 'splitinfer calibrate'")
    plan.add_argument("--max-accuracy-drop", type=_share, metavar="SHARE", help="what all codecs together may lose: 0.5%%")
    _sample_arguments(plan)
    plan.add_argument("--strategy", default="auto", help="auto (default), or another name of partitioners.STRATEGIES")
    plan.add_argument("-o", "--output", type=Path, metavar="JSON", help="write the plan here")

    run = _command(table, "run", commands.run, "run a plan on Ray, on this machine")
    _model_arguments(run)
    run.add_argument("--plan", type=Path, required=True, metavar="JSON")
    run.add_argument("--topology", type=Path, metavar="YAML", help="other tiers and links than those that the plan was made for")
    run.add_argument("--requests", type=_positive, default=10, help="requests with the sample input (default 10)")
    run.add_argument("--in-flight", type=_positive, default=1, help="requests under way at once (default 1)")

    verify = _command(table, "verify", commands.verify, "compare the split model with the whole one, bit for bit")
    _model_arguments(verify)
    where = verify.add_mutually_exclusive_group()
    where.add_argument("--stages", type=_positive, metavar="K", help="K stages cut nearest to equal FLOPs (default 2)")
    where.add_argument("--plan", type=Path, metavar="JSON", help="the stages and codecs of a plan")
    where.add_argument("--all-cuts", action="store_true", help="two stages at every possible cut")
    return parser


def _command(table: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = table.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="one JSON object on standard output")
    command.add_argument("--debug", action="store_true", help="show traces of errors")
    return command


def _model_arguments(command: argparse.ArgumentParser, optional: bool = False) -> None:
    command.add_argument("model", nargs="?" if optional else None, metavar="MODEL", help=_MODEL_HELP)
    command.add_argument("--dynamic-batch", action="store_true", help="let the first dimension of every input vary")
    command.add_argument("--trust-code", action="store_true", help="load a .pt2 file, which can run any code it holds")


def _sample_arguments(command: argparse.ArgumentParser, required: bool = False) -> None:
    command.add_argument(
        "--samples", required=required, metavar="SAMPLES", help="factory, as for MODEL, of a list of samples or of (samples, labels)"
    )
    command.add_argument("--metric", help="auto, top1, kl or relative; with labels the accuracy counts")


def _share(text: str) -> float:
    """`0.5%` or `0.005`."""
    number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a share, zero or more")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a positive number")
    return number


def _version() -> str:
    from splitinfer import __version__

    return f"splitinfer {__version__}"
