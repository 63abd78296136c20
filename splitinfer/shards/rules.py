"""What a rule sees of one operator, and what it may ask of the propagation.

A rule looks at the layouts of an operator's inputs and says how the workers run it; see :mod:`splitinfer.shards.propagate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import fx

from splitinfer.shards.layouts import WHOLE, Cut, LayoutOf, Local, Partial, Placed, Split


class NoRule(Exception):
    """The operator takes whole inputs; the argument says why."""


class Refine(Exception):
    """The axis needs coarser units: each outer block becomes `outer`, each inner one `inner` times as many."""

    def __init__(self, axis: str, outer: int, inner: int) -> None:
        super().__init__(axis)
        self.axis, self.outer, self.inner = axis, outer, inner


class Merge(Exception):
    """Two axes must be divided alike."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)
        self.one, self.two = one, two


class Drop(Exception):
    """The layers that opened an axis stay whole."""

    def __init__(self, axis: str, reason: str) -> None:
        super().__init__(axis)
        self.axis, self.reason = axis, reason


class Ban(Exception):
    """A view chose the wrong one of several dimensions."""

    def __init__(self, choice: tuple[str, int]) -> None:
        super().__init__(choice)
        self.choice = choice


class State(Protocol):
    """What the propagation knows."""

    layouts: dict[str, LayoutOf]
    banned: set[tuple[str, int]]
    gathered: dict[str, str]
    attention: bool

    def shape(self, node: fx.Node) -> tuple[int, ...]: ...
    def seed(self, node: fx.Node, dim: int, size: int, inner: int = 1) -> Split: ...
    def constant(self, node: fx.Node) -> bool: ...


Rule = Callable[["Call"], Placed]
RULES: dict[str, Rule] = {}
"""Name of an ATen operator, without its overload -> rule."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def op_name(node: fx.Node) -> str:
    """``conv2d`` for ``aten.conv2d.default``; ``getitem`` for the function."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2]
    return str(getattr(target, "__name__", target))


