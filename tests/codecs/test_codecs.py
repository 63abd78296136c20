"""Each codec against arithmetic written out here in numpy: what comes back, in which layout, and what is refused."""

import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from codec_tensors import FLOATS, as_numpy, assert_same_bits, channel_axis, checked, element_bytes, filled, offsets, overlaps, tensors
from hypothesis import given, settings

from splitinfer import codecs
from splitinfer.codecs.block import ALIGNMENT, DEFAULT_LIMIT_NBYTES, DTYPES, Header
from splitinfer.errors import CodecError

DTYPE_NUMBERS = [
    "float32", "float64", "float16", "bfloat16", "bool", "uint8", "int8", "int16", "int32", "int64", "complex64", "complex128", "uint16",
    "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "complex32",
]
NAMES = ("raw", "zstd", "fp16", "int8")
QUANTISED = FLOATS
HALVED = (torch.float32, torch.float64)
RAW, ZSTD, FP16, INT8 = (codecs.get(name) for name in NAMES)
FORMATS = {torch.float32: (np.float32, np.uint32), torch.float64: (np.float64, np.uint64)}


# -- oracles


def int8_bound(tensor):
    """Largest allowed error of each element: half its channel's scale, and the rounding of 32-bit arithmetic and of the dtype."""
    x = as_numpy(tensor)
    axis = channel_axis(tensor)
    others = None if axis is None else tuple(place for place in range(x.ndim) if place != axis)
    low = np.minimum(x.min(axis=others, keepdims=axis is not None), 0)
    high = np.maximum(x.max(axis=others, keepdims=axis is not None), 0)
    scale = np.maximum((high - low) / 255, np.finfo(np.float32).tiny)
    steps = {torch.float32: 2**-23, torch.float64: 2**-23, torch.float16: 2**-10, torch.bfloat16: 2**-7}
    return scale * (0.5 + 2e-4) + (np.abs(x) + scale) * steps[tensor.dtype] + (2**-24 if tensor.dtype == torch.float16 else 0)


def test_strategy_reaches_every_layout():
    seen = set()

    @settings(derandomize=True, deadline=None, max_examples=400, database=None)
    @given(tensors())
    def look(tensor):
        seen.add("contiguous" if tensor.is_contiguous() else "strided")
        seen.update(name for name, true in (
            ("0-dim", tensor.dim() == 0), ("5-D", tensor.dim() == 5), ("empty", tensor.numel() == 0),
            ("broadcast", 0 in tensor.stride() and tensor.numel() > 1), ("overlapping", overlaps(tensor)),
            ("size 1", 1 in tensor.shape), ("gaps", tensor.numel() and max(offsets(tensor)) + 1 > tensor.numel()),
        ) if true)

    look()
    assert seen == {"contiguous", "strided", "0-dim", "5-D", "empty", "broadcast", "overlapping", "size 1", "gaps"}


# -- round trips


def test_numbers_of_dtypes_never_change():
    assert [str(dtype).removeprefix("torch.") for dtype in DTYPES] == DTYPE_NUMBERS
    for number, name in enumerate(DTYPE_NUMBERS):
        for codec in map(codecs.get, NAMES):
            assert codec.encode(torch.zeros(2, dtype=getattr(torch, name)))[2] == number


def test_numbers_of_codecs_never_change():
    assert codecs.names() == NAMES
    assert [codecs.get(name).codec_id for name in NAMES] == [0, 1, 2, 3]
    assert codecs.LOSSLESS == ("raw", "zstd")


@pytest.mark.parametrize("name", codecs.LOSSLESS)
@pytest.mark.parametrize("copy", [True, False])
@checked
@given(tensor=tensors())
def test_lossless_returns_every_bit_and_the_layout(name, copy, tensor):
    codec = codecs.get(name)
    before = element_bytes(tensor)
    data = codec.encode(tensor)
    assert_same_bits(codec.decode(data, copy=copy), tensor)
    assert element_bytes(tensor) == before
    assert codec.encode(tensor) == data


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_NUMBERS)
@pytest.mark.parametrize("name", NAMES)
def test_each_dtype_in_each_codec(name, dtype):
    codec = codecs.get(name)
    whole = name in codecs.LOSSLESS or dtype not in (HALVED if name == "fp16" else QUANTISED)
    base = filled(dtype, 720, np.random.default_rng(5), "bits" if whole else "smooth")
    scalar = base[0].expand(2, 3)
    for tensor in (base, base.view(2, 3, 4, 5, 6), base.view(24, 30).t(), base.view(24, 30)[::2, 1::3], scalar, base[::2][:1], base[:0]):
        got = codec.decode(codec.encode(tensor))
        if whole:
            assert_same_bits(got, tensor)
        else:
            assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
            assert got.numel() == 0 or got.stride() == tensor.stride()


