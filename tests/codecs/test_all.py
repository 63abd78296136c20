"""What holds for every codec: shapes, dtypes and layouts come back, what must not be touched is not, sizes are kept."""

import warnings

import numpy as np
import pytest
import torch
from codec_tensors import FLOATS, KINDS, as_numpy, assert_same_bits, checked, element_bytes, overlaps, tensors
from hypothesis import given, settings

from splitinfer import codecs
from splitinfer.codecs.block import DTYPES, Header
from splitinfer.errors import CodecError

QUANTISING = (
    "int8+zstd3", "int8/tensor", "int8/block16/sym", "int6/channel+zstd", "int4/channel/sym+zstd3", "int4/block64+zstd", "int4/block32/sym",
    "int3/tensor", "int3/block16+zstd", "int2/channel", "int2/tensor/sym+zstd", "topk0.1", "topk0.01/fp16", "topk1/bf16", "uint8", "dct90",
    "dct10+zstd3",
)
OTHERS = ("zstd3", "bf16", "bf16+zstd", "fp16+zstd", "eb0.01", "eb0.001rel", "eb1e-30", "eb50+zstd3")
ALL = (*codecs.names(), *OTHERS, *QUANTISING)
fewer = settings(checked, max_examples=60)


@pytest.mark.parametrize("name", [*OTHERS, *QUANTISING])
@fewer
@given(tensor=tensors(kinds=KINDS))
def test_shape_dtype_and_layout_come_back(name, tensor):
    codec = codecs.get(name)
    before = element_bytes(tensor)
    data = codec.encode(tensor)
    got = codec.decode(data)
    assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
    if tensor.numel() and not overlaps(tensor):
        assert got.stride() == tensor.stride()
    assert element_bytes(tensor) == before
    assert codec.encode(tensor) == data
    assert element_bytes(codec.decode(data, copy=False)) == element_bytes(got)
    finite = not tensor.is_floating_point() or tensor.dtype.itemsize == 1 or bool(np.isfinite(as_numpy(tensor)).all())
    if codec.lossless or not tensor.is_floating_point() or tensor.dtype.itemsize == 1 or (name in QUANTISING and not finite):
        assert_same_bits(got, tensor)
    elif finite:
        assert np.isfinite(as_numpy(got)).all()


@pytest.mark.parametrize("name", ALL)
@fewer
@given(tensor=tensors(kinds=KINDS))
def test_estimate_bounds_the_encoding(name, tensor):
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    assert len(codecs.get(name).encode(tensor)) <= codecs.get(name).estimate(tensor)


@pytest.mark.parametrize(
    "name", ["raw", "fp16", "bf16", "int8/tensor", "int6/block64", "int4/tensor/sym", "int4/block64/sym", "int2/block1024"]
)
@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_estimate_is_exact_where_nothing_is_compressed(name, count):
    tensor = torch.randn(count)
    assert len(codecs.get(name).encode(tensor)) == codecs.get(name).estimate(tensor)
    assert codecs.get(name).estimate(torch.empty(count, device="meta")) == codecs.get(name).estimate(tensor)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(1, 64, 14, 14), (1, 64, 1, 1), (8, 33, 17), (4, 3, 32, 32), (1, 1000), (40, 7)])
def test_estimate_of_a_shape_alone_holds_for_finite_values(name, shape):
    spec = torch.empty(shape, device="meta")
    generator = torch.Generator().manual_seed(0)
    for tensor in (torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) - 0.5, torch.zeros(shape)):
        assert len(codecs.get(name).encode(tensor)) <= codecs.get(name).estimate(spec)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_empty_scalar_and_single_tensors_of_each_dtype(name, dtype):
    codec = codecs.get(name)
    for shape in ((0,), (0, 3, 8, 8), (), (1,), (1, 1, 1, 1)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch: complex32 is experimental
            tensor = torch.zeros(shape, dtype=dtype)
        got = codec.decode(codec.encode(tensor))
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
        if not name.startswith("dct") or tensor.dim() < 4:  # a transform rounds
            assert element_bytes(got) == element_bytes(tensor)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("topk") and not name.startswith("dct")])