def arguments(node: fx.Node) -> dict[str, Any]:
    """The operator's arguments by name, defaults included."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return dict(node.kwargs)
    given = dict(zip((argument.name for argument in target._schema.arguments), node.args, strict=False)) | node.kwargs
    return {argument.name: given.get(argument.name, argument.default_value) for argument in target._schema.arguments}


class Call:
    """One operator, its arguments by name, and the layouts of its inputs."""

    def __init__(self, node: fx.Node, state: State) -> None:
        self.node, self.state, self.name = node, state, op_name(node)
        self.args = arguments(node)

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def one_of(self, *names: str) -> Any:
        """The first of these arguments that the operator has."""
        return next(self.args[name] for name in names if name in self.args)

    def layout(self, value: Any) -> LayoutOf:
        """Of an argument."""
        return self.state.layouts.get(value.name, WHOLE) if isinstance(value, fx.Node) else WHOLE

    def split(self, value: Any) -> Split | None:
        """Of an argument, where it is divided."""
        layout = self.layout(value)
        return layout if isinstance(layout, Split) else None

    def shape(self, value: fx.Node) -> tuple[int, ...]:
        """Sizes; each dynamic dimension is a prime that no static one shares."""
        return self.state.shape(value)

    def rank(self, value: fx.Node) -> int:
        """Number of dimensions."""
        return len(self.shape(value))

    def dim(self, value: fx.Node, dim: int) -> int:
        """A dimension, counted from the front."""
        return dim % max(self.rank(value), 1)

    def placed(self, layout: LayoutOf, marks: Mapping[fx.Node, Any], target: Any = None, **named: Any) -> Placed:
        """The operator with inputs replaced by `marks` and some arguments by name."""
        node = self.node
        if target is None and isinstance(node.target, torch._ops.OpOverload):
            names = [argument.name for argument in node.target._schema.arguments]
            args = tuple(named.pop(name, value) for name, value in zip(names, node.args, strict=False))
            kwargs = {**node.kwargs, **named}
        else:
            args, kwargs = tuple(named.pop("args", node.args)), {**({} if target else node.kwargs), **named}
        return Placed(node, layout, target or node.target, replaced(args, marks), replaced(kwargs, marks))

    def local(self, layout: LayoutOf, *values: fx.Node, **named: Any) -> Placed:
        """The operator on the workers' own parts of these inputs."""
        return self.placed(layout, {value: Local(value) for value in values}, **named)

    def avoid(self, split: Split, reason: str) -> Exception:
        """The exception for a dimension that must not be divided: another choice of a view, or none."""
        if split.choice is not None and split.choice not in self.state.banned:
            return Ban(split.choice)
        return NoRule(reason)

    def forbid(self, split: Split, reason: str) -> Exception:
        """The same, where the operator is worth more than the axis: the layers that opened it stay whole."""
        other = self.avoid(split, reason)
        return Drop(split.axis, reason) if isinstance(other, NoRule) else other

    def meet(self, *splits: Split) -> Split:
        """The splits once they are alike, each of a dimension of its own; sizes may differ by a factor.

        Raises Refine or Merge to make them so, NoRule where they cannot be.
        """
        first = splits[0]
        for other in splits[1:]:
            self._meet(first, other)
        return first

    def _meet(self, one: Split, two: Split) -> None:
        if (one.axis, one.outer, one.units) == (two.axis, two.outer, two.units):
            return
        outer = math.lcm(one.outer, two.outer)
        if one.size == two.size:
            units = one.size // (outer * math.lcm(one.inner, two.inner))
        else:
            units = math.gcd(one.units * one.outer // outer, two.units * two.outer // outer)
        if one.axis == two.axis or units < 1:
            raise NoRule("its inputs are divided in different ways")
        for split in (one, two):
            grown = split.outer * split.units // (outer * units) if units else 0
            if not grown or outer * units * grown * split.inner != split.size:
                raise NoRule("its inputs are divided in different ways")
            if (split.outer, split.units) != (outer, units):
                raise Refine(split.axis, outer // split.outer, grown)
        raise Merge(one.axis, two.axis)


def replaced(value: Any, marks: Mapping[fx.Node, Any]) -> Any:
    """Arguments with nodes replaced."""
    if isinstance(value, fx.Node):
        return marks.get(value, value)
    if isinstance(value, list | tuple):
        return type(value)(replaced(item, marks) for item in value)
    if isinstance(value, dict):
        return {key: replaced(item, marks) for key, item in value.items()}
    return value


def aligned(call: Call, values: list[fx.Node], rank: int) -> tuple[Split, dict[fx.Node, Any]]:
    """Inputs of an operator that broadcasts: their common split, in dimensions of the result, and the marks.

    A whole input of the full size is cut; one that is broadcast along the divided dimension stays whole.
    """
    found = [(value, split.at(split.dim + rank - call.rank(value))) for value in values if (split := call.split(value))]
    if len({split.dim for _, split in found}) != 1:
        raise NoRule("its inputs are divided along different dimensions")
    common = call.meet(*(split for _, split in found))
    marks: dict[fx.Node, Any] = {value: Local(value) for value, _ in found}
    for value in values:
        if value in marks:
            continue
        dim = common.dim - rank + call.rank(value)
        if dim >= 0 and call.shape(value)[dim] == common.size:
            if not call.state.constant(value) and all(other.name in call.state.gathered for other, _ in found):
                raise NoRule("all its inputs are there whole")
            marks[value] = Cut(value, common.at(dim))
    return common, marks


def partial_axis(layouts: list[LayoutOf]) -> str | None:
    """The axis over which all of these are to be summed."""
    axes = {layout.axis if isinstance(layout, Partial) else None for layout in layouts}
    return next(iter(axes)) if len(axes) == 1 else None
