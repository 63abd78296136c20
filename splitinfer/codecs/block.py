"""The encoded tensor: a small fixed header that says what the body is, shared by all codecs (docs/wire-format.md).

A tensor's *layout* travels with it: strides, and where its memory starts within a cache line. Two tensors that are
equal as numbers but not in these can make a kernel choose another order of summation, and then a split model would
differ from the whole one in the last bits.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from splitinfer.errors import CodecError

Buffer = bytes | bytearray | memoryview

DEFAULT_LIMIT_NBYTES = 1 << 30
"""Largest decoded tensor that a decoder allocates unless told otherwise: 1 GiB."""

ALIGNMENT = 16
"""Header and frames are padded to this many bytes, so that the body can be viewed as any dtype without a copy."""

# The number of a dtype on the wire is its place in this list: append only.
DTYPES: tuple[torch.dtype, ...] = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.int16,
    torch.int32, torch.int64, torch.complex64, torch.complex128, torch.uint16, torch.uint32, torch.uint64,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.complex32,
)
_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}
_MAX_NDIM = 64
PREFIX_NBYTES = 8
"""Bytes from which :func:`declared_nbytes` reads how long the whole header is."""
_PREFIX = struct.Struct("<BBBBBBH")  # codec id, mode, dtype code, number of dimensions, flags, misalignment, reserved
_STRIDED = 1  # flag: strides follow the shape
_LINE = 64  # bytes of a cache line, to which torch aligns what it allocates
_UNSUPPORTED = "is not a dense tensor in memory"

with warnings.catch_warnings():
    # torch warns once in a process that a read-only buffer is viewed; stages never write to their inputs.
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0", dtype=torch.uint8)


class TensorLike(Protocol):
    """What `estimate` looks at: anything with a shape and a dtype, a tensor for example."""

    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def dtype(self) -> torch.dtype: ...


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Header:
    """What precedes a body: which codec wrote it, in which mode, and the tensor that it gives back."""

    codec_id: int
    mode: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    """In elements; None means row-major."""
    misalignment: int = 0
    """Bytes by which the tensor's memory starts behind a multiple of 64."""

    @staticmethod
    def of(tensor: Tensor, codec_id: int, mode: int, strides: tuple[int, ...] | None) -> Header:
        """The header of a tensor whose body was made by :func:`to_body`."""
        kept = tensor.device.type == "cpu" and tensor.numel() > 0 and (strides is not None or tensor.is_contiguous())
        start = tensor.data_ptr() % _LINE if kept else 0
        whole = start - start % tensor.dtype.itemsize  # foreign memory may start anywhere; torch's own starts at an element
        return Header(codec_id, mode, tensor.dtype, tuple(tensor.shape), strides, whole)

    @property
    def count(self) -> int:
        """Number of elements that the body holds: broadcast dimensions (stride 0) are stored once."""
        return prod(1 if stride == 0 else size for size, stride in zip(self.shape, self._steps(), strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded tensor in memory, gaps between its rows included."""
        if 0 in self.shape:
            return 0
        extent = sum((size - 1) * stride for size, stride in zip(self.shape, self._steps(), strict=True))
        return (extent + 1) * self.dtype.itemsize

    def _steps(self) -> tuple[int, ...]:
        return self.strides if self.strides is not None else row_major(self.shape)

    def pack(self) -> bytes:
        """The header's bytes, padded to ALIGNMENT."""
        numbers = self.shape if self.strides is None else (*self.shape, *self.strides)
        flags = 0 if self.strides is None else _STRIDED
        head = _PREFIX.pack(self.codec_id, self.mode, _CODES[self.dtype], len(self.shape), flags, self.misalignment, 0)
        return _padded(head + struct.pack(f"<{len(numbers)}Q", *numbers))

    @staticmethod
    def unpack(data: Buffer, limit_nbytes: int = DEFAULT_LIMIT_NBYTES) -> tuple[Header, memoryview]:
        """Header and body. Raises CodecError before anything is allocated where a number does not hold."""
        view = memoryview(data).cast("B")
        if len(view) < _PREFIX.size:
            raise CodecError(f"an encoded tensor has at least {_PREFIX.size} bytes; this has {len(view)}")
        codec_id, mode, code, ndim, flags, misalignment, reserved = _PREFIX.unpack_from(view)
        if code >= len(DTYPES):
            raise CodecError(f"unknown dtype number {code}; this version knows {len(DTYPES)}")
        if ndim > _MAX_NDIM or flags > _STRIDED or reserved or misalignment >= _LINE or misalignment % DTYPES[code].itemsize:
            raise CodecError(f"malformed tensor header: {ndim} dimensions, flags {flags}, misalignment {misalignment}")
        padded = declared_nbytes(view)
        if len(view) < padded:
            raise CodecError(f"truncated tensor header: {len(view)} of {padded} bytes")
        numbers = struct.unpack_from(f"<{ndim * (1 + flags)}Q", view, _PREFIX.size)
        header = Header(codec_id, mode, DTYPES[code], numbers[:ndim], numbers[ndim:] if flags else None, misalignment)
        # A broadcast tensor counts as large as it looks: whatever reads it writes a result of that size. Zeros count as
        # ones, so that torch's arithmetic on strides cannot overflow.
        logical = prod(max(size, 1) for size in header.shape) * header.dtype.itemsize
        if (needed := max(header.nbytes, logical, *numbers)) > limit_nbytes:
            raise CodecError(f"a tensor of shape {header.shape} needs {needed} bytes; the limit is {limit_nbytes}")
        if header.strides is not None and not _plain(header.shape, header.strides):
            raise CodecError(f"strides {header.strides} of shape {header.shape} overlap")
        return header, view[padded:]


def declared_nbytes(prefix: Buffer) -> int:
    """Bytes of the header, padding included, that starts with these PREFIX_NBYTES bytes; at most 1040."""
    ndim, flags = min(prefix[3], _MAX_NDIM), min(prefix[4], _STRIDED)
    return -(-(_PREFIX.size + 8 * ndim * (1 + flags)) // ALIGNMENT) * ALIGNMENT


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous tensor as torch gives them."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _order(shape: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Dimensions from the outermost in memory to the innermost."""
    return sorted(range(len(shape)), key=lambda axis: (-strides[axis], axis))


def _plain(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether no two elements share memory, broadcast dimensions (stride 0) apart."""
    span = 0
    for axis in reversed(_order(shape, strides)):
        if shape[axis] == 1 or strides[axis] == 0:
            continue
        if strides[axis] <= span:
            return False
        span += (shape[axis] - 1) * strides[axis]
    return True


def to_body(tensor: Tensor) -> tuple[Tensor, tuple[int, ...] | None, list[int]]:
    """A contiguous tensor in the order of memory, the strides to restore, and which axis came from where.

    Nothing is copied for a contiguous or a permuted tensor. An overlapping tensor (a sliding window) is made
    contiguous, a broadcast dimension is stored once.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        raise CodecError(f"a {tensor.layout} tensor on {tensor.device} {_UNSUPPORTED}; call .to_dense() in the model")
    if tensor.dtype not in _CODES:
        raise CodecError(f"dtype {dtype_name(tensor.dtype)} has no number on the wire")
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu()
    # Not is_contiguous(), which ignores the strides of dimensions of size 1: kernels read the memory format off them.
    if tensor.stride() == row_major(tensor.shape) or tensor.numel() == 0 or not _plain(tensor.shape, tensor.stride()):
        return tensor.contiguous(), None, list(range(tensor.dim()))
    strides = tensor.stride()
    for axis, stride in enumerate(strides):
        if stride == 0:
            tensor = tensor.narrow(axis, 0, 1)
    order = _order(tensor.shape, strides)
    return tensor.permute(order).contiguous(), strides, order


def from_body(body: Tensor, header: Header) -> Tensor:
    """The inverse of :func:`to_body`: `body` holds `header.count` elements in the order of memory."""
    if header.strides is None:
        return body.view(header.shape)
    sizes, order = memory_shape(header)
    body = body.view(sizes)
    if header.nbytes == body.numel() * header.dtype.itemsize:
        return body.as_strided(header.shape, header.strides)
    result = torch.empty_strided(header.shape, header.strides, dtype=header.dtype)
    stored = result.permute(order)
    for axis, size in enumerate(sizes):
        stored = stored.narrow(axis, 0, size)
    stored.copy_(body)
    return result


def memory_shape(header: Header) -> tuple[list[int], list[int]]:
    """Sizes of the stored elements from the outermost dimension in memory to the innermost, and which axes these are."""
    if header.strides is None:
        return list(header.shape), list(range(len(header.shape)))
    order = _order(header.shape, header.strides)
    return [1 if header.strides[axis] == 0 else header.shape[axis] for axis in order], order


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, not copied."""
    if tensor.numel() == 0:
        return memoryview(b"")
    flat = tensor.as_strided((tensor.numel(),), (1,))  # a single element may have any stride, and a view needs 1
    return flat.view(torch.uint8).numpy().data.cast("B")


def as_tensor(data: Buffer, dtype: torch.dtype, count: int) -> Tensor:
    """`count` elements that share the memory of `data`. Raises CodecError where the sizes differ."""
    if len(data) != count * dtype.itemsize:
        raise CodecError(f"body of {len(data)} bytes where {count} x {dtype_name(dtype)} need {count * dtype.itemsize}")
    return torch.frombuffer(data, dtype=dtype) if count else torch.empty(0, dtype=dtype)


def placed(tensor: Tensor, misalignment: int, copy: bool) -> Tensor:
    """The tensor, copied where it must be or where its memory starts elsewhere within a cache line than it should."""
    if tensor.numel() == 0 or not (copy or tensor.data_ptr() % _LINE != misalignment):
        return tensor
    extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    shift = misalignment // tensor.dtype.itemsize
    memory = torch.empty(extent + shift, dtype=tensor.dtype)
    result = memory.as_strided(tensor.shape, tensor.stride(), shift)
    # A broadcast dimension is written once; writing it again would write the same elements.
    once = [slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride()]
    result[tuple(once)].copy_(tensor[tuple(once)])
    return result


def shares(tensor: Tensor, data: memoryview) -> bool:
    """Whether the tensor lies inside this memory."""
    if not len(data):
        return False
    start = torch.frombuffer(data, dtype=torch.uint8).data_ptr()
    return start <= tensor.data_ptr() < start + len(data)


def header_nbytes(ndim: int) -> int:
    """Bytes of the header of a row-major tensor."""
    return -(-(_PREFIX.size + 8 * ndim) // ALIGNMENT) * ALIGNMENT