def test_values_and_sign_of_zero_and_nan_payloads_survive():
    bits = np.array([0x7FC01234, 0xFF812345, 0x80000000, 0, 1, 0x807FFFFF, 0x7F800000, 0x7F7FFFFF], np.uint32)
    tensor = torch.from_numpy(bits.view(np.float32))
    for codec in (RAW, ZSTD):
        assert codec.decode(codec.encode(tensor)).numpy().view(np.uint32).tolist() == bits.tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [
    lambda: torch.rand(2, 64, 1, 1).to(memory_format=torch.channels_last),
    lambda: torch.rand(4, 1, 8, 8).as_strided((4, 1, 8, 8), (64, 1, 8, 1)),
    lambda: torch.rand(1, 3, 8, 8).contiguous(memory_format=torch.channels_last),
], ids=["1x1 map", "one channel", "batch of one"])
def test_strides_of_dimensions_of_size_one_survive(name, make):
    """Convolutions read the memory format off them, and then sum in another order."""
    tensor = make()
    assert codecs.get(name).decode(codecs.get(name).encode(tensor)).stride() == tensor.stride()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("start", [0, 1, 3, 5, 16])
def test_place_within_a_cache_line_survives(name, copy, start):
    tensor = torch.rand(200)[start : start + 64].view(2, 32)
    got = codecs.get(name).decode(codecs.get(name).encode(tensor), copy=copy)
    assert tensor.data_ptr() % 64 == 4 * start % 64
    assert got.data_ptr() % 64 == 4 * start % 64


def test_memory_that_starts_between_elements():
    memory = bytearray(np.random.default_rng(3).bytes(65))
    for offset in (1, 2, 3, 5):
        tensor = torch.frombuffer(memory, dtype=torch.float32, offset=offset, count=15)
        assert element_bytes(RAW.decode(RAW.encode(tensor))) == bytes(memory[offset : offset + 60])


def test_conjugate_and_negative_views_are_resolved():
    tensor = torch.complex(torch.arange(6.0), torch.arange(6.0) + 1).view(2, 3)
    assert torch.equal(RAW.decode(RAW.encode(tensor.conj())), torch.complex(tensor.real, -tensor.imag))
    assert torch.equal(RAW.decode(RAW.encode(tensor.conj().imag)), -tensor.imag.clone())


def test_broadcast_elements_travel_once_and_stay_broadcast():
    tensor = torch.arange(3.0).expand(1000, 3)
    data = RAW.encode(tensor)
    assert len(data) < 100
    for copy in (True, False):
        got = RAW.decode(data, copy=copy)
        assert got.stride() == (0, 1)
        assert got.untyped_storage().nbytes() < 200
        assert torch.equal(got, tensor)


def test_requires_grad_and_parameters_are_plain_tensors():
    got = RAW.decode(RAW.encode(torch.nn.Parameter(torch.ones(2, 2))))
    assert type(got) is torch.Tensor
    assert not got.requires_grad


# -- zstd


def test_zstd_pays_or_stores():
    noise = torch.from_numpy(np.frombuffer(np.random.default_rng(0).bytes(1 << 18), np.int32).copy())
    assert len(ZSTD.encode(noise)) == len(RAW.encode(noise))
    sparse = torch.from_numpy(np.maximum(np.random.default_rng(0).normal(size=1 << 16) - 1, 0).astype(np.float32))
    assert len(ZSTD.encode(sparse)) < 0.5 * len(RAW.encode(sparse))


def test_zstd_stores_where_the_sample_promised_too_much(monkeypatch):
    noise = torch.from_numpy(np.frombuffer(np.random.default_rng(0).bytes(1 << 18), np.int32).copy())
    for mode in (1, 2):
        monkeypatch.setattr(type(ZSTD), "_choose", lambda self, data, itemsize, mode=mode: mode)
        data = ZSTD.encode(noise)
        assert data[1] == 0
        assert len(data) == len(RAW.encode(noise))
        assert_same_bits(ZSTD.decode(data), noise)


