"""Quantisation to few bits beside the same arithmetic in numpy, and clipping beside brute force."""

import struct

import numpy as np
import pytest
import torch
import zstandard
from codec_tensors import FLOATS, KINDS, as_numpy, assert_same_bits, channel_axis, checked, overlaps, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from splitinfer import codecs
from splitinfer.codecs.clipping import ANALYTIC
from splitinfer.codecs.filters import pack_bits, packed_nbytes, unpack_bits

BITS = (8, 6, 4, 3, 2)
SPANS = ("tensor", "channel", "block16", "block64")
NAMES = [f"int{bits}/{span}{form}" for bits in BITS for span in SPANS for form in ("", "/sym")]
STEPS = {torch.float32: 2**-22, torch.float64: 2**-22, torch.float16: 2**-10, torch.bfloat16: 2**-7}


# -- oracles: everything from the bytes, in numpy, as docs/wire-format.md tells


def grouped(flat, tensor, span):
    """(row of the group of each element) for elements in row-major order of a row-major tensor."""
    count = len(flat)
    if span == "tensor":
        return np.zeros(count, int)
    if span.startswith("block"):
        return np.arange(count) // int(span[5:])
    axis = channel_axis(tensor)
    if axis is None:
        return np.zeros(count, int)
    shape = [1] * tensor.dim()
    shape[axis] = tensor.shape[axis]
    return np.broadcast_to(np.arange(tensor.shape[axis]).reshape(shape), tuple(tensor.shape)).reshape(-1)


def parsed(data, tensor, span):
    """Codes, scales and zeros of a body without compression."""
    head = -(-(8 + 8 * tensor.dim()) // 16) * 16
    bits, kind, symmetric, reserved, block = struct.unpack_from("<BBBBI", data, head)
    assert kind == ("tensor", "channel", "block").index(span.rstrip("0123456789"))
    assert (reserved, block) == (0, int(span[5:]) if kind == 2 else 0)
    rows = grouped(np.arange(tensor.numel()), tensor, span)
    groups = rows.max() + 1
    at = head + 8
    if kind == 2:
        scale = (np.frombuffer(data, np.uint16, groups, at).astype(np.uint32) << 16).view(np.float32)
        at += 2 * groups
        form = np.int8
    else:
        scale = np.frombuffer(data, np.float32, groups, at)
        at += 4 * groups
        form = np.int16
    middle = 2 ** (bits - 1)
    if symmetric:
        zero = np.full(groups, middle, np.float32)
    else:
        zero = np.frombuffer(data, form, groups, at).astype(np.float32) + middle
        at += groups * np.dtype(form).itemsize
    string = np.unpackbits(np.frombuffer(data[at:], np.uint8), bitorder="little")[: bits * tensor.numel()].reshape(-1, bits)
    codes = (string * 2 ** np.arange(bits)).sum(1)
    assert len(data) == at + -(-bits * tensor.numel() // 8)
    return codes, scale[rows], zero[rows]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2, 6, 5, 8), (3, 17, 40), (333,)])
def test_body_read_by_hand_and_codes_recomputed(name, shape):
    span = name.split("/")[1]
    tensor = torch.from_numpy(np.random.default_rng(1).normal(size=shape).astype(np.float32))
    data = codecs.get(name).encode(tensor)
    codes, scale, zero = parsed(data, tensor, span)
    x, top = tensor.numpy().reshape(-1), 2 ** int(name[3]) - 1
    want = np.clip(np.rint(x / scale + zero), 0, top)
    off = np.abs(codes - want)
    assert off.max() <= 1  # x / scale and x * (1 / scale) may round a tie to either side
    assert off.mean() < 0.01
    assert (codecs.get(name).decode(data).numpy().reshape(-1) == ((codes - zero) * scale).astype(np.float32)).all()


