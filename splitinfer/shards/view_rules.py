"""Rules of operators that only move elements: views, transposes, slices, concatenations."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from splitinfer.shards.layouts import WHOLE, Extent, LayoutOf, Local, Placed, Split
from splitinfer.shards.rules import Call, NoRule, Refine, aligned, rule

_END = 9223372036854775807
"""How a slice says "to the end"."""


def groups(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[range, range]]:
    """The smallest runs of dimensions with equal products, from the front. Dimensions of size 1 join a neighbour."""
    found = []
    i = j = 0
    while i < len(before) or j < len(after):
        start = i, j
        left = right = 1
        if i < len(before):
            left, i = before[i], i + 1
        if j < len(after):
            right, j = after[j], j + 1
        while left != right:
            if left < right and i < len(before):
                left, i = left * before[i], i + 1
            elif j < len(after):
                right, j = right * after[j], j + 1
            else:
                raise NoRule("it reshapes in a way that is not understood")
        while i < len(before) and before[i] == 1 and (j >= len(after) or after[j] != 1):
            i += 1
        while j < len(after) and after[j] == 1 and (i >= len(before) or before[i] != 1):
            j += 1
        found.append((range(start[0], i), range(start[1], j)))
    return found


def reshaped(call: Call, split: Split, before: tuple[int, ...], after: tuple[int, ...]) -> Split:
    """Where the units are after a reshape. Raises Refine where they must be coarser."""
    ins, outs = next(pair for pair in groups(before, after) if split.dim in pair[0])
    outer = split.outer * math.prod(before[ins.start : split.dim])
    inner = split.inner * math.prod(before[split.dim + 1 : ins.stop])
    telling = [dim for dim in outs if after[dim] != 1]
    several = len(telling) > 1
    feasible = []
    for dim in telling:
        pre, post = math.prod(after[outs.start : dim]), math.prod(after[dim + 1 : outs.stop])
        more_outer, more_inner = math.lcm(outer, pre) // outer, math.lcm(inner, post) // inner
        units, rest = divmod(split.units, more_outer * more_inner)
        if rest or units < 2 or (call.node.name, dim) in call.state.banned:
            continue
        # Heads stand before the last of the new dimensions, (heads, head size), so that one comes first; the last comes last.
        rank = 0 if dim == telling[max(len(telling) - 2, 0)] else 1 if dim != telling[-1] else 2
        feasible.append((more_outer * more_inner > 1, rank, dim, more_outer, more_inner, pre, post))
    if not feasible:
        raise NoRule("it reshapes across the parts of the workers")
    coarser, _, dim, more_outer, more_inner, pre, post = min(feasible)
    if coarser:
        raise Refine(split.axis, more_outer, more_inner)
    return Split(split.axis, dim, outer // pre, split.units, inner // post, (call.node.name, dim) if several else split.choice)


@rule("view", "_unsafe_view", "reshape", "view_copy")
def _view(call: Call) -> Placed:
    source: fx.Node = call["self"]
    split = call.split(source)
    assert split is not None  # whole inputs never reach a rule without seeds
    after = call.shape(call.node)
    made = reshaped(call, split, call.shape(source), after)
    size = list(call["size"])
    if size[made.dim] != -1:
        if isinstance(call.node.meta["val"].shape[made.dim], int):
            size[made.dim] = Extent(made)
        elif -1 not in size:
            size[made.dim] = -1
        else:
            raise NoRule("it reshapes to two sizes that vary")
    return call.local(made, source, size=size)


@rule("flatten", "unflatten")
def _flatten(call: Call) -> Placed:
    source: fx.Node = call["self"]
    split = call.split(source)
    assert split is not None
    made = reshaped(call, split, call.shape(source), call.shape(call.node))
    if call.name == "flatten":
        return call.local(made, source)
    sizes = list(call["sizes"])
    place = made.dim - call.dim(source, call["dim"])
    if 0 <= place < len(sizes) and sizes[place] != -1:
        sizes[place] = Extent(made)
    return call.local(made, source, sizes=sizes)


@rule("transpose", "swapaxes", "t", "permute", "unsqueeze", "squeeze")
def _move(call: Call) -> Placed:
    source: fx.Node = call["self"]
    split = call.split(source)
    assert split is not None
    return call.local(split.at(moved(call, source, split.dim)), source)


def moved(call: Call, source: fx.Node, dim: int) -> int:
    """Where a dimension goes."""
    rank = call.rank(source)
    match call.name:
        case "permute":
            places: list[int] = [axis % rank for axis in call["dims"]]
            return places.index(dim)
        case "unsqueeze":
            return dim + int(dim >= call["dim"] % (rank + 1))
        case "squeeze":
            dims = call.args.get("dim", [axis for axis, size in enumerate(call.shape(source)) if size == 1])
            gone: set[int] = {axis % rank for axis in (dims if isinstance(dims, list | tuple) else [dims])}
            return dim - sum(axis < dim for axis in gone if call.shape(source)[axis] == 1)
    one, two = (0, 1) if call.name == "t" else (call.one_of("dim0", "axis0"), call.one_of("dim1", "axis1"))
    swap: dict[int, int] = {one % rank: two % rank, two % rank: one % rank}
    return swap.get(dim, dim)


@rule("expand")
def _expand(call: Call) -> Placed:
    source: fx.Node = call["self"]
    split = call.split(source)
    assert split is not None
    made = split.at(split.dim + call.rank(call.node) - call.rank(source))
    size = list(call["size"])
    size[made.dim] = -1
    return call.local(made, source, size=size)


@rule("repeat_interleave")
def _repeat_interleave(call: Call) -> Placed:
    source: fx.Node = call["self"]
    split = call.split(source)
    assert split is not None
    dim, times = call["dim"], call["repeats"]
    if dim is None or not isinstance(times, int):
        raise NoRule("it repeats by numbers that vary")
    if call.dim(source, dim) != split.dim:
        return call.local(split, source)
    return call.local(Split(split.axis, split.dim, split.outer, split.units, split.inner * times, split.choice), source)


@rule("slice", "narrow")
def _slice(call: Call) -> Placed:
    source: fx.Node = call["self"]
    split = call.split(source)
    assert split is not None
    if call.name == "narrow" or call.dim(source, call["dim"]) != split.dim:
        if call.name == "narrow" and call.dim(source, call["dim"]) == split.dim:
            raise call.avoid(split, "it takes a part of the divided dimension")
        return call.local(split, source)
    start, stop = call["start"] or 0, call["end"]
    if not isinstance(start, int) or not isinstance(stop, int | None) or call["step"] != 1:
        raise call.avoid(split, "it takes a part of the divided dimension")
    start, stop = start % split.size if start < 0 else start, split.size if stop is None else min(stop, split.size)
    stop = stop % split.size if stop < 0 else stop
    if (start, stop) == (0, split.size):
        return call.local(split, source, end=_END)
    block = _blocks(call, split, math.gcd(start, stop))
    one = Split(split.axis, split.dim, 1, split.units, split.inner)  # one outer block on the worker
    made = Split(split.axis, split.dim, (stop - start) // block, split.units, split.inner, split.choice)
    first, last = (Split(one.axis, one.dim, edge // block, one.units, one.inner) for edge in (start, stop))
    return call.local(made, source, start=Extent(first), end=Extent(last))


def _blocks(call: Call, split: Split, step: int) -> int:
    """Size of an outer block, which divides `step`. Raises Refine to make it so."""
    block = split.units * split.inner
    if step % block == 0:
        return block
    wanted = math.gcd(step, split.size)
    more, rest = divmod(split.size // wanted, split.outer) if split.size % wanted == 0 else (0, 1)
    if rest or more < 2 or split.units % more or split.units // more < 2:
        raise call.avoid(split, "it takes a part of the divided dimension that is not a whole number of units")
    raise Refine(split.axis, more, 1)


@rule("select", "unbind")
def _select(call: Call) -> Placed:
    source: fx.Node = call["self"]
    split = call.split(source)
    assert split is not None
    dim = call.dim(source, call["dim"])
    if dim == split.dim:
        raise call.avoid(split, "it selects one place of the divided dimension")
    made = split.at(split.dim - (dim < split.dim))
    return call.local((made,) * call.shape(source)[dim] if call.name == "unbind" else made, source)


@rule("split", "split_with_sizes", "chunk")
def _split(call: Call) -> Placed:
    source: fx.Node = call["self"]
    split = call.split(source)
    assert split is not None
    pieces = [part.shape for part in call.node.meta["val"]]
    if call.dim(source, call["dim"]) != split.dim:
        return call.local((split,) * len(pieces), source)
    sizes = [int(shape[split.dim]) for shape in pieces]
    block = _blocks(call, split, math.gcd(*sizes))
    made: LayoutOf = tuple(Split(split.axis, split.dim, size // block, split.units, split.inner, split.choice) for size in sizes)
    if call.name == "chunk":
        return call.local(made, source)
    if call.name == "split":
        return call.local(made, source, split_size=Extent(made[0]))  # type: ignore[arg-type,index]
    return call.local(made, source, split_sizes=[Extent(piece) for piece in made])  # type: ignore[arg-type,union-attr]


@rule("cat", "stack")
def _cat(call: Call) -> Placed:
    values: list[fx.Node] = list(call["tensors"])
    rank = call.rank(values[0])
    dim = call["dim"] % (rank + (call.name == "stack"))
    if call.name == "cat" and all((split := call.split(value)) and split.dim == dim for value in values):
        splits = [split for value in values if (split := call.split(value))]
        if len({(split.axis, split.units, split.inner) for split in splits}) != 1:
            raise NoRule("it joins tensors that are divided in different ways")
        first = splits[0]
        made = Split(first.axis, dim, sum(split.outer for split in splits), first.units, first.inner)
        return call.local(made, *values)
    common, marks = aligned(call, values, rank)
    if call.name == "cat" and common.dim == dim:
        raise NoRule("it joins divided tensors with whole ones")
    made = common.at(common.dim + (call.name == "stack" and common.dim >= dim))
    return call.placed(made, marks)


@rule("getitem")
def _getitem(call: Call) -> Placed:
    source, index = call.node.args
    assert isinstance(source, fx.Node) and isinstance(index, int)
    layouts: Any = call.layout(source)
    if not isinstance(layouts, tuple):
        return call.placed(WHOLE, {})
    return call.placed(layouts[index], {source: Local(source)})
