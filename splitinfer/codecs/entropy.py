"""Small unsigned integers as bytes: bit-packed, and then, where a sample shows that it pays, compressed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from splitinfer.codecs.block import Buffer, Header
from splitinfer.codecs.compression import WORTHWHILE, compress, compressed, decompress, sample
from splitinfer.codecs.filters import Bytes, pack_bits, packed_nbytes, unpack_bits
from splitinfer.codecs.lossless import MODES, Zstd
from splitinfer.errors import CodecError

PACKED, ZIPPED, SPREAD = range(3)
"""Modes: bit-packed; that as a zstd frame; a byte for each code as a zstd frame.

Packing is the better start for long runs and for one bit; a byte for each lets zstd's Huffman stage see whole codes.
"""
_SAMPLE_NBYTES = 1 << 15


def pack_codes(codes: Bytes, bits: int, level: int | None) -> tuple[int, Iterable[Buffer]]:
    """Mode and bytes of codes below 2**bits, at most 8 bits; without a level always PACKED."""
    mode = PACKED if level is None else _choose(codes, bits, level)
    if level is None or mode == PACKED:
        return PACKED, [pack_bits(codes, bits).data]
    is_frame, pieces = compressed((codes if mode == SPREAD else pack_bits(codes, bits)).data, level)
    if mode == SPREAD:  # starts out larger than what was promised, so whether it shrank enough must be known
        pieces = list(pieces)
        is_frame = is_frame and sum(map(len, pieces)) < packed_nbytes(len(codes), bits)
    return (mode, pieces) if is_frame else (PACKED, [pack_bits(codes, bits).data])


def _choose(codes: Bytes, bits: int, level: int) -> int:
    """The mode of the smallest sample, at the level in question: on few symbols a higher one can be the worse one."""
    seen = np.frombuffer(sample(codes.data, 1, _SAMPLE_NBYTES), np.uint8)
    packed = pack_bits(seen, bits)
    sizes = {PACKED: len(packed) * WORTHWHILE, ZIPPED: len(compress(packed.data, level))}
    if bits < 8:
        sizes[SPREAD] = len(compress(seen.data, level))
    return min(sizes, key=lambda mode: sizes[mode])


def content_nbytes(mode: int, count: int, bits: int) -> int:
    """Bytes that the frame of a mode holds, or of the body itself for PACKED."""
    return count if mode == SPREAD else packed_nbytes(count, bits)


def unpack_codes(mode: int, content: Buffer, count: int, bits: int) -> Bytes:
    """The codes, from what the frame held. Raises CodecError for a code that does not fit its bits or a wrong size."""
    data = np.frombuffer(content, np.uint8)
    if len(data) != content_nbytes(mode, count, bits):
        raise CodecError(f"{len(data)} bytes of codes where {count} of {bits} bits need {content_nbytes(mode, count, bits)}")
    if mode != SPREAD:
        return unpack_bits(data, bits, count)
    if bits < 8 and count and data.max() >> bits:
        raise CodecError(f"a code of {data.max()} where {bits} bits belong")
    return data


class Wide:
    """Unsigned codes of any size: those of at most 8 bits as :func:`pack_codes` has them, wider ones as `zstd` has 16 or 32 bits.

    Modes are those of :func:`pack_codes`, then those of `zstd` from :attr:`first_wide`.
    """

    first_wide = 3
    modes = 3 + MODES

    def __init__(self, zstd: Zstd) -> None:
        self._zstd = zstd

    def pack(self, codes: NDArray[np.uint32]) -> tuple[int, int, Iterable[Buffer]]:
        """Mode, bits of a code, and bytes."""
        bits = max(1, int(codes.max(initial=0)).bit_length())
        if bits <= 8:
            mode, pieces = pack_codes(codes.astype(np.uint8), bits, self._zstd.level)
            return mode, bits, pieces
        wide = codes.astype(np.uint16) if bits <= 16 else codes
        mode, pieces = self._zstd.pack(wide.data.cast("B"), wide.itemsize)
        return self.first_wide + mode, 8 * wide.itemsize, pieces

    def unpack(self, mode: int, data: memoryview, count: int, bits: int) -> NDArray[np.uint32]:
        """The codes. Raises CodecError where mode, bits and size do not go together."""
        if mode < self.first_wide and 1 <= bits <= 8:
            content = data if mode == PACKED else decompress(data, content_nbytes(mode, count, bits))
            return unpack_codes(mode, content, count, bits).astype(np.uint32)
        if mode < self.first_wide or bits not in (16, 32):
            raise CodecError(f"codes of {bits} bits in mode {mode}")
        header = Header(0, mode - self.first_wide, torch.uint16 if bits == 16 else torch.uint32, (count,))
        return self._zstd.body(header, data).numpy().astype(np.uint32)
