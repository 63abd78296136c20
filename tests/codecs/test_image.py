"""Images: their grey levels found again, and the transform beside scipy's and beside real JPEG."""

import io

import numpy as np
import pytest
import torch
from codec_tensors import FLOATS, KINDS, as_numpy, assert_same_bits, channel_axis, checked, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn

from splitinfer import codecs
from splitinfer.codecs.dct import _basis, _scan, _table

MEAN, STD = (torch.tensor(row).view(1, 3, 1, 1) for row in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # of ImageNet
UINT8 = codecs.get("uint8")


def photograph(size=96, noise=2.0):
    """(1, 3, size, size) levels 0..255 with edges, gradients and noise, of one scene in three colours."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    grey = 120 + 80 * np.sin(5 * x + 3 * y) * np.cos(4 * y) + 40 * ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.06)
    colours = np.stack([grey, 0.8 * grey + 20 * x, 0.6 * grey + 30 * y])
    return torch.from_numpy(np.clip(np.rint(colours + rng.normal(size=(1, size, size)) * noise), 0, 255)[None]).float()


def back(codec, tensor):
    return codec.decode(codec.encode(tensor))


# -- uint8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("low", [0, 37])
def test_levels_of_a_normalised_photograph_are_found(dtype, layout, low):
    """Also where the photograph does not use all 256 levels, so that its range / 255 would be another grid."""
    levels = photograph().clamp(min=low, max=231)
    tensor = ((levels / 255 - MEAN) / STD).to(dtype).contiguous(memory_format=layout)
    got = back(UINT8, tensor)
    assert got.stride() == tensor.stride()
    assert (got - tensor).abs().max() < 2e-6
    assert torch.equal(((got * STD + MEAN) * 255).round().float(), levels)


def test_photographs_take_less_than_their_levels_in_zstd():
    levels = photograph()
    tensor = (levels / 255 - MEAN) / STD
    plain = codecs.get("zstd").encode(levels.to(torch.uint8))
    assert len(UINT8.encode(tensor)) < 0.85 * len(plain)
    assert len(UINT8.encode(tensor)) < len(codecs.get("int8").encode(tensor))


@settings(checked, max_examples=100)
@given(tensor=tensors(dtypes=FLOATS, kinds=KINDS))
def test_error_is_at_most_half_a_255th_of_the_range_of_the_channel(tensor):
    got = back(UINT8, tensor)
    x, y = as_numpy(tensor), as_numpy(got)
    if tensor.numel() == 0 or not np.isfinite(x).all():
        return assert_same_bits(got, tensor)
    axis = channel_axis(tensor)
    others = None if axis is None else tuple(place for place in range(x.ndim) if place != axis)
    extent = np.maximum(x.max(axis=others, keepdims=axis is not None) - x.min(axis=others, keepdims=axis is not None), 1e-37)
    rounding = {torch.float32: 2**-21, torch.float64: 2**-21, torch.float16: 2**-10, torch.bfloat16: 2**-7}[tensor.dtype]
    largest = np.abs(x).max(axis=others, keepdims=axis is not None)
    assert (np.abs(y - x) <= extent / 255 * 0.501 + 3 * rounding * largest + 1e-7 * (tensor.dtype == torch.float16)).all()
    return None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["uint8", "dct90"])
def test_images_with_nan_or_infinity_travel_whole(name, bad):
    tensor = photograph(32) / 255
    tensor[0, 1, 5, 6] = bad
    assert_same_bits(back(codecs.get(name), tensor), tensor)


# -- dct


def test_basis_is_the_cosine_transform():
    block = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    basis = _basis().numpy()
    assert np.allclose(basis @ block @ basis.T, dctn(block, norm="ortho"), atol=1e-5)
    assert np.allclose(basis @ basis.T, np.eye(8), atol=1e-6)


def test_scan_is_the_zigzag_of_jpeg():
    assert _scan()[:16].tolist() == [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5]
    assert sorted(_scan().tolist()) == list(range(64))
    assert _scan()[-3:].tolist() == [55, 62, 63]


def test_tables_are_those_of_a_jpeg_file():
    image = pytest.importorskip("PIL.Image")
    picture = image.fromarray(photograph(16)[0].permute(1, 2, 0).numpy().astype(np.uint8))
    for quality in (5, 25, 50, 75, 90, 100):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        tables = image.open(io.BytesIO(file.getvalue())).quantization
        for chroma in (False, True):
            assert _table(quality, chroma).reshape(64).astype(int).tolist() == list(tables[int(chroma)])


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_grey_blocks_beside_scipy(quality):
    """One channel without colour: quantised coefficients, written out."""
    levels = photograph(24)[:, :1]
    levels[0, 0, 0, 0], levels[0, 0, 0, 1] = 0, 255  # the whole range: levels are found exactly
    got = back(codecs.get(f"dct{quality}"), levels).numpy()[0, 0]
    table = _table(quality, False).reshape(8, 8)
    want = np.empty((24, 24))
    for row in range(0, 24, 8):
        for column in range(0, 24, 8):
            block = levels[0, 0, row : row + 8, column : column + 8].numpy() - 128
            quantised = np.rint(dctn(block, norm="ortho") / table) * table
            want[row : row + 8, column : column + 8] = dctn(quantised, type=3, norm="ortho")
    assert np.abs(np.clip(want + 128, 0, 255) - got).max() < 2e-2 or np.mean(np.abs(np.clip(want + 128, 0, 255) - got) > 0.02) < 0.02


def psnr(got, want):
    return 10 * np.log10(255**2 / np.mean((np.asarray(got, float) - np.asarray(want, float)) ** 2))


@pytest.mark.parametrize("quality", [50, 75, 90])
def test_bytes_and_error_are_those_of_jpeg(quality):
    image = pytest.importorskip("PIL.Image")
    levels = photograph(128)
    file = io.BytesIO()
    image.fromarray(levels[0].permute(1, 2, 0).numpy().astype(np.uint8)).save(file, "JPEG", quality=quality)
    theirs = np.asarray(image.open(io.BytesIO(file.getvalue()))).transpose(2, 0, 1)
    tensor = (levels / 255 - MEAN) / STD
    data = codecs.get(f"dct{quality}").encode(tensor)
    ours = (codecs.get(f"dct{quality}").decode(data) * STD + MEAN)[0] * 255
    assert abs(psnr(ours, levels[0]) - psnr(theirs, levels[0])) < 2
    assert len(data) < 1.35 * len(file.getvalue())


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (2, 3, 17, 31), (1, 3, 1, 40), (1, 1, 8, 9), (3, 2, 33, 7), (1, 4, 5, 5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_any_size_comes_back_nearly(shape, layout):
    grids = torch.meshgrid(*(torch.linspace(0, 1, size) for size in shape), indexing="ij")
    tensor = sum(grids).contiguous(memory_format=layout)
    got = back(codecs.get("dct95"), tensor)
    assert got.stride() == tensor.stride()
    assert (got - tensor).abs().mean() < 0.05


@settings(checked, max_examples=40)
@given(tensor=tensors(dtypes=FLOATS, kinds=KINDS), quality=st.integers(1, 100))
def test_images_of_any_values_stay_within_their_range(tensor, quality):
    """Levels beyond 0..255 are clipped, so nothing overshoots."""
    got = back(codecs.get(f"dct{quality}"), tensor)
    x, y = as_numpy(tensor), as_numpy(got)
    if x.size and np.isfinite(x).all():
        slack = (np.abs(x).max() + 1e-30) * 2**-6
        assert y.min() >= x.min() - slack
        assert y.max() <= x.max() + slack


def test_higher_quality_is_nearer_and_longer():
    tensor = photograph(64) / 255
    sizes, errors = [], []
    for quality in (5, 25, 50, 75, 90, 100):
        codec = codecs.get(f"dct{quality}")
        sizes.append(len(codec.encode(tensor)))
        errors.append(float((back(codec, tensor) - tensor).square().mean()))
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
