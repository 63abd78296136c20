"""``splitinfer learn``: train bottlenecks and early exits on the user's samples."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitinfer.commands.common import (
    captured,
    command,
    learned_argument,
    learned_file,
    model_arguments,
    positive,
    sample_argument,
    show,
    split_names,
    watched,
)

if TYPE_CHECKING:
    from splitinfer.graph import Graph
    from splitinfer.learn.learned import Learned

_RECORD_EVERY = 4  # of the samples for exits one in so many is not trained on: what the heads say to it chooses their thresholds


def add(table: Any) -> None:
    """Declare the commands."""
    text = "train a bottleneck or early exits on samples"
    parent = table.add_parser("learn", help=text, description=text[0].upper() + text[1:] + ".")
    kinds = parent.add_subparsers(title="what to learn", required=True, metavar="WHAT")
    narrow = command(kinds, "bottleneck", run_bottleneck, "train a small encoder and decoder behind a layer")
    _shared(narrow, "add to what is in FILE: train behind that")
    narrow.add_argument("--layer", required=True, metavar="LAYER", help="the layer, or the tensor, that it stands behind")
    narrow.add_argument("--channels", type=positive, help="of the narrow tensor (default a quarter)")
    narrow.add_argument("--bits", type=positive, default=8, help="of the integer codec that will carry it (default 8)")
    narrow.add_argument("--match", default="auto", help="how answers are compared: auto, kl, cosine or mse")
    exits = command(kinds, "exits", run_exits, "train heads that answer early, and record how sure they are on every fourth sample")
    _shared(exits, "the heads stand on the bottlenecks in FILE")
    exits.add_argument("--layers", required=True, metavar="A,B", help="the layers, or tensors, that heads read")
    exits.add_argument("--hidden", type=positive, default=64, help="width of a head (default 64)")
    exits.add_argument("--confidence", default="softmax", help="softmax or entropy")


def _shared(added: argparse.ArgumentParser, learned_help: str) -> None:
    model_arguments(added)
    sample_argument(added, required=True)
    learned_argument(added, learned_help)
    added.add_argument("--steps", type=positive, help="of training (default 300 for a bottleneck, 400 for a head)")
    added.add_argument("--seed", type=int, default=0)
    added.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="write all that was learned here")


def run_bottleneck(options: argparse.Namespace) -> int:
    """Train a bottleneck."""
    from splitinfer.errors import UsageError
    from splitinfer.learn import Learned, train_bottleneck
    from splitinfer.learn.learned import tensor_behind
    from splitinfer.models import load_samples

    before = learned_file(options) or Learned()
    if before.heads:
        raise UsageError(f"{options.learned} holds exits already, which stand on bottlenecks; learn the bottleneck first")
    graph = before.apply(captured(options)[1])
    samples, labels = load_samples(options.samples)
    made = train_bottleneck(
        graph, tensor_behind(graph, options.layer), samples, options.channels, bits=options.bits, labels=labels, match=options.match,
        steps=options.steps or 300, seed=options.seed, progress=watched(options),
    )  # fmt: skip
    return _done(Learned((*before.bottlenecks, made)), options)


def run_exits(options: argparse.Namespace) -> int:
    """Train exits and record what they say."""
    from splitinfer.errors import UsageError
    from splitinfer.learn import Learned, record_exits, train_exit
    from splitinfer.models import load_samples

    before = learned_file(options) or Learned()
    if before.heads:
        raise UsageError(f"{options.learned} already holds exits; learn all of them at once, on a file with bottlenecks only")
    graph = before.apply(captured(options)[1])
    tensors = _behind(graph, options.layers)
    samples, labels = load_samples(options.samples)
    if len(samples) < 2:
        raise UsageError(f"exits need two samples or more, one of them to record; {options.samples} gave {len(samples)}")
    held = range(0, len(samples), _RECORD_EVERY)
    rest = [place for place in range(len(samples)) if place not in held]
    heads = [
        train_exit(
            graph, tensor, [samples[place] for place in rest], labels and [labels[place] for place in rest], hidden=options.hidden,
            confidence=options.confidence, steps=options.steps or 400, seed=options.seed, progress=watched(options),
        )
        for tensor in tensors
    ]  # fmt: skip
    record = record_exits(graph, heads, [samples[place] for place in held], labels and [labels[place] for place in held])
    return _done(Learned(before.bottlenecks, tuple(heads), record), options)


def _behind(graph: Graph, text: str) -> list[str]:
    from splitinfer.errors import UsageError
    from splitinfer.learn.learned import tensor_behind

    names = split_names(text)
    if not names:
        raise UsageError("name the layers that heads read: --layers A,B")
    return list(dict.fromkeys(tensor_behind(graph, name) for name in names))


def _done(made: Learned, options: argparse.Namespace) -> int:
    made.save(options.output)
    show(made, options)
    return 0
