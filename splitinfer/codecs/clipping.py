"""Where to clip before quantising to few bits: the range of least mean squared error, group by group.

Candidates are the analytic ranges of ACIQ (Banner, Nahshan and Soudry, "Post training 4-bit quantization of
convolutional networks for rapid-deployment", NeurIPS 2019, section 3) for a Gaussian and for a Laplacian, and a series
of shrinking ranges; the one with the lowest error *measured* on a sample wins, so a wrong guess of the distribution
costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splitinfer.codecs.grouping import Floats, Groups

# Clip over mean absolute deviation of a Laplacian, over standard deviation of a Gaussian, for 2**bits levels: they
# minimise 2 exp(-a) + a^2 / (3 4^bits) and 2 (1 + a^2) Q(a) - 2 a phi(a) + a^2 / (3 4^bits).
ANALYTIC = {2: (2.831, 1.711), 3: (3.897, 2.152), 4: (5.029, 2.559), 5: (6.205, 2.936), 6: (7.413, 3.287), 7: (8.646, 3.615)}
_RATIOS = 0.75 ** np.arange(9, dtype=np.float32)  # of the reach; down to 10 %
_FINER = np.array([0.83, 0.91, 1.1, 1.2], np.float32)  # between one ratio and its neighbours
_BUDGET = 1 << 14  # values that are looked at, 64 for each group at least: about half a millisecond
_TINY = np.float32(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Grid:
    """The numbers that a code can stand for: (code - zero) x scale, code in 0..top."""

    bits: int
    symmetric: bool
    narrow: bool
    """Scales are rounded up to bfloat16, zeros fit a signed byte: for blocks, whose parameters weigh."""

    @property
    def top(self) -> int:
        """Largest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero of symmetric codes; zeros travel as their distance from it."""
        return 1 << self.bits - 1

    def parameters(self, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        """Scale and zero that span each range.

        An affine range that holds 0 gets an exact code for it. One far from 0 for its width is widened towards 0 until
        its zero fits the field.
        """
        if self.symmetric:
            scale = self._rounded(np.maximum(-low, high) / np.float32(self.middle - 1))
            return scale, np.full_like(scale, self.middle)
        field = max(0, (127 if self.narrow else 32767) - self.middle)
        share = np.float32(field / (field + self.top))
        low, high = np.minimum(low, share * np.maximum(high, 0)), np.maximum(high, share * np.minimum(low, 0))
        scale = self._rounded((high - low) / np.float32(self.top))
        return scale, np.clip(np.rint(-low / scale), np.float32(-field), np.float32(self.top + field))

    def _rounded(self, steps: NDArray[Any]) -> Floats:
        scale: Floats = np.maximum(steps.astype(np.float32), _TINY)
        return ((scale.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32) if self.narrow else scale

    def errors(self, sample: Tensor, weights: Tensor, scale: Floats, zero: Floats) -> Floats:
        """Weighted sums of squared errors, (candidates, groups), of the sample (groups, values) under parameters of that shape."""
        sums, space = np.empty_like(scale), torch.empty_like(sample)
        for row, factors, shifts in zip(sums, torch.from_numpy(scale), torch.from_numpy(zero), strict=True):
            factor, shift = factors.unsqueeze(1), shifts.unsqueeze(1)
            torch.mul(sample, factor.reciprocal(), out=space).add_(shift).round_().clamp_(0, self.top).sub_(shift).mul_(factor).sub_(sample)
            row[:] = space.square_().mv(weights).numpy()
        return sums


def clipped(flat: Tensor, groups: Groups, low: Floats, high: Floats, grid: Grid) -> tuple[Floats, Floats]:
    """The range to quantise for each group of finite values whose extremes are `low` and `high`."""
    if grid.bits >= 8:
        return low, high
    unit = _unit(low, high)
    low, high = low * unit, high * unit
    if grid.narrow:
        # So many groups that one ratio has to serve them all; the analytic ranges would need moments of every block.
        sample, chosen = groups.sample_of_groups(flat, _BUDGET)
        sample *= float(unit)
        centre = _centre(groups.means(flat) * unit, low, high, grid)
        search = _Search(grid, sample, low[chosen], high[chosen], centre[chosen], sample.shape[1])
        ratio = search.best(np.repeat(_RATIOS[:, None], len(chosen), 1), shared=True)[0]
        return _in(unit, _range(ratio, centre, low, high))
    sample = groups.sample(flat, _BUDGET).mul(float(unit))
    centre = _centre(sample.mean(1).numpy(), low, high, grid)
    search = _Search(grid, sample, low, high, centre, groups.outer * groups.inner)
    ratio = search.best(np.concatenate((np.repeat(_RATIOS[:, None], len(low), 1), search.analytic())), shared=False)
    return _in(unit, _range(ratio, centre, low, high))


def _unit(low: Floats, high: Floats) -> np.float32:
    """A power of two that brings the largest value near 1, so that squares neither overflow nor vanish."""
    exponent = int(np.frexp(max(float(-low.min()), float(high.max()), 0.0))[1])
    return np.float32(2.0 ** -min(max(exponent, -100), 120))


def _in(unit: np.float32, ranges: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """The ranges as they were before they were multiplied by `unit`."""
    low, high = ranges
    return low / unit, high / unit


def _centre(mean: Floats, low: Floats, high: Floats, grid: Grid) -> Floats:
    """Around which to clip: 0 for what a ReLU left, whose other half is missing, and for symmetric grids; else the mean."""
    zero = np.float32(0)
    return np.full_like(mean, zero) if grid.symmetric else np.where((low == 0) | (high == 0), zero, np.clip(mean, low, high))


def _reach(centre: Floats, low: Floats, high: Floats) -> Floats:
    """From the centre to the farther extreme."""
    reach: Floats = np.maximum(np.maximum(high - centre, centre - low), _TINY)
    return reach


def _range(ratio: Floats, centre: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """The share `ratio` of the reach on both sides of the centre, within the extremes; 0 stays inside where it was."""
    reach, zero = ratio * _reach(centre, low, high), np.float32(0)
    start, stop = np.maximum(low, centre - reach), np.minimum(high, centre + reach)
    inside = (low <= 0) & (high >= 0)
    return np.where(inside, np.minimum(start, zero), start), np.where(inside, np.maximum(stop, zero), stop)


@dataclass(frozen=True)
class _Search:
    """Finds the ratio of the reach that quantises a sample (groups, values) with the least squared error."""

    grid: Grid
    sample: Tensor
    low: Floats
    high: Floats
    centre: Floats
    population: int
    """Values of a group, of which the sample has some."""

    def best(self, ratios: Floats, *, shared: bool) -> Floats:
        """For each group the best of the candidates (candidates, groups) and of some around that; one for all if shared."""
        best = self._least(ratios, shared)
        return self._least(np.minimum(np.concatenate((best * _FINER[:, None], best[None])), np.float32(1)), shared)

    def _least(self, ratios: Floats, shared: bool) -> Floats:
        errors = self._errors(ratios)
        if shared:
            errors = np.broadcast_to(errors.sum(1, keepdims=True), errors.shape)
        least: Floats = np.take_along_axis(ratios, errors.argmin(0)[None], 0)[0]
        return least

    def _errors(self, ratios: Floats) -> Floats:
        values, weights = self.sample, torch.ones(self.sample.shape[1])
        if len(weights) < self.population:
            # What clipping costs most is the extremes, which a sample can miss; they count once, the sample for all.
            weights = torch.cat((weights * (self.population / len(weights)), torch.ones(2)))
            values = torch.cat((values, torch.from_numpy(np.stack((self.low, self.high), 1))), 1)
        return self.grid.errors(values, weights, *self.grid.parameters(*_range(ratios, self.centre, self.low, self.high)))

    def analytic(self) -> Floats:
        """The ratios of ACIQ, (2, groups): if each group were a Laplacian, and if it were a Gaussian.

        What a ReLU left is half of such a distribution, whose levels all lie on one side: as one bit more on both.
        """
        folded = ((self.low == 0) | (self.high == 0)) & (not self.grid.symmetric)
        distance = (self.sample - torch.from_numpy(self.centre).unsqueeze(1)).abs_()
        seen = distance.shape[1] - torch.from_numpy(folded).unsqueeze(1) * (self.sample == 0).sum(1, keepdim=True)
        seen = seen.clamp_(min=1).squeeze(1)
        deviations = torch.stack((distance.sum(1) / seen, (distance.square().sum(1) / seen).sqrt())).numpy()
        two, one = (np.array(ANALYTIC[bits], np.float32)[:, None] for bits in (self.grid.bits, self.grid.bits + 1))
        ratios = np.where(folded, one, two) * deviations / _reach(self.centre, self.low, self.high)
        clipped: Floats = np.clip(ratios, 1e-3, 1).astype(np.float32)
        return clipped
