"""`uint8`: images as the eight bits that they were before they were normalised, predicted like a PNG."""

from __future__ import annotations

import struct
from math import prod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from splitinfer.codecs.block import Header, TensorLike, memory_shape, to_body
from splitinfer.codecs.compression import LEVEL, expansion
from splitinfer.codecs.entropy import content_nbytes, pack_codes, unpack_codes
from splitinfer.codecs.grouping import Floats, Groups, dequantise, quantise
from splitinfer.codecs.lossy import Coded, Lossy
from splitinfer.codecs.prediction import MAX_LAGS, best_lags, differences, sums
from splitinfer.errors import CodecError

TOP = 255
"""Largest value of a pixel."""
_HEAD = struct.Struct("<QQB7x")  # lags, number of lags
_SAMPLE = 4096  # pixels of a channel: with so many, two neighbouring grey levels are among them
_NOISE = 0.02  # of the range / 255: by how much rounding may have moved a pixel off its level
_TINY = np.float32(np.finfo(np.float32).tiny)


class Uint8(Lossy):
    """Eight bits a pixel: ``x ~ scale * (level - zero)``, scale and zero for each channel of a batch of images.

    Where the values of every channel lie on at most 256 equidistant levels, as k / 255 does after any normalisation, these
    levels are found and the error is rounding alone: at most 2 % of the range / 255, measured before it is sent. Otherwise the
    range is divided into 255 steps and the error is at most half a step. Levels are sent as differences to
    neighbours, modulo 256, where a sample shows them smaller, then through zstd. Channels are those of `int8`; what is not
    finite travels lossless.
    """

    codec_id: ClassVar[int] = 8
    divisible: ClassVar[bool] = False
    modes: ClassVar[int] = 2

    def __init__(self, level: int = LEVEL) -> None:
        super().__init__(level)
        self.name = "uint8" if level == LEVEL else f"uint8+zstd{level}"

    def coded(self, tensor: Tensor) -> Coded | None:
        body, strides, _ = to_body(tensor)
        header = Header(self.codec_id, 0, tensor.dtype, tuple(tensor.shape), strides)
        flat, groups = body.view(-1), Groups.channels(header)
        found = pixel_levels(flat, groups)
        if found is None:
            return None
        codes = quantise(flat, groups, *found, TOP)
        lags = best_lags(codes, memory_shape(header)[0])
        mode, pieces = pack_codes(differences(codes, lags), 8, self.level)
        head = _HEAD.pack(*(*lags, 0, 0)[:MAX_LAGS], len(lags))
        return mode, strides, [head, *(parameter.tobytes() for parameter in found), *pieces]

    def coded_frame(self, header: Header) -> tuple[int, int] | None:
        prefix = _HEAD.size + 8 * Groups.channels(header).count
        return (prefix, content_nbytes(header.mode, header.count, 8)) if header.mode else None

    def coded_body(self, header: Header, data: memoryview) -> Tensor:
        start = _HEAD.size + 8 * Groups.channels(header).count
        if len(data) < start:
            raise CodecError(f"{len(data)} bytes cannot hold the {start} of the scales of '{self.name}'")
        return self.coded_restored(header, data[:start], data[start:])

    def coded_restored(self, header: Header, prefix: memoryview, content: memoryview) -> Tensor:
        groups = Groups.channels(header)
        *lags, used = _HEAD.unpack_from(prefix)
        if used > MAX_LAGS or not all(0 < lag < header.count for lag in lags[:used]):
            raise CodecError(f"malformed head of '{self.name}': lags {lags[:used]}")
        scale, zero = np.frombuffer(bytes(prefix[_HEAD.size :]), np.float32).reshape(2, groups.count).copy()
        codes = sums(unpack_codes(header.mode, content, header.count, 8), lags[:used])
        return dequantise(codes, groups, scale, zero, header.dtype)

    def coded_nbytes(self, spec: TensorLike) -> int:
        count = prod(spec.shape)
        return _HEAD.size + 8 * max(spec.shape, default=1) + count + expansion(count)


def pixel_levels(flat: Tensor, groups: Groups) -> tuple[Floats, Floats] | None:
    """Scale and zero, not rounded, of each channel's 256 levels; None for what is not finite."""
    low, high = groups.extremes(flat)
    with np.errstate(over="ignore", invalid="ignore"):
        coarse = np.maximum((high - low) / np.float32(TOP), _TINY)
        if not (np.isfinite(low).all() and np.isfinite(coarse).all() and np.isfinite(low / coarse).all()):
            return None
        steps = np.array([_step(row, step) for row, step in zip(groups.sample(flat, _SAMPLE * groups.count).numpy(), coarse, strict=True)])
        # One level's distance, measured over the whole range, is free of the rounding of two neighbours.
        between = np.maximum(np.rint((high - low) / steps), 1)
        fine = np.maximum((high - low) / between, _TINY).astype(np.float32)
    if np.isfinite(low / fine).all() and bool((_worst(flat, groups, fine, -low / fine) <= _NOISE * coarse).all()):
        return fine, -low / fine
    return coarse, -low / coarse


def _step(values: Floats, coarse: np.float32) -> np.float32:
    """The smallest difference between two of the values that is not noise: no level can be closer than the range / 255."""
    gaps = np.diff(np.unique(values))
    gaps = gaps[gaps > coarse * (1 - _NOISE)]
    return gaps.min() if len(gaps) else coarse


def _worst(flat: Tensor, groups: Groups, scale: Floats, zero: Floats) -> Floats:
    """The largest distance of a value of each channel from its level."""
    back = dequantise(quantise(flat, groups, scale, zero, TOP), groups, scale, zero, torch.float32)
    return groups.extremes((back - flat).abs_())[1]
