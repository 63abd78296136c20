"""`int8`: affine quantisation per channel with exact zeros, then zstd."""

from __future__ import annotations

from math import prod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from splitinfer.codecs.block import Header, TensorLike, header_nbytes, to_body
from splitinfer.codecs.compression import LEVEL, compressed, expansion
from splitinfer.codecs.grouping import Groups, dequantise, quantise
from splitinfer.codecs.lossy import WIDE, Coded, Lossy
from splitinfer.errors import CodecError

_LEVELS = np.float32(255)  # largest value of an unsigned byte
_TINY = np.float32(np.finfo(np.float32).tiny)
_ZERO = np.float32(0)
_PACKED, _STORED = range(2)
_NBYTES = 5  # of a channel's scale and zero


class Int8(Lossy):
    """Affine 8-bit quantisation per channel, then zstd (Jacob et al., CVPR 2018, section 2.1).

    ``x ~ scale * (q - zero)`` with q and zero in 0..255. The range always includes 0, so that zeros stay exactly zero
    and the runs that a ReLU leaves compress. Channels are axis 1 of 4-D and 5-D tensors and the last axis of 2-D and
    3-D ones; where a channel has fewer than 32 values, one scale serves the whole tensor. The error of an element is
    at most half its channel's scale, plus the rounding of the arithmetic. A tensor with a NaN, an infinity or a range
    that float32 cannot hold is sent lossless instead, as are integers and booleans.
    """

    codec_id: ClassVar[int] = 3
    whole_mode: ClassVar[int] = 2
    modes: ClassVar[int] = 2

    def __init__(self, level: int = LEVEL) -> None:
        super().__init__(level)
        self.name = "int8" if level == LEVEL else f"int8+zstd{level}"

    def coded(self, tensor: Tensor) -> Coded | None:
        body, strides, _ = to_body(tensor)
        flat, groups = body.view(-1), Groups.channels(Header(self.codec_id, 0, tensor.dtype, tuple(tensor.shape), strides))
        low, high = groups.extremes(flat)
        with np.errstate(over="ignore", invalid="ignore"):
            if low.min() >= 0:  # behind a ReLU
                scale = np.maximum(high / _LEVELS, _TINY)
                zero = np.zeros_like(scale)
            else:
                low, high = np.minimum(low, _ZERO), np.maximum(high, _ZERO)
                scale = np.maximum((high - low) / _LEVELS, _TINY)
                zero = np.rint(-low / scale)
            farthest = (np.maximum(zero, _LEVELS - zero) * scale).max()  # of the values that the decoder can give
        if not fits(farthest, tensor.dtype):
            return None
        codes = quantise(flat, groups, scale, zero, 255, within=True)
        is_frame, pieces = compressed(codes.data, self.level)
        return _PACKED if is_frame else _STORED, strides, [scale.tobytes(), zero.astype(np.uint8).tobytes(), *pieces]

    def coded_frame(self, header: Header) -> tuple[int, int] | None:
        return (_NBYTES * Groups.channels(header).count, header.count) if header.mode == _PACKED else None

    def coded_body(self, header: Header, data: memoryview) -> Tensor:
        start = _NBYTES * Groups.channels(header).count
        if len(data) - start != header.count:
            raise CodecError(f"a body of {len(data)} bytes where scales and codes need {start} + {header.count}")
        return self.coded_restored(header, data[:start], data[start:])

    def coded_restored(self, header: Header, prefix: memoryview, content: memoryview) -> Tensor:
        groups = Groups.channels(header)
        scale = np.frombuffer(bytes(prefix[: 4 * groups.count]), np.float32).copy()
        zero = np.frombuffer(prefix[4 * groups.count :], np.uint8).astype(np.float32)
        return dequantise(np.frombuffer(content, np.uint8), groups, scale, zero, header.dtype)

    def coded_nbytes(self, spec: TensorLike) -> int:
        return _NBYTES * max(spec.shape, default=1) + prod(spec.shape) + expansion(prod(spec.shape))

    def estimate(self, spec: TensorLike) -> int:
        # Without its data a float tensor may still hold a NaN and travel whole: the bound is that of zstd.
        return max(self._whole.estimate(spec), header_nbytes(len(spec.shape)) + self.coded_nbytes(spec))


def fits(farthest: np.float32, dtype: torch.dtype) -> bool:
    """Whether a value of this magnitude is finite, as float32 and as `dtype`."""
    return bool(np.isfinite(farthest)) and (dtype in WIDE or bool(torch.tensor(float(farthest)).to(dtype).isfinite()))
