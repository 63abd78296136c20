"""What all codecs that quantise share: a tensor that they must not touch travels whole, without loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from splitinfer.codecs.base import Codec
from splitinfer.codecs.block import Buffer, Header, TensorLike, as_bytes, dtype_name, header_nbytes, to_body
from splitinfer.codecs.compression import LEVEL
from splitinfer.codecs.lossless import Zstd
from splitinfer.errors import CodecError

WIDE = (torch.float32, torch.float64)
FLOATS = (*WIDE, torch.float16, torch.bfloat16)

Coded = tuple[int, tuple[int, ...] | None, Iterable[Buffer]]
"""Mode, strides and body of a tensor that was quantised."""


class Lossy(Codec):
    """A codec with two kinds of bodies: quantised ones in modes below `whole_mode`, and those of `zstd` from there on.

    A quantised body starts with :attr:`parameters`, which the decoder compares with its own: so a packet whose table
    names another codec of the same number is refused.
    """

    whole_mode: ClassVar[int] = 16
    modes: ClassVar[int] = 1
    """How many modes quantised bodies have."""
    dtypes: ClassVar[tuple[torch.dtype, ...]] = FLOATS
    parameters: bytes = b""

    def __init__(self, level: int = LEVEL) -> None:
        self.level = level
        self._whole = Zstd(level)

    @abstractmethod
    def coded(self, tensor: Tensor) -> Coded | None:
        """The tensor quantised, or None where only lossless is right. Asked for non-empty tensors of `dtypes` only."""

    @abstractmethod
    def coded_nbytes(self, spec: TensorLike) -> int:
        """Most bytes of a quantised body, parameters included, of a row-major tensor of this shape and dtype."""

    @abstractmethod
    def coded_body(self, header: Header, data: memoryview) -> Tensor:
        """The elements in the order of memory, from a quantised body behind its parameters."""

    def coded_frame(self, header: Header) -> tuple[int, int] | None:  # noqa: ARG002 - for those who override it
        """As :meth:`framed`, of a quantised body behind its parameters."""
        return None

    def encode_chunks(self, tensor: Tensor) -> Iterator[Buffer]:
        coded = self.coded(tensor.detach()) if tensor.dtype in self.dtypes and tensor.numel() else None
        if coded is None:
            body, strides, _ = to_body(tensor)
            mode, pieces = self._whole.pack(as_bytes(body), tensor.dtype.itemsize)
            mode += self.whole_mode
        else:
            mode, strides, pieces = coded
        yield Header.of(tensor, self.codec_id, mode, strides).pack() + (self.parameters if mode < self.whole_mode else b"")
        yield from pieces

    def framed(self, header: Header) -> tuple[int, int] | None:
        if header.mode >= self.whole_mode:
            return self._whole.framed(self._as_whole(header))
        self._check_mode(header)
        form = self.coded_frame(header)
        return form and (form[0] + len(self.parameters), form[1])

    def restored(self, header: Header, prefix: memoryview, content: memoryview) -> Tensor:
        if header.mode >= self.whole_mode:
            return self._whole.restored(self._as_whole(header), prefix, content)
        return self.coded_restored(header, self._behind_parameters(prefix), content)

    def coded_restored(self, header: Header, prefix: memoryview, content: memoryview) -> Tensor:
        """As :meth:`restored`, of a quantised body behind its parameters."""
        raise NotImplementedError

    def body(self, header: Header, data: memoryview) -> Tensor:
        if header.mode >= self.whole_mode:
            return self._whole.body(self._as_whole(header), data)
        self._check_mode(header)
        if self.coded_frame(header) is not None:
            return super().body(header, data)
        return self.coded_body(header, self._behind_parameters(data))

    def estimate(self, spec: TensorLike) -> int:
        whole = self._whole.estimate(spec)
        if spec.dtype not in self.dtypes or prod(spec.shape) == 0:
            return whole
        coded = header_nbytes(len(spec.shape)) + self.coded_nbytes(spec)
        return coded if _moderate(spec) else max(whole, coded)

    def _as_whole(self, header: Header) -> Header:
        return replace(header, mode=header.mode - self.whole_mode)

    def _check_mode(self, header: Header) -> None:
        if header.mode >= self.modes:
            raise CodecError(f"unknown mode {header.mode} of '{self.name}'")
        if header.dtype not in self.dtypes:
            raise CodecError(f"mode {header.mode} of '{self.name}' does not fit {dtype_name(header.dtype)}")

    def _behind_parameters(self, data: memoryview) -> memoryview:
        found = bytes(data[: len(self.parameters)])
        if found != self.parameters:
            raise CodecError(f"not written by '{self.name}': its parameters are {self.parameters.hex()}, the body's {found.hex()}")
        return data[len(found) :]


def _moderate(spec: TensorLike) -> bool:
    """Whether the tensor is surely quantised: finite and far from overflow, as far as one with data is there to tell."""
    if not isinstance(spec, Tensor) or spec.is_meta:
        return True
    largest = max(-float(spec.detach().min()), float(spec.detach().max()))
    return largest < min(torch.finfo(spec.dtype).max, torch.finfo(torch.float32).max) / 8
