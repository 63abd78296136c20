"""Rules of operators without large weights: elementwise ones, norms, reductions, pooling and other spatial operators."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from splitinfer.shards.layouts import WHOLE, Cut, Extent, LayoutOf, Local, Partial, Placed, Split
from splitinfer.shards.rules import Call, NoRule, Refine, aligned, partial_axis, rule

ELEMENTWISE = {
    "_to_copy", "alias", "contiguous", "detach", "dropout", "hardswish", "lift_fresh_copy", "to", "__and__", "__or__", "softplus", "elu",
    "selu", "celu", "logsigmoid", "log_sigmoid", "relu6", "hardsigmoid", "mish", "type_as",
}  # fmt: skip
"""Elementwise although torch does not tag them so."""
MOVES = {
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "transpose", "t", "permute", "unsqueeze", "squeeze", "expand", "slice",
    "select", "clone", "alias", "contiguous", "detach", "dropout",
}  # fmt: skip
"""Operators that commute with a sum over workers."""


def is_elementwise(node: fx.Node) -> bool:
    """Whether each element of the result depends on one of each input."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return torch.Tag.pointwise in target.tags or target._schema.name.partition("::")[2] in ELEMENTWISE


def moved_sum(call: Call) -> Placed | None:
    """Moving summands, or adding those of one axis: the sum over the workers is still to come."""
    inputs = call.node.all_input_nodes
    layouts: list[LayoutOf] = [call.layout(value) for value in inputs if isinstance(value.meta.get("val"), torch.Tensor)]
    axis = partial_axis(layouts)
    if axis is None or not (call.name in MOVES or (call.name == "add" and len(inputs) == 2)):
        return None
    return call.local(Partial(axis), *(value for value in inputs if call.layout(value) != WHOLE))


def elementwise(call: Call) -> Placed:
    """On the parts, where the inputs are divided alike."""
    values = [value for value in call.node.all_input_nodes if isinstance(value.meta.get("val"), torch.Tensor)]
    common, marks = aligned(call, values, call.rank(call.node))
    return call.placed(common, marks)


@rule("_native_batch_norm_legit_no_training", "batch_norm")
def _batch_norm(call: Call) -> Placed:
    source = call["input"]
    split = call.split(source)
    assert split is not None
    names = ("weight", "bias", "running_mean", "running_var")
    given = [call[name] for name in names if isinstance(call[name], fx.Node)]
    marks: dict[fx.Node, Any] = {source: Local(source)}
    if split.dim == 1:
        marks |= {value: Cut(value, split.at(0)) for value in given}
    return call.placed(split if call.name == "batch_norm" else (split, WHOLE, WHOLE), marks)


@rule("group_norm", "native_group_norm")
def _group_norm(call: Call) -> Placed:
    if call.name == "native_group_norm":
        raise NoRule("its statistics are results of their own")
    source = call["input"]
    split = call.split(source)
    assert split is not None
    if split.dim != 1:
        raise call.avoid(split, "it normalises over the divided dimension")
    per_group = call.shape(source)[1] // call["num_groups"]
    if split.inner % per_group:
        raise Refine(split.axis, 1, math.lcm(split.inner, per_group) // split.inner)
    groups = Split(split.axis, 1, split.outer, split.units, split.inner // per_group)
    marks: dict[fx.Node, Any] = {source: Local(source)}
    marks |= {call[name]: Cut(call[name], split.at(0)) for name in ("weight", "bias") if isinstance(call[name], fx.Node)}
    return call.placed(split, marks, num_groups=Extent(groups))


@rule("layer_norm", "rms_norm")
def _layer_norm(call: Call) -> Placed:
    source = call["input"]
    split = call.split(source)
    assert split is not None
    if split.dim >= call.rank(source) - len(call["normalized_shape"]):
        raise NoRule("it normalises over the divided dimension")
    return call.local(split, source)


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "argsort", "sort", "flip")
def _along(call: Call) -> Placed:
    source = call["self"]
    split = call.split(source)
    assert split is not None
    dims = call.args.get("dims", [call.args.get("dim")])
    if any(dim is None or call.dim(source, dim) == split.dim for dim in dims):
        raise call.avoid(split, "it works along the divided dimension")
    return call.local((split, split) if call.name == "sort" else split, source)


@rule("mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "all", "any", "argmax", "argmin", "logsumexp")
def _reduce(call: Call) -> Placed:
    source = call["self"]
    split = call.split(source)
    assert split is not None
    dims = call.args.get("dim")
    dims = [] if dims is None else [dims] if isinstance(dims, int) else list(dims)
    gone = {dim % call.rank(source) for dim in dims} or set(range(call.rank(source)))
    if split.dim in gone:
        raise call.avoid(split, "it reduces over the divided dimension")
    made = split if call.args.get("keepdim") else split.at(split.dim - sum(dim < split.dim for dim in gone))
    return call.local(made, source)


_SPATIAL = {
    "max_pool1d": 1, "max_pool2d": 2, "max_pool3d": 3, "avg_pool1d": 1, "avg_pool2d": 2, "avg_pool3d": 3, "adaptive_avg_pool1d": 1,
    "adaptive_avg_pool2d": 2, "_adaptive_avg_pool2d": 2, "adaptive_avg_pool3d": 3, "upsample_nearest1d": 1, "upsample_nearest2d": 2,
    "upsample_bilinear2d": 2, "upsample_bicubic2d": 2, "max_pool2d_with_indices": 2, "adaptive_max_pool2d": 2, "upsample_linear1d": 1,
}  # fmt: skip
"""Operators on the last so many dimensions."""


@rule(*_SPATIAL)
def _spatial(call: Call) -> Placed:
    source = call.one_of("self", "input")
    split = call.split(source)
    assert split is not None
    if split.dim >= call.rank(source) - _SPATIAL[call.name]:
        raise call.avoid(split, "it works across the divided dimension")
    return call.local((split, split) if isinstance(call.node.meta["val"], tuple) else split, source)


@rule("pad", "constant_pad_nd")
def _pad(call: Call) -> Placed:
    source = call["self"]
    split = call.split(source)
    assert split is not None
    place = 2 * (call.rank(source) - 1 - split.dim)
    if any(call["pad"][place : place + 2]):
        raise call.avoid(split, "it pads the divided dimension")
    return call.local(split, source)
