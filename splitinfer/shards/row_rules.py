"""Rules of spatial rows: which rows of its inputs an operator needs for some rows of its output.

Those of operators that keep rows are here; those with windows over rows in :mod:`splitinfer.shards.window_rules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from splitinfer.shards.layouts import Local, Placed, Span, Window
from splitinfer.shards.plain_rules import is_elementwise
from splitinfer.shards.rules import Call, NoRule
from splitinfer.shards.view_rules import groups, moved


def same(span: Span) -> Span:
    """An operator that keeps rows."""
    return span


@dataclass(frozen=True)
class Reading:
    """An input of which rows are read."""

    node: fx.Node
    dim: int
    need: Callable[[Span], Span] = same
    """Rows of the output -> rows of the input, which may lie outside of it where it is padded."""
    fill: float = 0.0


@dataclass(frozen=True)
class RowStep:
    """An operator on rows."""

    dim: int | tuple[int, ...]
    """Of the rows in the output, or in each of several."""
    readings: tuple[Reading, ...]
    named: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that change."""
    target: Any = None
    args: tuple[Any, ...] | None = None
    """All arguments, for another target."""
    divisors: Callable[[Span], Tensor | None] | None = None
    """Rows -> what to divide by, where the operator itself divides by too much or too little."""
    trim: Callable[[Span], Span] | None = None
    """Rows -> where they are in what the operator gives for the rows that it read; None: everything."""


class RowCall(Call):
    """One operator, and the dimension of rows in each of its inputs."""

    def __init__(self, node: fx.Node, state: Any, dims: Mapping[str, int | tuple[int, ...] | None]) -> None:
        super().__init__(node, state)
        self.dims = dims

    def rows(self, value: Any) -> int | None:
        """The dimension of an argument's rows; None where it has none."""
        dim = self.dims.get(value.name) if isinstance(value, fx.Node) else None
        return dim if isinstance(dim, int) else None

    def row_step(self) -> RowStep:
        """The step. Raises NoRule."""
        if self.name in ROW_RULES:
            return ROW_RULES[self.name](self)
        if is_elementwise(self.node):
            return _elementwise(self)
        raise NoRule("no rule for this operator on rows")


RowRule = Callable[[RowCall], RowStep]
ROW_RULES: dict[str, RowRule] = {}


def row_rule(*names: str) -> Callable[[RowRule], RowRule]:
    """Registers a rule."""

    def register(function: RowRule) -> RowRule:
        ROW_RULES.update(dict.fromkeys(names, function))
        return function

    return register


def row_source(call: RowCall) -> tuple[fx.Node, int]:
    """An operator's first input and the dimension of its rows. Raises NoRule where it has none."""
    value: fx.Node = call.one_of("self", "input")
    dim = call.rows(value)
    if dim is None:
        raise NoRule("it reads rows elsewhere than in its first input")
    return value, dim


def _kept(source: fx.Node, dim: int, to: int | tuple[int, ...] | None = None, **named: Any) -> RowStep:
    return RowStep(dim if to is None else to, (Reading(source, dim),), named)


def _aligned(call: RowCall, values: list[fx.Node], rank: int) -> tuple[int, tuple[Reading, ...]]:
    """The rows' dimension in the result of an operator that broadcasts, and what it reads."""
    found = {dim + rank - call.rank(value) for value in values if (dim := call.rows(value)) is not None}
    if len(found) != 1:
        raise NoRule("the rows of its inputs lie in different dimensions")
    dim = found.pop()
    height = max(call.shape(value)[at] for value in values if (at := dim - rank + call.rank(value)) >= 0)
    full = [value for value in values if (at := dim - rank + call.rank(value)) >= 0 and call.shape(value)[at] == height]
    if any(call.rows(value) is not None and value not in full for value in values):
        raise NoRule("it repeats one row over all")
    return dim, tuple(Reading(value, dim - rank + call.rank(value)) for value in full)


def _elementwise(call: RowCall) -> RowStep:
    values = [value for value in call.node.all_input_nodes if isinstance(value.meta.get("val"), Tensor)]
    dim, readings = _aligned(call, values, call.rank(call.node))
    return RowStep(dim, readings)


@row_rule("cat")
def _cat(call: RowCall) -> RowStep:
    values = list(call["tensors"])
    dim, readings = _aligned(call, values, call.rank(values[0]))
    if call["dim"] % call.rank(values[0]) == dim or len(readings) != len(values):
        raise NoRule("it joins rows")
    return RowStep(dim, readings)


@row_rule("getitem")
def _getitem(call: RowCall) -> RowStep:
    source, index = call.node.args
    assert isinstance(source, fx.Node) and isinstance(index, int)
    dims = call.dims.get(source.name)
    if not isinstance(dims, tuple) or dims[index] < 0:
        raise NoRule("it takes a part without rows")
    return RowStep(dims[index], (Reading(source, dims[index]),))


