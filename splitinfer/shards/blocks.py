"""Which runs of layers can be divided, along which axis, and why the others stay whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from splitinfer.errors import ShardError
from splitinfer.graph import Graph
from splitinfer.shards.divide import AXES, layer_reason
from splitinfer.shards.layouts import WHOLE
from splitinfer.shards.plain_rules import MOVES, is_elementwise
from splitinfer.shards.propagate import ATTENTION, Propagated, propagate
from splitinfer.shards.rows import SPATIAL, RowFlow, image_rank, row_count
from splitinfer.shards.rules import RULES, NoRule, op_name


@dataclass(frozen=True)
class Block:
    """A run of layers that :func:`splitinfer.shards.divide` takes."""

    layers: tuple[str, ...]
    axis: str


@dataclass(frozen=True)
class BlockPlan:
    """What can be divided of a graph."""

    blocks: tuple[Block, ...]
    """In the order of the graph, as long as they can be; any part of one that is convex can be divided too."""
    whole_layers: dict[str, str]
    """Layer in no block -> why."""


def plan_blocks(graph: Graph, axis: str = "auto") -> BlockPlan:
    """The maximal runs of layers that can be divided along `axis`.

    "auto" takes rows for runs with convolutions or pooling, heads for runs with attention (with the MLPs between), and
    channels for the rest. Raises ShardError for an unknown axis.
    """
    if axis not in (*AXES, "auto"):
        raise ShardError(f"no axis '{axis}'; there are {', '.join(AXES)} and auto")
    whole: dict[str, str] = {}
    blocks: list[Block] = []
    for run in movable(graph, whole):
        left = [run]
        if axis in ("rows", "auto"):
            found, left = _row_blocks(graph, run, whole)
            blocks += found
        if axis != "rows":
            for rest in left:
                blocks += _channel_blocks(graph, rest, axis, whole)
    order = {name: index for index, name in enumerate(graph.layers)}
    blocks.sort(key=lambda block: order[block.layers[0]])
    divided = {name for block in blocks for name in block.layers}
    return BlockPlan(tuple(blocks), {name: whole[name] for name in graph.layers if name not in divided})


def movable(graph: Graph, whole: dict[str, str]) -> Iterator[list[str]]:
    """Runs of layers that no state binds to one place; `whole` receives the reasons of the others."""
    run: list[str] = []
    for name, layer in graph.layers.items():
        why = next((group.reason for group in graph.together if name in group.layers), None)
        if why is None and set(layer.weights) & set(graph.mutated):
            why = "it changes a buffer at every call"
        if why is None:
            run.append(name)
            continue
        whole[name] = why
        if run:
            yield run
        run = []
    if run:
        yield run


# -- rows


def _row_blocks(graph: Graph, names: Sequence[str], whole: dict[str, str]) -> tuple[list[Block], list[list[str]]]:
    """Blocks of rows, and the runs of layers between them."""
    blocks: list[Block] = []
    left: list[list[str]] = [[]]
    place = 0
    while place < len(names):
        length, why = _row_run(graph, names[place:])
        run, after = _trimmed(graph, names[place : place + length])
        if run:
            start = names.index(run[0])
            for name in names[place:start]:
                whole.setdefault(name, "stands before the first convolution or pooling")
            left[-1] += names[place:start]
            blocks.append(Block(tuple(run), "rows"))
            left.append(after)
        else:
            length = max(length, 1)
            left[-1] += names[place : place + length]
            after = list(names[place : place + length])
        for name in (*after, *names[place + length : place + length + 1]):
            whole.setdefault(name, why)  # the first reason is the one of the layer itself
        place += length
    return blocks, [run for run in left if run]


def _row_run(graph: Graph, names: Sequence[str]) -> tuple[int, str]:
    """How many layers from the first one keep their rows, and why the next one does not."""
    rank = image_rank(graph, names)
    if rank is None:
        return len(names), "no convolution or pooling follows that could be divided by rows"
    flow, inside = RowFlow(graph), set[str]()
    for length, name in enumerate(names):
        for tensor in graph.tensors.values():
            if name in tensor.consumers and tensor.producer not in inside and tensor.name not in flow.dims:
                flow.enter(tensor.name, rank)
        for op in graph.layers[name].ops:
            try:
                flow.read(graph.nodes[op])
            except NoRule as why:
                return length, f"{op_name(graph.nodes[op])}: {why}"
        inside.add(name)
    return len(names), "no convolution or pooling slides over its rows"


def _trimmed(graph: Graph, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The part that can be divided, from the first layer that slides over rows, or pads for it; and what follows it."""
    run = list(names)
    after: list[str] = []
    while run and not _slides(graph, run[0]):
        run = run[1:]
    while run:
        try:
            row_count(graph, run)
        except ShardError:
            after.insert(0, run.pop())
            continue
        if any(SPATIAL.keys() & {op_name(graph.nodes[op]) for op in graph.layers[name].ops} for name in run):
            return run, after
        break
    return [], []


def _slides(graph: Graph, name: str) -> bool:
    kinds = {op_name(graph.nodes[op]) for op in graph.layers[name].ops}
    return bool(kinds & (SPATIAL.keys() | {"pad", "constant_pad_nd"}))


# -- channels and heads


def _channel_blocks(graph: Graph, names: Sequence[str], axis: str, whole: dict[str, str]) -> list[Block]:
    """Blocks of channels or heads among a run of layers."""
    found = propagate(graph, names, attention=axis != "channels")
    layouts = {entry.node.name: entry.layout for entry in found.placed}
    divided = {name for name in names if any(layouts[op] != WHOLE for op in graph.layers[name].ops)}
    runs: list[list[str]] = [[]]
    for name in names:
        if name in divided or _light(graph, name):
            runs[-1].append(name)
        else:
            whole[name] = layer_reason(graph, name, found.reasons)
            runs.append([])
    if len(runs) > 1:
        return [block for run in runs if run for block in _channel_blocks(graph, run, axis, whole)]
    edges = [index for index, name in enumerate(names) if name in divided]
    block = list(names[edges[0] : edges[-1] + 1]) if edges else []
    why = _refused(found, axis)
    if why:
        block = []
    whole |= {name: why or layer_reason(graph, name, found.reasons) for name in names if name not in block}
    heads = any(entry.heads for entry in found.axes)
    return [Block(tuple(block), "heads" if heads and axis != "channels" else "channels")] if block else []


def _refused(found: Propagated, axis: str) -> str:
    """Why a run has no block on this axis; empty where it may have one."""
    if axis == "heads" and not any(entry.heads for entry in found.axes):
        return "no attention here whose heads could be divided"
    return ""


def _light(graph: Graph, name: str) -> bool:
    """Whether every worker may well do a layer whole: norms, residuals and moves between divided layers."""
    nodes = [graph.nodes[op] for op in graph.layers[name].ops]
    kinds = {op_name(node) for node in nodes}
    known = RULES.keys() | MOVES
    return not kinds & ATTENTION and all(is_elementwise(node) or op_name(node) in known for node in nodes)
