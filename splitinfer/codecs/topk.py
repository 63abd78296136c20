"""`topk...`: the largest elements and where they were; the others come back as zeros."""

from __future__ import annotations

import struct
from math import ceil, prod
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splitinfer.codecs.block import Buffer, Header, TensorLike, as_bytes, to_body
from splitinfer.codecs.compression import LEVEL, compress, decompress, expansion
from splitinfer.codecs.filters import shuffled, unshuffled
from splitinfer.codecs.half import halved
from splitinfer.codecs.lossless import MODES
from splitinfer.codecs.lossy import WIDE, Coded, Lossy
from splitinfer.errors import CodecError

FORMS: dict[str, torch.dtype | None] = {"": None, "fp16": torch.float16, "bf16": torch.bfloat16}
"""How the kept elements of float32 and float64 tensors travel."""
_PARAMETERS = struct.Struct("<dB7x")  # share, form of the values
_HEAD = struct.Struct("<QQB7x")  # elements kept, bytes of the positions' frame, bytes of a gap or 0 for a bitmap
_GAPS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class TopK(Lossy):
    """Keeps the given share of the elements, those of largest magnitude, exactly or as a half (Aji and Heafield, EMNLP 2017).

    Among equals the first in memory are kept; zeros never are. Positions travel as a bitmap or as the gaps between them,
    whichever zstd makes smaller.
    """

    codec_id: ClassVar[int] = 7
    divisible: ClassVar[bool] = False
    modes: ClassVar[int] = MODES

    def __init__(self, share: float, text: str, form: str = "", *, level: int = LEVEL) -> None:
        super().__init__(level)
        self.share, self.form = share, FORMS[form]
        self.name = f"topk{text}{form and '/' + form}{'' if level == LEVEL else f'+zstd{level}'}"
        self.parameters = _PARAMETERS.pack(share, list(FORMS).index(form))

    def coded(self, tensor: Tensor) -> Coded | None:
        body, strides, _ = to_body(tensor)
        flat = body.view(-1)
        sizes = flat.abs().float() if flat.dtype != torch.float64 else flat.abs()
        if not bool(torch.isfinite(sizes.max())):
            return None
        places = _largest(sizes.numpy(), ceil(self.share * len(flat)))
        kept = flat[torch.from_numpy(places)]
        if self.form is not None and kept.dtype in WIDE:
            kept = halved(kept, self.form)
        width, positions = self._positions(places, len(flat))
        mode, values = self._whole.pack(as_bytes(kept), kept.dtype.itemsize)
        return mode, strides, [_HEAD.pack(len(places), len(positions), width), positions, *values]

    def _positions(self, places: NDArray[np.int64], count: int) -> tuple[int, bytes]:
        """Bytes of a gap, 0 for a bitmap, and the frame."""
        present = np.zeros(count, bool)
        present[places] = True
        gaps = np.diff(places, prepend=-1) - 1
        width = next(width for width in _GAPS if gaps.max(initial=0) < 1 << 8 * width)
        frames = {
            0: compress(np.packbits(present, bitorder="little").data, self.level),
            width: compress(shuffled(gaps.astype(_GAPS[width]).data.cast("B") if len(gaps) else b"", width), self.level),
        }
        best = min(frames, key=lambda form: len(frames[form]))
        return best, frames[best]

    def coded_body(self, header: Header, data: memoryview) -> Tensor:
        if len(data) < _HEAD.size:
            raise CodecError(f"{len(data)} bytes cannot hold the {_HEAD.size} of the head of '{self.name}'")
        kept, nbytes, width = _HEAD.unpack_from(data)
        if kept > header.count or width not in (0, *_GAPS) or nbytes > len(data) - _HEAD.size:
            raise CodecError(f"malformed head of '{self.name}': {kept} of {header.count} elements, gaps of {width} bytes")
        places = _read_positions(data[_HEAD.size : _HEAD.size + nbytes], kept, width, header.count)
        dtype = self.form if self.form is not None and header.dtype in WIDE else header.dtype
        values = self._whole.body(Header(0, header.mode, dtype, (kept,)), data[_HEAD.size + nbytes :])
        result = torch.zeros(header.count, dtype=header.dtype)
        result[torch.from_numpy(places)] = values.to(header.dtype)
        return result

    def coded_nbytes(self, spec: TensorLike) -> int:
        count = prod(spec.shape)
        kept = ceil(self.share * count)
        width = 2 if self.form is not None and spec.dtype in WIDE else spec.dtype.itemsize
        bitmap = -(-count // 8)
        return len(self.parameters) + _HEAD.size + bitmap + (bitmap >> 8) + 64 + kept * width + expansion(kept * width)


def _largest(sizes: NDArray[np.float32] | NDArray[np.float64], kept: int) -> NDArray[np.int64]:
    """Ascending places of the `kept` largest; fewer where the others are zeros."""
    if kept >= len(sizes):
        return np.flatnonzero(sizes)
    threshold = np.partition(sizes, len(sizes) - kept)[len(sizes) - kept]
    if threshold == 0:
        return np.flatnonzero(sizes)
    larger = np.flatnonzero(sizes > threshold)
    equal = np.flatnonzero(sizes == threshold)[: kept - len(larger)]
    return np.sort(np.concatenate((larger, equal))) if len(equal) else larger


def _read_positions(frame: Buffer, kept: int, width: int, count: int) -> NDArray[np.int64]:
    if width == 0:
        bitmap = np.frombuffer(decompress(frame, -(-count // 8)), np.uint8)
        places = np.flatnonzero(np.unpackbits(bitmap, bitorder="little", count=count))
    else:
        gaps = np.frombuffer(unshuffled(decompress(frame, kept * width), width), _GAPS[width])
        if kept and gaps.max() >= count:
            raise CodecError(f"a gap of {gaps.max()} between the positions of {count} elements")
        places = np.cumsum(gaps.astype(np.int64) + 1) - 1  # at most count x count: no overflow below 2**31 elements
    if len(places) != kept or (kept and places[-1] >= count):
        raise CodecError(f"positions mark {len(places)} of {count} elements; the body declares {kept}")
    return places
