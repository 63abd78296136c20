"""Sizes the shares of unequal workers, exactly: whoever is slowest shall be as fast as can be.

    costs[w, n]      seconds of worker w with n chunks; n = 0 costs nothing          least_max
    costs[w, b, e]   seconds of worker w with the chunks from b to e, contiguous     least_max_ranges
    a + r*n          the common case: fixed seconds and seconds per unit             affine_shares

A chunk is `granularity` units; the last worker that has a share takes the rest. Workers who would only hold the others
up get nothing. Answers are integers and values are those of the costs themselves: nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from math import comb

import numpy as np

from partitioners.arrays import Floats, Ints

Shares = tuple[int, ...]
Sized = tuple[float, Shares]
"""The seconds of the slowest, and one share per worker; infinite where nothing is allowed."""


def affine_shares(
    fixed_s: Sequence[float], seconds_per_unit: Sequence[float], units: int, granularity: int = 1, most: Sequence[float] | None = None
) -> Sized:
    """Share `units` where n units cost worker w `fixed_s[w] + n * seconds_per_unit[w]`, and at most `most[w]` are allowed."""
    count = -(-units // granularity)

    def table(amount: Ints) -> Floats:
        costs = np.asarray(fixed_s)[:, None] + np.asarray(seconds_per_unit)[:, None] * amount
        costs[:, 0] = 0.0
        return np.asarray(costs if most is None else np.where(amount > np.asarray(most)[:, None], np.inf, costs))

    chunks = np.arange(count + 1) * granularity
    # The last worker's chunks end where the units end.
    value, shares = least_max(table(chunks), table(np.maximum(chunks - (count * granularity - units), 0)))
    return value, in_units(shares, units, granularity)


def in_units(chunks: Shares, units: int, granularity: int) -> Shares:
    """Convert shares in chunks; the last that is not zero loses what its last chunk lacks."""
    edges = np.minimum(np.cumsum([0, *chunks]) * granularity, units)
    return tuple(np.diff(edges).tolist())


def least_max(costs: Floats, last: Floats | None = None, everyone: bool = False) -> Sized:
    """Return the shares (W,) with sum C whose largest cost is least.

    `costs` (W, C+1) holds for a worker that others follow, `last` for the one that ends the line, if it differs.
    `everyone`: all must have a share. Costs that do not fall with n: bisection on the value, O(W C log(W C)); any
    others: a min-max convolution, O(W C^2).
    """
    last = costs if last is None else last
    monotone = all((table[:, 2:] >= table[:, 1:-1]).all() for table in (costs, last))
    search = _by_bisection if monotone else _by_convolution
    return search(costs, last, everyone)


def _by_bisection(costs: Floats, last: Floats, everyone: bool) -> Sized:
    count, total = costs.shape[0], costs.shape[1] - 1

    def within(limit: float) -> list[int] | None:
        """Return for each worker the most chunks that keep the limit, if they suffice."""
        most = [int(np.searchsorted(row[1:], limit, side="right")) for row in costs]
        end = [int(np.searchsorted(row[1:], limit, side="right")) for row in last]
        for at in range(count - 1, count - 2 if everyone else -1, -1):
            held = [*most[:at], end[at]]
            if sum(held) >= total and end[at] and (min(held) or not everyone):
                return held + [0] * (count - 1 - at)
        return None

    values = np.unique(np.concatenate([costs[:, 1:].ravel(), last[:, 1:].ravel()]))
    values = values[np.isfinite(values)]
    if not len(values) or within(values[-1]) is None or (everyone and total < count):
        return np.inf, (0,) * count
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if within(values[middle]) else (middle + 1, high)
    held = within(values[low])
    assert held is not None
    end = max(w for w, n in enumerate(held) if n)
    for w in sorted(range(end + 1), key=lambda w: held[w]):  # who is of least use gives back first
        least = 1 if everyone or w == end else 0
        held[w] -= max(0, min(held[w] - least, sum(held) - total))
    return float(values[low]), tuple(held)


def _by_convolution(costs: Floats, last: Floats, everyone: bool) -> Sized:
    count, size = costs.shape
    first = 1 if everyone else 0
    so_far, taken = np.full(size, np.inf), np.zeros((count, size), dtype=np.int64)
    so_far[0] = 0.0
    best: tuple[float, int, int] = (np.inf, 0, 0)
    for w in range(count):
        ends = np.maximum(so_far[::-1][1:], last[w, 1:])  # w takes 1 ... C and ends the line
        n = int(ends.argmin()) + 1
        if ends[n - 1] < best[0] and (w == count - 1 or not everyone):
            best = float(ends[n - 1]), w, n
        table = np.full((size, size), np.inf)
        for n in range(first, size):
            np.maximum(so_far[: size - n], costs[w, n], out=table[n, n:])
        taken[w] = table.argmin(axis=0)
        so_far = table.min(axis=0)
    value, end, n = best
    if value == np.inf:
        return value, (0,) * count
    shares, left = [0] * count, size - 1 - n
    shares[end] = n
    for w in range(end - 1, -1, -1):
        shares[w] = int(taken[w, left])
        left -= shares[w]
    return value, tuple(shares)


def least_max_ranges(costs: Floats) -> tuple[Floats, Ints]:
    """Return the contiguous shares, in the order of the workers, whose largest cost is least; O(N W C^2).

    `costs` (N, W, C+1, C+1) of N blocks by worker, begin and end; an empty range costs nothing, whatever stands there.
    Returns the costs (N,) and the shares (N, W); infinite and zeros where nothing is allowed.
    """
    blocks, count, size, _ = costs.shape
    idle, upper = np.where(np.eye(size, dtype=bool), 0.0, np.inf), np.triu(np.ones((size, size), dtype=bool), 1)
    so_far, begin = np.full((blocks, size), np.inf), np.zeros((count, blocks, size), dtype=np.int64)
    so_far[:, 0] = 0.0
    for w in range(count):
        table = np.where(upper, costs[:, w], idle)
        np.maximum(so_far[:, :, None], table, out=table)
        begin[w] = table.argmin(axis=1)
        so_far = np.take_along_axis(table, begin[w][:, None], axis=1)[:, 0]
    shares, end = np.zeros((blocks, count), dtype=np.int64), np.full(blocks, size - 1)
    for w in range(count - 1, -1, -1):
        first = begin[w, np.arange(blocks), end]
        shares[:, w], end = end - first, first
    possible = np.isfinite(so_far[:, -1])
    return so_far[:, -1], shares * possible[:, None]


def count_shares(chunks: int, workers: int) -> int:
    """Return the number of ways to share."""
    return comb(chunks + workers - 1, workers - 1)


def every_share(chunks: int, workers: int) -> Iterator[Shares]:
    """Yield every way to share, zeros included."""
    for bars in combinations(range(chunks + workers - 1), workers - 1):
        edges = (-1, *bars, chunks + workers - 1)
        yield tuple(b - a - 1 for a, b in pairwise(edges))


def edges_of(shares: Ints) -> Ints:
    """(..., W+1) where each share (..., W) begins, and where the last one ends."""
    edges = np.zeros((*shares.shape[:-1], shares.shape[-1] + 1), dtype=np.int64)
    np.cumsum(shares, axis=-1, out=edges[..., 1:])
    return edges
