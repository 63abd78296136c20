"""What `zstd` may do with memory before it compresses it, read back by hand, and what a sample makes it choose."""

import struct

import numpy as np
import pytest
import torch
import zstandard
from codec_tensors import FLOATS, assert_same_bits, checked
from hypothesis import given
from hypothesis import strategies as st

from splitinfer import codecs
from splitinfer.codecs.block import Header
from splitinfer.codecs.filters import bitshuffled, shuffled, unbitshuffled, unshuffled
from splitinfer.errors import CodecError

ZSTD = codecs.get("zstd")
SIZES = (1, 2, 4, 8, 16)


@checked
@given(st.sampled_from(SIZES), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_shuffles_written_out(itemsize, count, seed):
    data = np.random.default_rng(seed).bytes(itemsize * count)
    rows = [data[at : at + itemsize] for at in range(0, len(data), itemsize)]
    want = b"".join(bytes(row[place] for row in rows) for place in range(itemsize))
    assert bytes(shuffled(data, itemsize)) == want
    assert bytes(unshuffled(want, itemsize)) == data
    whole = count // 8 * 8
    planes = []
    for place in range(itemsize):
        for bit in range(8):
            bits = [rows[row][place] >> bit & 1 for row in range(whole)]
            planes.append(bytes(sum(bits[at + turn] << turn for turn in range(8)) for at in range(0, whole, 8)))
    want = b"".join(planes) + data[whole * itemsize :]
    assert bytes(bitshuffled(data, itemsize)) == want
    assert bytes(unbitshuffled(want, itemsize)) == data


def test_body_without_zeros_read_by_hand():
    rng = np.random.default_rng(0)
    values = np.maximum(rng.normal(size=4000), 0).astype(np.float32)
    data = ZSTD.encode(torch.from_numpy(values.copy()))
    assert data[1] in (4, 6)
    kept, bitmap_nbytes = struct.unpack_from("<QQ", data, 16)
    unpack = zstandard.ZstdDecompressor().decompress
    present = np.unpackbits(np.frombuffer(unpack(data[32 : 32 + bitmap_nbytes]), np.uint8), bitorder="little")[:4000]
    assert kept == present.sum() == np.count_nonzero(values)
    rest = data[32 + bitmap_nbytes :]
    rest = np.frombuffer(unpack(rest), np.uint8).reshape(4, -1).T.tobytes() if data[1] == 6 else rest
    got = np.zeros(4000, np.float32)
    got[present.astype(bool)] = np.frombuffer(rest, np.float32)
    assert (got == values).all()


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.uint8], ids=str)
def test_leaving_zeros_out_pays_behind_a_relu(dtype):
    """And returns zeros with a sign, which are not all bits 0, as they were."""
    tensor = torch.relu(torch.randn(1, 64, 28, 28, generator=torch.Generator().manual_seed(0)) * 40).to(dtype)
    if dtype.is_floating_point:
        tensor[0, 0, :2] = -0.0
    assert_same_bits(ZSTD.decode(ZSTD.encode(tensor)), tensor)
    if dtype == torch.float32:
        data, shuffle = ZSTD.encode(tensor), zstandard.ZstdCompressor(level=1)
        assert len(data) < 0.93 * len(shuffle.compress(np.frombuffer(shuffled(tensor.numpy().data.cast("B"), 4), np.uint8).tobytes()))


@pytest.mark.parametrize(("values", "modes"), [
    (np.random.default_rng(0).integers(0, 2**32, 50_000).astype(np.uint32).view(np.int32), {0}),
    (np.random.default_rng(0).normal(size=50_000).astype(np.float32), {2}),
    (np.tile(np.arange(10, dtype=np.int64), 5000), {1, 2, 3}),
    ((np.random.default_rng(0).integers(0, 1 << 9, 50_000) * 5).astype(np.int32), {3}),
    (np.maximum(np.random.default_rng(0).normal(size=50_000), 0).astype(np.float32), {4, 6}),
    (np.zeros(50_000, np.float32), {1, 2, 3, 4, 6}),
], ids=["noise", "floats", "pattern", "9 bits", "ReLU", "zeros"])
def test_a_sample_chooses(values, modes):
    tensor = torch.from_numpy(values.copy())
    data = ZSTD.encode(tensor)
    assert data[1] in modes
    assert_same_bits(ZSTD.decode(data), tensor)


