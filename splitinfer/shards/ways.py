"""The ways in which each layer can be shared out, as plain numbers for planning (`LayerLayout`).

A layer's way is read off the rules of its operators: for rows how the rows of its inputs follow from those of its output,
for channels and heads what each worker takes and gives. A layer whose operators mix several ways, two products with a sum
over the workers between them for example, has none: planning keeps it whole, though a block that holds it may be divided
by hand.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from splitinfer.errors import ShardError
from splitinfer.graph import Graph
from splitinfer.profiles import LayerLayout
from splitinfer.shards.blocks import movable, plan_blocks
from splitinfer.shards.divide import arriving
from splitinfer.shards.layouts import WHOLE, LayoutOf, Partial, Span, Split
from splitinfer.shards.propagate import Axis, leaving, propagate
from splitinfer.shards.rows import RowFlow, flow

Ways = dict[str, tuple[LayerLayout, ...]]


def ways(graph: Graph) -> Ways:
    """Layer -> its ways; layers without any are left out."""
    found: dict[str, list[LayerLayout]] = {}
    for block in plan_blocks(graph, "rows").blocks:
        rows = flow(graph, block.layers)
        for name in block.layers:
            if (way := _rows(graph, rows, name)) is not None:
                found.setdefault(name, []).append(way)
    for block in plan_blocks(graph, "heads").blocks:
        for name, way in _channels(graph, block.layers):
            found.setdefault(name, []).append(way)
    if any(way.gives != "whole" and way.axis != "rows" for each in found.values() for way in each):
        for name in (name for run in movable(graph, {}) for name in run if name not in found):
            found[name] = _replicated(graph, name)
    return {name: tuple(each) for name, each in found.items()}


# -- rows


def _rows(graph: Graph, rows: RowFlow, name: str) -> LayerLayout | None:
    outputs = [tensor for tensor in leaving(graph, (name,)) if rows.dims.get(tensor) is not None]
    heights = {rows.height(tensor) for tensor in outputs}
    if len(heights) != 1 or len(outputs) != len(leaving(graph, (name,))):
        return None
    (units,) = heights
    inputs = [tensor for tensor in arriving(graph, (name,)) if rows.dims.get(tensor) is not None]
    read = {tensor: rows.height(tensor) for tensor in inputs}
    taps = _taps(graph, rows, name, outputs, units)
    if not read or len(set(read.values())) != 1 or taps is None or units < 2:
        return None
    kernel, stride, padding = taps
    weights = graph.layers[name].weight_nbytes
    height = next(iter(read.values()))
    return LayerLayout("rows", units, weight_nbytes=weights, kernel=kernel, stride=stride, padding=padding, input_units=height)


def _taps(graph: Graph, rows: RowFlow, name: str, outputs: Sequence[str], units: int) -> tuple[int, int, int] | None:
    """Kernel, stride and padding of a layer; None where rows follow no such rule, or it reads none."""
    spans = [(0, 1), (1, 2), (0, units), (units // 2, units)]
    needed = [_needed(graph, rows, name, outputs, span) for span in spans]
    if any(span is None for span in needed):
        return None
    (first, second, *_) = [span for span in needed if span is not None]
    stride, kernel, padding = second[0] - first[0], first[1] - first[0], -first[0]
    expected = [(start * stride - padding, (stop - 1) * stride - padding + kernel) for start, stop in spans]
    return (kernel, stride, padding) if needed == expected and stride > 0 and kernel > 0 and padding >= 0 else None


def _needed(graph: Graph, rows: RowFlow, name: str, outputs: Sequence[str], span: Span) -> Span | None:
    """Rows of the layer's inputs for rows of its outputs, beyond the borders where it pads."""
    wanted: dict[str, Span] = dict.fromkeys(outputs, span)
    entered: list[Span] = []
    own = set(graph.layers[name].ops)
    for op in reversed(graph.layers[name].ops):
        step = rows.steps.get(op)
        if op not in wanted or step is None:
            continue
        for reading in step.readings:
            hull = reading.need(wanted[op])
            if reading.node.name in own:
                held = wanted.get(reading.node.name, hull)
                wanted[reading.node.name] = min(held[0], hull[0]), max(held[1], hull[1])
            else:
                entered.append(hull)
    return (min(start for start, _ in entered), max(stop for _, stop in entered)) if entered else None


# -- channels and heads


def _channels(graph: Graph, layers: Sequence[str]) -> list[tuple[str, LayerLayout]]:
    try:
        found = propagate(graph, layers, attention=True)
    except ShardError:
        return []
    layouts: dict[str, LayoutOf] = {entry.node.name: entry.layout for entry in found.placed}
    axes = {axis.name: axis for axis in found.axes}
    made = []
    for name in layers:
        taken = [layouts.get(tensor, WHOLE) for tensor in arriving(graph, (name,))]
        given = [layouts.get(tensor, WHOLE) for tensor in leaving(graph, (name,))]
        inner = [layouts.get(op, WHOLE) for op in graph.layers[name].ops if isinstance(_value(graph, op), Tensor)]
        made += [(name, way) for way in _ways(graph, name, axes, taken, given, inner)]
    return made


def _replicated(graph: Graph, name: str) -> list[LayerLayout]:
    """Every worker does all of it."""
    weights = graph.layers[name].weight_nbytes
    return [LayerLayout(axis, 1, takes="whole", gives="whole", weight_nbytes=weights) for axis in ("channels", "heads")]


def _value(graph: Graph, op: str) -> object:
    node: fx.Node = graph.nodes[op]
    return node.meta.get("val")


def _ways(
    graph: Graph, name: str, axes: dict[str, Axis], taken: Sequence[LayoutOf], given: Sequence[LayoutOf], inner: Sequence[LayoutOf]
) -> list[LayerLayout]:
    weights = graph.layers[name].weight_nbytes
    every = [*taken, *given, *inner]
    if any(isinstance(part, tuple) for part in every):
        return []
    used = dict.fromkeys(part.axis for part in every if isinstance(part, Split))
    if not used:  # every worker does all of it, on sums that are complete by then, whatever the axis of its neighbours
        return _replicated(graph, name)
    axis = axes[next(iter(used))]
    takes = "split" if any(isinstance(part, Split) for part in taken) else "whole"
    gives = next((kind for kind, form in (("split", Split), ("partial", Partial)) if given and all(isinstance(p, form) for p in given)), "")
    # A term of a sum that came in, or that is added up inside, is none of the three ways.
    mixed = any(isinstance(part, Partial) for part in [*taken, *(inner if gives != "partial" else ())])
    if len(used) > 1 or mixed or (takes, gives) not in (("whole", "split"), ("split", "split"), ("split", "partial")):
        return []
    count = axis.heads or axis.outer * axis.units * axis.inner
    kind = "heads" if axis.heads else "channels"
    return [LayerLayout(kind, count, count // axis.units, takes, gives, weight_nbytes_per_unit=weights / count)]
