"""What several commands share: their arguments, the model, topology and profile behind them, and how results are shown."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.topology import Topology
    from splitinfer.graph import Graph
    from splitinfer.learn.learned import Learned
    from splitinfer.models import Model
    from splitinfer.plans import Plan
    from splitinfer.profiles import Profile

MODEL_HELP = "package.module:factory or path/file.py:factory; the factory takes no arguments and returns (model, args, kwargs)"


def command(table: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    """A command with what all commands have; `text` is its line of help."""
    added: argparse.ArgumentParser = table.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    added.set_defaults(run=run)
    added.add_argument("--json", action="store_true", help="one JSON object on standard output")
    added.add_argument("--debug", action="store_true", help="show traces of errors")
    return added


def model_arguments(command: argparse.ArgumentParser, optional: bool = False) -> None:
    """MODEL, and how to capture it."""
    command.add_argument("model", nargs="?" if optional else None, metavar="MODEL", help=MODEL_HELP)
    command.add_argument("--dynamic-batch", action="store_true", help="let the first dimension of every input vary")
    command.add_argument("--trust-code", action="store_true", help="load a .pt2 file, which can run any code it holds")


def learned_argument(command: argparse.ArgumentParser, text: str = "what 'splitinfer learn' wrote, for this model") -> None:
    """The file of learned parts."""
    command.add_argument("--learned", type=Path, metavar="FILE", help=text)


def sample_arguments(command: argparse.ArgumentParser, required: bool = False) -> None:
    """Samples and the metric that judges answers to them."""
    sample_argument(command, required)
    command.add_argument("--metric", help="auto, top1, kl or relative; with labels the accuracy counts")


def sample_argument(command: argparse.ArgumentParser, required: bool = False) -> None:
    """Samples, with or without labels."""
    command.add_argument(
        "--samples", required=required, metavar="SAMPLES", help="factory, as for MODEL, of a list of samples or of (samples, labels)"
    )


def share(text: str) -> float:
    """`0.5%` or `0.005`."""
    number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a share, zero or more")
    return number


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a positive number")
    return number


def captured(options: argparse.Namespace) -> tuple[Model, Graph]:
    """The model that was named, and its graph."""
    from splitinfer.importer import capture
    from splitinfer.models import load_model

    model = load_model(options.model, trust_code=options.trust_code)
    return model, capture(model.module, model.args, model.kwargs, "batch" if options.dynamic_batch else None)


def learned_file(options: argparse.Namespace) -> Learned | None:
    """What ``--learned`` names, or None."""
    if options.learned is None:
        return None
    from splitinfer.learn.learned import Learned

    return Learned.load(options.learned)


def captured_with_learned(options: argparse.Namespace, plan: Plan | None = None) -> tuple[Model, Graph]:
    """The model and its graph with all that was learned, or as far as a plan uses it."""
    learned = learned_file(options)
    model, graph = captured(options)
    return model, learned.apply(graph, plan) if learned else graph


def named_topology(options: argparse.Namespace) -> Topology | None:
    """The file of ``--topology``, or None."""
    if options.topology is None:
        return None
    from cluster.topology import Topology

    return Topology.load(options.topology)


def measured(graph: Graph, topology: Topology | None, options: argparse.Namespace, codec_names: list[str] | None = None) -> Profile:
    """A profile made now."""
    from splitinfer.profiler import profile

    threads = getattr(options, "threads", None)
    return profile(graph, topology, threads=threads, codec_names=codec_names, progress=watched(options))


def split_names(text: str | None) -> list[str]:
    """Names separated by commas."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def registered(names: list[str]) -> list[str]:
    """Names of codecs in their full spelling, "suggested" spelt out; raises CodecError for one that is none."""
    from splitinfer import codecs

    return list(dict.fromkeys(full for name in names for full in (codecs.suggested() if name == "suggested" else (codecs.get(name).name,))))


def watched(options: argparse.Namespace) -> bool:
    """Bars are for people who watch."""
    return not options.json and sys.stderr.isatty()


def show(thing: Any, options: argparse.Namespace) -> None:
    """For programs or for people."""
    if options.json:
        print(thing.to_json() if hasattr(thing, "to_json") else json.dumps(thing.to_dict()))
    else:
        print(thing)


def emit(report: Any) -> None:
    """One JSON object on standard output."""
    print(json.dumps(report))


def save(text: str, path: Path | None) -> None:
    """Write a file where a path was given. Raises UsageError."""
    if path is not None:
        from splitinfer.errors import UsageError

        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