@pytest.mark.parametrize("name", NAMES)
@settings(checked, max_examples=40)
@given(tensor=tensors(dtypes=FLOATS, kinds=KINDS))
def test_error_is_at_most_half_a_step_within_the_range_and_zeros_stay(name, tensor):
    codec = codecs.get(name)
    got = codec.decode(codec.encode(tensor))
    if tensor.numel() == 0 or not np.isfinite(as_numpy(tensor)).all():
        return assert_same_bits(got, tensor)
    if not overlaps(tensor) and tensor.numel():
        assert got.stride() == tensor.stride()
    x, y = as_numpy(tensor), as_numpy(got)
    assert np.isfinite(y).all()
    assert np.abs(y).max() <= 2.6 * np.abs(x).max() + 1e-30  # not wilder than the tensor, whatever was clipped
    assert (y[x == 0] == 0).all()
    return None


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("make", ["normal", "relu", "negative", "near zero"])
def test_eight_bits_are_within_half_a_step_of_the_group(span, symmetric, dtype, make):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 4, 8, 8)) * np.array([1, 100, 1e-3, 7])[None, :, None, None]
    values = {"normal": values, "relu": np.maximum(values, 0), "negative": -np.abs(values), "near zero": np.abs(values) + 0.3}[make]
    tensor = torch.from_numpy(values).to(dtype)
    got = codecs.get(f"int8/{span}{'/sym' if symmetric else ''}")
    x, y = as_numpy(tensor).reshape(-1), as_numpy(got.decode(got.encode(tensor))).reshape(-1)
    rows = grouped(x, tensor, span)
    for row in range(rows.max() + 1):
        group = x[rows == row]
        low, high = group.min(), group.max()
        if span.startswith("block"):
            low, high = min(low, 0), max(high, 0)
        step = np.abs(group).max() / 127 if symmetric else (high - low) / 255
        step *= 1 + 2**-7 if span.startswith("block") else 1  # bfloat16, rounded up
        allowed = step * 0.501 + np.abs(group) * STEPS[dtype] + (step * 0.5 if symmetric or low * high < 0 else 0) * 2**-7
        assert (np.abs(y[rows == row] - group) <= allowed).all()


def test_narrow_ranges_far_from_zero_keep_their_precision():
    """An affine range that had to include 0 would have 15 steps of 7 here."""
    tensor = 100 + torch.rand(4096, generator=torch.Generator().manual_seed(0))
    for name, step in (("int4/tensor", 1 / 15), ("int6/tensor", 1 / 63), ("int8/channel", 1 / 255)):
        got = codecs.get(name).decode(codecs.get(name).encode(tensor))
        assert (got - tensor).abs().max() < 0.65 * step  # half a step, and a little where the ends were clipped
    block = codecs.get("int4/block64")
    assert (block.decode(block.encode(tensor)) - tensor).abs().max() < 100 / 119  # whose zero fits a byte


# -- clipping


@pytest.mark.parametrize("bits", sorted(ANALYTIC))
def test_analytic_clips_minimise_the_formulas_of_the_paper(bits):
    def laplace(a):
        return 2 * np.exp(-a) + a * a / (3 * 4**bits)

    def gauss(a):
        return 2 * ((1 + a * a) * norm.sf(a) - a * norm.pdf(a)) + a * a / (3 * 4**bits)

    for formula, constant in zip((laplace, gauss), ANALYTIC[bits], strict=True):
        assert minimize_scalar(formula, bounds=(0.1, 30), method="bounded").x == pytest.approx(constant, abs=2e-3)


def mse_of(x, low, high, bits, symmetric):
    """Mean squared error of quantising with this range, zero kept on the grid, in float64."""
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    scale = max(-low, high) / (middle - 1) if symmetric else (high - low) / top
    zero = middle if symmetric else np.rint(-low / scale)
    return np.mean(((np.clip(np.rint(x / scale + zero), 0, top) - zero) * scale - x) ** 2)


