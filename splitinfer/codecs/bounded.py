"""`eb...`: no finite element comes back farther from itself than a bound."""

from __future__ import annotations

import struct
from math import isfinite, prod
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splitinfer.codecs.block import Header, TensorLike, as_bytes, as_tensor, memory_shape, to_body
from splitinfer.codecs.compression import LEVEL, expansion
from splitinfer.codecs.entropy import Wide
from splitinfer.codecs.lossy import Coded, Lossy
from splitinfer.codecs.prediction import MAX_LAGS, best_lags, differences, sums, unzigzag, zigzag
from splitinfer.errors import CodecError

_PARAMETERS = struct.Struct("<dB7x")  # bound, relative
_HEAD = struct.Struct("<dQQQBB6x")  # step, lags, exceptions, bits of a code, number of lags
_TILE = 1 << 16
_MAX_CODE = float(1 << 29)  # leaves room for two differences in 32 bits
_MAX_EXCEPTIONS = 32  # more than one in so many: the bound is too fine for the values, and lossless is smaller


class Bounded(Lossy):
    """Every finite element within `bound` of itself, absolute or times the range of the finite values.

    A uniform quantiser with steps of twice the bound, differences to neighbours where a sample shows them smaller, then
    zstd: the scheme of SZ (Tao et al., IPDPS 2017, section III) with a fixed choice of predictors. Each element is
    decoded by the encoder too; one that misses the bound, or is not finite, is stored beside the codes, bit for bit.
    """

    codec_id: ClassVar[int] = 6
    modes: ClassVar[int] = Wide.modes

    def __init__(self, bound: float, text: str, *, relative: bool = False, level: int = LEVEL) -> None:
        super().__init__(level)
        self.bound, self.relative = bound, relative
        self.name = f"eb{text}{'rel' if relative else ''}{'' if level == LEVEL else f'+zstd{level}'}"
        self.parameters = _PARAMETERS.pack(bound, relative)
        self._codes = Wide(self._whole)

    def coded(self, tensor: Tensor) -> Coded | None:
        body, strides, _ = to_body(tensor)
        flat = body.view(-1)
        bound = self._absolute(flat)
        if bound is None:
            return None
        codes, missed = _quantised(flat, bound)
        if len(missed) * _MAX_EXCEPTIONS > len(codes):
            return None
        sizes, _ = memory_shape(Header(self.codec_id, 0, tensor.dtype, tuple(tensor.shape), strides))
        lags = best_lags(codes, sizes)
        mode, bits, pieces = self._codes.pack(zigzag(differences(codes, lags)))
        if bits >= 8 * tensor.dtype.itemsize:
            return None
        head = _HEAD.pack(2 * bound, *(*lags, 0, 0)[:MAX_LAGS], len(missed), bits, len(lags))
        exceptions = as_bytes(flat[torch.from_numpy(missed)])
        return mode, strides, [head, missed.astype(np.uint64).tobytes(), exceptions, *pieces]

    def _absolute(self, flat: Tensor) -> float | None:
        """The bound as the arithmetic has it, never above the one asked for; None where no quantiser can keep it."""
        bound = self.bound
        if self.relative:
            finite = flat[flat.isfinite()] if not bool(torch.isfinite(flat.sum(dtype=torch.float64))) else flat
            low, high = torch.aminmax(finite) if len(finite) else (flat[:1], flat[:1])
            bound *= float(high.double() - low.double())
        form = np.float64 if flat.dtype == torch.float64 else np.float32
        limits = np.finfo(form)
        bound = min(bound, float(limits.max) / 4) if isfinite(bound) else 0.0
        rounded = form(bound)
        if float(rounded) > bound:
            rounded = np.nextafter(rounded, form(0))
        return float(rounded) if rounded >= limits.tiny * 8 else None  # its inverse is a normal number too

    def coded_body(self, header: Header, data: memoryview) -> Tensor:
        if len(data) < _HEAD.size:
            raise CodecError(f"{len(data)} bytes cannot hold the {_HEAD.size} of the head of '{self.name}'")
        step, *lags, exceptions, bits, used = _HEAD.unpack_from(data)
        if used > MAX_LAGS or not all(0 < lag < header.count for lag in lags[:used]) or exceptions > header.count:
            raise CodecError(f"malformed head of '{self.name}': lags {lags[:used]}, {exceptions} exceptions")
        places_end = _HEAD.size + 8 * exceptions
        values_end = places_end + header.dtype.itemsize * exceptions
        if len(data) < values_end:
            raise CodecError(f"{len(data)} bytes cannot hold {exceptions} exceptions")
        places = np.frombuffer(data[_HEAD.size : places_end], np.uint64)
        if len(places) and places.max() >= header.count:
            raise CodecError(f"an exception at {places.max()} of {header.count} elements")
        kept = as_tensor(bytes(data[places_end:values_end]), header.dtype, exceptions)
        codes = sums(unzigzag(self._codes.unpack(header.mode, data[values_end:], header.count, bits)), lags[:used])
        values = torch.from_numpy(codes).to(torch.float64 if header.dtype == torch.float64 else torch.float32)
        values = values.mul_(step).to(header.dtype)
        values[torch.from_numpy(places.astype(np.int64))] = kept
        return values

    def coded_nbytes(self, spec: TensorLike) -> int:
        nbytes = prod(spec.shape) * spec.dtype.itemsize  # codes are narrower than elements, exceptions at most one in 32
        return len(self.parameters) + _HEAD.size + nbytes + expansion(nbytes)

    def estimate(self, spec: TensorLike) -> int:
        return max(self._whole.estimate(spec), super().estimate(spec))  # what is not finite does not make it lossless


def _quantised(flat: Tensor, bound: float) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Codes in steps of twice the bound, 0 for the elements that would miss it, and where these are.

    The difference between an element and its decoded value is exact (Sterbenz' lemma: they are within a factor of two
    of each other, or the value is 0), so the comparison with the bound is too.
    """
    form = torch.float64 if flat.dtype == torch.float64 else torch.float32
    codes = np.empty(len(flat), np.int32)
    missed: list[Any] = []
    for start in range(0, len(flat), _TILE):
        values = flat[start : start + _TILE].to(form)
        ticks = values.mul(1 / (2 * bound)).round_()
        decoded = ticks.mul(2 * bound).to(flat.dtype).to(form)
        good = (decoded.sub_(values).abs_() <= bound).logical_and_(ticks.abs() <= _MAX_CODE)
        if not bool(good.all()):
            ticks[~good] = 0
            missed.append(torch.nonzero(~good).view(-1).numpy() + start)
        np.copyto(codes[start : start + _TILE], ticks.numpy(), casting="unsafe")
    return codes, np.concatenate(missed) if missed else np.empty(0, np.int64)
