"""Codecs that return every bit: `raw`, and `zstd` with what a sample shows to help."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import prod
from typing import ClassVar

import numpy as np
from torch import Tensor

from splitinfer.codecs.base import Codec
from splitinfer.codecs.block import Buffer, Header, TensorLike, as_bytes, as_tensor, header_nbytes, to_body
from splitinfer.codecs.compression import LEVEL, WORTHWHILE, compress, compressed, decompress, expansion, sample
from splitinfer.codecs.filters import bitshuffled, shuffled, unbitshuffled, unshuffled
from splitinfer.errors import CodecError

# The mode of a lossless body: how its bytes are arranged, plus _SPARSE where zeros are left out.
STORED, PLAIN, SHUFFLED, BITSHUFFLED = range(4)
_SPARSE = 4
MODES = 8
_FILTERS = {SHUFFLED: (shuffled, unshuffled), BITSHUFFLED: (bitshuffled, unbitshuffled)}
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_MANY_ZEROS = 0.1  # from here on the bitmap, a bit for each element, pays for itself
_STRUCTURED = 0.5  # bit planes can only beat byte planes where those found more than exponents and signs
_HEAD = 16  # bytes of the two counts before a bitmap


class Raw(Codec):
    """The bytes as they are."""

    name: str = "raw"
    codec_id: ClassVar[int] = 0
    lossless: ClassVar[bool] = True

    def encode_chunks(self, tensor: Tensor) -> Iterator[Buffer]:
        body, strides, _ = to_body(tensor)
        yield Header.of(tensor, self.codec_id, 0, strides).pack()
        yield as_bytes(body)

    def body(self, header: Header, data: memoryview) -> Tensor:
        return as_tensor(data, header.dtype, header.count)

    def estimate(self, spec: TensorLike) -> int:
        return header_nbytes(len(spec.shape)) + prod(spec.shape) * spec.dtype.itemsize


class Zstd(Codec):
    """Zstandard over plain, byte-shuffled or bit-shuffled memory, with or without its zeros, or the memory as it is.

    A sample of 64 KiB decides. A shuffle puts equal bytes of neighbouring elements side by side; leaving zeros out
    (a bitmap says where they were) helps behind a ReLU, where they interrupt bytes that do not compress.
    """

    codec_id: ClassVar[int] = 1
    lossless: ClassVar[bool] = True

    def __init__(self, level: int = LEVEL) -> None:
        self.level = level
        self.name = "zstd" if level == LEVEL else f"zstd{level}"

    def encode_chunks(self, tensor: Tensor) -> Iterator[Buffer]:
        body, strides, _ = to_body(tensor)
        mode, pieces = self.pack(as_bytes(body), tensor.dtype.itemsize)
        yield Header.of(tensor, self.codec_id, mode, strides).pack()
        yield from pieces

    def pack(self, data: Buffer, itemsize: int) -> tuple[int, Iterable[Buffer]]:
        """Mode and body for the memory of elements of this size. Other codecs use it for what they do not quantise."""
        mode = self._choose(data, itemsize)
        if mode & _SPARSE:
            packed = self._sparse(data, itemsize, mode & ~_SPARSE)
            if sum(map(len, packed)) < len(data):
                return mode, packed
            mode = STORED  # the sample was not like the rest
        if mode == STORED:
            return mode, [data]
        is_frame, pieces = compressed(_filtered(data, itemsize, mode), self.level)
        return (mode, pieces) if is_frame else (STORED, [data])

    def _choose(self, data: Buffer, itemsize: int) -> int:
        seen = sample(data, itemsize)
        sizes = {STORED: len(seen) * WORTHWHILE, PLAIN: float(len(compress(seen)))}
        if itemsize > 1:
            sizes[SHUFFLED] = float(len(compress(shuffled(seen, itemsize))))
        if min(sizes.values()) < _STRUCTURED * len(seen):
            sizes[BITSHUFFLED] = len(compress(bitshuffled(seen, itemsize))) / WORTHWHILE  # it takes twice the time
        if itemsize in _WORDS and len(seen):
            words = np.frombuffer(seen, _WORDS[itemsize])
            present = words != 0
            if present.mean() < 1 - _MANY_ZEROS:
                kept = shuffled(words[present].data.cast("B"), itemsize) if present.any() else b""
                size = len(compress(np.packbits(present).data)) + len(kept) * WORTHWHILE
                sizes[_SPARSE | STORED] = size
                sizes[_SPARSE | SHUFFLED] = size - len(kept) * WORTHWHILE + len(compress(kept))
        return min(sizes, key=lambda mode: sizes[mode])

    def _sparse(self, data: Buffer, itemsize: int, mode: int) -> list[Buffer]:
        words = np.frombuffer(data, _WORDS[itemsize])
        present = words != 0
        kept = words[present].data.cast("B") if present.any() else memoryview(b"")
        bitmap = compress(np.packbits(present, bitorder="little").data, self.level)
        counts = np.array([len(kept) // itemsize, len(bitmap)], np.uint64).tobytes()
        return [counts, bitmap, kept if mode == STORED else compress(_filtered(kept, itemsize, mode), self.level)]

    def framed(self, header: Header) -> tuple[int, int] | None:
        return (0, header.count * header.dtype.itemsize) if STORED < header.mode < _SPARSE else None

    def restored(self, header: Header, prefix: memoryview, content: memoryview) -> Tensor:  # noqa: ARG002 - there is none
        plain = _FILTERS[header.mode][1](content, header.dtype.itemsize) if header.mode in _FILTERS else content
        return as_tensor(plain, header.dtype, header.count)

    def body(self, header: Header, data: memoryview) -> Tensor:
        if header.mode == STORED:
            return as_tensor(data, header.dtype, header.count)
        if _SPARSE <= header.mode < MODES:
            return self._dense(header, data)
        return super().body(header, data)

    def _dense(self, header: Header, data: memoryview) -> Tensor:
        """The elements of a body without zeros."""
        itemsize = header.dtype.itemsize
        if len(data) < _HEAD or itemsize not in _WORDS:
            raise CodecError(f"a body of {len(data)} bytes cannot be one without zeros of {itemsize}-byte elements")
        kept, bitmap_nbytes = (int(number) for number in np.frombuffer(data[:_HEAD], np.uint64))
        if kept > header.count:
            raise CodecError(f"a body declares {kept} non-zeros among {header.count} elements")
        bitmap = decompress(data[_HEAD : _HEAD + bitmap_nbytes], -(-header.count // 8))
        present = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little", count=header.count).view(bool)
        if np.count_nonzero(present) != kept:
            raise CodecError(f"a bitmap marks {np.count_nonzero(present)} non-zeros; the body declares {kept}")
        part = replace(header, mode=header.mode - _SPARSE, shape=(kept,), strides=None)
        elements = np.zeros(header.count, _WORDS[itemsize])
        elements[present] = np.frombuffer(as_bytes(self.body(part, data[_HEAD + bitmap_nbytes :])), _WORDS[itemsize])
        return as_tensor(elements.data.cast("B") if len(elements) else b"", header.dtype, header.count)

    def estimate(self, spec: TensorLike) -> int:
        nbytes = prod(spec.shape) * spec.dtype.itemsize
        return header_nbytes(len(spec.shape)) + nbytes + expansion(nbytes)


def _filtered(data: Buffer, itemsize: int, mode: int) -> Buffer:
    return _FILTERS[mode][0](data, itemsize) if mode in _FILTERS else data
