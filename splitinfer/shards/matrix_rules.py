"""Rules of operators with weights: a whole input divides the output channels, a divided input leaves partial sums."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from splitinfer.shards.layouts import Cut, Extent, First, Local, Partial, Placed, Split
from splitinfer.shards.rules import Call, NoRule, Refine, aligned, rule

_LINEAR = torch.ops.aten.linear.default


def _marks(**pairs: tuple[Any, Any]) -> dict[fx.Node, Any]:
    """Marks of the arguments that are there."""
    return {node: mark for node, mark in pairs.values() if isinstance(node, fx.Node)}


def _fixed(call: Call, weight: Any) -> None:
    if not isinstance(weight, fx.Node) or not call.state.constant(weight):
        raise NoRule("its weight is computed from the inputs")


def _affine(call: Call, source: fx.Node, weight: fx.Node, bias: Any, out_dim: int) -> Placed:
    """``source @ weight + bias``; `out_dim` is the weight's dimension of output features."""
    _fixed(call, weight)
    split, last = call.split(source), call.rank(source) - 1
    turned = out_dim == 1
    if split is not None and split.dim != last:
        return call.local(split, source)
    if split is not None:
        marks: dict[fx.Node, Any] = {source: Local(source), weight: Cut(weight, split.at(1 - out_dim), turned)}
        once = First(bias, split.axis) if bias is not None else None
        return call.placed(Partial(split.axis), marks, _LINEAR, args=(source, weight, once))
    made = call.state.seed(call.node, last, call.shape(weight)[out_dim])
    marks = {weight: Cut(weight, made.at(out_dim), turned)} | _marks(bias=(bias, Cut(bias, made.at(0))))
    return call.placed(made, marks, _LINEAR, args=(source, weight, bias))


@rule("linear")
def _linear(call: Call) -> Placed:
    return _affine(call, call["input"], call["weight"], call["bias"], 0)


@rule("addmm")
def _addmm(call: Call) -> Placed:
    if call["beta"] != 1 or call["alpha"] != 1 or call.rank(call["self"]) != 1:
        raise NoRule("it scales its summands")
    return _affine(call, call["mat1"], call["mat2"], call["self"], 1)


@rule("mm", "matmul", "bmm")
def _matmul(call: Call) -> Placed:
    one, two = call["self"], call.one_of("mat2", "other")
    if call.state.constant(two) and call.rank(two) == 2:
        return _affine(call, one, two, None, 1)
    left, right = call.split(one), call.split(two)
    if left is None and right is None:
        raise NoRule("it multiplies tensors that are both whole")
    if min(call.rank(one), call.rank(two)) < 2:
        raise NoRule("it multiplies with a vector")
    for split, value, contracted in ((left, one, call.rank(one) - 1), (right, two, call.rank(two) - 2)):
        if split is not None and split.dim == contracted:
            raise call.forbid(split, f"'{value.name}' would be summed over its parts")
    rank = call.rank(call.node)
    if left is not None and left.dim == call.rank(one) - 2 and right is None:
        return call.local(left.at(rank - 2), one)
    if right is not None and right.dim == call.rank(two) - 1 and left is None:
        return call.local(right.at(rank - 1), two)
    common, marks = aligned(call, [one, two], rank)
    if common.dim >= rank - 2:
        raise call.avoid(common, "both of its inputs are divided inside the matrices")
    if not call.state.attention:
        raise NoRule("attention is divided by heads, not by channels")
    return call.placed(common, marks)


@rule("conv1d", "conv2d", "conv3d", "convolution")
def _conv(call: Call) -> Placed:
    source, weight, bias, groups = call["input"], call["weight"], call["bias"], call["groups"]
    _fixed(call, weight)
    if call.args.get("transposed") or call.rank(source) != call.rank(weight):
        raise NoRule("transposed convolutions and single images have no rule")
    split = call.split(source)
    if split is not None and split.dim != 1:
        raise call.avoid(split, "it convolves over the divided dimension")
    outs, ins = call.shape(weight)[0] // groups, call.shape(weight)[1]
    if split is not None and groups == 1:
        marks = {source: Local(source), weight: Cut(weight, split.at(1))} | _marks(bias=(bias, First(bias, split.axis)))
        return call.placed(Partial(split.axis), marks)
    if split is None:
        made = call.state.seed(call.node, 1, call.shape(weight)[0], outs if groups > 1 else 1)
        if groups == 1:
            return call.placed(made, {weight: Cut(weight, made.at(0))} | _marks(bias=(bias, Cut(bias, made.at(0)))))
        per_unit = made.inner // outs
        mark: Any = Cut(source, Split(made.axis, 1, made.outer, made.units, per_unit * ins))
    else:
        if split.inner % ins:
            raise Refine(split.axis, 1, math.lcm(split.inner, ins) // split.inner)
        per_unit = split.inner // ins
        made, mark = Split(split.axis, 1, split.outer, split.units, per_unit * outs), Local(source)
    marks = {source: mark, weight: Cut(weight, made.at(0))} | _marks(bias=(bias, Cut(bias, made.at(0))))
    return call.placed(made, marks, groups=Extent(Split(made.axis, 1, made.outer, made.units, per_unit)))


@rule("scaled_dot_product_attention")
def _attention(call: Call) -> Placed:
    query, key, value, mask = call["query"], call["key"], call["value"], call["attn_mask"]
    if not call.state.attention:
        raise NoRule("attention is divided by heads, not by channels")
    split = call.split(query)
    if split is None:
        raise NoRule("its queries are whole")
    if split.dim >= call.rank(query) - 2:
        raise call.avoid(split, "only its heads may be divided")
    marks: dict[fx.Node, Any] = {query: Local(query)}
    for other in (key, value):
        found = call.split(other)
        if found is not None and found.dim != split.dim:
            raise call.forbid(found, "of keys and values only the heads may be divided")
        heads = call.shape(other)[split.dim]
        if found is not None:
            call.meet(split, found)
            marks[other] = Local(other)
        elif heads == split.size:
            marks[other] = Cut(other, split)
        elif heads != 1:
            raise NoRule("its queries are divided, its keys or values are whole and grouped")
    if isinstance(mask, fx.Node):
        marks |= _mask(call, mask, split)
    return call.placed(split, marks)


def _mask(call: Call, mask: fx.Node, split: Split) -> dict[fx.Node, Any]:
    dim = split.dim + call.rank(mask) - call.rank(call.node)
    found = call.split(mask)
    if found is not None:
        if found.dim != dim:
            raise call.forbid(found, "of a mask only the heads may be divided")
        call.meet(split, found)
        return {mask: Local(mask)}
    return {mask: Cut(mask, split.at(dim))} if dim >= 0 and call.shape(mask)[dim] == split.size else {}
