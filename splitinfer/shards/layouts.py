"""How a tensor of a divided block lies on the workers, and the arguments that depend on the worker.

An *axis* is a set of interchangeable *units*: the columns of an MLP, the key-value groups of an attention. Every tensor
that is divided along an axis names it, so that one vector of shares divides them all consistently.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

Span = tuple[int, int]
"""Half-open interval."""


@dataclass(frozen=True)
class Whole:
    """Every worker that needs the tensor holds all of it."""


WHOLE = Whole()


@dataclass(frozen=True)
class Split:
    """One dimension, seen as (outer, units, inner); a worker holds a run of the units, in each of the outer blocks."""

    axis: str
    dim: int
    outer: int
    units: int
    inner: int
    choice: tuple[str, int] | None = field(default=None, compare=False)
    """The view that decided on this dimension among several, and what it chose."""

    @property
    def size(self) -> int:
        """Of the whole dimension."""
        return self.outer * self.units * self.inner

    def at(self, dim: int) -> Split:
        """The same units in another dimension."""
        return Split(self.axis, dim, self.outer, self.units, self.inner, self.choice)

    def local(self, span: Span) -> int:
        """Size of the dimension on the worker with these units."""
        return self.outer * (span[1] - span[0]) * self.inner

    def runs(self, span: Span) -> list[Span]:
        """Where the units lie in the whole dimension: one interval, or one in each outer block."""
        start, stop, block = span[0] * self.inner, span[1] * self.inner, self.units * self.inner
        if self.outer == 1 or span == (0, self.units):
            return [(start, stop)] if self.outer == 1 else [(0, self.size)]
        return [(outer * block + start, outer * block + stop) for outer in range(self.outer)]


@dataclass(frozen=True)
class Partial:
    """Each worker of the axis holds a summand."""

    axis: str


@dataclass(frozen=True)
class Rows:
    """Each worker holds an interval of one dimension; intervals may overlap (halo) or be empty."""

    dim: int
    spans: tuple[Span, ...]
    """Worker -> interval that it computes."""
    owned: tuple[Span, ...]
    """Worker -> its part of a gathered tensor: disjoint, together the whole dimension."""


Layout = Whole | Split | Partial | Rows
LayoutOf = Layout | tuple[Layout, ...]
"""Of an operator's result; a tuple for several."""


# -- arguments that differ between workers; every other node in the arguments is taken whole


@dataclass(frozen=True)
class Local:
    """What the worker itself holds of a divided tensor."""

    node: fx.Node


@dataclass(frozen=True)
class Cut:
    """The worker's share, cut from a whole tensor."""

    node: fx.Node
    split: Split
    turned: bool = False
    """A matrix is transposed."""


@dataclass(frozen=True)
class Window:
    """Rows of a divided tensor, with padding at true borders.

    One entry per worker: the interval of whole rows, and the rows of `fill` before and after it.
    """

    node: fx.Node
    dim: int
    spans: tuple[Span, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    fill: float = 0.0


@dataclass(frozen=True)
class Extent:
    """Size of a divided dimension on the worker."""

    split: Split


@dataclass(frozen=True)
class First:
    """An argument for the first worker of an axis; None for the others. A bias is added once."""

    value: Any
    axis: str


@dataclass(frozen=True)
class Placed:
    """An operator as the workers run it."""

    node: fx.Node
    layout: LayoutOf
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    divisors: tuple[Any, ...] = ()
    """Worker -> tensor by which it divides the result."""
    trims: tuple[Span, ...] = ()
    """Worker -> which rows of the result it keeps."""


def apportion_units(count: int, weights: Sequence[int]) -> tuple[int, ...]:
    """`count` units by largest remainder (Hamilton); ties go to the earlier worker."""
    total = sum(weights)
    whole = [count * weight // total for weight in weights]
    order = sorted(range(len(weights)), key=lambda worker: (-(count * weights[worker] % total), worker))
    for worker in order[: count - sum(whole)]:
        whole[worker] += 1
    return tuple(whole)


def spans_of(shares: Sequence[int]) -> tuple[Span, ...]:
    """Worker -> interval of units, one behind the other."""
    edges = [0]
    for share in shares:
        edges.append(edges[-1] + share)
    return tuple(itertools.pairwise(edges))
