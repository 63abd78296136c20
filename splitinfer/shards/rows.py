"""Spatial rows: every worker computes some rows of the outputs, and what it needs for them from the inputs on.

Intervals go backwards through the operators; where several operators read a tensor, a worker holds the hull of what they
need. So the halo between neighbours is computed twice, unless it is exchanged behind some layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, fx

from splitinfer.errors import ShardError
from splitinfer.graph import Graph
from splitinfer.shards import window_rules  # noqa: F401  it registers rules
from splitinfer.shards.layouts import WHOLE, LayoutOf, Placed, Rows, Span, apportion_units, spans_of
from splitinfer.shards.propagate import Shapes, constants, leaving
from splitinfer.shards.row_rules import RowCall, RowStep, clamped, placed_rows
from splitinfer.shards.rules import NoRule, op_name
from splitinfer.shards.schedule import Division

SPATIAL = {
    "conv1d": 3, "conv2d": 4, "conv3d": 5, "convolution": 4, "max_pool1d": 3, "max_pool2d": 4, "avg_pool1d": 3, "avg_pool2d": 4,
}  # fmt: skip
"""Operators with windows over rows -> number of dimensions of their input."""

Dims = dict[str, int | tuple[int, ...] | None]


@dataclass
class RowFlow:
    """Where the rows are, as far as the operators have been read."""

    graph: Graph
    shape: Shapes = field(default_factory=Shapes)
    dims: Dims = field(default_factory=dict)
    """Tensor -> dimension of its rows; None where it has none."""
    steps: dict[str, RowStep | None] = field(default_factory=dict)
    """Operator -> how it treats rows; None where it reads none."""
    layouts: dict[str, LayoutOf] = field(default_factory=dict)
    banned: set[tuple[str, int]] = field(default_factory=set)
    gathered: dict[str, str] = field(default_factory=dict)
    attention: bool = False

    def __post_init__(self) -> None:
        self.constants = constants(self.graph)

    def constant(self, node: fx.Node) -> bool:
        """Whether it depends on no input."""
        return node.name in self.constants

    def enter(self, name: str, rank: int) -> None:
        """An input of the block; images of more than one row are divided."""
        node = self.graph.nodes[name]
        value = node.meta.get("val")
        image = isinstance(value, Tensor) and value.dim() == rank and isinstance(value.shape[2], int) and value.shape[2] > 1
        self.dims[name] = 2 if image else None

    def read(self, node: fx.Node) -> None:
        """One operator. Raises NoRule."""
        if not any(self.dims.get(value.name) is not None for value in node.all_input_nodes):
            self.steps[node.name], self.dims[node.name] = None, None
            return
        call = RowCall(node, self, self.dims)
        step = call.row_step()
        if isinstance(step.dim, int) and not isinstance(node.meta["val"].shape[step.dim], int):
            raise NoRule("its number of rows varies")
        self.steps[node.name], self.dims[node.name] = step, step.dim

    def height(self, name: str) -> int:
        """Rows of a tensor."""
        dim, value = self.dims[name], self.graph.nodes[name].meta["val"]
        if isinstance(dim, tuple):
            return int(value[0].shape[dim[0]])
        return int(value.shape[dim])


def image_rank(graph: Graph, layers: Iterable[str]) -> int | None:
    """Number of dimensions of the images in these layers; None where nothing slides over rows."""
    ops = (op_name(graph.nodes[op]) for name in layers for op in graph.layers[name].ops)
    return next((SPATIAL[op] for op in ops if op in SPATIAL), None)


def flow(graph: Graph, names: Sequence[str]) -> RowFlow:
    """The rows of a run of layers. Raises ShardError, which names the layer that has no rule."""
    rank = image_rank(graph, names)
    if rank is None:
        raise ShardError(f"'{names[0]}' cannot be divided by rows: it has neither convolutions nor pooling")
    found = RowFlow(graph)
    inside = set(names)
    for tensor in graph.tensors.values():
        if tensor.producer not in inside and inside & set(tensor.consumers):
            found.enter(tensor.name, rank)
    for name in names:
        for op in graph.layers[name].ops:
            try:
                found.read(graph.nodes[op])
            except NoRule as why:
                raise ShardError(f"'{name}' cannot be divided by rows: {op_name(graph.nodes[op])}: {why}") from None
    if not any(found.dims[name] is not None for name in leaving(graph, names)):
        raise ShardError(f"'{names[-1]}' cannot be divided by rows: no output of the block has rows")
    return found


def row_count(graph: Graph, names: Sequence[str]) -> int:
    """Rows of the last output of a run of layers. Raises ShardError where it cannot be divided."""
    found = flow(graph, names)
    count = next(found.height(name) for name in reversed(leaving(graph, names)) if found.dims[name] is not None)
    if count < 2:
        raise ShardError(f"'{names[-1]}' cannot be divided by rows: its output has one row")
    return count


def divide_rows(
    graph: Graph, names: Sequence[str], rows: Sequence[int], weights: Sequence[int],
    exchange_after: Collection[str] | Mapping[str, Sequence[int]],
) -> Division:
    """The block in tiles: `rows` of its last output, and other tensors that are put together in proportion to `weights`.

    Raises ShardError.
    """
    found = flow(graph, names)
    unknown = [name for name in exchange_after if name not in names]
    if unknown:
        raise ShardError(f"halos cannot be exchanged behind '{unknown[0]}': it is not in the block")
    outputs, exchanged = leaving(graph, names), _exchanged(graph, names, exchange_after, found)
    ops = {op for name in names for op in graph.layers[name].ops}
    nodes = [node for node in graph.fx_graph.nodes if node.name in ops]
    joined = [name for name in (*outputs, *exchanged) if found.dims[name] is not None]
    given = exchange_after if isinstance(exchange_after, Mapping) else {}
    own = {op: shares for name, shares in given.items() for op in graph.layers[name].ops}
    owned = {name: spans_of(_rows_of(found.height(name), own.get(name, weights))) for name in joined}
    owned[next(name for name in reversed(outputs) if name in owned)] = spans_of(rows)
    tiles = _Tiles(found, nodes, owned, exchanged)
    inputs = tuple(t.name for t in graph.tensors.values() if t.producer not in set(names) and set(names) & set(t.consumers))
    layouts = {name: tiles.layout(name) for name in (*inputs, *(node.name for node in nodes))}
    placed = tuple(_placed(found, node, layouts[node.name], tiles) for node in nodes)
    workers = tuple(worker for worker in range(len(rows)) if any(spans[worker][0] < spans[worker][1] for spans in owned.values()))
    halos = {name: tuple(tiles.wanted[name]) for name in exchanged if not tiles.suffices(name)}
    return Division(placed, layouts, {}, inputs, outputs, constants(graph), found.shape, workers, halos)


def _rows_of(height: int, shares: Sequence[int]) -> tuple[int, ...]:
    """Shares that are rows, or in proportion to shares that are not."""
    return tuple(shares) if sum(shares) == height else apportion_units(height, shares)


def _exchanged(graph: Graph, names: Sequence[str], after: Collection[str], found: RowFlow) -> set[str]:
    """Tensors that leave these layers and are read by others of the block."""
    made = set()
    for name in after:
        inside = set(graph.layers[name].ops)
        for tensor in graph.tensors.values():
            if tensor.name in inside and set(tensor.consumers) & set(names) and isinstance(found.dims[tensor.name], int):
                made.add(tensor.name)
    return made


class _Tiles:
    """The rows that each worker holds of each tensor."""

    def __init__(self, found: RowFlow, nodes: Sequence[fx.Node], owned: Mapping[str, tuple[Span, ...]], exchanged: set[str]) -> None:
        self.found, self.owned, self.exchanged = found, owned, exchanged
        self.wanted: dict[str, list[Span]] = {}
        """What the operators behind a tensor read of it."""
        self.held: dict[str, list[Span]] = {}
        empty = [(0, 0)] * len(next(iter(owned.values())))
        for node in reversed(nodes):
            step = found.steps[node.name]
            if step is None:
                continue
            held = list(self.wanted.get(node.name, empty))
            if node.name in exchanged:
                held = list(self.owned[node.name])
            elif node.name in self.owned:
                held = [hull(*pair) for pair in zip(held, self.owned[node.name], strict=True)]
            self.held[node.name] = held
            for reading in step.readings:
                if found.dims.get(reading.node.name) is None:
                    continue
                height = found.height(reading.node.name)
                need = [_some(clamped(reading.need(span), height), height) if span[0] < span[1] else (0, 0) for span in held]
                before = self.wanted.get(reading.node.name, empty)
                self.wanted[reading.node.name] = [hull(*pair) for pair in zip(before, need, strict=True)]
        for node in nodes:  # the parts of a tuple are all as tall as the tallest
            if op_name(node) == "getitem" and found.steps[node.name] is not None:
                self.held[node.name] = self.held[node.all_input_nodes[0].name]

    def suffices(self, name: str) -> bool:
        """Whether every worker's own rows of an exchanged tensor are all that it reads."""
        pairs = zip(self.owned[name], self.wanted.get(name, self.owned[name]), strict=True)
        return all(hull(own, wanted) == own for own, wanted in pairs)

    def layout(self, name: str) -> LayoutOf:
        """Of a tensor of the block."""
        dim = self.found.dims.get(name)
        if dim is None:
            return WHOLE
        spans = tuple(self.held.get(name, self.wanted.get(name, [])))
        return Rows(dim if isinstance(dim, int) else dim[0], spans, self.owned.get(name, spans))


def _some(span: Span, height: int) -> Span:
    """At least one row: who reads nothing but padding still needs a tensor to pad."""
    first = min(span[0], height - 1)
    return span if span[0] < span[1] else (first, first + 1)


def hull(one: Span, two: Span) -> Span:
    """The smallest interval around both; an empty one adds nothing."""
    if one[0] >= one[1]:
        return two
    return one if two[0] >= two[1] else (min(one[0], two[0]), max(one[1], two[1]))


def _placed(found: RowFlow, node: fx.Node, layout: LayoutOf, tiles: _Tiles) -> Placed:
    step = found.steps[node.name]
    if step is None or not isinstance(layout, Rows):
        return Placed(node, WHOLE, node.target, node.args, node.kwargs)
    heights: Mapping[str, int] = {
        reading.node.name: found.height(reading.node.name) if found.dims.get(reading.node.name) is not None
        else int(reading.node.meta["val"].shape[reading.dim])
        for reading in step.readings
    }  # fmt: skip
    return placed_rows(RowCall(node, found, found.dims), step, tuple(tiles.held[node.name]), heights, layout)