@pytest.mark.parametrize("mode", range(8))
@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_each_mode_that_a_sample_may_choose(monkeypatch, mode, itemsize):
    dtype = {1: torch.uint8, 2: torch.int16, 4: torch.float32, 8: torch.float64}[itemsize]
    for values in (torch.arange(1000) % 7, torch.zeros(100), torch.ones(9), torch.arange(0), torch.tensor([0, 0, 3])):
        tensor = values.to(dtype)
        monkeypatch.setattr(type(ZSTD), "_choose", lambda self, data, size: mode)
        data = ZSTD.encode(tensor)
        assert data[1] in (mode, 0)
        assert_same_bits(ZSTD.decode(data), tensor)
        assert_same_bits(ZSTD.decode_chunks([data[at : at + 3] for at in range(0, len(data), 3)]), tensor)
        assert len(data) <= ZSTD.estimate(tensor)


def sparse(kept, bitmap, rest, mode=4, count=16):
    frame = zstandard.ZstdCompressor().compress(bitmap)
    return Header(1, mode, torch.uint8, (count,)).pack() + struct.pack("<QQ", kept, len(frame)) + frame + rest


def test_bodies_without_zeros_that_do_not_hold_are_refused():
    assert ZSTD.decode(sparse(3, b"\x07\x00", b"abc")).tolist() == [97, 98, 99] + [0] * 13
    for bad, message in [
        (sparse(4, b"\x07\x00", b"abcd"), "a bitmap marks 3 non-zeros; the body declares 4"),
        (sparse(3, b"\x07", b"abc"), "declares 1 bytes"),
        (sparse(3, b"\x07\x00\x00", b"abc"), "declares 3 bytes"), (sparse(3, b"\x07\x00", b"abcd"), "body of 4 bytes"),
        (sparse(3, b"\x07\x00", b"ab"), "body of 2 bytes"), (sparse(17, b"\xff\xff", bytes(17)), "17 non-zeros among 16"),
        (sparse(1 << 63, b"\x07\x00", b"abc"), "non-zeros among"), (Header(1, 4, torch.uint8, (16,)).pack() + b"short", "cannot be one"),
        (Header(1, 4, torch.complex128, (1,)).pack() + bytes(40), "16-byte elements"),
        (sparse(3, b"\x07\x00", b"abc", mode=8), "unknown mode 8"),
    ]:
        with pytest.raises(CodecError, match=message):
            ZSTD.decode(bad)


@pytest.mark.parametrize("level", [1, 2, 9, 19])
def test_levels(level):
    tensor = torch.relu(torch.randn(1, 64, 28, 28, generator=torch.Generator().manual_seed(0)))
    codec = codecs.get(f"zstd{level}")
    assert_same_bits(ZSTD.decode(codec.encode(tensor)), tensor)
    assert len(codec.encode(tensor)) <= 1.02 * len(ZSTD.encode(tensor))


# -- bf16


def test_bf16_is_the_upper_half_rounded_to_even():
    rng = np.random.default_rng(0)
    x = np.concatenate((rng.normal(size=1000), rng.normal(size=1000) * 1e30, [1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, -3.4e38, 1e-40, 0, -0.0]))
    x = x.astype(np.float32)
    bits = x.view(np.uint32).astype(np.uint64)
    want = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint32)
    want = np.where(want & 0x7FFF == 0x7F80, want - 1, want)  # finite numbers stay finite
    for name in ("bf16", "bf16+zstd"):
        got = codecs.get(name).decode(codecs.get(name).encode(torch.from_numpy(x.copy()))).numpy()
        assert (got.view(np.uint32) == want << 16).all()


@pytest.mark.parametrize("name", ["bf16", "bf16+zstd", "fp16+zstd"])
def test_halves_keep_nan_and_infinities_and_clip_the_rest(name):
    codec = codecs.get(name)
    for dtype, large in ((torch.float32, 3.4e38), (torch.float64, 1e300)):
        tensor = torch.tensor([float("nan"), float("inf"), -float("inf"), large, -large, 1.0], dtype=dtype)
        got = codec.decode(codec.encode(tensor))
        assert got.isnan().tolist() == tensor.isnan().tolist()
        assert got.isinf().tolist() == tensor.isinf().tolist()
        assert got[3] == -got[4] == torch.finfo(torch.bfloat16 if name.startswith("bf") else torch.float16).max


def test_halves_beside_zstd():
    tensor = torch.relu(torch.randn(1, 64, 28, 28, generator=torch.Generator().manual_seed(0)))
    for form in ("fp16", "bf16"):
        plain, zipped = codecs.get(form), codecs.get(form + "+zstd")
        assert torch.equal(plain.decode(plain.encode(tensor)), zipped.decode(zipped.encode(tensor)))
        assert len(zipped.encode(tensor)) < 0.65 * len(plain.encode(tensor))