@row_rule("_native_batch_norm_legit_no_training", "batch_norm")
def _batch_norm(call: RowCall) -> RowStep:
    source, dim = row_source(call)
    if dim == 1:
        raise NoRule("it normalises over the rows")
    return _kept(source, dim, dim if call.name == "batch_norm" else (dim, -1, -1))


@row_rule("layer_norm", "rms_norm")
def _layer_norm(call: RowCall) -> RowStep:
    source, dim = row_source(call)
    if dim >= call.rank(source) - len(call["normalized_shape"]):
        raise NoRule("it normalises over the rows")
    return _kept(source, dim)


@row_rule("linear")
def _linear(call: RowCall) -> RowStep:
    source, dim = row_source(call)
    if dim == call.rank(source) - 1 or call.rows(call["weight"]) is not None:
        raise NoRule("it mixes the rows")
    return _kept(source, dim)


@row_rule("softmax", "_softmax", "log_softmax")
def _softmax(call: RowCall) -> RowStep:
    source, dim = row_source(call)
    if call.dim(source, call["dim"]) == dim:
        raise NoRule("it works along the rows")
    return _kept(source, dim)


@row_rule("mean", "sum", "amax", "amin", "argmax")
def _reduce(call: RowCall) -> RowStep:
    source, dim = row_source(call)
    dims = call.args.get("dim")
    dims = [] if dims is None else [dims] if isinstance(dims, int) else list(dims)
    gone = {axis % call.rank(source) for axis in dims} or set(range(call.rank(source)))
    if dim in gone:
        raise NoRule("it reduces over all rows")
    return _kept(source, dim, dim if call.args.get("keepdim") else dim - sum(axis < dim for axis in gone))


@row_rule("transpose", "permute", "unsqueeze", "squeeze", "swapaxes")
def _move(call: RowCall) -> RowStep:
    source, dim = row_source(call)
    return _kept(source, dim, moved(call, source, dim))


@row_rule("view", "_unsafe_view", "reshape")
def _view(call: RowCall) -> RowStep:
    source, dim = row_source(call)
    ins, outs = next(pair for pair in groups(call.shape(source), call.shape(call.node)) if dim in pair[0])
    height = call.shape(source)[dim]
    ahead, made = math.prod(call.shape(source)[ins.start : dim]), 1
    place = next((axis for axis in outs if (made := made * call.shape(call.node)[axis]) == ahead * height), None)
    if place is None or call.shape(call.node)[place] != height:
        raise NoRule("it flattens the rows")
    size = list(call["size"])
    if -1 in size and size[place] != -1:
        raise NoRule("it reshapes to a size that follows from the others")
    size[place] = -1
    return _kept(source, dim, place, size=size)


@row_rule("slice", "select")
def _slice(call: RowCall) -> RowStep:
    source, dim = row_source(call)
    at = call.dim(source, call["dim"])
    if at == dim:
        start, stop = call.args.get("start"), call.args.get("end")
        if call.name == "select" or (start or 0) != 0 or call.args["step"] != 1 or not (stop is None or stop >= call.shape(source)[dim]):
            raise NoRule("it takes some of the rows")
        return _kept(source, dim, end=9223372036854775807)
    return _kept(source, dim, dim - (call.name == "select" and at < dim))


@row_rule("split", "split_with_sizes", "chunk")
def _split(call: RowCall) -> RowStep:
    source, dim = row_source(call)
    if call.dim(source, call["dim"]) == dim:
        raise NoRule("it takes some of the rows")
    return _kept(source, dim, (dim,) * len(call.node.meta["val"]))


def placed_rows(call: RowCall, step: RowStep, spans: tuple[Span, ...], heights: Mapping[str, int], layout: Any) -> Placed:
    """The step on every worker; `spans` are the rows that each makes, `heights` the rows of each input."""
    if call.name == "getitem":
        return call.placed(layout, {step.readings[0].node: Local(step.readings[0].node)})
    marks = {}
    for reading in step.readings:
        windows, before, after = [], [], []
        for span in spans:
            start, stop = reading.need(span) if span[0] < span[1] else (0, 0)
            first, last = clamped((start, stop), heights[reading.node.name])
            windows.append((first, last))
            before.append(min(max(0, -start), stop - start))
            after.append(stop - start - before[-1] - (last - first))
        marks[reading.node] = Window(reading.node, reading.dim, tuple(windows), tuple(before), tuple(after), reading.fill)
    named = dict(step.named) if step.args is None else {"args": step.args}
    placed = call.placed(layout, marks, step.target, **named)
    divisors = tuple(step.divisors(span) for span in spans) if step.divisors else ()
    trims = tuple(step.trim(span) for span in spans) if step.trim else ()
    return Placed(placed.node, layout, placed.target, placed.args, placed.kwargs, divisors, trims)


def clamped(span: Span, height: int) -> Span:
    """The part of an interval that is inside the image."""
    start = min(max(span[0], 0), height)
    return start, max(start, min(span[1], height))
