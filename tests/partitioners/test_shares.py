"""Share sizes against all ways to share."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioners import affine_shares
from partitioners.arrays import Floats
from partitioners.shares import count_shares, every_share, in_units, least_max, least_max_ranges


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in compositions(total - first, parts - 1):
            yield (first, *rest)


def least(total: int, workers: int, slowest: Callable[[tuple[int, ...]], float]) -> float:
    return min(slowest(shares) for shares in compositions(total, workers))


def affine(seed: int) -> None:
    rng = random.Random(seed)
    workers, units, granularity = rng.randint(1, 4), rng.randint(1, 12), rng.choice([1, 1, 2, 3, 5])
    fixed = [rng.choice([0.0, rng.uniform(0, 5)]) for _ in range(workers)]
    rate = [rng.choice([0.0, 1.0, rng.uniform(0.1, 3)]) for _ in range(workers)]
    most = [rng.choice([math.inf, rng.uniform(0, units)]) for _ in range(workers)] if rng.random() < 0.5 else None
    cost = lambda w, n: fixed[w] + rate[w] * n if n else 0.0  # noqa: E731

    def slowest(shares: tuple[int, ...]) -> float:
        some = [n for n in shares if n]
        over = most is not None and any(n > cap for n, cap in zip(shares, most, strict=True))
        return math.inf if over or any(n % granularity for n in some[:-1]) else max(cost(w, n) for w, n in enumerate(shares))

    value, shares = affine_shares(fixed, rate, units, granularity, most)
    assert value == pytest.approx(least(units, workers, slowest), rel=1e-12), seed
    assert math.isinf(value) or (sum(shares) == units and slowest(shares) == pytest.approx(value, rel=1e-12)), seed


def tables(seed: int) -> None:
    """Any costs whatever: rising ones are bisected, others convolved; with or without someone left out."""
    rng = np.random.default_rng(seed)
    workers, chunks = int(rng.integers(1, 5)), int(rng.integers(1, 7))
    costs, last = rng.integers(1, 9, (2, workers, chunks + 1)).astype(float)
    costs[rng.random(costs.shape) < 0.15] = np.inf
    if seed % 2:
        costs, last = np.sort(costs, axis=1), np.sort(last, axis=1)
    costs[:, 0] = last[:, 0] = 0.0
    for everyone in (False, True):

        def slowest(shares: Sequence[int], everyone: bool = everyone) -> float:
            end = max(w for w, n in enumerate(shares) if n)
            used = [(last if w == end else costs)[w, n] for w, n in enumerate(shares)]
            return math.inf if everyone and min(shares) == 0 else max(used)

        value, shares = least_max(costs, last, everyone)
        assert value == least(chunks, workers, slowest), seed
        assert math.isinf(value) or (sum(shares) == chunks and slowest(shares) == value), seed


def ranges(seed: int) -> None:
    """Some blocks at once, of which the last leaves nobody a chance."""
    rng = np.random.default_rng(seed)
    workers, chunks = int(rng.integers(1, 5)), int(rng.integers(1, 7))
    costs = rng.integers(1, 20, (3, workers, chunks + 1, chunks + 1)).astype(float)
    costs[1, rng.integers(workers)] = costs[2] = np.inf
    values, found = least_max_ranges(costs)
    for block, value, shares in zip(costs, values, found.tolist(), strict=True):

        def slowest(shares: Sequence[int], block: Floats = block) -> float:
            edges = np.cumsum([0, *shares])
            return max(block[w, edges[w], edges[w + 1]] for w, n in enumerate(shares) if n)

        assert value == least(chunks, workers, slowest), seed
        assert sum(shares) == (0 if math.isinf(value) else chunks), seed
        assert math.isinf(value) or slowest(shares) == value, seed


@pytest.mark.parametrize("compare", [affine, tables, ranges])
def test_against_all_ways(compare: Callable[[int], None]) -> None:
    for seed in range(100):
        compare(seed)


@pytest.mark.slow
@pytest.mark.parametrize("compare", [affine, tables, ranges])
def test_against_all_ways_at_length(compare: Callable[[int], None]) -> None:
    for seed in range(1000, 3000):
        compare(seed)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 10)), min_size=1, max_size=6), st.integers(1, 5000), st.integers(1, 64))
def test_in_less_time_the_units_do_not_fit(workers: list[tuple[float, float]], units: int, granularity: int) -> None:
    """A certificate: whatever each worker could do in a little less than the time found, together it is too little."""
    units *= granularity
    fixed, rate = zip(*workers, strict=True)
    value, shares = affine_shares(fixed, rate, units, granularity)
    assert sum(shares) == units
    assert all(share % granularity == 0 for share in shares)
    assert max(f + r * n if n else 0.0 for f, r, n in zip(fixed, rate, shares, strict=True)) == pytest.approx(value)
    less = value * (1 - 1e-9)
    assert sum(max(0, math.floor((less - f) / (r * granularity))) for f, r in workers) < units // granularity


def test_a_useless_worker_gets_nothing() -> None:
    assert affine_shares([0, 0, 50], [1, 1, 1], 20) == (10, (10, 10, 0))


def test_a_large_height_is_exact() -> None:
    """Speeds 5:3:2 and no fixed seconds: shares in exactly that proportion."""
    value, shares = affine_shares([0, 0, 0], [1 / 5, 1 / 3, 1 / 2], 100_000)
    assert shares == (50_000, 30_000, 20_000)
    assert value == pytest.approx(10_000)


def test_the_last_share_takes_the_rest() -> None:
    value, shares = affine_shares([0, 0], [1, 1], 7, 4)
    assert (value, shares) == (4, (4, 3))
    assert in_units((1, 0, 1), 7, 4) == (4, 0, 3)


def test_what_fits_nowhere_is_infinite() -> None:
    assert affine_shares([0, 0], [1, 1], 10, 1, [4, 5])[0] == math.inf


def test_every_share_is_counted() -> None:
    for chunks in range(1, 6):
        for workers in range(1, 5):
            found = list(every_share(chunks, workers))
            assert sorted(found) == sorted(compositions(chunks, workers))
            assert count_shares(chunks, workers) == len(found)
