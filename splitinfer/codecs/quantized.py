"""Codecs that trade bits for bytes: `fp16` and `int8`. Only floating-point tensors lose anything; others travel whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from splitinfer.codecs.block import (
    Buffer,
    Codec,
    Header,
    TensorLike,
    as_bytes,
    as_tensor,
    header_nbytes,
    memory_shape,
    to_body,
)
from splitinfer.codecs.lossless import Zstd, compress, decompress
from splitinfer.errors import CodecError

_WIDE = (torch.float32, torch.float64)
_FLOATS = (*_WIDE, torch.float16, torch.bfloat16)
_LEVELS = 255  # largest value of an unsigned byte
_MIN_PER_CHANNEL = 32  # a channel's 5 bytes of parameters cost at most 16 % of its values
_FP16_MAX = torch.finfo(torch.float16).max
_NO_LIMIT = 1 << 62  # for a header that this process has just written


class Fp16(Codec):
    """IEEE half precision for float32 and float64; finite values beyond its range are clipped to +-65504."""

    name: ClassVar[str] = "fp16"
    codec_id: ClassVar[int] = 2
    lossless: ClassVar[bool] = False
    _AS_IS, _HALF = range(2)

    def parts(self, tensor: Tensor) -> list[Buffer]:
        body, strides, _ = to_body(tensor)
        mode = self._AS_IS
        if tensor.dtype in _WIDE:
            mode, half = self._HALF, body.half()
            overflowed = half.isinf()
            if overflowed.any():  # rare, so the common case pays one pass
                half = torch.where(overflowed & body.isfinite(), body.clamp(-_FP16_MAX, _FP16_MAX).half(), half)
            body = half
        return [Header.of(tensor, self.codec_id, mode, strides).pack(), as_bytes(body)]

    def body(self, header: Header, data: memoryview) -> Tensor:
        if header.mode == self._AS_IS:
            return as_tensor(data, header.dtype, header.count)
        if header.mode != self._HALF or header.dtype not in _WIDE:
            raise CodecError(f"mode {header.mode} of 'fp16' does not fit {header.dtype}")
        return as_tensor(data, torch.float16, header.count).to(header.dtype)

    def estimate(self, spec: TensorLike) -> int:
        itemsize = 2 if spec.dtype in _WIDE else spec.dtype.itemsize
        return header_nbytes(len(spec.shape)) + prod(spec.shape) * itemsize


class Int8(Codec):
    """Affine 8-bit quantisation per channel, then zstd (Jacob et al., CVPR 2018, section 2.1).

    ``x ~ scale * (q - zero)`` with q and zero in 0..255. The range always includes 0, so that zeros stay exactly zero
    and the runs that a ReLU leaves compress. Channels are axis 1 of 4-D and 5-D tensors and the last axis of 2-D and
    3-D ones; where a channel has fewer than 32 values, one scale serves the whole tensor. The error of an element is
    at most half its channel's scale, plus the rounding of the arithmetic. A tensor with a NaN, an infinity or a range
    that float32 cannot hold is sent lossless instead, as are integers and booleans.
    """

    name: ClassVar[str] = "int8"
    codec_id: ClassVar[int] = 3
    lossless: ClassVar[bool] = False
    _PACKED, _STORED, _WHOLE = range(3)  # _WHOLE + m: the body that zstd writes in its mode m
    _whole = Zstd()

    def parts(self, tensor: Tensor) -> list[Buffer]:
        quantised = self._quantise(tensor) if tensor.dtype in _FLOATS and tensor.numel() else None
        if quantised is None:
            head, body = self._whole.parts(tensor)
            whole, _ = Header.unpack(head, _NO_LIMIT)
            return [replace(whole, codec_id=self.codec_id, mode=self._WHOLE + whole.mode).pack(), body]
        codes, scale, zero, strides = quantised
        data = as_bytes(codes)
        packed: Buffer = compress(data)
        mode = self._PACKED
        if len(packed) >= len(data):
            mode, packed = self._STORED, data
        head = Header.of(tensor, self.codec_id, mode, strides).pack()
        return [head, as_bytes(scale), as_bytes(zero), packed]

    def _quantise(self, tensor: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...] | None] | None:
        """Codes in the order of memory, scale and zero per channel, strides; None where only lossless is right."""
        body, strides, order = to_body(tensor)
        axis = _channel_axis(tensor.shape, strides)
        values = body.float()
        if axis is None:
            low, high = (edge.reshape(1) for edge in torch.aminmax(values))
            spread = [1] * values.dim()
        else:
            others = [dim for dim, place in enumerate(order) if place != axis]
            low, high = values.amin(others), values.amax(others)
            spread = [-1 if place == axis else 1 for place in order]
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = ((high - low) / _LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
        zero = (-low / scale).round_()
        ends = torch.cat((-zero * scale, (_LEVELS - zero) * scale))  # the outermost values that the decoder can give
        if not bool(torch.isfinite(ends.to(tensor.dtype)).all()):
            return None
        codes = torch.mul(values, (1 / scale).view(spread)) if body is values else values.mul_((1 / scale).view(spread))
        codes = codes.add_(zero.view(spread)).round_().clamp_(0, _LEVELS).to(torch.uint8)
        return codes, scale, zero.to(torch.uint8), strides

    def body(self, header: Header, data: memoryview) -> Tensor:
        if header.mode >= self._WHOLE:
            return self._whole.body(replace(header, mode=header.mode - self._WHOLE), data)
        if header.dtype not in _FLOATS:
            raise CodecError(f"mode {header.mode} of 'int8' does not fit {header.dtype}")
        axis = _channel_axis(header.shape, header.strides)
        channels = 1 if axis is None else header.shape[axis]
        if len(data) < 5 * channels:
            raise CodecError(f"{len(data)} bytes cannot hold the scales of {channels} channels")
        scale = as_tensor(bytes(data[: 4 * channels]), torch.float32, channels)
        zero = as_tensor(data[4 * channels : 5 * channels], torch.uint8, channels).float()
        packed = data[5 * channels :]
        codes: Buffer = decompress(packed, header.count) if header.mode == self._PACKED else packed
        values = as_tensor(codes, torch.uint8, header.count).float()
        if axis is not None:
            sizes, order = memory_shape(header)
            values = values.view(sizes)
            spread = [-1 if place == axis else 1 for place in order]
            scale, zero = scale.view(spread), zero.view(spread)
        return values.sub_(zero).mul_(scale).to(header.dtype)

    def estimate(self, spec: TensorLike) -> int:
        count, head = prod(spec.shape), header_nbytes(len(spec.shape))
        # Without its data a float tensor may still hold a NaN and travel whole: the bound is that of zstd.
        return head + max(self._whole.estimate(spec), 5 * max(spec.shape, default=1) + count)


def _channel_axis(shape: Sequence[int], strides: Sequence[int] | None) -> int | None:
    """The axis with a scale for each index, or None where one scale serves the whole tensor."""
    if len(shape) not in (2, 3, 4, 5):
        return None
    axis = 1 if len(shape) > 3 else len(shape) - 1
    stored = [1 if strides and strides[place] == 0 else size for place, size in enumerate(shape)]
    return axis if prod(stored) // max(stored[axis], 1) >= _MIN_PER_CHANNEL and stored[axis] == shape[axis] else None
