"""Zstandard: one frame that states its content's size, written and read whole or in pieces.

Compressors and decompressors are kept for each thread: they are not thread-safe and cost more to build than a small
tensor to compress.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import numpy as np
import zstandard

from splitinfer.codecs.block import Buffer
from splitinfer.errors import CodecError

LEVEL = 1
"""The fastest level gives most of the ratio on activations."""
LEVELS = range(1, 20)
"""Levels that a name may ask for; those above 19 need windows that a receiver should not be made to allocate."""
PIECE_NBYTES = 1 << 18
"""Content that a streamed frame takes at a time: small enough for a cache, large enough that a call costs nothing."""
STREAMED_NBYTES = 1 << 20
"""Content from which on a frame is written in pieces. Both ways give one frame, so the reader need not know."""
WORTHWHILE = 0.95
"""Below 5 % the decoder's time costs more than the bytes saved."""
SAMPLE_NBYTES = 1 << 16
"""Compressing 64 KiB takes about 0.1 ms."""

_MAX_WINDOW_NBYTES = 1 << 23  # what level 19 uses
_SLICES = 4  # a sample of one place would miss that a tensor's channels differ
_BLOCK = 3  # bytes of a block's header (RFC 8878, 3.1.1.2)
_RLE = 1  # type of a block whose one byte is repeated
_MAX_FRAME_HEADER = 18
_kept = threading.local()


def compress(data: Buffer, level: int = LEVEL) -> bytes:
    """The data as one zstd frame."""
    compressor = _idle(level).pop() if _idle(level) else _compressor(level)
    try:
        packed: bytes = compressor.compress(data)
    finally:
        _idle(level).append(compressor)
    return packed


def compressed(data: Buffer, level: int = LEVEL) -> tuple[bool, Iterable[Buffer]]:
    """Whether the data became one zstd frame, and it or the data in pieces.

    Small data that do not shrink stay as they are. A large frame is made piece by piece while the caller sends it, so
    whether it shrinks shows too late; there the caller's sample has to do, and :func:`expansion` says by how much.
    """
    if len(data) >= STREAMED_NBYTES:
        return True, _streamed(memoryview(data), level)
    packed = compress(data, level)
    return (True, [packed]) if len(packed) < len(data) else (False, [data])


def _streamed(view: memoryview, level: int) -> Iterator[bytes]:
    # A compressor of its own: between two pieces the caller may compress something else.
    compressor = _idle(level).pop() if _idle(level) else _compressor(level)
    stream = compressor.compressobj(size=len(view))
    for start in range(0, len(view), PIECE_NBYTES):
        if piece := stream.compress(view[start : start + PIECE_NBYTES]):
            yield piece
    yield stream.flush()
    _idle(level).append(compressor)


def expansion(nbytes: int) -> int:
    """By how much what :func:`compressed` gives can exceed `nbytes` of content."""
    return (nbytes >> 8) + 64 if nbytes >= STREAMED_NBYTES else 0  # ZSTD_compressBound


def _compressor(level: int) -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=level, write_content_size=True)


def _idle(level: int) -> list[zstandard.ZstdCompressor]:
    """This thread's compressors that nobody uses."""
    if not hasattr(_kept, "idle"):
        _kept.idle = {}
    idle: list[zstandard.ZstdCompressor] = _kept.idle.setdefault(level, [])
    return idle


def decompress(data: Buffer, nbytes: int) -> bytes:
    """The frame's content, which must be `nbytes` long: checked before anything is allocated."""
    if not hasattr(_kept, "decompressor"):
        _kept.decompressor = zstandard.ZstdDecompressor()
    try:
        _check_declared(data, nbytes)
        if not nbytes:
            return _emptied(data)
        plain: bytes = _kept.decompressor.decompress(data, max_output_size=nbytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"malformed zstd body: {error}") from error
    if len(plain) != nbytes:
        raise CodecError(f"a compressed body held {len(plain)} bytes where {nbytes} belong")
    return plain