def test_zstd_body_is_a_zstd_frame_of_shuffled_bytes():
    """What docs/wire-format.md says, read by hand."""
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    data = ZSTD.encode(torch.from_numpy(values.copy()))
    assert data[1] == 2
    planes = np.frombuffer(zstandard.ZstdDecompressor().decompress(data[16:]), np.uint8).reshape(4, 1000)
    assert planes.T.tobytes() == values.tobytes()


# -- fp16


@checked
@given(tensors(dtypes=HALVED))
def test_fp16_is_numpys_half_with_finite_values_clipped(tensor):
    numpy_dtype, bits = FORMATS[tensor.dtype]
    x = tensor.contiguous().numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        clipped = np.where(np.isfinite(x), np.clip(x, -65504, 65504), x)
        want = clipped.astype(np.float32).astype(np.float16).astype(numpy_dtype)
    got = FP16.decode(FP16.encode(tensor))
    numbers = ~np.isnan(want)
    assert (np.isnan(got.numpy()) == ~numbers).all()
    assert (np.ascontiguousarray(got.numpy()).view(bits)[numbers] == np.ascontiguousarray(want).view(bits)[numbers]).all()
    assert got.dtype == tensor.dtype
    if tensor.numel() and not overlaps(tensor):
        assert got.stride() == tensor.stride()


@checked
@given(tensors(dtypes=[dtype for dtype in DTYPES if dtype not in HALVED]))
def test_fp16_leaves_other_dtypes_alone(tensor):
    assert_same_bits(FP16.decode(FP16.encode(tensor)), tensor)


def test_fp16_halves_the_bytes():
    assert len(FP16.encode(torch.rand(10, 100))) == 32 + 2 * 1000
    assert len(FP16.encode(torch.rand(10, 100).double())) == 32 + 2 * 1000


# -- int8


@checked
@given(tensors(dtypes=QUANTISED))
def test_int8_error_is_at_most_half_a_step_of_the_channel(tensor):
    got = INT8.decode(INT8.encode(tensor))
    assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
    if tensor.numel() == 0 or not np.isfinite(as_numpy(tensor)).all():
        return assert_same_bits(got, tensor)
    if not overlaps(tensor):
        assert got.stride() == tensor.stride()
    error = np.abs(as_numpy(got) - as_numpy(tensor))
    assert np.isfinite(error).all()
    assert (error <= int8_bound(tensor)).all()
    assert (as_numpy(got)[as_numpy(tensor) == 0] == 0).all()
    return None


@pytest.mark.parametrize("dtype", QUANTISED, ids=str)
@pytest.mark.parametrize("shape", [(64,), (40, 8), (4, 16, 8), (2, 8, 6, 6), (1, 4, 3, 4, 5), (3, 5), ()])
def test_int8_error_on_ordinary_maps(dtype, shape):
    rng = np.random.default_rng(len(shape))
    for scale in (1.0, 1e-3, 1e4):
        tensor = torch.from_numpy(np.asarray(rng.normal(size=shape) * scale + scale)).to(dtype)
        got = INT8.decode(INT8.encode(tensor))
        assert (np.abs(as_numpy(got) - as_numpy(tensor)) <= int8_bound(tensor)).all()


@checked
@given(tensors(dtypes=[dtype for dtype in DTYPES if dtype not in QUANTISED]))
def test_int8_leaves_integers_booleans_and_others_alone(tensor):
    assert_same_bits(INT8.decode(INT8.encode(tensor)), tensor)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_int8_sends_tensors_with_nan_or_infinity_whole(bad):
    tensor = torch.rand(4, 8, 16, 16)
    tensor[2, 3, 4, 5] = bad
    assert_same_bits(INT8.decode(INT8.encode(tensor)), tensor)


@pytest.mark.parametrize(("dtype", "ends"), [
    (torch.float32, [-3e38, 3e38]), (torch.float32, [-3.4028235e38, 3.4028235e38]), (torch.float64, [0, 1e39]),
    (torch.float64, [-1e300, 1]), (torch.float16, [-65504, 65504]),
])
def test_int8_sends_ranges_that_do_not_fit_whole(dtype, ends):
    """float16 +-65504 once came back as -inf: the zero point, rounded, lay beyond the dtype's range."""
    tensor = torch.tensor([*ends, 0, 1], dtype=dtype)
    assert_same_bits(INT8.decode(INT8.encode(tensor)), tensor)


