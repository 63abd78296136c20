"""For one block by channels or heads, in one layout, the ways to share it that a best plan may need.

Where there are at most `EVERY` ways, all of them are tried. Otherwise the fastest is found for each set of workers, and,
where memory is scarce, the fastest of those that leave each worker a fair part of what its tier has to hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import combinations

import numpy as np

from partitioners.arrays import Floats, Ints
from partitioners.division import Division, Held, Leaves
from partitioners.labels import undominated
from partitioners.shares import Shares, count_shares, every_share, in_units, least_max

EVERY = 64  # ways to share: nine rows over three workers, 63 over two
SCARCE = 16  # the same where memory is limited, and each way is a label of its own
GROUPS = 6  # workers of which every set is tried


@dataclass(frozen=True)
class Options:
    """S ways to share a block."""

    shares: Ints
    """(S, W) in units."""
    seconds: Floats
    """(S,)"""
    memory_bytes: Floats
    """(S, W)"""


class Sizing:
    """The ways to share one division.

    `scarce`: its tier limits memory; `fair` (W,) is then the part of all weights that each worker may hold.
    """

    def __init__(self, division: Division, scarce: bool, fair: Floats) -> None:
        self.division, self.scarce, self.fair = division, scarce, fair
        self.workers = len(division.workers)
        self.complete = tries_every(division.chunks, self.workers, scarce)
        """Whether every way is tried."""
        self.bounded = self.complete or self.workers <= GROUPS
        """Whether the fastest of each set of workers is found."""
        self._kept: dict[tuple[Held, Leaves], Options] = {}

    def options(self, held: Held, leaves: Leaves) -> Options:
        """Return the ways that may be best, of those with one use of memory and one group who then holds everything."""
        if (held, leaves) not in self._kept:
            found = self.every if self.complete else np.array(sorted(set(self._fastest(held, leaves))), dtype=np.int64)
            shares = found.reshape(-1, self.workers)
            times = sum(self.division.times(shares, held, leaves), np.zeros(shares.shape)) if len(shares) else np.zeros(shares.shape)
            seconds, memory = slowest(shares, times), self.division.weights(shares)
            best = self._best(shares, seconds, memory, leaves)
            self._kept[held, leaves] = Options(shares[best], seconds[best], memory[best])
        return self._kept[held, leaves]

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

    # -- where there are too many ways

    def _fastest(self, held: Held, leaves: Leaves) -> Iterator[Shares]:
        """Yield the fastest shares of each group, with all the units it may take and with no more than is fair."""
        d = self.division
        alone = d.alone(leaves)
        for group in [tuple(range(self.workers))] if alone else groups(d.rates.forth):
            for most in self._caps():
                value, chunks = self._units(held, leaves, group, most, not alone)
                if value < np.inf:
                    yield in_units(chunks, d.units, d.granularity)

    def _caps(self) -> Iterator[Floats]:
        """Yield (W,) the most units for each worker: no limit, then its fair part, rounded up and down."""
        yield np.full(self.workers, np.inf)
        if self.scarce and np.isfinite(self.fair).any():
            chunks = self.fair * self.division.units / self.division.granularity
            yield np.ceil(chunks) * self.division.granularity
            yield np.floor(chunks) * self.division.granularity

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


def tries_every(chunks: int, workers: int, scarce: bool) -> bool:
    """Whether there are so few ways to share that all of them are tried."""
    return count_shares(chunks, workers) <= (min(EVERY, SCARCE) if scarce else EVERY)


def groups(forth: Floats) -> Iterator[tuple[int, ...]]:
    """Yield sets of workers, whose rates from the host are `forth` (W,): all sets of a few, or the host with the fastest links."""
    if len(forth) <= GROUPS:
        for size in range(1, len(forth) + 1):
            yield from combinations(range(len(forth)), size)
    else:
        by_rate = np.argsort(-forth, kind="stable").tolist()
        yield from (tuple(sorted(by_rate[:size])) for size in range(1, len(forth) + 1))


def slowest(shares: Ints, seconds: Floats) -> Floats:
    """(..., S) of (..., S, W), whoever has no share left out."""
    each = (np.where(shares[..., w] > 0, seconds[..., w], 0.0) for w in range(shares.shape[-1]))  # far faster than max(axis=-1)
    return reduce(np.maximum, each)
