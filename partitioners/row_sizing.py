"""For all blocks by rows that end with one op, the ways to share them that a best plan may need.

Where there are at most `sizing.EVERY` ways, all of them are tried. Otherwise the fastest is found for what the host gathers,
for each set of workers where memory is scarce; what stays divided is cut in some ways that are given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from partitioners.arrays import Floats, Ints
from partitioners.labels import undominated
from partitioners.rows import Ending
from partitioners.shares import edges_of, every_share, in_units, least_max_ranges
from partitioners.sizing import groups, slowest, tries_every

AT_ONCE = 2**20  # costs of ranges in one table: 8 MB


@dataclass(frozen=True)
class RowOptions:
    """S ways to share each of B blocks."""

    shares: Ints
    """(B, S, W) in units."""
    seconds: Floats
    """(H, S) for the H ways in which rows are held before all of the blocks; infinite where there is no such way to share."""
    memory_bytes: Floats
    """(B, S, W)"""
    first: Ints
    """(B,) the first of the H ways that are before a block; of each there is one, if rows are not divided before."""


class RowSizing:
    """The ways to share the blocks of one ending; `scarce`: its tier limits memory."""

    def __init__(self, ending: Ending, scarce: bool) -> None:
        self.ending, self.scarce = ending, scarce
        self.blocks, self.workers = ending.compute.begin.shape[:2]
        self.complete = tries_every(ending.chunks, self.workers, scarce)
        """Whether every way is tried."""
        self._kept: dict[tuple[str, frozenset[int] | None, bool], RowOptions] = {}

    def gathered(self, whole: frozenset[int]) -> RowOptions:
        """Return the ways that may be best from where the workers of `whole` hold everything to where the host does."""
        return self._once(("gathered", whole, True), lambda: self._gathered(whole))

    def divided(self, whole: frozenset[int], rows: Ints) -> RowOptions:
        """Return the ways `rows` (S, W), not gathered, from where the workers of `whole` hold everything."""
        return self._once(("divided", whole, False), lambda: self._options(rows[None], self._seconds(rows[None], whole, gathers=False)))

    def between(self, before: Sequence[Ints], rows: Ints, gathers: bool) -> RowOptions:
        """Return the ways `rows` (S, W) of each block, for each way in which rows are divided before it, (H_b, W) of B blocks."""
        return self._once(("between", None, gathers), lambda: self._between(before, rows, gathers))

    def least(self, whole: frozenset[int] | None, gathers: bool) -> RowOptions:
        """Return a bound from below, as one way for each block: where rows stay divided they are neither fetched nor sent."""
        return self._once(("least", whole, gathers), lambda: self._least(whole, gathers))

    def _once(self, key: tuple[str, frozenset[int] | None, bool], find: Callable[[], RowOptions]) -> RowOptions:
        if key not in self._kept:
            self._kept[key] = find()
        return self._kept[key]

    def _gathered(self, whole: frozenset[int]) -> RowOptions:
        shares = self.every if self.complete else self._fastest(whole)
        found = self._options(shares, self._seconds(shares, whole, gathers=True))
        return self._undominated(found) if self.scarce else _fastest_of(found)

    def _between(self, before: Sequence[Ints], rows: Ints, gathers: bool) -> RowOptions:
        many, edges = [len(each) for each in before], self.ending.cuts(rows)
        block = np.repeat(np.arange(self.blocks), many)
        fetched = self.ending.fetched(edges_of(np.concatenate(before)), block, edges)
        seconds = slowest(rows, fetched + self._own(edges[None], gathers)[block])
        return self._options(rows[None], seconds, np.cumsum([0, *many[:-1]]))

    def _least(self, whole: frozenset[int] | None, gathers: bool) -> RowOptions:
        everyone = frozenset(range(self.workers))
        value, _ = self._least_max(whole or everyone, gathers, everyone)
        return self._options(np.zeros((1, 1, self.workers), dtype=np.int64), value[:, None])

    @cached_property
    def every(self) -> Ints:
        """(1, S, W) all ways to share, in units."""
        e = self.ending
        return np.array([[in_units(chunks, e.units, e.granularity) for chunks in every_share(e.chunks, self.workers)]])

    def _options(self, shares: Ints, seconds: Floats, first: Ints | None = None) -> RowOptions:
        shares = np.broadcast_to(shares, (self.blocks, *shares.shape[1:]))
        return RowOptions(shares, seconds, self.ending.memory(shares), np.arange(self.blocks) if first is None else first)

    def _own(self, edges: Ints, gathers: bool) -> Floats:
        """(B, S, W) seconds of computing, and of sending to the host."""
        compute = self.ending.compute.at(edges)
        return compute + self.ending.send.at(edges) if gathers else compute

    def _seconds(self, shares: Ints, whole: frozenset[int], gathers: bool) -> Floats:
        """(B, S) for shares (B or 1, S, W); infinite where nobody has one."""
        edges = self.ending.cuts(shares)
        seconds = slowest(shares, self._own(edges, gathers) + self.ending.received(edges, whole))
        return np.where(shares.any(axis=2), seconds, np.inf)

    def _undominated(self, found: RowOptions) -> RowOptions:
        """Leave out, as infinite, what another way beats."""
        seconds = np.full_like(found.seconds, np.inf)
        for block, row in enumerate(found.seconds):
            labels = np.hstack([row[:, None], found.memory_bytes[block]])
            best = undominated(np.zeros(len(row), dtype=np.int64), labels)
            seconds[block, best] = row[best]
        return RowOptions(found.shares, seconds, found.memory_bytes, found.first)

    def _fastest(self, whole: frozenset[int]) -> Ints:
        """(B, S, W) the fastest shares of each set of workers; zeros where they cannot."""
        everyone, e = tuple(range(self.workers)), self.ending
        found = [self._least_max(whole, True, group)[1] for group in (groups(e.rates.forth) if self.scarce else [everyone])]
        return np.diff(np.minimum(edges_of(np.stack(found, axis=1)) * e.granularity, e.units), axis=2)

    def _least_max(self, whole: frozenset[int], gathers: bool, group: Collection[int]) -> tuple[Floats, Ints]:
        """Return the seconds (B,) and the shares (B, W), in chunks, of the fastest way in which a group shares each block."""
        e = self.ending
        receives, sends = np.array([[float(w not in whole)] for w in range(self.workers)]), float(gathers)
        begin, end = (own + receives * forth + sends * back for own, forth, back in zip(e.compute, e.receive, e.send, strict=True))
        absent = np.array([[0.0 if w in group else np.inf] for w in range(self.workers)])
        step = max(1, AT_ONCE // (self.workers * (e.chunks + 1) ** 2))
        found = [
            least_max_ranges((begin + absent)[at : at + step, :, :, None] + end[at : at + step, :, None, :])
            for at in range(0, self.blocks, step)
        ]
        return np.concatenate([value for value, _ in found]), np.concatenate([shares for _, shares in found])


def _fastest_of(found: RowOptions) -> RowOptions:
    """Keep the fastest way to share each block."""
    best, block = found.seconds.argmin(axis=1)[:, None], np.arange(len(found.seconds))[:, None]
    return RowOptions(found.shares[block, best], found.seconds[block, best], found.memory_bytes[block, best], found.first)
