"""The protocol of every codec: encode, decode and estimate, each whole or piece by piece."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import ClassVar

from torch import Tensor

from splitinfer.codecs.block import (
    DEFAULT_LIMIT_NBYTES,
    PREFIX_NBYTES,
    Buffer,
    Header,
    TensorLike,
    declared_nbytes,
    from_body,
    placed,
    shares,
)
from splitinfer.codecs.compression import Source, decompress, decompress_stream
from splitinfer.errors import CodecError

_SLACK_NBYTES = 4096  # by which a body may exceed its tensor, besides a share for what did not compress


class Codec(ABC):
    """One way to write a tensor as bytes.

    Codecs are stateless to their callers and safe to use from several threads. A codec writes its body either as it
    likes, and then implements :meth:`body`, or as a prefix of known size and one zstd frame, and then says so in
    :meth:`framed` and implements :meth:`restored`: such a body is decompressed while it arrives.
    """

    name: str
    """Gives this codec back: ``codecs.get(codec.name)``."""
    codec_id: ClassVar[int]
    """The codec's number on the wire; never reused."""
    lossless: ClassVar[bool] = False
    divisible: ClassVar[bool] = True
    """Whether parts of a tensor, encoded one by one, are as good as the whole."""

    @abstractmethod
    def encode_chunks(self, tensor: Tensor) -> Iterator[Buffer]:
        """The encoded tensor in pieces, for a sender that sends the first while the next is made.

        Joined they are what :meth:`encode` returns. Large tensors compressed with zstd come in pieces that follow each
        other as fast as they are compressed; others in a few pieces at the end. Raises CodecError as :meth:`encode`.
        """

    @abstractmethod
    def estimate(self, spec: TensorLike) -> int:
        """Bytes of the encoding of a row-major tensor of this shape and dtype; docs/codecs.md says how near it is.

        Never less than :meth:`encode` gives where `spec` is a tensor with data. Of a shape alone it assumes that the
        values are finite, except for `int8`.
        """

    def framed(self, header: Header) -> tuple[int, int] | None:  # noqa: ARG002 - for those who override it
        """Bytes before the body's one zstd frame and bytes of that frame's content, or None for a body of another form."""
        return None

    def restored(self, header: Header, prefix: memoryview, content: memoryview) -> Tensor:
        """The elements in the order of memory, from the two parts that :meth:`framed` declared."""
        raise NotImplementedError

    def body(self, header: Header, data: memoryview) -> Tensor:
        """The elements in the order of memory, from a body whose header was already checked."""
        form = self.framed(header)
        if form is None:
            raise CodecError(f"unknown mode {header.mode} of '{self.name}'")
        start, nbytes = form
        if len(data) < start:
            raise CodecError(f"{len(data)} bytes cannot hold the {start} of the parameters of '{self.name}'")
        return self.restored(header, data[:start], memoryview(decompress(data[start:], nbytes)))

    def parts(self, tensor: Tensor) -> list[Buffer]:
        """The encoded tensor as buffers to be joined, so that a packet copies each byte once."""
        return list(self.encode_chunks(tensor))

    def encode(self, tensor: Tensor) -> bytes:
        """The tensor as self-describing bytes. Raises CodecError for a sparse, quantised or unknown tensor."""
        return b"".join(self.encode_chunks(tensor))

    def decode(self, data: Buffer, *, limit_nbytes: int = DEFAULT_LIMIT_NBYTES, copy: bool = True) -> Tensor:
        """The tensor, on the CPU, with the strides it had.

        Sizes are checked against `limit_nbytes` before anything is allocated. With ``copy=False`` the result may share
        the memory of `data` and must not be written to. Raises CodecError for bytes that this codec did not write.
        """
        header, body = Header.unpack(data, limit_nbytes)
        self._check_writer(header)
        try:
            tensor = from_body(self.body(header, body), header)
        except (RuntimeError, ValueError, OverflowError, struct.error) as error:
            raise CodecError(f"malformed '{self.name}' tensor: {error}") from error
        return placed(tensor, header.misalignment, copy and shares(tensor, body))

    def decode_chunks(self, chunks: Iterable[Buffer], *, limit_nbytes: int = DEFAULT_LIMIT_NBYTES) -> Tensor:
        """As :meth:`decode`, from the encoded bytes in pieces of any size; works on each piece before it asks for the next.

        What is compressed as one zstd frame is decompressed while it arrives; any other body is collected first.
        """
        source = Source(chunks)
        start = source.exactly(PREFIX_NBYTES)
        header, _ = Header.unpack(start + source.exactly(declared_nbytes(start) - len(start)), limit_nbytes)
        self._check_writer(header)
        most = header.count * header.dtype.itemsize * 129 // 128 + _SLACK_NBYTES
        try:
            if (form := self.framed(header)) is None:
                elements = self.body(header, memoryview(source.rest(most)))
            else:
                prefix = source.exactly(form[0])
                elements = self.restored(header, memoryview(prefix), decompress_stream(source, form[1]))
                source.rest(0)
            tensor = from_body(elements, header)
        except (RuntimeError, ValueError, OverflowError, struct.error) as error:
            raise CodecError(f"malformed '{self.name}' tensor: {error}") from error
        return placed(tensor, header.misalignment, False)

    def _check_writer(self, header: Header) -> None:
        if header.codec_id != self.codec_id:
            raise CodecError(f"written by codec number {header.codec_id}; '{self.name}' is number {self.codec_id}")
