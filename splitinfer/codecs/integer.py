"""`intB/...`: integers of 8, 6, 4, 3 or 2 bits, symmetric or affine, a scale per tensor, channel or block."""

from __future__ import annotations

import struct
from math import prod
from typing import ClassVar

import numpy as np
from torch import Tensor

from splitinfer.codecs.block import Header, TensorLike, to_body
from splitinfer.codecs.clipping import Grid, clipped
from splitinfer.codecs.compression import LEVEL, expansion
from splitinfer.codecs.entropy import PACKED, content_nbytes, pack_codes, unpack_codes
from splitinfer.codecs.filters import packed_nbytes
from splitinfer.codecs.grouping import MIN_PER_CHANNEL, Floats, Groups, dequantise, quantise
from splitinfer.codecs.int8 import fits
from splitinfer.codecs.lossy import Coded, Lossy
from splitinfer.errors import CodecError

BITS = (8, 6, 4, 3, 2)
"""Widths of a code."""
BLOCKS = (16, 32, 64, 128, 256, 512, 1024)
"""Elements of a block."""
_PARAMETERS = struct.Struct("<BBBBI")  # bits, span, symmetric, reserved, elements of a block
_SPANS = ("tensor", "channel", "block")


class Integer(Lossy):
    """Quantisation to few bits: ``x ~ scale * (code - zero)``, a scale (and a zero) for each group.

    Below 8 bits each group's range is clipped where that lowers the squared error (see :mod:`splitinfer.codecs.clipping`).
    A group is the tensor, a channel as `int8` has them, or a block of neighbours in memory. Affine grids keep zeros
    exactly zero; a symmetric one spends no bytes on zero points. Codes are bit-packed; with a `level` they are then
    compressed where a sample shows that it pays. What is not finite travels lossless, as with `int8`.
    """

    codec_id: ClassVar[int] = 5

    def __init__(self, bits: int, span: str, block: int = 0, *, symmetric: bool = False, level: int | None = None) -> None:
        super().__init__(LEVEL if level is None else level)
        suffix = "" if level is None else "+zstd" if level == LEVEL else f"+zstd{level}"
        self.name = f"int{bits}/{span}{block or ''}{'/sym' if symmetric else ''}{suffix}"
        self.grid = Grid(bits, symmetric, narrow=span == "block")
        self.span, self.block, self.compressed = span, block, level is not None
        self.parameters = _PARAMETERS.pack(bits, _SPANS.index(span), symmetric, 0, block)

    @property
    def modes(self) -> int:  # type: ignore[override]  # depends on the name
        return 3 if self.compressed else 1

    def coded(self, tensor: Tensor) -> Coded | None:
        body, strides, _ = to_body(tensor)
        flat = body.view(-1)
        groups = self._groups(Header(self.codec_id, 0, tensor.dtype, tuple(tensor.shape), strides))
        low, high = groups.extremes(flat)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            scale, zero = self.grid.parameters(*clipped(flat, groups, low, high, self.grid))
            farthest = (np.maximum(np.abs(zero), np.abs(self.grid.top - zero)) * scale).max()  # that the decoder can give
        if not fits(farthest, tensor.dtype):
            return None
        codes = quantise(flat, groups, scale, zero, self.grid.top)
        mode, pieces = pack_codes(codes, self.grid.bits, self.level if self.compressed else None)
        return mode, strides, [*self._packed(scale, zero), *pieces]

    def coded_frame(self, header: Header) -> tuple[int, int] | None:
        if header.mode == PACKED:
            return None
        return self._parameters_nbytes(self._groups(header).count), content_nbytes(header.mode, header.count, self.grid.bits)

    def coded_body(self, header: Header, data: memoryview) -> Tensor:
        start = self._parameters_nbytes(self._groups(header).count)
        if len(data) < start:
            raise CodecError(f"{len(data)} bytes cannot hold the {start} of the scales of '{self.name}'")
        return self.coded_restored(header, data[:start], data[start:])

    def coded_restored(self, header: Header, prefix: memoryview, content: memoryview) -> Tensor:
        groups = self._groups(header)
        codes = unpack_codes(header.mode, content, header.count, self.grid.bits)
        scale, zero = self._unpacked(bytes(prefix), groups.count)
        return dequantise(codes, groups, scale, zero, header.dtype)

    def coded_nbytes(self, spec: TensorLike) -> int:
        count = prod(spec.shape)
        groups = {"tensor": 1, "channel": max([1, *(s for s in spec.shape if s <= count // MIN_PER_CHANNEL)]),
                  "block": -(-count // max(1, self.block))}[self.span]  # fmt: skip
        packed = packed_nbytes(count, self.grid.bits)
        extra = expansion(packed) if self.compressed else 0
        return len(self.parameters) + self._parameters_nbytes(groups) + packed + extra

    # -- scales and zeros: float32 and 16 bits; half of that for blocks; symmetric grids need no zeros

    def _groups(self, header: Header) -> Groups:
        if self.span == "block":
            return Groups.blocks(header, self.block)
        return Groups.channels(header) if self.span == "channel" else Groups.whole(header)

    def _parameters_nbytes(self, groups: int) -> int:
        each = 4 if self.grid.symmetric else 6
        return groups * (each // 2 if self.grid.narrow else each)

    def _packed(self, scale: Floats, zero: Floats) -> list[bytes]:
        scales = (scale.view(np.uint32) >> 16).astype(np.uint16) if self.grid.narrow else scale
        if self.grid.symmetric:
            return [scales.tobytes()]
        return [scales.tobytes(), (zero - self.grid.middle).astype(np.int8 if self.grid.narrow else np.int16).tobytes()]

    def _unpacked(self, data: bytes, groups: int) -> tuple[Floats, Floats]:
        width = 2 if self.grid.narrow else 4
        scale, rest = data[: width * groups], data[width * groups :]
        if self.grid.narrow:
            scales = (np.frombuffer(scale, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            scales = np.frombuffer(scale, np.float32).copy()
        if self.grid.symmetric:
            return scales, np.full(groups, self.grid.middle, np.float32)
        zeros = np.frombuffer(rest, np.int8 if self.grid.narrow else np.int16)
        return scales, zeros.astype(np.float32) + self.grid.middle
