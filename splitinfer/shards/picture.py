"""A picture of a block that is divided by rows: which rows each worker gets and makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splitinfer.errors import MissingExtra, ShardError
from splitinfer.shards.layouts import Span, spans_of
from splitinfer.shards.program import ShardedBlock

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
"""Tol's bright scheme: told apart by colour-blind people too."""


def draw_tiles(block: ShardedBlock, path: Path | str) -> None:
    """Write a PNG: the first input and the last output as columns, each worker's rows as bars, the halo hatched.

    Raises ShardError for a block that is not divided by rows, MissingExtra without matplotlib.
    """
    if block.axis != "rows":
        raise ShardError(f"tiles are of rows; this block is divided by {block.axis}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", extra="demo") from error
    figure = Figure(figsize=(7, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    got = {worker: next((p.start, p.stop) for p in pieces if p.dim is not None) for worker, pieces in block.scatter.items()}
    made = {worker: spans_of(block.shares)[worker] for worker in block.workers}
    scale = max(stop for _, stop in got.values()) / sum(block.shares)
    tiles = {worker: (start * scale, stop * scale) for worker, (start, stop) in made.items()}
    _bars(left, got, tiles, f"rows of '{block.inputs[0]}' that each gets\n(solid: its tile, hatched: halo)")
    _bars(right, made, made, f"rows of '{block.outputs[-1]}' that each makes")
    rounds = len(block.programs[block.root].exchanges)
    figure.suptitle(
        f"{block.layers[0]} to {block.layers[-1]}: {len(block.workers)} workers, {rounds} round{'s' * (rounds > 1)} of messages"
    )
    figure.savefig(path, dpi=120)


def _bars(axes: Any, spans: Mapping[int, Span], solid: Mapping[int, tuple[float, float]], title: str) -> None:
    for place, (worker, (start, stop)) in enumerate(spans.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        axes.bar(place, stop - start, bottom=start, width=0.8, color=colour, alpha=0.35, hatch="//", edgecolor=colour)
        axes.bar(place, solid[worker][1] - solid[worker][0], bottom=solid[worker][0], width=0.8, color=colour)
        axes.text(place, (start + stop) / 2, f"{start} to {stop}", ha="center", va="center", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.set_xticks(range(len(spans)), [f"worker {worker}" for worker in spans], fontsize=8)
    axes.set_ylabel("row")
    axes.invert_yaxis()
