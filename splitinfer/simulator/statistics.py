"""Means that know how sure they are, and percentiles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BATCHES = 30
"""20 to 30 are enough, and few large batches are less correlated than many small ones (Schmeiser: Batch size effects in
the analysis of simulation output, Operations Research 30(3), 1982)."""
_FEWEST = 10  # values in a batch, below which its mean says nothing


@dataclass(frozen=True)
class Latency:
    """Seconds from arrival to answer."""

    mean: float
    mean_low: float | None
    """The 95 % confidence interval of the mean; None where there are too few requests to say."""
    mean_high: float | None
    p50: float
    p95: float
    p99: float
    min: float
    max: float


def latency(seconds: npt.NDArray[np.float64]) -> Latency | None:
    """Of (n,) latencies, in the order in which the requests ended; None for none."""
    if not len(seconds):
        return None
    mean, half = float(seconds.mean()), half_width(seconds)
    p50, p95, p99 = (float(value) for value in np.quantile(seconds, (0.5, 0.95, 0.99)))
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Latency(mean, low, high, p50, p95, p99, float(seconds.min()), float(seconds.max()))


def half_width(values: npt.NDArray[np.float64]) -> float | None:
    """Half the 95 % confidence interval of the mean of (n,) values that depend on their neighbours, by the means of `BATCHES` batches.

    Batches must be long beside the time over which values depend on each other: under heavy load, that is thousands of
    requests. None for fewer than 300 values.
    """
    size = len(values) // BATCHES
    if size < _FEWEST:
        return None
    from scipy.special import stdtrit  # here: it takes a while to load

    means = values[len(values) - size * BATCHES :].reshape(BATCHES, size).mean(axis=1)
    return float(stdtrit(BATCHES - 1, 0.975) * means.std(ddof=1) / math.sqrt(BATCHES))
