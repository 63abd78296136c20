"""Dividing a run of layers over workers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from splitinfer.errors import ShardError
from splitinfer.graph import Graph
from splitinfer.plans import INPUT
from splitinfer.shards.assemble import assemble
from splitinfer.shards.layouts import WHOLE, LayoutOf, apportion_units, spans_of
from splitinfer.shards.program import ShardedBlock
from splitinfer.shards.propagate import ATTENTION, Propagated, Shapes, constants, leaving, propagate
from splitinfer.shards.rows import divide_rows, row_count
from splitinfer.shards.rules import op_name
from splitinfer.shards.schedule import Division

AXES = ("rows", "channels", "heads")


@dataclass(frozen=True)
class Units:
    """What shares are counted in."""

    count: int
    granularity: int = 1
    """Shares are multiples of it: the heads of one key-value group, the channels of one group."""


def apportion(units: Units | tuple[int, int], weights: Sequence[int]) -> tuple[int, ...]:
    """Shares in proportion to `weights`: multiples of the granularity that sum to the count, by largest remainder.

    Raises ShardError for negative weights, or none above zero.
    """
    count, granularity = (units.count, units.granularity) if isinstance(units, Units) else units
    _check_weights(weights)
    return tuple(granularity * share for share in apportion_units(count // granularity, weights))


def units(graph: Graph, layers: Iterable[str], axis: str) -> Units:
    """What a run of layers is divided into: rows of its last output, channels or query heads of its first divided layer.

    Raises ShardError, which names the layer and the reason, where it cannot be divided.
    """
    names = checked(graph, layers, axis)
    if axis == "rows":
        return Units(row_count(graph, names))
    return _units(_propagated(graph, names, axis))


def divide(
    graph: Graph, layers: Iterable[str], axis: str, shares: Sequence[int], *,
    exchange_after: Collection[str] | Mapping[str, Sequence[int]] = (), inner_shares: Mapping[str, Sequence[int]] | None = None,
) -> ShardedBlock:  # fmt: skip
    """Divide a run of layers over ``len(shares)`` workers along ``rows``, ``channels`` or ``heads``.

    `shares` are exact units where they sum to :func:`units` in multiples of its granularity, else relative weights; a
    worker with none is left out. Behind the layers `exchange_after`, of a run divided by rows, neighbours send each other
    the halo; elsewhere it is computed twice. With a mapping, each of these layers names the shares of the rows that it gives. A
    block by heads or channels may hold several axes, attentions and MLPs in turn: `inner_shares` names the shares of the
    axis that a layer opens; the others follow `shares` in proportion.

    Raises ShardError, which names the layer and the reason, where the run cannot be divided.
    """
    names = checked(graph, layers, axis)
    _check_weights(shares)
    given = [*(exchange_after.values() if isinstance(exchange_after, Mapping) else ()), *(inner_shares or {}).values()]
    for inner in given:
        _check_weights(inner)
        if len(inner) != len(shares):
            raise ShardError(f"{len(inner)} shares inside the block, and {len(shares)} of it: each worker has one")
    if axis == "rows":
        taken = _exact(Units(row_count(graph, names)), shares)
        division, reasons = divide_rows(graph, names, taken, shares, exchange_after), dict[str, str]()
    else:
        if exchange_after:
            raise ShardError(f"'{next(iter(exchange_after))}': halos are exchanged between rows, not {axis}")
        found = _propagated(graph, names, axis)
        taken = _exact(_units(found), shares)
        division, reasons = _division(graph, names, found, taken, shares, inner_shares or {}), found.reasons
    programs, scatter = assemble(graph, division)
    parted = [name for name in names if any(division.layout(op) != WHOLE for op in graph.layers[name].ops)]
    why = {name: layer_reason(graph, name, reasons) for name in names if name not in parted}
    return ShardedBlock(names, axis, taken, division.inputs, division.outputs, scatter, programs, tuple(parted), why)


def checked(graph: Graph, layers: Iterable[str], axis: str) -> tuple[str, ...]:
    """The layers in the order of the graph. Raises ShardError where they cannot be a block."""
    if axis not in AXES:
        raise ShardError(f"no axis '{axis}'; there are {', '.join(AXES)}")
    wanted = set(layers)
    unknown = sorted(wanted - set(graph.layers))
    if unknown or not wanted:
        raise ShardError(f"no layer '{unknown[0]}' in {graph.name}" if unknown else "a block needs at least one layer")
    for group in graph.together:
        if group.layers & wanted:
            raise ShardError(f"'{sorted(group.layers & wanted)[0]}' stays whole: {group.reason}")
    for name in wanted & {layer for layer, held in graph.layers.items() if set(held.weights) & set(graph.mutated)}:
        raise ShardError(f"'{name}' stays whole: it changes a buffer at every call")
    after = set().union(*(nx.descendants(graph.dag, name) for name in wanted)) - wanted
    before = set().union(*(nx.ancestors(graph.dag, name) for name in wanted)) - wanted - {INPUT}
    if after & before:
        raise ShardError(f"'{sorted(after & before)[0]}' lies between layers of the block; take it in or stop before it")
    return tuple(name for name in graph.layers if name in wanted)


def _check_weights(weights: Sequence[int]) -> None:
    if not weights or any(weight < 0 for weight in weights) or not any(weights):
        raise ShardError(f"shares {list(weights)}: they must be zero or more, and one above zero")


def _exact(found: Units, shares: Sequence[int]) -> tuple[int, ...]:
    if sum(shares) == found.count and all(share % found.granularity == 0 for share in shares):
        return tuple(shares)
    return apportion(found, shares)


def _propagated(graph: Graph, names: tuple[str, ...], axis: str) -> Propagated:
    found = propagate(graph, names, attention=axis == "heads")
    if not found.axes:
        why = next(iter(found.reasons.values()), "it has no linear layer, convolution or attention")
        raise ShardError(f"'{names[0]}' cannot be divided by {axis}: {why}")
    if axis == "heads" and not any(entry.heads for entry in found.axes):
        attention = any(op_name(graph.nodes[op]) in ATTENTION for name in names for op in graph.layers[name].ops)
        why = next(iter(found.reasons.values()), "its form is not known") if attention else "it has no attention"
        raise ShardError(f"'{names[0]}' cannot be divided by heads: {why}")
    return found


def _units(found: Propagated) -> Units:
    """Of the attention, or else of the first axis."""
    first = next((axis for axis in found.axes if axis.heads), found.axes[0])
    count = first.heads or first.outer * first.units * first.inner
    return Units(count, count // first.units)


def _division(
    graph: Graph, names: tuple[str, ...], found: Propagated, taken: Sequence[int], shares: Sequence[int],
    inner: Mapping[str, Sequence[int]],
) -> Division:  # fmt: skip
    first = next((axis for axis in found.axes if axis.heads), found.axes[0])
    spans = {}
    for axis in found.axes:
        count = axis.heads or axis.outer * axis.units * axis.inner
        own = inner.get(graph.layer_of[axis.name], taken if axis is first else shares)
        exact = sum(own) == count and all(share % (count // axis.units) == 0 for share in own)
        spans[axis.name] = spans_of([share // (count // axis.units) for share in own] if exact else apportion_units(axis.units, own))
    workers = tuple(w for w in range(len(shares)) if any(held[w][0] < held[w][1] for held in spans.values()))
    layouts: dict[str, LayoutOf] = {entry.node.name: entry.layout for entry in found.placed}
    return Division(found.placed, layouts, spans, arriving(graph, names), leaving(graph, names), constants(graph), Shapes(), workers)


def arriving(graph: Graph, names: Sequence[str]) -> tuple[str, ...]:
    """Tensors of other layers, or the caller, that these layers read."""
    inside = set(names)
    return tuple(t.name for t in graph.tensors.values() if t.producer not in inside and inside & set(t.consumers))


def layer_reason(graph: Graph, name: str, reasons: Mapping[str, str]) -> str:
    """Why a layer is not divided."""
    for op in graph.layers[name].ops:
        if op in reasons:
            return reasons[op]
    kinds = {op_name(graph.nodes[op]) for op in graph.layers[name].ops}
    return f"has nothing to divide: {', '.join(sorted(kinds)[:3])} of whole tensors"
