"""Differences between neighbours in memory: what smooth maps and images have left once their neighbours are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinfer.codecs.compression import WORTHWHILE, compress
from splitinfer.codecs.filters import shuffled

_WINDOW = 1 << 13  # codes that are tried; a run, because differences need their neighbours
MAX_LAGS = 2
"""Differences are taken at most this many times."""


def differences(codes: NDArray[Any], lags: Sequence[int]) -> NDArray[Any]:
    """Each code less the one `lag` places before, for one lag after the other, modulo the range of the dtype.

    Lags of a row and of one give x[i, j] - x[i, j-1] - x[i-1, j] + x[i-1, j-1]: the Lorenzo predictor
    (Ibarria et al., Computer Graphics Forum 22(3), 2003, section 3).
    """
    for lag in lags:
        result = codes.copy()
        result[lag:] -= codes[:-lag]
        codes = result
    return codes


def sums(codes: NDArray[Any], lags: Sequence[int]) -> NDArray[Any]:
    """The inverse of :func:`differences`."""
    for lag in reversed(lags):
        rows = -(-len(codes) // lag)
        grid = np.zeros(rows * lag, codes.dtype)
        grid[: len(codes)] = codes
        codes = np.cumsum(grid.reshape(rows, lag), axis=0, dtype=codes.dtype).reshape(-1)[: len(codes)]
    return codes


def best_lags(codes: NDArray[Any], sizes: Sequence[int]) -> tuple[int, ...]:
    """The lags whose differences compress best on a window of `codes`, which lie in memory in dimensions of `sizes`.

    Tried are none, the neighbour along each of the two innermost dimensions and of the third, and pairs of these.
    """
    steps = [1]
    for size in list(reversed(sizes))[:2]:
        steps.append(steps[-1] * size)
    start = max(0, len(codes) - _WINDOW) // 2
    window = codes[start : start + _WINDOW]
    near, row, plane = (step if 0 < step < len(window) else 0 for step in (steps + steps[-1:] * 2)[:3])
    tried = [(), (near,), (row,), (row, near), (plane,), (plane, row)]
    candidates = list(dict.fromkeys(lags for lags in tried if 0 not in lags and len(set(lags)) == len(lags)))
    nbytes = [len(compress(_bytes(differences(window, lags)))) * (1 if not lags else 1 / WORTHWHILE) for lags in candidates]
    return candidates[int(np.argmin(nbytes))]


def _bytes(codes: NDArray[Any]) -> memoryview:
    """Unsigned codes as they would be compressed."""
    if codes.dtype != np.uint8:
        codes = zigzag(codes)
        codes = codes.astype(np.uint8) if codes.max(initial=0) < 256 else codes
    return shuffled(codes.data.cast("B"), codes.itemsize)


def zigzag(codes: NDArray[np.int32]) -> NDArray[np.uint32]:
    """0, -1, 1, -2, ... as 0, 1, 2, 3, ..."""
    return ((codes << 1) ^ (codes >> 31)).view(np.uint32)


def unzigzag(codes: NDArray[np.uint32]) -> NDArray[np.int32]:
    """The inverse of :func:`zigzag`."""
    return ((codes >> np.uint32(1)) ^ (np.uint32(0) - (codes & np.uint32(1)))).view(np.int32)
