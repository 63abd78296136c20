"""Codecs that return every bit: `raw`, and `zstd` with a byte shuffle where a sample says that it helps."""

from __future__ import annotations

import threading
from math import prod
from typing import ClassVar

import numpy as np
import zstandard
from torch import Tensor

from splitinfer.codecs.block import Buffer, Codec, Header, TensorLike, as_bytes, as_tensor, header_nbytes, to_body
from splitinfer.errors import CodecError

_LEVEL = 1  # the fastest level gives most of the ratio on activations
_SAMPLE_NBYTES = 1 << 16  # compressing 64 KiB takes about 0.1 ms
_WORTHWHILE = 0.95  # below 5 % the decoder's time costs more than the bytes saved
_contexts = threading.local()  # compressors are not thread-safe and cost more to build than a small tensor to compress


class Raw(Codec):
    """The bytes as they are."""

    name: ClassVar[str] = "raw"
    codec_id: ClassVar[int] = 0
    lossless: ClassVar[bool] = True

    def parts(self, tensor: Tensor) -> list[Buffer]:
        body, strides, _ = to_body(tensor)
        return [Header.of(tensor, self.codec_id, 0, strides).pack(), as_bytes(body)]

    def body(self, header: Header, data: memoryview) -> Tensor:
        return as_tensor(data, header.dtype, header.count)

    def estimate(self, spec: TensorLike) -> int:
        return header_nbytes(len(spec.shape)) + prod(spec.shape) * spec.dtype.itemsize


class Zstd(Codec):
    """Zstandard level 1, over shuffled bytes, over plain bytes, or not at all: whichever a sample shows to pay."""

    name: ClassVar[str] = "zstd"
    codec_id: ClassVar[int] = 1
    lossless: ClassVar[bool] = True
    _STORED, _PLAIN, _SHUFFLED = range(3)

    def parts(self, tensor: Tensor) -> list[Buffer]:
        body, strides, _ = to_body(tensor)
        data, itemsize = as_bytes(body), tensor.dtype.itemsize
        mode = self._choose(data, itemsize)
        packed: Buffer = data
        if mode != self._STORED:
            packed = compress(shuffled(data, itemsize) if mode == self._SHUFFLED else data)
            if len(packed) >= len(data):  # the sample was not like the rest
                mode, packed = self._STORED, data
        return [Header.of(tensor, self.codec_id, mode, strides).pack(), packed]

    def _choose(self, data: memoryview, itemsize: int) -> int:
        middle = max(0, len(data) - _SAMPLE_NBYTES) // 2 // itemsize * itemsize
        sample = data[middle : middle + _SAMPLE_NBYTES]
        sizes = {self._STORED: len(sample) * _WORTHWHILE, self._PLAIN: float(len(compress(sample)))}
        if itemsize > 1:
            sizes[self._SHUFFLED] = float(len(compress(shuffled(sample, itemsize))))
        return min(sizes, key=lambda mode: sizes[mode])

    def body(self, header: Header, data: memoryview) -> Tensor:
        if header.mode == self._STORED:
            return as_tensor(data, header.dtype, header.count)
        if header.mode > self._SHUFFLED:
            raise CodecError(f"unknown mode {header.mode} of 'zstd'")
        plain: Buffer = decompress(data, header.count * header.dtype.itemsize)
        if header.mode == self._SHUFFLED:
            plain = unshuffled(plain, header.dtype.itemsize)
        return as_tensor(plain, header.dtype, header.count)

    def estimate(self, spec: TensorLike) -> int:
        return header_nbytes(len(spec.shape)) + prod(spec.shape) * spec.dtype.itemsize


def compress(data: Buffer) -> bytes:
    """A zstd frame that states its content's size; the context is kept for the thread."""
    if not hasattr(_contexts, "compressor"):
        _contexts.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True)
    packed: bytes = _contexts.compressor.compress(data)
    return packed


def decompress(data: memoryview, nbytes: int) -> bytes:
    """The frame's content, which must be `nbytes` long: checked before anything is allocated."""
    if not hasattr(_contexts, "decompressor"):
        _contexts.decompressor = zstandard.ZstdDecompressor()
    try:
        declared = zstandard.get_frame_parameters(data).content_size
        if declared != nbytes:
            raise CodecError(f"a compressed body declares {declared} bytes where {nbytes} belong")
        plain: bytes = _contexts.decompressor.decompress(data, max_output_size=nbytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"malformed zstd body: {error}") from error
    if len(plain) != nbytes:
        raise CodecError(f"a compressed body held {len(plain)} bytes where {nbytes} belong")
    return plain


def shuffled(data: Buffer, itemsize: int) -> memoryview:
    """First bytes of all elements, then all second bytes, and so on: exponents lie beside exponents."""
    planes = np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(-1, itemsize).T)
    return planes.data.cast("B") if planes.size else memoryview(b"")


def unshuffled(data: Buffer, itemsize: int) -> memoryview:
    """The inverse of :func:`shuffled`."""
    return shuffled(data, len(data) // itemsize) if len(data) else memoryview(b"")