def test_constants_come_back_nearly(name, dtype):
    for value in (1.0, -2.5, 1e-3, 300.0):
        tensor = torch.full((2, 3, 16, 8), value, dtype=dtype)
        got = as_numpy(codecs.get(name).decode(codecs.get(name).encode(tensor)))
        bound = {"eb0.01": 0.01, "eb50+zstd3": 50}.get(name, abs(value) * 2**-7)
        assert np.abs(got - as_numpy(tensor)).max() <= bound


@pytest.mark.parametrize("name", [*OTHERS, *QUANTISING])
@pytest.mark.parametrize("tensor", [
    torch.linspace(-1, 1, 60).view(5, 12), torch.rand(1, 1, 8, 8), torch.zeros(40, 2), torch.arange(9), torch.tensor(np.nan),
], ids=["matrix", "image", "zeros", "integers", "NaN"])
def test_each_truncation_and_extension_is_refused(name, tensor):
    codec = codecs.get(name)
    data = codec.encode(tensor)
    for size in range(len(data)):
        with pytest.raises(CodecError):
            codec.decode(data[:size])
    with pytest.raises(CodecError):
        codec.decode(data + b"\0")
    assert codec.decode(data).shape == tensor.shape


@pytest.mark.parametrize("name", [*OTHERS, *QUANTISING])
def test_each_byte_changed_is_refused_or_harmless(name):
    codec = codecs.get(name)
    for tensor in (torch.relu(torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(1))), torch.rand(33)):
        data = codec.encode(tensor)
        for place in range(min(len(data), 400)):
            for value in (0, 1, 0x7F, 0x80, 0xFF):
                mutant = bytearray(data)
                mutant[place] = value
                try:
                    got = codec.decode(bytes(mutant), limit_nbytes=1 << 16)
                except CodecError:
                    continue
                assert got.nbytes <= 1 << 16


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mode", [0, 1, 2, 3, 4, 6, 9, 15, 16, 20, 33, 255])
def test_declared_terabytes_are_refused(name, mode):
    codec = codecs.get(name)
    for shape in ((1 << 40,), (1, 3, 1 << 20, 1 << 20)):
        with pytest.raises(CodecError, match="the limit is"):
            codec.decode(Header(codec.codec_id, mode, torch.float32, shape).pack() + bytes(64))


@pytest.mark.parametrize("name", [*OTHERS, *QUANTISING])
def test_unknown_modes_are_refused(name):
    codec = codecs.get(name)
    data = bytearray(codec.encode(torch.randn(1, 1, 16, 16)))
    for mode in (24, 255):
        data[1] = mode
        with pytest.raises(CodecError):
            codec.decode(data)


@pytest.mark.parametrize("name", [*OTHERS, *QUANTISING])
def test_quantised_modes_of_integers_are_refused(name):
    codec = codecs.get(name)
    if codec.lossless or name.startswith(("fp16", "bf16")):
        return
    for mode in (0, 1, 2):
        with pytest.raises(CodecError):
            codec.decode(Header(codec.codec_id, mode, torch.int32, (4,)).pack() + bytes(200))


@pytest.mark.parametrize("name", ALL)
def test_decoded_tensors_own_their_memory(name):
    codec = codecs.get(name)
    noise = torch.rand(1, 3, 16, 16)
    data = bytearray(codec.encode(noise))
    got = codec.decode(data)
    before = element_bytes(got)
    data[:] = b"\xff" * len(data)
    assert element_bytes(got) == before
    got[0, 0, 0, 0] = 1  # writable


def test_nothing_warns(recwarn):
    """torch warns where it is handed memory that it must not write."""
    for name in ALL:
        codecs.get(name).decode(codecs.get(name).encode(torch.rand(1, 3, 16, 16)), copy=False)
    assert not [str(warning.message) for warning in recwarn]
