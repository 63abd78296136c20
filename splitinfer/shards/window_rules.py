"""Rules of windows that slide over rows: convolution, pooling, padding, upsampling.

Rows [o0, o1) of a convolution or pooling need the input rows [o0 s - p, (o1 - 1) s - p + d (k - 1) + 1) (kernel k, stride s,
padding p, dilation d), clamped to the image; what lies outside is padding, and only there is padding added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from splitinfer.shards.layouts import Span
from splitinfer.shards.row_rules import Reading, RowCall, RowStep, row_rule, row_source
from splitinfer.shards.rules import NoRule

aten = torch.ops.aten
_CONV = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}


@row_rule("pad", "constant_pad_nd")
def _pad(call: RowCall) -> RowStep:
    source, dim = row_source(call)
    if call.args.get("mode", "constant") != "constant":
        raise NoRule(f"padding by {call['mode']} needs rows of the other end")
    pad, place = list(call["pad"]), 2 * (call.rank(source) - 1 - dim)
    pad += [0] * (place + 2 - len(pad))
    before, after = pad[place : place + 2]
    if min(before, after) < 0:
        raise NoRule("it cuts rows off")
    pad[place : place + 2] = 0, 0

    def need(span: Span) -> Span:
        return span[0] - before, span[1] - before

    return RowStep(dim, (Reading(source, dim, need, float(call["value"] or 0.0)),), {"pad": pad})


@row_rule("upsample_nearest1d", "upsample_nearest2d")
def _upsample(call: RowCall) -> RowStep:
    source, dim = row_source(call)
    height, made = call.shape(source)[dim], call.shape(call.node)[dim]
    factors = call.args.get("scale_factors")
    if made % height or not factors or factors[dim - 2] != made // height:
        raise NoRule("it does not repeat each row equally often")
    times = made // height

    def need(span: Span) -> Span:
        return span[0] // times, -(-span[1] // times)

    return RowStep(dim, (Reading(source, dim, need),), trim=lambda span: (span[0] - need(span)[0] * times, span[1] - need(span)[0] * times))


def at(values: Any, index: int, default: int) -> int:
    """One entry of an argument that is a number, or a list of one or of all."""
    if values is None or values == []:
        return default
    return int(values if isinstance(values, int) else values[index if len(values) > 1 else 0])


@dataclass(frozen=True)
class Kernel:
    """A sliding window over the rows."""

    size: int
    stride: int
    before: int
    dilation: int = 1

    def need(self, span: Span) -> Span:
        """Rows that the window covers."""
        start = span[0] * self.stride - self.before
        return start, start + (span[1] - span[0] - 1) * self.stride + self.dilation * (self.size - 1) + 1


@row_rule("conv1d", "conv2d", "conv3d", "convolution")
def _conv(call: RowCall) -> RowStep:
    source, dim = row_source(call)
    weight, spatial = call["weight"], call.rank(call["weight"]) - 2
    if call.args.get("transposed") or dim < 2 or call.rank(source) != spatial + 2 or call.rows(weight) is not None:
        raise NoRule("transposed convolutions, and those over other dimensions than rows, have no rule")
    padding, dilation = call["padding"], [at(call["dilation"], axis, 1) for axis in range(spatial)]
    if isinstance(padding, str):
        total = [step * (size - 1) for step, size in zip(dilation, call.shape(weight)[2:], strict=True)]
        if padding == "same" and any(pad % 2 for pad in total):
            raise NoRule("it pads its two sides unequally")
        padding = [pad // 2 for pad in total] if padding == "same" else [0] * spatial
    padding = [at(padding, axis, 0) for axis in range(spatial)]
    stride = [at(call["stride"], axis, 1) for axis in range(spatial)]
    place = dim - 2
    kernel = Kernel(call.shape(weight)[dim], stride[place], padding[place], dilation[place])
    padding[place] = 0
    args = (source, weight, call["bias"], stride, padding, dilation, call["groups"])
    return RowStep(dim, (Reading(source, dim, kernel.need),), {}, _CONV[spatial], args)


@row_rule("max_pool1d", "max_pool2d")
def _max_pool(call: RowCall) -> RowStep:
    source, dim = row_source(call)
    if not source.meta["val"].dtype.is_floating_point or dim < 2:
        raise NoRule("only numbers with a point have a padding that never wins")
    return _pool(call, source, dim, -math.inf, at(call["dilation"], dim - 2, 1))


@row_rule("avg_pool1d", "avg_pool2d")
def _avg_pool(call: RowCall) -> RowStep:
    source, dim = row_source(call)
    if dim < 2:
        raise NoRule("it averages over other dimensions than rows")
    step = _pool(call, source, dim, 0.0, 1)
    if call.args.get("divisor_override") is not None or (call["count_include_pad"] and not call["ceil_mode"]):
        return step
    if call.name == "avg_pool1d":
        raise NoRule("it counts its padding, which has no rule in one dimension")
    sides = [
        _Side(at(call["kernel_size"], axis, 1), at(call["stride"], axis, at(call["kernel_size"], axis, 1)), at(call["padding"], axis, 0),
              call.shape(source)[axis + 2], bool(call["count_include_pad"]))
        for axis in (0, 1)
    ]  # fmt: skip
    spans = [(0, call.shape(call.node)[axis + 2]) for axis in (0, 1)]

    def divisors(span: Span) -> Tensor:
        counts = [side.counts(span if axis == dim - 2 else spans[axis]) for axis, side in enumerate(sides)]
        return torch.tensor(counts[0]).unsqueeze(1) * torch.tensor(counts[1])

    return RowStep(step.dim, step.readings, {**step.named, "divisor_override": 1}, divisors=divisors)


@dataclass(frozen=True)
class _Side:
    """How many places an average divides by, along one dimension."""

    size: int
    stride: int
    before: int
    height: int
    padded: bool

    def counts(self, span: Span) -> list[float]:
        found = []
        for index in range(*span):
            start = index * self.stride - self.before
            stop = min(start + self.size, self.height + self.before)
            found.append(float(stop - start if self.padded else min(stop, self.height) - max(start, 0)))
        return found


def _pool(call: RowCall, source: fx.Node, dim: int, fill: float, dilation: int) -> RowStep:
    spatial, place = call.rank(source) - 2, dim - 2
    size = at(call["kernel_size"], place, 1)
    kernel = Kernel(size, at(call["stride"], place, size), at(call["padding"], place, 0), dilation)
    padding = [at(call["padding"], axis, 0) for axis in range(spatial)]
    padding[place] = 0
    return RowStep(dim, (Reading(source, dim, kernel.need, fill),), {"padding": padding})
