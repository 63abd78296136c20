"""Which worker computes which operator in which phase, and what is exchanged between the phases.

A phase is a computation without messages. An operator's phase is the first in which all its inputs can be there: what it
takes whole of a divided tensor is there one phase after the tensor. A worker computes only what an output asks of it:
the residual behind the last all-reduce, say, only on the root.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from splitinfer.shards.layouts import WHOLE, Cut, Extent, First, LayoutOf, Local, Partial, Placed, Rows, Span, Split, Window
from splitinfer.shards.propagate import Shapes


@dataclass(frozen=True)
class Division:
    """Everything that was decided about a block."""

    placed: tuple[Placed, ...]
    layouts: Mapping[str, LayoutOf]
    """Of operators and of the block's inputs; whole where it is not named."""
    spans: Mapping[str, tuple[Span, ...]]
    """Axis -> units of each worker."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: frozenset[str]
    shape: Shapes
    workers: tuple[int, ...]
    halos: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    """Tensor of which neighbours send each other rows -> worker -> what it needs."""

    def layout(self, name: str) -> LayoutOf:
        """How a tensor lies on the workers."""
        return self.layouts.get(name, WHOLE)

    def holders(self, name: str) -> tuple[int, ...]:
        """Workers that hold a part of a divided tensor."""
        layout = self.layout(name)
        if isinstance(layout, Rows):
            return tuple(worker for worker in self.workers if layout.spans[worker][0] < layout.spans[worker][1])
        if isinstance(layout, Split | Partial):
            return tuple(worker for worker in self.workers if self.spans[layout.axis][worker][0] < self.spans[layout.axis][worker][1])
        axes = {part.axis for part in layout if isinstance(part, Split)} if isinstance(layout, tuple) else set()
        return tuple(w for w in self.workers if all(self.spans[axis][w][0] < self.spans[axis][w][1] for axis in axes))


@dataclass(frozen=True)
class Need:
    """An input of an operator, in the form that it takes."""

    node: fx.Node
    form: str
    """``local``, ``whole`` or ``halo``."""


@dataclass
class Schedule:
    """The outcome."""

    phase: dict[str, int]
    """Operator -> phase."""
    local: dict[str, set[int]]
    """Tensor -> workers that compute, or are given, what they hold of it."""
    whole: dict[str, set[int]]
    """Divided tensor -> workers that need all of it."""
    halo: dict[str, set[int]]


def needs(placed: Placed, division: Division) -> list[Need]:
    """The tensors that an operator reads; not the constants and sizes."""
    found: list[Need] = []

    def walk(value: Any) -> None:
        match value:
            case fx.Node():
                whole(value)
            case Local():
                found.append(Need(value.node, "local"))
            case Cut():
                whole(value.node)
            case Window() if isinstance(division.layout(value.node.name), Rows):
                found.append(Need(value.node, "halo" if value.node.name in division.halos else "local"))
            case Window():
                whole(value.node)
            case First():
                walk(value.value)
            case list() | tuple():
                for item in value:
                    walk(item)
            case dict():
                walk(list(value.values()))

    def whole(node: fx.Node) -> None:
        if node.name in division.inputs or node.name in known:
            found.append(Need(node, "local" if division.layout(node.name) == WHOLE else "whole"))

    known = {entry.node.name for entry in division.placed}
    walk((placed.args, placed.kwargs))
    return found


def schedule(division: Division) -> Schedule:
    """Phases forward, demands backward."""
    wanted = {entry.node.name: needs(entry, division) for entry in division.placed}
    phase: dict[str, int] = dict.fromkeys(division.inputs, 0)
    for entry in division.placed:
        phase[entry.node.name] = max((phase[need.node.name] + (need.form != "local") for need in wanted[entry.node.name]), default=0)
    made = Schedule(phase, defaultdict(set), defaultdict(set), defaultdict(set))
    root = division.workers[0]
    for name in division.outputs:
        (made.local if division.layout(name) == WHOLE else made.whole)[name].add(root)
    for entry in reversed(division.placed):
        name = entry.node.name
        if made.whole[name]:
            made.local[name] |= set(_givers(division, name))
        if made.halo[name]:
            made.local[name] |= set(_givers(division, name))
        for need in wanted[name]:
            getattr(made, need.form)[need.node.name] |= made.local[name]
    return made


def _givers(division: Division, name: str) -> Iterable[int]:
    """Workers whose parts make up the whole."""
    layout = division.layout(name)
    if isinstance(layout, Rows):
        return [worker for worker in division.workers if layout.owned[worker][0] < layout.owned[worker][1]]
    return division.holders(name)


def givers(division: Division, name: str) -> list[int]:
    """Workers whose parts make up the whole, in order."""
    return list(_givers(division, name))


def resolved(value: Any, worker: int, division: Division, take: Any) -> Any:
    """Arguments of one worker; `take` makes the node for what is read."""
    match value:
        case fx.Node() | Local() | Cut() | Window():
            return take(value)
        case Extent():
            return value.split.local(division.spans[value.split.axis][worker])
        case First():
            span = division.spans[value.axis][worker]
            return resolved(value.value, worker, division, take) if span[0] == 0 else None
        case list() | tuple():
            return type(value)(resolved(item, worker, division, take) for item in value)
        case dict():
            return {key: resolved(item, worker, division, take) for key, item in value.items()}
        case slice():
            return slice(*(resolved(item, worker, division, take) for item in (value.start, value.stop, value.step)))
    return value


def static_dims(node: fx.Node) -> Sequence[int | None]:
    """Sizes of a tensor; None where they vary."""
    return [size if isinstance(size, int) else None for size in node.meta["val"].shape]