def brute(x, bits, symmetric):
    """The least error over a fine grid of ranges."""
    ratios = np.linspace(0.02, 1, 99)
    if symmetric:
        return min(mse_of(x, -r * np.abs(x).max(), r * np.abs(x).max(), bits, True) for r in ratios)
    if x.min() == 0:
        return min(mse_of(x, 0, r * x.max(), bits, False) for r in ratios)
    return min(mse_of(x, r * x.min(), s * x.max(), bits, False) for r in ratios[::7] for s in ratios[::7])


DISTRIBUTIONS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "Laplace": lambda rng, n: rng.laplace(size=n),
    "ReLU of normal": lambda rng, n: np.maximum(rng.normal(size=n), 0),
    "ReLU of Laplace": lambda rng, n: np.maximum(rng.laplace(size=n), 0),
    "exponential": lambda rng, n: rng.exponential(size=n) * (rng.random(n) < 0.5),
    "uniform": lambda rng, n: rng.uniform(-1, 1, n),
    "outliers": lambda rng, n: rng.normal(size=n) * np.where(rng.random(n) < 0.01, 10, 1),
    "GELU": lambda rng, n: (lambda x: x * norm.cdf(x))(2 * rng.normal(size=n)),
}


@pytest.mark.parametrize("bits", [6, 4, 3, 2])
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("count", [3000, 60_000])
def test_clipping_is_near_the_best_on_a_grid(bits, kind, symmetric, count):
    x = DISTRIBUTIONS[kind](np.random.default_rng(3), count).astype(np.float32)
    codec = codecs.get(f"int{bits}/tensor{'/sym' if symmetric else ''}")
    found = np.mean((codec.decode(codec.encode(torch.from_numpy(x))).numpy().astype(float) - x) ** 2)
    sampled = 1.25 if count > 1 << 14 else 1.12  # a sample knows little of a tail
    assert found <= sampled * brute(x.astype(float), bits, symmetric)


@pytest.mark.parametrize("name", [name for name in NAMES if name[3] != "8"])
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_clipping_never_loses_to_the_full_range(name, kind):
    x = DISTRIBUTIONS[kind](np.random.default_rng(4), 4 * 4096).astype(np.float32)
    tensor = torch.from_numpy(x).view(1, 4, 64, 64)
    codec = codecs.get(name)
    rows = grouped(x, tensor, name.split("/")[1])
    order = np.argsort(rows, kind="stable")
    starts = np.searchsorted(rows[order], np.arange(rows.max() + 1))
    naive = sum(
        mse_of(group, min(group.min(), 0), max(group.max(), 0) + 1e-30, int(name[3]), name.endswith("sym")) * len(group)
        for group in np.split(x[order].astype(float), starts[1:])
    ) / len(x)
    found = np.mean((codec.decode(codec.encode(tensor)).numpy().reshape(-1).astype(float) - x) ** 2)
    # The naive range hits its ends exactly; a bfloat16 scale does not, which weighs most in blocks of 16.
    assert found <= (1.12 if "block" in name else 1.05) * naive


def test_an_outlier_that_the_sample_misses_is_not_clipped_away():
    """Its own error would outweigh what the others gain."""
    x = np.random.default_rng(0).normal(size=100_000).astype(np.float32) * 0.01
    x[77_777] = 1e4
    codec = codecs.get("int4/tensor")
    got = codec.decode(codec.encode(torch.from_numpy(x))).numpy()
    assert np.mean((got - x) ** 2) <= 1.05 * mse_of(x.astype(float), min(x.min(), 0), x.max(), 4, False)


def test_four_bits_beat_naive_absmax():
    """Benefits of the usual size: channels apart, clipped, one side used."""
    rng = np.random.default_rng(0)
    gains = {}
    for kind, values in {"laplace": rng.laplace(size=(1, 32, 56, 56)), "relu": np.maximum(rng.laplace(size=(1, 32, 56, 56)), 0)}.items():
        x = (values * rng.uniform(0.5, 2, (1, 32, 1, 1))).astype(np.float32)
        codec = codecs.get("int4/channel")
        found = np.mean((codec.decode(codec.encode(torch.from_numpy(x))).numpy() - x) ** 2)
        gains[kind] = mse_of(x, -np.abs(x).max(), np.abs(x).max(), 4, True) / found
    assert gains["laplace"] > 4
    assert gains["relu"] > 8  # a signed grid wastes half its levels behind a ReLU


