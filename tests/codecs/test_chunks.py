"""Piece by piece: the same bytes, the same tensors, the same refusals."""

import itertools
import threading

import numpy as np
import pytest
import torch
import zstandard
from codec_tensors import KINDS, checked, element_bytes, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer import codecs
from splitinfer.codecs.block import Header
from splitinfer.codecs.compression import PIECE_NBYTES, STREAMED_NBYTES, Source, compress, compressed, decompress_stream, expansion, sample
from splitinfer.errors import CodecError

NAMES = (*codecs.suggested(), "zstd9", "int8/tensor", "int4/channel/sym+zstd3", "eb0.01", "topk0.5", "uint8", "dct80")
STREAMED = ("zstd", "fp16+zstd", "bf16+zstd", "int8", "int8/channel+zstd")


def cut(data, size):
    return [data[start : start + size] for start in range(0, len(data), size)]


def large(seed=0):
    """Enough elements that a byte for each is streamed; no zeros, so that `zstd` streams too."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 32, 112, 56, generator=generator) * torch.linspace(0.1, 3, 32).view(1, -1, 1, 1) + 0.001


@pytest.mark.parametrize("name", NAMES)
@settings(checked, max_examples=40)
@given(tensor=tensors(kinds=KINDS), size=st.sampled_from([1, 7, 64, 1000]))
def test_any_tensor_in_chunks(name, tensor, size):
    codec = codecs.get(name)
    data = codec.encode(tensor)
    assert b"".join(codec.encode_chunks(tensor)) == data == b"".join(codec.parts(tensor))
    whole, pieces = codec.decode(data), codec.decode_chunks(cut(data, size))
    assert (pieces.dtype, pieces.shape, pieces.stride()) == (whole.dtype, whole.shape, whole.stride())
    assert element_bytes(pieces) == element_bytes(whole)


@pytest.mark.parametrize("name", NAMES)
def test_large_tensors_in_chunks(name):
    codec, tensor = codecs.get(name), large()
    chunks = [bytes(chunk) for chunk in codec.encode_chunks(tensor)]
    data = codec.encode(tensor)
    assert b"".join(chunks) == data
    if name in STREAMED and "16" not in name:  # halves of noise are stored
        assert len(chunks) > 4
    assert torch.equal(codec.decode_chunks(chunks), codec.decode(data))
    assert len(data) <= codec.estimate(tensor)


@pytest.mark.parametrize("name", STREAMED)
def test_other_tensors_are_encoded_between_two_chunks(name):
    """Each stream needs a compressor of its own."""
    codec, tensors_ = codecs.get(name), (large(1), large(2))
    want = [codec.encode(tensor) for tensor in tensors_]
    got = [bytearray(), bytearray()]
    for pair in itertools.zip_longest(*(codec.encode_chunks(tensor) for tensor in tensors_), fillvalue=b""):
        for data, chunk in zip(got, pair, strict=True):
            data += chunk
            codec.encode(torch.ones(100))
    assert got == want


def test_a_stream_left_off_harms_nothing():
    codec = codecs.get("int8")
    want = codec.encode(large())
    for _ in range(3):
        chunks = codec.encode_chunks(large())
        next(chunks)
        del chunks
        assert codec.encode(large()) == want


def test_decoding_starts_before_the_last_chunk_is_there():
    codec, fed = codecs.get("int8"), []
    chunks = list(codec.encode_chunks(large()))
    seen = []

    def feed():
        for chunk in chunks:
            fed.append(len(chunk))
            yield chunk

    source = Source(feed())
    source.exactly(len(chunks[0]) + len(chunks[1]) + len(chunks[2]))  # header, scales, zeros
    seen.append(len(fed))
    content = decompress_stream(source, large().numel())
    assert len(content) == large().numel()
    assert seen == [3]
    assert len(fed) == len(chunks) > 6


@pytest.mark.parametrize("name", ["raw", "zstd", "int8", "int4/channel+zstd", "eb0.01", "topk0.1", "dct90", "fp16+zstd"])
def test_truncated_and_extended_streams_are_refused(name):
    codec = codecs.get(name)
    data = codec.encode(torch.relu(torch.randn(1, 2, 9, 9)))
    for size in range(len(data)):
        with pytest.raises(CodecError):
            codec.decode_chunks(cut(data[:size], 50))
    for extra in (b"\0", bytes(5000)):
        for chunks in ([data + extra], [data, extra], [*cut(data, 3), extra]):
            with pytest.raises(CodecError):
                codec.decode_chunks(chunks)
    assert codec.decode_chunks([b"", *cut(data, 11), b""]).shape == (1, 2, 9, 9)


def test_an_endless_stream_is_refused_early():
    fed = []

    def endless():
        yield codecs.get("raw").encode(torch.zeros(100))
        while True:
            fed.append(1)
            yield bytes(1000)

    with pytest.raises(CodecError, match="a body of more than"):
        codecs.get("raw").decode_chunks(endless())
    assert len(fed) < 20


def test_limit_and_writer_are_checked_before_the_body_arrives():
    def body_never_asked_for(head):
        yield head
        raise AssertionError("the body was asked for")

    head = Header(3, 0, torch.float32, (1 << 20,)).pack()
    with pytest.raises(CodecError, match="the limit is 1000"):
        codecs.get("int8").decode_chunks(body_never_asked_for(head), limit_nbytes=1000)
    with pytest.raises(CodecError, match="written by codec number 3"):
        codecs.get("raw").decode_chunks(body_never_asked_for(head))


FRAME = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(range(256)) * 1000)
CHECKED = zstandard.ZstdCompressor(write_content_size=True, write_checksum=True).compress(bytes(range(256)) * 1000)


@pytest.mark.parametrize("frame", [FRAME, CHECKED], ids=["plain", "with a checksum"])
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_frames_block_by_block(frame, size):
    source = Source(cut(frame + b"rest", size))
    assert bytes(decompress_stream(source, 256_000)) == bytes(range(256)) * 1000
    assert source.rest(4) == b"rest"


@pytest.mark.parametrize("content", [b"", b"a", bytes(1 << 20), np.random.default_rng(0).bytes(1 << 19)], ids=len)
@pytest.mark.parametrize("level", [1, 3, 19])
def test_stream_and_whole_frame_hold_the_same(content, level):
    packed = compress(content, level)
    assert bytes(decompress_stream(Source([packed]), len(content))) == content


@pytest.mark.parametrize("frame", [
    FRAME[:-1], FRAME[:4], b"", FRAME[:20] + b"\xff" * 40, b"\x50\x2a\x4d\x18" + bytes(300), CHECKED[:-4] + b"abcd",
    zstandard.ZstdCompressor(write_content_size=False).compress(bytes(256_000)), zstandard.ZstdCompressor().compress(bytes(255_999)),
], ids=["cut", "head", "empty", "damaged", "skippable", "checksum", "no size", "other size"])
def test_bad_frames_in_a_stream_are_refused(frame):
    with pytest.raises(CodecError):
        decompress_stream(Source([frame]), 256_000)


def test_a_stream_that_holds_more_than_it_declares_is_refused():
    honest = zstandard.ZstdCompressor().compress(bytes(300))
    forged = honest[:5] + (255 - 256 + 256 - 255).to_bytes(2, "little") + honest[7:]  # content size 256, as RFC 8878 places it
    assert zstandard.get_frame_parameters(forged).content_size == 256
    with pytest.raises(CodecError):
        decompress_stream(Source([forged]), 256)


def test_a_bomb_in_a_stream_allocates_what_it_declares():
    """A run-length block of 4 bytes holds up to 128 KiB; a thousand of them in one chunk must not be unpacked at once."""
    block = (0 | 1 << 1 | (128 << 10) << 3).to_bytes(3, "little") + b"x"
    frame = b"\x28\xb5\x2f\xfd" + bytes([0xA0]) + (1 << 20).to_bytes(4, "little") + block * 1000
    with pytest.raises(CodecError):
        decompress_stream(Source([frame]), 1 << 20)


def test_windows_that_no_sender_uses_are_refused():
    frame = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=25, write_content_size=True)
    ).compress(np.random.default_rng(0).bytes(1000) * 40_000)
    with pytest.raises(CodecError):
        decompress_stream(Source([frame]), 40_000_000)


# -- the pieces of compression


def test_incompressible_data_stay_or_grow_by_the_bound():
    rng = np.random.default_rng(0)
    for size in (0, 1, 1000, STREAMED_NBYTES - 1, STREAMED_NBYTES, 5 * PIECE_NBYTES + 1):
        noise = rng.bytes(size)
        is_frame, pieces = compressed(noise)
        nbytes = sum(map(len, pieces))
        assert is_frame == (size >= STREAMED_NBYTES)
        assert nbytes <= size + expansion(size)


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("count", [0, 1, 100, 8192, 8193, 100_000])
def test_samples_are_whole_items_of_the_data(itemsize, count):
    data = np.random.default_rng(0).bytes(count * itemsize)
    seen = bytes(sample(data, itemsize))
    assert len(seen) <= 1 << 16
    assert len(seen) % itemsize == 0
    assert len(seen) == len(data) or len(seen) > 60_000
    items = {data[start : start + itemsize] for start in range(0, len(data), itemsize)}
    assert all(seen[start : start + itemsize] in items for start in range(0, min(len(seen), 1000), itemsize))


def test_streams_in_many_threads():
    maps = [large(seed) for seed in range(4)]
    want = [codecs.get("int8").encode(tensor) for tensor in maps]
    got = [None] * 4

    def work(turn):
        got[turn] = b"".join(codecs.get("int8").encode_chunks(maps[turn]))

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == want
