"""A picture of a block that is divided by rows: which rows each worker gets and makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from splitinfer.errors import MissingExtra, ShardError
from splitinfer.shards.exchange import Exchange
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
    own = _owned(list(got.values()))
    _bars(left, got, f"rows of '{block.inputs[0]}' that each worker gets\n(hatched: halo, held twice)", own)
    ends, made = 0, {}
    for worker in block.workers:
        made[worker] = ends, ends + block.shares[worker]
        ends += block.shares[worker]
    _bars(right, made, f"rows of '{block.outputs[-1]}' that each makes", list(made.values()))
    rounds = sum(1 for step in block.programs[block.root].steps if isinstance(step, Exchange))
    figure.suptitle(f"{block.layers[0]} to {block.layers[-1]}: {len(block.workers)} workers, {rounds} rounds of messages")
    figure.savefig(path, dpi=120)


def _owned(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Each interval without what the next and the last one hold too; may be empty."""
    found = []
    for index, (start, stop) in enumerate(spans):
        first = max([start, *(span[1] for span in spans[:index])])
        last = min([stop, *(span[0] for span in spans[index + 1 :])])
        found.append((min(first, stop), max(last, min(first, stop))))
    return found


def _bars(axes: Any, spans: dict[int, tuple[int, int]], title: str, own: list[tuple[int, int]]) -> None:
    for place, (worker, (start, stop)) in enumerate(spans.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        axes.bar(place, stop - start, bottom=start, width=0.8, color=colour, alpha=0.35, hatch="//", edgecolor=colour)
        axes.bar(place, own[place][1] - own[place][0], bottom=own[place][0], width=0.8, color=colour, label=f"worker {worker}")
        axes.text(place, (start + stop) / 2, f"{start}-{stop}", ha="center", va="center", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.set_xticks(range(len(spans)), [f"worker {worker}" for worker in spans], fontsize=8)
    axes.set_ylabel("row")
    axes.invert_yaxis()