@pytest.mark.parametrize("name", ["int8/channel", "int4/channel", "int8/block64", "int4/block64", "int4/block16/sym"])
def test_one_outlier_channel_does_not_harm_the_others(name):
    values = np.random.default_rng(0).normal(size=(1, 64, 16, 16)).astype(np.float32)
    values[:, 7] *= 100
    codec, whole = codecs.get(name), codecs.get(f"{name[:4]}/tensor")
    error = lambda codec: np.delete(codec.decode(codec.encode(torch.from_numpy(values))).numpy() - values, 7, 1)  # noqa: E731
    assert 20 * (error(codec) ** 2).mean() < (error(whole) ** 2).mean()


def test_smaller_blocks_and_more_bits_are_nearer():
    tensor = torch.from_numpy(np.random.default_rng(0).laplace(size=(1, 16, 32, 32))).float()
    error = lambda name: float((codecs.get(name).decode(codecs.get(name).encode(tensor)) - tensor).square().mean())  # noqa: E731
    errors = [error(f"int{bits}/channel") for bits in BITS]
    assert errors == sorted(errors)
    errors = [error(f"int4/block{size}") for size in (16, 32, 64, 128, 256, 512, 1024)]
    assert errors == sorted(errors)


# -- bits


@checked
@given(st.integers(1, 8), st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_packed_bits_are_a_string_of_bits(bits, count, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.uint8)
    string = "".join(format(code, f"0{bits}b")[::-1] for code in codes)
    want = bytes(int(string[at : at + 8][::-1], 2) for at in range(0, len(string), 8))
    packed = pack_bits(codes, bits)
    assert packed.tobytes() == want
    assert packed_nbytes(count, bits) == len(want)
    assert (unpack_bits(packed, bits, count) == codes).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_packing_tile_by_tile(bits):
    codes = np.random.default_rng(0).integers(0, 1 << bits, (1 << 18) + 5).astype(np.uint8)
    want = np.packbits(np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :bits], bitorder="little")
    assert (pack_bits(codes, bits) == want).all()
    assert (unpack_bits(want, bits, len(codes)) == codes).all()


# -- compression


@pytest.mark.parametrize("bits", BITS)
def test_compressed_codes_are_the_same_codes_in_fewer_bytes(bits):
    tensor = torch.relu(torch.from_numpy(np.random.default_rng(0).normal(size=(1, 64, 28, 28)) - 0.5)).float()
    plain, zipped = codecs.get(f"int{bits}/channel"), codecs.get(f"int{bits}/channel+zstd")
    assert torch.equal(plain.decode(plain.encode(tensor)), zipped.decode(zipped.encode(tensor)))
    assert len(zipped.encode(tensor)) < 0.85 * len(plain.encode(tensor))
    noise = torch.rand(1, 64, 28, 28)
    assert len(zipped.encode(noise)) <= len(plain.encode(noise))


def test_both_ways_to_compress_codes():
    tensor = torch.relu(torch.randn(1, 64, 28, 28, generator=torch.Generator().manual_seed(0)))
    for name, mode, nbytes in (("int6/channel+zstd", 2, tensor.numel()), ("int2/channel+zstd", 1, tensor.numel() // 4)):
        data = codecs.get(name).encode(tensor)
        assert data[1] == mode
        assert len(zstandard.ZstdDecompressor().decompress(data[48 + 8 + 64 * 6 :])) == nbytes


@pytest.mark.parametrize("name", ["int8/block64", "int4/tensor"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_travels_whole(name, bad):
    tensor = torch.rand(4, 8, 16, 16)
    tensor[2, 3, 4, 5] = bad
    assert_same_bits(codecs.get(name).decode(codecs.get(name).encode(tensor)), tensor)