def _emptied(data: Buffer) -> bytes:
    """The content, none, of a frame that declares none; the usual call would not look whether the frame is whole."""
    stream = zstandard.ZstdDecompressor().decompressobj()
    if stream.decompress(data) or not stream.eof or stream.unused_data:
        raise CodecError(f"malformed zstd body: {len(data)} bytes are not one frame without content")
    return b""


def decompress_stream(source: Source, nbytes: int) -> memoryview:
    """As :func:`decompress`, from bytes that still arrive; leaves `source` right behind the frame.

    The frame is read block by block (RFC 8878, section 3.1.1): a block holds at most 128 KiB of content, so that no
    message makes this allocate more than it declared.
    """
    head = source.exactly(6)  # magic number, descriptor and a first byte
    try:
        head += source.exactly(min(_MAX_FRAME_HEADER, zstandard.frame_header_size(head)) - len(head))
        _check_declared(head, nbytes)
        stream = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_NBYTES).decompressobj()
        content, filled, last = np.empty(nbytes, np.uint8), 0, False
        stream.decompress(head)
        while not last:
            block = source.exactly(_BLOCK)
            fields = int.from_bytes(block, "little")
            last = bool(fields & 1)
            block += source.exactly(1 if fields >> 1 & 3 == _RLE else fields >> 3)
            plain = stream.decompress(block)
            if filled + len(plain) > nbytes:
                raise CodecError(f"a compressed body held more than the {nbytes} bytes that belong there")
            content[filled : filled + len(plain)] = np.frombuffer(plain, np.uint8)
            filled += len(plain)
        if zstandard.get_frame_parameters(head).has_checksum:
            stream.decompress(source.exactly(4))
    except zstandard.ZstdError as error:
        raise CodecError(f"malformed zstd body: {error}") from error
    if filled != nbytes or not stream.eof:
        raise CodecError(f"a compressed body held {filled} bytes where {nbytes} belong")
    return content.data


def _check_declared(data: Buffer, nbytes: int) -> None:
    declared = zstandard.get_frame_parameters(data).content_size
    if declared != nbytes:
        raise CodecError(f"a compressed body declares {declared} bytes where {nbytes} belong")


class Source:
    """Bytes that arrive in chunks of any size, read in portions of chosen size."""

    def __init__(self, chunks: Iterable[Buffer]) -> None:
        self._chunks, self._left = iter(chunks), memoryview(b"")

    def exactly(self, nbytes: int) -> bytearray:
        """The next `nbytes` bytes. Raises CodecError where the chunks end before."""
        data = bytearray()
        while len(data) < nbytes:
            if not self._left and not self._next():
                raise CodecError(f"truncated: {len(data)} of the next {nbytes} bytes arrived")
            part = self._left[: nbytes - len(data)]
            data += part
            self._left = self._left[len(part) :]
        return data

    def rest(self, limit_nbytes: int) -> bytearray:
        """All that is left. Raises CodecError where that is more than the limit."""
        data = bytearray(self._left)
        while self._next():
            data += self._left
            if len(data) > limit_nbytes:
                break
        self._left = memoryview(b"")
        if len(data) > limit_nbytes:
            raise CodecError(f"a body of more than the {limit_nbytes} bytes that can belong there")
        return data

    def _next(self) -> bool:
        chunk = next(self._chunks, None)
        self._left = memoryview(chunk or b"").cast("B")
        return chunk is not None


def sample(data: Buffer, itemsize: int, nbytes: int = SAMPLE_NBYTES) -> Buffer:
    """About `nbytes` bytes of whole items from evenly spread places, or all of few; shared with `data` where it can be."""
    if len(data) <= nbytes:
        return data
    part = nbytes // _SLICES // itemsize * itemsize
    last = len(data) // itemsize - part // itemsize
    starts = [last * turn // (_SLICES - 1) * itemsize for turn in range(_SLICES)]
    return b"".join(memoryview(data)[start : start + part] for start in starts)
