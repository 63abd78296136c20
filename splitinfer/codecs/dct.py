"""`dctQ`: images by 8 x 8 cosine transform, colour difference and JPEG's quantisation tables; not a JPEG file."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import cache
from math import prod
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from splitinfer.codecs.block import Header, TensorLike, as_tensor, memory_shape, to_body
from splitinfer.codecs.compression import LEVEL
from splitinfer.codecs.grouping import Groups
from splitinfer.codecs.image import pixel_levels
from splitinfer.codecs.lossless import MODES
from splitinfer.codecs.lossy import Coded, Lossy
from splitinfer.codecs.prediction import unzigzag, zigzag
from splitinfer.errors import CodecError

_PARAMETERS = struct.Struct("<B7x")  # quality
_SIDE = 8
_MOST_CHANNELS = 4096  # each costs calls of its own, however small it is
_CENTRE = 128.0  # of the levels of a pixel
# ITU-T T.81, annex K: tables K.1 for luminance and K.2 for chrominance.
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, *[99] * 6, *[99] * 32,
)  # fmt: skip
# ITU-T T.871 (JFIF), section 7: red, green and blue as luminance and two colour differences.
_YCBCR = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


class Dct(Lossy):
    """JPEG-like (ITU-T T.81): for (N, C, H, W) float images, of three channels in colour, otherwise each as grey.

    Pixels become levels 0..255 as with `uint8`; three channels become luminance and colour differences at half the
    resolution; 8 x 8 blocks are transformed and quantised by JPEG's tables scaled to the quality, 1 to 100, as the
    Independent JPEG Group scales them. Coefficients of one frequency lie together and zstd takes the place of JPEG's
    Huffman coder. No bound on the error. Other tensors travel lossless, among them images that padding to whole
    blocks would more than double, and those of more than 4,096 channels.
    """

    codec_id: ClassVar[int] = 9
    divisible: ClassVar[bool] = False
    modes: ClassVar[int] = MODES

    def __init__(self, quality: int, *, level: int = LEVEL) -> None:
        super().__init__(level)
        self.quality = quality
        self.name = f"dct{quality}{'' if level == LEVEL else f'+zstd{level}'}"
        self.parameters = _PARAMETERS.pack(quality)

    def coded(self, tensor: Tensor) -> Coded | None:
        body, strides, _ = to_body(tensor)
        header = Header(self.codec_id, 0, tensor.dtype, tuple(tensor.shape), strides)
        if not _is_image(header):
            return None
        groups = Groups.channels(header)
        found = pixel_levels(body.view(-1), groups)
        if found is None:
            return None
        sizes, order = memory_shape(header)
        scale, zero = (torch.from_numpy(np.broadcast_to(row, header.shape[1]).copy()).view(1, -1, 1, 1) for row in found)
        pixels = body.view(sizes).permute(_inverse(order)).float() / scale + zero
        codes = [self._coefficients(plane - _CENTRE, chroma) for plane, chroma in _planes(pixels)]
        data = zigzag(np.concatenate(codes).astype(np.int32)).astype(np.uint16)
        mode, pieces = self._whole.pack(data.data.cast("B"), data.itemsize)
        return mode, strides, [*(parameter.tobytes() for parameter in found), *pieces]

    def _coefficients(self, plane: Tensor, chroma: bool) -> NDArray[np.int16]:
        """The quantised coefficients of (N, H, W), frequency by frequency, the mean of a block less that of the one before."""
        table = torch.from_numpy(_table(self.quality, chroma))
        found = (_basis() @ _blocks(plane) @ _basis().T).view(-1, _SIDE * _SIDE).div_(table).round_()
        codes = found[:, torch.from_numpy(_scan())].t().to(torch.int16).contiguous().numpy()
        codes[0, 1:] -= codes[0, :-1].copy()
        return codes.reshape(-1)

    def coded_body(self, header: Header, data: memoryview) -> Tensor:
        if not _is_image(header):
            raise CodecError(f"a tensor of shape {header.shape} in the form of an image")
        groups = Groups.channels(header)
        if len(data) < 8 * groups.count:
            raise CodecError(f"{len(data)} bytes cannot hold the scales of {groups.count} channels")
        scale, zero = as_tensor(bytes(data[: 8 * groups.count]), torch.float32, 2 * groups.count).view(2, 1, -1, 1, 1)
        shapes = list(_plane_shapes(header.shape))
        count = sum(prod(shape) for shape, _ in shapes)
        words = self._whole.body(Header(0, header.mode, torch.uint16, (count,)), data[8 * groups.count :])
        codes = unzigzag(words.numpy().astype(np.uint32)).astype(np.int16)
        planes = []
        for shape, chroma in shapes:
            planes.append(self._plane(codes[: prod(shape)], shape, chroma) + _CENTRE)
            codes = codes[prod(shape) :]
        pixels = _joined(planes, header.shape).clamp_(0, 255)
        _, order = memory_shape(header)
        return (pixels.sub_(zero).mul_(scale)).permute(order).reshape(-1).to(header.dtype)

    def _plane(self, codes: NDArray[np.int16], shape: tuple[int, int, int], chroma: bool) -> Tensor:
        """The inverse of :meth:`_coefficients`, padding still there."""
        codes = codes.reshape(_SIDE * _SIDE, -1).copy()
        np.cumsum(codes[0], out=codes[0], dtype=np.int16)
        found = torch.empty(codes.shape[1], _SIDE * _SIDE)
        found[:, torch.from_numpy(_scan())] = torch.from_numpy(codes).t().float()
        blocks = _basis().T @ found.mul_(torch.from_numpy(_table(self.quality, chroma))).view(-1, _SIDE, _SIDE) @ _basis()
        images, height, width = shape
        return blocks.view(images, height // _SIDE, width // _SIDE, _SIDE, _SIDE).transpose(2, 3).reshape(shape)

    def coded_nbytes(self, spec: TensorLike) -> int:
        if not _has_form(spec.shape):
            return 0  # travels lossless, which the caller has counted
        words = sum(prod(shape) for shape, _ in _plane_shapes(tuple(spec.shape)))
        return len(self.parameters) + 8 * spec.shape[1] + 2 * words + (2 * words >> 8) + 64

    def estimate(self, spec: TensorLike) -> int:
        return max(self._whole.estimate(spec), super().estimate(spec)) if not _has_form(spec.shape) else super().estimate(spec)


def _is_image(header: Header) -> bool:
    return _has_form(header.shape) and header.count == prod(header.shape)


def _has_form(shape: Sequence[int]) -> bool:
    """Whether these are images. Those that padding more than doubles are none: decoded, a pixel of its own takes a whole block."""
    if len(shape) != 4 or not all(shape) or shape[1] > _MOST_CHANNELS:
        return False
    height, width = (-(-side // _SIDE) * _SIDE for side in shape[2:])
    return height * width <= 2 * shape[2] * shape[3]


def _planes(pixels: Tensor) -> Iterator[tuple[Tensor, bool]]:
    """(N, H, W) planes to transform, padded to whole blocks, and whether each is a colour difference."""
    if pixels.shape[1] == 3:
        pixels = torch.einsum("pc,nchw->nphw", _YCBCR, pixels)
        halved = functional.avg_pool2d(pixels[:, 1:] + _CENTRE, 2, ceil_mode=True)
        yield from ((_padded(plane), chroma) for plane, chroma in ((pixels[:, 0], False), (halved[:, 0], True), (halved[:, 1], True)))
    else:
        yield from ((_padded(pixels[:, channel]), False) for channel in range(pixels.shape[1]))


def _plane_shapes(shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, int, int], bool]]:
    """The shapes of :func:`_planes`."""
    images, channels, height, width = shape
    up = [-(-side // _SIDE) * _SIDE for side in (height, width, -(-height // 2), -(-width // 2))]
    for channel in range(channels):
        chroma = channels == 3 and channel > 0
        yield (images, *(up[2:] if chroma else up[:2])), chroma  # type: ignore[misc]  # two sides


def _joined(planes: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`_planes`: (N, C, H, W)."""
    _, channels, height, width = shape
    if channels != 3:
        return torch.stack([plane[:, :height, :width] for plane in planes], 1)
    half = torch.stack([plane[:, : -(-height // 2), : -(-width // 2)] for plane in planes[1:]], 1) - _CENTRE
    chroma: Tensor = functional.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]
    pixels: Tensor = torch.einsum("cp,nphw->nchw", torch.linalg.inv(_YCBCR), torch.cat((planes[0][:, None, :height, :width], chroma), 1))
    return pixels


def _padded(plane: Tensor) -> Tensor:
    """Repeated edges up to whole blocks, which cost least."""
    extra = [-side % _SIDE for side in plane.shape[1:]]
    return functional.pad(plane.unsqueeze(1), (0, extra[1], 0, extra[0]), mode="replicate").squeeze(1)


def _blocks(plane: Tensor) -> Tensor:
    """(N, H, W) as (blocks, 8, 8), row by row of blocks."""
    images, height, width = plane.shape
    return plane.reshape(images, height // _SIDE, _SIDE, width // _SIDE, _SIDE).transpose(2, 3).reshape(-1, _SIDE, _SIDE)


def _inverse(order: list[int]) -> list[int]:
    return [order.index(axis) for axis in range(len(order))]


@cache
def _basis() -> Tensor:
    """The orthonormal DCT-II of eight points: row k is frequency k (T.81, A.3.3)."""
    k, n = torch.arange(_SIDE, dtype=torch.float64).view(-1, 1), torch.arange(_SIDE, dtype=torch.float64)
    rows = torch.cos((2 * n + 1) * k * torch.pi / (2 * _SIDE)) * (2 / _SIDE) ** 0.5
    rows[0] /= 2**0.5
    basis: Tensor = rows.float()
    return basis


@cache
def _scan() -> NDArray[np.int64]:
    """The zigzag of T.81, figure 5: diagonal by diagonal, up and down in turn."""
    places = [(row, column) for row in range(_SIDE) for column in range(_SIDE)]
    places.sort(key=lambda p: (sum(p), p[0] if sum(p) % 2 else p[1]))
    return np.array([row * _SIDE + column for row, column in places])


@cache
def _table(quality: int, chroma: bool) -> NDArray[np.float32]:
    """Steps of the 64 frequencies, scaled as the Independent JPEG Group's library does (jcparam.c)."""
    factor = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = (np.array(_CHROMINANCE if chroma else _LUMINANCE) * factor + 50) // 100
    clipped: NDArray[np.float32] = np.clip(steps, 1, 255).astype(np.float32)
    return clipped