@pytest.mark.parametrize("dtype", QUANTISED, ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 3e4, 1e-7])
def test_int8_constants(dtype, value):
    for shape in ((), (5,), (64, 3), (1, 2, 40, 40)):
        tensor = torch.full(shape, value, dtype=dtype)
        got = INT8.decode(INT8.encode(tensor))
        assert np.allclose(as_numpy(got), as_numpy(tensor), rtol=2**-7 if dtype == torch.bfloat16 else 2**-9, atol=0)


def test_int8_denormals_stay_within_the_smallest_normal_number():
    tensor = torch.full((64, 2), 1e-40)
    got = INT8.decode(INT8.encode(tensor))
    assert (got - tensor).abs().max() <= torch.finfo(torch.float32).tiny


@pytest.mark.parametrize(("shape", "axis"), [((1, 64, 14, 14), 1), ((1, 16, 4, 8, 8), 1), ((4, 50, 64), 2), ((200, 64), 1)])
@pytest.mark.parametrize("permuted", [False, True])
def test_int8_resists_one_outlier_channel(shape, axis, permuted):
    rng = np.random.default_rng(0)
    values = rng.normal(size=shape).astype(np.float32)
    index = [slice(None)] * len(shape)
    index[axis] = 7
    values[tuple(index)] *= 100
    tensor = torch.from_numpy(values)
    if permuted:
        order = list(range(len(shape)))[::-1]
        tensor = tensor.permute(order).contiguous().permute(order)

    def loss(back):
        kept = np.delete(back - values, 7, axis)
        return (kept**2).sum() / (np.delete(values, 7, axis) ** 2).sum()

    scale = (values.max() - values.min()) / 255
    per_tensor = np.round(values / scale) * scale
    per_channel = loss(INT8.decode(INT8.encode(tensor)).numpy())
    assert per_channel < 1e-3 < 100 * per_channel < loss(per_tensor)


def test_int8_body_is_scales_zeros_and_codes():
    """What docs/wire-format.md says, read by hand."""
    values = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    data = INT8.encode(torch.from_numpy(values))
    scale, zero = np.frombuffer(data[32:44], np.float32), np.frombuffer(data[44:47], np.uint8).astype(np.float32)
    body = {0: lambda frame: zstandard.ZstdDecompressor().decompress(frame), 1: bytes}[data[1]](data[47:])
    codes = np.frombuffer(body, np.uint8).reshape(64, 3)
    assert ((codes - zero) * scale == INT8.decode(data).numpy()).all()
    span = np.maximum(values.max(0), 0) - np.minimum(values.min(0), 0)
    assert np.allclose(scale, span / 255, rtol=1e-6)


@pytest.mark.parametrize(("rows", "own_scale"), [(31, False), (32, True)])
def test_int8_channels_of_32_values_have_a_scale_of_their_own(rows, own_scale):
    tensor = torch.linspace(0, 1, rows).view(-1, 1) * torch.tensor([1.0, 1000.0])
    error = (INT8.decode(INT8.encode(tensor)) - tensor)[:, 0].abs().max()
    assert bool(error < 1 / 255) == own_scale


def test_int8_compresses_sparse_maps():
    tensor = torch.relu(torch.from_numpy(np.random.default_rng(0).normal(size=(1, 64, 28, 28)) - 0.5)).float()
    assert len(INT8.encode(tensor)) < tensor.nbytes / 5


# -- sizes


@pytest.mark.parametrize("name", NAMES)
@checked
@given(tensor=tensors())
def test_estimate_bounds_the_encoding_of_row_major_tensors(name, tensor):
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    codec = codecs.get(name)
    nbytes = len(codec.encode(tensor))
    assert nbytes <= codec.estimate(tensor)
    if name == "raw":
        assert nbytes == codec.estimate(tensor)


@pytest.mark.parametrize("shape", [(1,), (31, 1), (32, 7), (33, 40), (1, 1000), (1, 500, 2, 2)])
def test_estimate_bounds_int8_where_parameters_weigh_most(shape):
    for dtype in QUANTISED:
        noise = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, shape)).to(dtype)
        assert len(INT8.encode(noise)) <= INT8.estimate(noise)


def test_estimate_needs_no_data():
    assert RAW.estimate(torch.empty(1 << 20, 1 << 20, device="meta")) == 32 + (4 << 40)


