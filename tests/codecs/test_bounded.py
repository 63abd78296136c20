"""The promised bound, element by element in exact arithmetic, on everything that a tensor can hold."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from codec_tensors import FLOATS, KINDS, as_numpy, assert_same_bits, checked, element_bytes, overlaps, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer import codecs
from splitinfer.codecs.prediction import best_lags, differences, sums, unzigzag, zigzag

BOUNDS = ("1e-7", "0.001", "0.01", "0.3", "7", "1e6", "1e30", "1e-30", "1e-45", "1e300")


def worst(got, want):
    """The largest distance between finite elements, exactly; other elements must have their bits."""
    x, y = as_numpy(want).reshape(-1), as_numpy(got).reshape(-1)
    finite = np.isfinite(x)
    assert np.isfinite(y[finite]).all()
    same = element_bytes(want), element_bytes(got)
    size = want.dtype.itemsize
    for place in np.flatnonzero(~finite):
        assert same[0][place * size : (place + 1) * size] == same[1][place * size : (place + 1) * size]
    distances = np.abs(x[finite] - y[finite])
    if not len(distances):
        return Fraction(0)
    near = np.argsort(distances)[-20:]  # float64 rounds differences; the largest ones are looked at as fractions
    return max(abs(Fraction(float(x[finite][place])) - Fraction(float(y[finite][place]))) for place in near)


@pytest.mark.parametrize("bound", BOUNDS)
@settings(checked, max_examples=70)
@given(tensor=tensors(dtypes=FLOATS, kinds=KINDS))
def test_no_finite_element_is_farther_off_than_the_bound(bound, tensor):
    codec = codecs.get(f"eb{bound}")
    got = codec.decode(codec.encode(tensor))
    assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
    if tensor.numel() and not overlaps(tensor):
        assert got.stride() == tensor.stride()
    assert worst(got, tensor) <= Fraction(float(bound))


@pytest.mark.parametrize("share", ["1e-6", "0.001", "0.5"])
@checked
@given(tensor=tensors(dtypes=FLOATS, kinds=KINDS))
def test_relative_bounds_are_of_the_range_of_the_finite_values(share, tensor):
    codec = codecs.get(f"eb{share}rel")
    got = codec.decode(codec.encode(tensor))
    finite = as_numpy(tensor)[np.isfinite(as_numpy(tensor))]
    extent = Fraction(float(finite.max())) - Fraction(float(finite.min())) if finite.size else Fraction(0)
    assert worst(got, tensor) <= Fraction(float(share)) * extent * (1 + Fraction(1, 2**50))


@checked
@given(st.floats(1e-6, 1e3), st.integers(0, 2**32 - 1), st.sampled_from(FLOATS))
def test_values_between_two_steps(bound, seed, dtype):
    """Halfway between codes rounding decides, and the arithmetic must not push an element over the bound."""
    ticks = np.random.default_rng(seed).integers(-3000, 3000, 500)
    values = torch.from_numpy((ticks * 2 + 1) * float(f"{bound:.3g}")).to(dtype)
    codec = codecs.get(f"eb{bound:.3g}".replace("e+", "e"))
    assert worst(codec.decode(codec.encode(values)), values) <= Fraction(float(f"{bound:.3g}"))


def test_non_finite_elements_are_kept_beside_the_codes():
    tensor = torch.randn(1, 8, 40, 40)
    tensor[0, 3, 5, 7:10] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    tensor[0, 0, 0, 0] = 1e30  # too far for a code
    codec = codecs.get("eb0.01")
    data = codec.encode(tensor)
    assert data[1] < 16
    assert len(data) < tensor.nbytes / 3
    got = codec.decode(data)
    assert worst(got, tensor) <= Fraction(0.01)
    assert got[0, 0, 0, 0] == tensor[0, 0, 0, 0]


def test_many_exceptions_or_a_bound_below_the_noise_travel_whole():
    tensor = torch.randn(1000)
    for name, other in (("eb1e-12", tensor), ("eb0.01", torch.where(tensor > 1, float("nan"), tensor)), ("eb1e-30", tensor)):
        data = codecs.get(name).encode(other)
        assert data[1] >= 16
        assert_same_bits(codecs.get(name).decode(data), other)


def test_coarser_bounds_take_fewer_bytes():
    tensor = torch.randn(1, 16, 32, 32)
    sizes = [len(codecs.get(f"eb{bound}").encode(tensor)) for bound in (1e-5, 1e-4, 1e-3, 0.01, 0.1, 1)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < tensor.nbytes / 18


def smooth(shape):
    grid = np.meshgrid(*(np.linspace(0, 3, size) for size in shape), indexing="ij")
    return torch.from_numpy(sum(np.sin(axis * (turn + 1)) for turn, axis in enumerate(grid))).float()


def test_smooth_maps_are_predicted():
    tensor = smooth((1, 4, 64, 64))
    shuffled = tensor.reshape(-1)[torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(0))].view(tensor.shape)
    codec = codecs.get("eb0.001")
    assert 4 * len(codec.encode(tensor)) < len(codec.encode(shuffled))


def test_channels_last_maps_are_predicted_too():
    tensor, codec = smooth((1, 16, 32, 32)), codecs.get("eb0.001")
    assert len(codec.encode(tensor.contiguous(memory_format=torch.channels_last))) < 1.3 * len(codec.encode(tensor))


# -- prediction


@checked
@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=80), st.lists(st.integers(1, 90), max_size=2))
def test_sums_undo_differences_even_where_they_overflow(values, lags):
    codes = np.array(values, np.int32)
    assert (sums(differences(codes, lags), lags) == codes).all()
    small = codes.astype(np.uint8)
    assert (sums(differences(small, lags), lags) == small).all()
    assert (unzigzag(zigzag(codes)) == codes).all()


def test_differences_written_out():
    codes = np.array([5, 7, 4, 9, 9, 1], np.int32)
    assert differences(codes, (1,)).tolist() == [5, 2, -3, 5, 0, -8]
    assert differences(codes, (3,)).tolist() == [5, 7, 4, 4, 2, -3]
    grid = np.arange(20, dtype=np.int32).reshape(4, 5) ** 2
    lorenzo = differences(grid.reshape(-1), (5, 1)).reshape(4, 5)
    assert (lorenzo[1:, 1:] == grid[1:, 1:] - grid[:-1, 1:] - grid[1:, :-1] + grid[:-1, :-1]).all()
    assert zigzag(np.array([0, -1, 1, -2, 2], np.int32)).tolist() == [0, 1, 2, 3, 4]


def test_lags_are_chosen_by_where_the_neighbours_are():
    rng = np.random.default_rng(0)
    rows = (rng.integers(0, 200, (64, 1)) + rng.integers(0, 2, (64, 64))).astype(np.int32)
    assert best_lags(rows.reshape(-1), (64, 64)) == (1,)
    assert best_lags(rows.T.copy().reshape(-1), (64, 64)) == (64,)
    assert best_lags(rng.integers(0, 200, 4096).astype(np.int32), (64, 64)) == ()
    for sizes in ((), (1,), (3,), (1, 1), (5, 1, 1)):
        assert best_lags(rng.integers(0, 9, int(np.prod(sizes))).astype(np.int32), sizes) in ((), (1,))
