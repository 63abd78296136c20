"""`fp16` and `bf16`: float32 and float64 in two bytes an element, as they are or compressed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from splitinfer.codecs.base import Codec
from splitinfer.codecs.block import Buffer, Header, TensorLike, as_bytes, as_tensor, header_nbytes, to_body
from splitinfer.codecs.compression import LEVEL
from splitinfer.codecs.lossless import MODES, Zstd
from splitinfer.codecs.lossy import WIDE
from splitinfer.errors import CodecError

_AS_IS, _HALF = range(2)
_ZIPPED = 16  # 16 x (1 + _AS_IS or _HALF) + m: the same, as a body that `zstd` writes in its mode m


def halved(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values of float32 or float64 as a half; finite ones beyond its range become its largest."""
    half = values.to(dtype)
    overflowed = half.isinf()
    if overflowed.any():  # rare, so the common case pays one pass
        largest = torch.finfo(dtype).max
        half = torch.where(overflowed & values.isfinite(), values.clamp(-largest, largest).to(dtype), half)
    return half


class Half(Codec):
    """A float of two bytes for float32 and float64; finite values beyond its range are clipped to its largest.

    Rounds to nearest even, float64 by way of float32. Tensors of other dtypes travel as they are. With a `level` what
    would be sent is compressed losslessly.
    """

    form: ClassVar[str]
    dtype: ClassVar[torch.dtype]

    def __init__(self, level: int | None = None) -> None:
        suffix = "" if level is None else "+zstd" if level == LEVEL else f"+zstd{level}"
        self.name = self.form + suffix
        self._zstd = None if level is None else Zstd(level)

    def encode_chunks(self, tensor: Tensor) -> Iterator[Buffer]:
        body, strides, _ = to_body(tensor)
        mode = _AS_IS
        if tensor.dtype in WIDE:
            mode, body = _HALF, halved(body, self.dtype)
        if self._zstd is None:
            yield Header.of(tensor, self.codec_id, mode, strides).pack()
            yield as_bytes(body)
            return
        zipped, pieces = self._zstd.pack(as_bytes(body), body.dtype.itemsize)
        yield Header.of(tensor, self.codec_id, _ZIPPED * (1 + mode) + zipped, strides).pack()
        yield from pieces

    def framed(self, header: Header) -> tuple[int, int] | None:
        zstd, _, inner = self._inner(header)
        return None if zstd is None else zstd.framed(inner)

    def restored(self, header: Header, prefix: memoryview, content: memoryview) -> Tensor:
        zstd, kind, inner = self._inner(header)
        assert zstd is not None  # framed() said so
        return self._widened(zstd.restored(inner, prefix, content), header, kind)

    def body(self, header: Header, data: memoryview) -> Tensor:
        zstd, kind, inner = self._inner(header)
        plain = as_tensor(data, inner.dtype, header.count) if zstd is None else zstd.body(inner, data)
        return self._widened(plain, header, kind)

    def _widened(self, plain: Tensor, header: Header, kind: int) -> Tensor:
        return plain.reshape(-1) if kind == _AS_IS else plain.reshape(-1).to(header.dtype)

    def _inner(self, header: Header) -> tuple[Zstd | None, int, Header]:
        """The codec of what was sent, whether that is _HALF, and its header."""
        kind, mode = (header.mode, 0) if self._zstd is None else divmod(header.mode - _ZIPPED, _ZIPPED)
        if kind not in (_AS_IS, _HALF) or mode >= MODES or (kind == _HALF and header.dtype not in WIDE):
            raise CodecError(f"mode {header.mode} of '{self.name}' does not fit {header.dtype}")
        return self._zstd, kind, replace(header, mode=mode, dtype=self.dtype if kind == _HALF else header.dtype)

    def estimate(self, spec: TensorLike) -> int:
        if self._zstd is not None:
            halved = torch.empty(tuple(spec.shape), dtype=self.dtype, device="meta") if spec.dtype in WIDE else spec
            return self._zstd.estimate(halved)
        return header_nbytes(len(spec.shape)) + prod(spec.shape) * (2 if spec.dtype in WIDE else spec.dtype.itemsize)


class Fp16(Half):
    """IEEE 754 binary16: 11 significant bits up to 65504."""

    form: ClassVar[str] = "fp16"
    codec_id: ClassVar[int] = 2
    dtype: ClassVar[torch.dtype] = torch.float16


class Bf16(Half):
    """The upper half of a float32: 8 significant bits, its whole range."""

    form: ClassVar[str] = "bf16"
    codec_id: ClassVar[int] = 4
    dtype: ClassVar[torch.dtype] = torch.bfloat16