# -- aliasing


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.float16], ids=str)
def test_decoded_tensors_own_their_memory(name, dtype):
    codec = codecs.get(name)
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 255, 4096)).to(dtype)
    for tensor in (noise, noise.view(64, 64).t(), noise.view(64, 64)[::2], noise[:1].expand(5, 1)):
        data = bytearray(codec.encode(tensor))
        got = codec.decode(data)
        before = element_bytes(got)
        data[:] = b"\xff" * len(data)
        assert element_bytes(got) == before
        got[tuple(slice(0, 1) for _ in got.shape)] = 1  # writable
        assert bytes(data) == b"\xff" * len(data)


def test_without_copy_the_bytes_are_shared():
    data = RAW.encode(torch.zeros(64))
    memory = torch.zeros(len(data) + 64, dtype=torch.uint8)
    view = memory[64 - ALIGNMENT :].numpy().data[: len(data)]  # the body lies on a cache line, as the tensor's memory did
    view[:] = data
    got = RAW.decode(view, copy=False)
    assert got.data_ptr() == memory.data_ptr() + 64
    view[ALIGNMENT:] = np.ones(64, np.float32).tobytes()
    assert got.tolist() == [1.0] * 64


# -- what is refused


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(CodecError, match="no codec 'zip'; known: raw, zstd, fp16, int8"):
        codecs.get("zip")


def test_tensors_that_are_not_dense_are_refused():
    with pytest.raises(CodecError, match="sparse"):
        RAW.encode(torch.eye(3).to_sparse())
    with pytest.raises(CodecError, match="not a dense tensor"):
        RAW.encode(torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8))


@pytest.mark.parametrize("writer", NAMES)
@pytest.mark.parametrize("reader", NAMES)
def test_bytes_of_another_codec_are_refused(writer, reader):
    data = codecs.get(writer).encode(torch.rand(40, 4))
    if writer == reader:
        assert codecs.get(reader).decode(data).shape == (40, 4)
    else:
        with pytest.raises(CodecError, match=f"written by codec number {NAMES.index(writer)}; '{reader}' is number {NAMES.index(reader)}"):
            codecs.get(reader).decode(data)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tensor", [
    torch.rand(5, 3), torch.rand(40, 2).t(), torch.zeros(40, 2), torch.arange(9), torch.tensor(np.nan),
], ids=["matrix", "transposed", "zeros", "integers", "NaN"])
def test_each_truncation_and_extension_is_refused(name, tensor):
    codec = codecs.get(name)
    data = codec.encode(tensor)
    for size in range(len(data)):
        with pytest.raises(CodecError):
            codec.decode(data[:size])
    with pytest.raises(CodecError):
        codec.decode(data + b"\0")
    assert codec.decode(data).shape == tensor.shape


@pytest.mark.parametrize("name", NAMES)
def test_limit_is_the_size_in_memory(name):
    codec = codecs.get(name)
    for tensor in (torch.zeros(250), torch.zeros(500)[:499:2], torch.zeros(1).expand(250)):
        extent = 1996 if tensor.stride() == (2,) else 1000  # gaps need memory; broadcast elements count as what reads them
        data = codec.encode(tensor)
        assert codec.decode(data, limit_nbytes=extent).shape == (250,)
        with pytest.raises(CodecError, match=f"needs {extent} bytes; the limit is {extent - 1}"):
            codec.decode(data, limit_nbytes=extent - 1)


def peak_virtual_nbytes():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmPeak"].split()[0]) * 1024


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("shape", "strides"), [
    ((1 << 40,), None), ((1 << 20, 1 << 20), None), ((2,), (1 << 40,)), ((1 << 40,), (0,)), ((1 << 63, 2), None),
    ((2**64 - 1,), (2**64 - 1,)), ((0, 1 << 29, 1 << 29, 1 << 29), None), ((1,), (1 << 50,)),
], ids=str)
def test_message_that_declares_terabytes_allocates_nothing(name, shape, strides):
    codec = codecs.get(name)
    for mode in range(5):
        head = Header(codec.codec_id, mode, torch.float32, shape, strides).pack()
        message = head + zstandard.ZstdCompressor().compress(bytes(8))
        assert len(message) < 100
        virtual = peak_virtual_nbytes()
        tracemalloc.start()
        try:
            with pytest.raises(CodecError, match=f"the limit is {DEFAULT_LIMIT_NBYTES}"):
                codec.decode(message)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()
        assert peak_virtual_nbytes() - virtual < 64 << 20  # torch's memory too


