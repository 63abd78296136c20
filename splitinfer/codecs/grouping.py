"""Stored elements in groups that share a scale, and the arithmetic on them, tile by tile so that it stays in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splitinfer.codecs.block import Header, memory_shape

Floats = NDArray[np.float32]
MIN_PER_CHANNEL = 32
"""Values from which on a channel has a scale of its own: its 5 bytes of parameters cost at most 16 % of them."""
_TILE = 1 << 17  # elements: 512 KiB of float32, which a usual second-level cache holds

_MIN_SAMPLE = 64  # fewer values do not show a distribution
_GOLDEN = (5**0.5 - 1) / 2


def channel_axis(shape: Sequence[int], strides: Sequence[int] | None) -> int | None:
    """The axis with a scale for each index, or None where one scale serves the whole tensor."""
    if len(shape) not in (2, 3, 4, 5):
        return None
    axis = 1 if len(shape) > 3 else len(shape) - 1
    stored = [1 if strides and strides[place] == 0 else size for place, size in enumerate(shape)]
    return axis if prod(stored) // max(stored[axis], 1) >= MIN_PER_CHANNEL and stored[axis] == shape[axis] else None


@dataclass(frozen=True)
class Groups:
    """How flat elements divide: (outer, groups, inner), one scale for each index of the middle; `rest` more form a group."""

    outer: int
    groups: int
    inner: int
    rest: int = 0

    @staticmethod
    def whole(header: Header) -> Groups:
        """One group."""
        return Groups(1, 1, header.count)

    @staticmethod
    def channels(header: Header) -> Groups:
        """A group for each channel, or one group where :func:`channel_axis` finds none."""
        axis = channel_axis(header.shape, header.strides)
        if axis is None:
            return Groups.whole(header)
        sizes, order = memory_shape(header)
        place = order.index(axis)
        return Groups(prod(sizes[:place]), sizes[place], prod(sizes[place + 1 :]))

    @staticmethod
    def blocks(header: Header, size: int) -> Groups:
        """A group for each `size` neighbours in memory, and one for what is left."""
        return Groups(1, header.count // size, size, header.count % size)

    @property
    def count(self) -> int:
        """Groups in all."""
        return self.groups + bool(self.rest)

    def split(self, flat: Any) -> list[Any]:
        """A flat tensor or array as one or two of (outer, groups, inner), not copied."""
        if not self.rest:
            return [flat.reshape(self.outer, self.groups, self.inner)]
        cut = self.outer * self.groups * self.inner
        parts = [flat[:cut].reshape(self.outer, self.groups, self.inner), flat[cut:].reshape(1, 1, -1)]
        return [part for part, size in zip(parts, (cut, self.rest), strict=True) if size]

    def tiles(self, flat: Any, out: Any, *parameters: Floats) -> Iterator[tuple[Any, ...]]:
        """Tiles of `flat` and `out` with the parameters, one value for each group, that belong to each."""
        first = 0
        for values, results in zip(self.split(flat), self.split(out), strict=True):
            own = [parameter[first : first + values.shape[1], None] for parameter in parameters]
            if len(flat) <= _TILE:
                yield values, results, *own
            for where in _tiles(*values.shape) if len(flat) > _TILE else ():
                yield values[where], results[where], *(parameter[where[1]] for parameter in own)
            first += values.shape[1]

    def extremes(self, flat: Tensor) -> tuple[Floats, Floats]:
        """Smallest and largest value of each group as float32; NaN where the group has one."""
        if self.count == 1:
            low, high = torch.aminmax(flat)
            return low.float().reshape(1).numpy(), high.float().reshape(1).numpy()
        lows, highs = zip(*((part.amin((0, 2)), part.amax((0, 2))) for part in self.split(flat)), strict=True)
        low, high = (torch.cat(edges) if self.rest else edges[0] for edges in (lows, highs))
        return low.float().numpy(), high.float().numpy()

    def means(self, flat: Tensor) -> Floats:
        """Mean of each group, as float32."""
        return torch.cat([part.mean((0, 2), dtype=torch.float64) for part in self.split(flat)]).float().numpy()

    def sample(self, flat: Tensor, budget: int) -> Tensor:
        """(groups, values) float32: about `budget` evenly scattered values of all groups together, 64 of each at least."""
        values: Tensor = self.split(flat)[0]
        outer, groups, inner = values.shape
        each = max(_MIN_SAMPLE, budget // groups)
        if outer * inner <= each:
            return values.permute(1, 0, 2).reshape(groups, -1).float()
        # Multiples of the golden ratio, modulo 1: as even as a grid, but in step with no row of the map.
        places = (torch.arange(each, dtype=torch.float64) * _GOLDEN % 1 * (outer * inner)).long()
        return values[places // inner, :, places % inner].t().float().contiguous()

    def sample_of_groups(self, flat: Tensor, budget: int) -> tuple[Tensor, NDArray[np.int64]]:
        """(chosen, values) float32: whole groups, evenly spread, of about `budget` values together; and which they are."""
        values: Tensor = self.split(flat)[0]
        chosen = np.unique(np.linspace(0, values.shape[1] - 1, max(1, budget // values[:, 0].numel())).astype(np.int64))
        return values[:, torch.from_numpy(chosen)].permute(1, 0, 2).reshape(len(chosen), -1).float(), chosen


def _tiles(outer: int, groups: int, inner: int) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of at most about _TILE elements, each a run in memory, in the order of memory."""
    every = slice(None)
    if groups * inner <= _TILE:
        step = _TILE // (groups * inner)
        yield from ((slice(start, start + step), every, every) for start in range(0, outer, step))
        return
    rows, columns = (_TILE // inner, inner) if inner <= _TILE else (1, _TILE)
    for place in range(outer):
        for row in range(0, groups, rows):
            for column in range(0, inner, columns):
                yield slice(place, place + 1), slice(row, row + rows), slice(column, column + columns)


def quantise(flat: Tensor, groups: Groups, scale: Floats, zero: Floats, top: int, *, within: bool = False) -> NDArray[np.uint8]:
    """round(x / scale + zero), clipped to 0..top.

    With `within` the caller vouches that scale and zero span the values, so that without a zero none needs clipping.
    """
    codes = np.empty(len(flat), np.uint8)
    scratch = np.empty(min(_TILE, len(flat)), np.float32)
    shifted = bool(zero.any())
    given = flat.numpy() if flat.dtype == torch.float32 else flat
    for values, results, factor, shift in groups.tiles(given, codes, np.reciprocal(scale), zero):
        space = scratch[: results.size].reshape(results.shape)
        if isinstance(values, Tensor):
            torch.from_numpy(space).copy_(values)
            values = space
        np.multiply(values, factor, out=space)
        if shifted:
            space += shift
        np.rint(space, out=space)
        if shifted or not within:
            np.clip(space, 0, top, out=space)
        np.copyto(results, space, casting="unsafe")
    return codes


def dequantise(codes: NDArray[np.uint8], groups: Groups, scale: Floats, zero: Floats, dtype: torch.dtype) -> Tensor:
    """(code - zero) x scale in float32, as `dtype`; what a damaged scale makes of that is not warned about."""
    values = torch.empty(len(codes), dtype=dtype)
    direct = dtype == torch.float32
    scratch = np.empty(0 if direct else min(_TILE, len(codes)), np.float32)
    shifted = bool(zero.any())
    for tile, results, factor, shift in groups.tiles(codes, values.numpy() if direct else values, scale, zero):
        space = results if direct else scratch[: tile.size].reshape(tile.shape)
        np.copyto(space, tile)
        with np.errstate(over="ignore", invalid="ignore"):
            if shifted:
                space -= shift
            space *= factor
        if not direct:
            results.copy_(torch.from_numpy(space))
    return values
