"""For one block in one layout, the ways to share it that a best plan may need.

Where there are at most `EVERY` ways, all of them are tried. Otherwise the fastest is found for each set of workers, and,
where memory is scarce, the fastest of those that leave each worker a fair part of what its tier has to hold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from partitioners.arrays import Floats, Ints
from partitioners.division import Division, Held, Leaves
from partitioners.labels import undominated
from partitioners.shares import Shares, count_shares, every_share, in_units, least_max, least_max_ranges

EVERY = 64  # ways to share: nine rows over three workers, 63 over two
SCARCE = 16  # the same where memory is limited, and each way is a label of its own
GROUPS = 6  # workers of which every set is tried


@dataclass(frozen=True)
class Options:
    """S ways to share a block."""

    shares: Ints
    """(S, W) in units."""
    seconds: Floats
    """(H, S) for H ways in which rows are held before it; 1 if they are not divided."""
    memory_bytes: Floats
    """(S, W)"""


class Sizing:
    """The ways to share one division.

    `scarce`: its tier limits memory; `fair` (W,) is then the part of all weights that each worker may hold.
    """

    def __init__(self, division: Division, scarce: bool, fair: Floats) -> None:
        self.division, self.scarce, self.fair = division, scarce, fair
        self.workers = len(division.workers)
        self.complete = count_shares(division.chunks, self.workers) <= (min(EVERY, SCARCE) if scarce else EVERY)
        """Whether every way is tried."""
        self._kept: dict[tuple[Held | None, Leaves], Options] = {}

    def options(self, held: Held, leaves: Leaves, rows: Ints | None = None) -> Options:
        """Return the ways that may be best, of those with one use of memory and one group who then holds everything.

        `rows` (S, W) are all the ways, where rows stay divided.
        """
        if (held, leaves) not in self._kept:
            if rows is not None:
                shares = rows
            elif self.complete:
                shares = self.every
            else:
                shares = np.array(sorted(set(self._fastest(held, leaves))), dtype=np.int64).reshape(-1, self.workers)
            times = sum(self.division.times(shares, held, leaves), np.zeros(shares.shape)) if len(shares) else np.zeros(shares.shape)
            seconds, memory = _slowest(shares, times), self.division.weights(shares)
            best = slice(None) if rows is not None else self._best(shares, seconds, memory, leaves)
            self._kept[held, leaves] = Options(shares[best], seconds[None, best], memory[best])
        return self._kept[held, leaves]

    def between(self, before: Ints, leaves: Leaves, rows: Ints) -> Options:
        """Return the ways `rows` (S, W), for each way in which rows are divided `before` (H, W)."""
        if (None, leaves) not in self._kept:
            d, edges = self.division, self.division.cuts(rows)
            held = np.cumsum(np.insert(before, 0, 0, axis=1), axis=1)
            own = d.rows_compute.at(edges) + (d.rows_send.at(edges) if leaves == "whole" else 0.0)
            self._kept[None, leaves] = Options(rows, _slowest(rows, d.fetch(held, edges) + own), d.weights(rows))
        return self._kept[None, leaves]

    @cached_property
    def every(self) -> Ints:
        """(S, W) all ways to share, in units."""
        d = self.division
        return np.array([in_units(chunks, d.units, d.granularity) for chunks in every_share(d.chunks, self.workers)])

    def _best(self, shares: Ints, seconds: Floats, memory: Floats, leaves: Leaves) -> Ints:
        """Leave out what another way beats that leaves the same."""
        groups = (shares[:, 1:] > 0) @ (1 << np.arange(self.workers - 1))  # the host is always among those who hold it
        keys = groups if leaves == "replicated" else np.zeros_like(groups)
        return undominated(keys, np.hstack([seconds[:, None], memory if self.scarce else memory[:, :0]]))

    def least(self, held: Held | None, leaves: Leaves) -> Options:
        """Return a bound from below, as one way of rows; held None, and leaves "divided": neither fetched nor sent."""
        everyone = range(self.workers)
        value, _ = self._rows(held or Held(frozenset(everyone)), leaves, everyone)
        nobody = np.zeros((1, self.workers), dtype=np.int64)
        return Options(nobody, np.array([[value]]), nobody.astype(float))

    # -- where there are too many ways

    def _fastest(self, held: Held, leaves: Leaves) -> Iterator[Shares]:
        """Yield the fastest shares of each group, with all the units it may take and with no more than is fair."""
        d = self.division
        together = d.alone(leaves) and not (d.by_rows and self.scarce)
        for group in self._groups(together):
            for most in self._caps():
                value, chunks = self._rows(held, leaves, group) if d.by_rows else self._units(held, leaves, group, most, not together)
                if value < np.inf:
                    yield in_units(chunks, d.units, d.granularity)
                if d.by_rows:
                    break  # everyone with a share holds all weights, whatever its size

    def _groups(self, together: bool) -> Iterator[tuple[int, ...]]:
        """Yield sets of workers: all sets of a few, or the host with those of the fastest links."""
        everyone = range(self.workers)
        if together:
            yield tuple(everyone)
        elif self.workers <= GROUPS:
            for size in range(1, self.workers + 1):
                yield from combinations(everyone, size)
        else:
            by_rate = np.argsort(-self.division.forth, kind="stable").tolist()
            yield from (tuple(sorted(by_rate[:size])) for size in range(1, self.workers + 1))

    def _caps(self) -> Iterator[Floats]:
        """Yield (W,) the most units for each worker: no limit, then its fair part, rounded up and down."""
        yield np.full(self.workers, np.inf)
        if self.scarce and np.isfinite(self.fair).any():
            chunks = self.fair * self.division.units / self.division.granularity
            yield np.ceil(chunks) * self.division.granularity
            yield np.floor(chunks) * self.division.granularity

    def _rows(self, held: Held, leaves: Leaves, group: Collection[int]) -> tuple[float, Shares]:
        d, workers = self.division, range(self.workers)
        receives = np.array([[float(w not in held.whole)] for w in workers])
        sends = float(leaves == "whole")
        begin = d.rows_compute.begin + receives * d.rows_from_host.begin + sends * d.rows_send.begin
        end = d.rows_compute.end + receives * d.rows_from_host.end + sends * d.rows_send.end
        absent = np.array([[[0.0 if w in group else np.inf]] for w in workers])
        return least_max_ranges(begin[:, :, None] + end[:, None, :] + absent)

    def _units(self, held: Held, leaves: Leaves, group: Sequence[int], most: Floats, everyone: bool) -> tuple[float, Shares]:
        d, rows = self.division, list(group)
        full = np.arange(d.chunks + 1) * d.granularity

        def table(n: Ints) -> Floats:
            costs = (d.compute(n[None]) + d.moves(n[None], held, leaves, group))[rows]
            costs[n > most[rows][:, None]] = np.inf
            costs[:, 0] = 0.0
            return np.asarray(costs)

        value, chunks = least_max(table(full), table(np.maximum(full - (d.chunks * d.granularity - d.units), 0)), everyone)
        shares = np.zeros(self.workers, dtype=np.int64)
        shares[rows] = chunks
        return value, tuple(shares.tolist())


def _slowest(shares: Ints, seconds: Floats) -> Floats:
    """(..., S) of (..., S, W), whoever has no share left out."""
    return np.asarray(np.where(shares > 0, seconds, 0.0).max(axis=-1, initial=0.0))