@pytest.mark.parametrize("name", ["zstd", "int8"])
def test_compressed_size_that_lies_is_refused(name):
    codec = codecs.get(name)
    mode = 1 if name == "zstd" else 4
    honest = zstandard.ZstdCompressor().compress(bytes(300))
    head = Header(codec.codec_id, mode, torch.uint8, (300,)).pack()
    assert codec.decode(head + honest).shape == (300,)
    for shape in ((299,), (301,), (1 << 20,)):
        with pytest.raises(CodecError, match=f"declares 300 bytes where {shape[0]} belong"):
            codec.decode(Header(codec.codec_id, mode, torch.uint8, shape).pack() + honest)
    assert struct.unpack_from("<H", honest, 5)[0] == 300 - 256  # the content size, as RFC 8878 places it
    for lie in (299, 301, 65_000):
        forged = honest[:5] + struct.pack("<H", lie - 256) + honest[7:]
        assert zstandard.get_frame_parameters(forged).content_size == lie
        with pytest.raises(CodecError):
            codec.decode(Header(codec.codec_id, mode, torch.uint8, (lie,)).pack() + forged)
    assert codec.decode(head + honest).shape == (300,)  # a refusal leaves nothing behind


@pytest.mark.parametrize("body", [
    zstandard.ZstdCompressor(write_content_size=False).compress(bytes(300)), b"\x50\x2a\x4d\x18" + struct.pack("<I", 300) + bytes(300),
    zstandard.ZstdCompressor().compress(bytes(300)) + b"x", zstandard.ZstdCompressor().compress(bytes(300))[:-1], b"", b"\0" * 20,
], ids=["no size", "skippable", "trailing", "cut", "empty", "no frame"])
def test_zstd_frames_of_other_kinds_are_refused(body):
    with pytest.raises(CodecError):
        ZSTD.decode(Header(1, 1, torch.uint8, (300,)).pack() + body)


@pytest.mark.parametrize(("shape", "strides"), [((4, 3), (1, 1)), ((4, 3), (2, 1)), ((2, 2, 2), (4, 1, 1)), ((3, 2), (1, 2))])
def test_overlapping_strides_are_refused(shape, strides):
    header = Header(0, 0, torch.float32, shape, strides)
    with pytest.raises(CodecError, match="overlap"):
        RAW.decode(header.pack() + bytes(header.count * 4))


@pytest.mark.parametrize(("place", "value", "message"), [
    (0, 9, "written by codec number 9"), (2, len(DTYPES), f"unknown dtype number {len(DTYPES)}"), (2, 255, "unknown dtype number 255"),
    (3, 65, "65 dimensions"), (4, 2, "flags 2"), (5, 64, "misalignment 64"), (5, 2, "misalignment 2"), (6, 1, "malformed tensor header"),
    (7, 1, "malformed tensor header"),
])
@pytest.mark.parametrize("name", NAMES)
def test_each_field_of_the_header(name, place, value, message):
    codec = codecs.get(name)
    data = bytearray(codec.encode(torch.rand(40, 2)))
    data[place] = value
    with pytest.raises(CodecError, match=message):
        codec.decode(data)


@pytest.mark.parametrize(("name", "modes"), [("zstd", 8), ("fp16", 2), ("int8", 10)])
def test_unknown_modes_are_refused(name, modes):
    codec = codecs.get(name)
    data = bytearray(codec.encode(torch.rand(40, 2)))
    for mode in (modes, 255):
        data[1] = mode
        with pytest.raises(CodecError, match="mode"):
            codec.decode(data)


def test_modes_that_do_not_fit_the_dtype_are_refused():
    for codec, modes in ((FP16, [1]), (INT8, [0, 1])):
        for mode in modes:
            with pytest.raises(CodecError, match="does not fit"):
                codec.decode(Header(codec.codec_id, mode, torch.int32, (4,)).pack() + bytes(40))


# -- threads


def test_threads_give_the_same_bytes_and_tensors():
    rng = np.random.default_rng(0)
    maps = [torch.from_numpy(np.maximum(rng.normal(size=(1, 16, 20 + turn, 20)), 0)).float() for turn in range(8)]
    jobs = [(codecs.get(name), tensor) for name in NAMES for tensor in maps] * 6
    want = [codec.encode(tensor) for codec, tensor in jobs]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda job: job[0].encode(job[1]), jobs))
        decoded = list(pool.map(lambda pair: pair[0][0].decode(pair[1]), zip(jobs, want, strict=True)))
    assert got == want
    for (codec, _), data, tensor in zip(jobs, want, decoded, strict=True):
        assert torch.equal(codec.decode(data), tensor)
