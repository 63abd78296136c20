"""A large tensor in pieces: the first is on the wire while the next is encoded, and is decoded while the next arrives.

A piece is a run of the tensor's slices along one dimension, encoded by itself, so that every codec can do it; most codecs
must see all of what they encode before they give the first byte. The sender packs each piece as a packet of its own
(:data:`Kind.PIECE`), then sends the request without that tensor. The receiver's :class:`Streams` put them together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from splitinfer import codecs
from splitinfer.codecs.block import ALIGNMENT
from splitinfer.codecs.packet import Frame, Kind, Limits, Packet
from splitinfer.errors import CodecError, PacketError, RequestTimeout, SplitinferError
from splitinfer.overlap import Piece

PIECE_NBYTES = 1 << 18
"""Of a tensor before it is encoded: 256 KiB take a codec about a millisecond, much longer than a call."""
_MOST_PIECES = 16
_MOST_DIMS = 64  # as many as an encoded tensor may have


def pieces_of(tensor: Tensor) -> tuple[int, list[int]]:
    """The dimension along which a tensor is divided, and the size of each piece there; one piece where it is small.

    Only what is contiguous and lies at a cache line is divided: the copy that the receiver builds is so too, and kernels
    may choose their way of summing by it.
    """
    wanted = min(_MOST_PIECES, tensor.nbytes // PIECE_NBYTES)
    dim = next((d for d, size in enumerate(tensor.shape) if size > 1), 0)
    if wanted < 2 or not tensor.is_contiguous() or tensor.data_ptr() % ALIGNMENT:
        return 0, [tensor.shape[0]] if tensor.dim() else []
    size, count = tensor.shape[dim], min(wanted, tensor.shape[dim])
    return dim, [size * (i + 1) // count - size * i // count for i in range(count)]


def packed_pieces(
    name: str, tensor: Tensor, codec: str, request_id: str, attempt: int, left_s: float, slowdown: float = 1.0
) -> Iterator[bytes]:
    """The packets that carry one tensor; the work on each is stretched by `slowdown`."""
    dim, sizes = pieces_of(tensor) if codecs.get(codec).divisible else (0, [])
    parts = torch.split(tensor, sizes, dim) if sizes else (tensor,)
    start = 0
    for index, part in enumerate(parts):
        begun = time.perf_counter()
        frame = Frame.encode(name, part, codecs.get(codec))
        meta = {"piece": index, "of": len(parts), "dim": dim, "start": start, "shape": list(tensor.shape), "left_s": left_s}
        packet = Packet(Kind.PIECE, request_id, (frame,), attempt, meta=meta).pack()
        _stretch(begun, slowdown)
        yield packet
        start += part.shape[dim] if sizes else 0


def timed_pieces(name: str, tensor: Tensor, codec: str) -> tuple[Piece, ...]:
    """What each piece of a tensor takes to encode, its bytes on the wire, and what it takes to decode."""
    streams, made = Streams(_OWN), []
    begun = time.perf_counter()
    for data in packed_pieces(name, tensor, codec, "0" * 32, 0, 1.0):
        middle = time.perf_counter()
        streams.put(Packet.unpack(data, _OWN), now=True)
        end = time.perf_counter()
        made.append((middle - begun, float(len(data)), end - middle))
        begun = time.perf_counter()
    return tuple(made)


_OWN = Limits(packet_nbytes=1 << 40, tensor_nbytes=1 << 38, held_nbytes=1 << 40)  # what this process has just encoded


def _stretch(since: float, slowdown: float) -> None:
    """Sleep (slowdown - 1) times the time since then, as an emulated slower tier does."""
    if slowdown > 1:
        time.sleep((slowdown - 1) * (time.perf_counter() - since))


@dataclass(frozen=True)
class _Place:
    """Where a piece belongs, as it says itself; checked before anything is allocated."""

    index: int
    count: int
    dim: int
    start: int
    shape: tuple[int, ...]
    left_s: float

    @staticmethod
    def of(meta: Mapping[str, Any]) -> _Place:
        """Raises PacketError for anything that cannot be."""
        shape, left_s = meta.get("shape"), meta.get("left_s")
        numbers = [meta.get(key) for key in ("piece", "of", "dim", "start")]
        sizes = shape if isinstance(shape, list) else [None]
        natural = len(sizes) <= _MOST_DIMS and all(_natural(number) for number in [*numbers, *sizes])
        if not natural or not isinstance(left_s, int | float) or not left_s >= 0:
            raise PacketError(f"malformed piece: it says {dict(meta)!s:.200}")
        index, count, dim, start = (int(number or 0) for number in numbers)
        if not index < count <= _MOST_PIECES or (dim >= len(sizes) and (count, dim) != (1, 0)):
            raise PacketError(f"malformed piece: number {index} of {count} (at most {_MOST_PIECES}), along {dim} of {sizes}")
        return _Place(index, count, dim, start, tuple(int(size or 0) for size in sizes), float(left_s))


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class _Stream:
    """One tensor that arrives; its pieces come in any order."""

    def __init__(self, until_s: float) -> None:
        self.tensor: Future[Tensor] = Future()
        self.seen: set[int] = set()
        self.waiting: dict[int, tuple[_Place, Packet]] = {}
        """Pieces that are not yet decoded."""
        self.whole: Tensor | None = None
        self.division: tuple[int, int, tuple[int, ...]] | None = None
        self.runs: list[tuple[int, int]] = []
        """Start and end of each decoded piece, along the dimension of the division."""
        self.nbytes = 0
        """Memory of all that."""
        self.until_s = until_s

    def clear(self) -> None:
        """Nobody asks for it any more."""
        self.waiting.clear()
        self.whole, self.nbytes = None, 0

    def put(self, place: _Place, part: Tensor, limits: Limits, grow: Callable[[int], None]) -> Tensor | None:
        """A decoded piece; the tensor, if it is the last. Raises CodecError where it does not fit the others, and what `grow` raises."""
        if place.count == 1:
            grow(part.untyped_storage().nbytes())
            return part
        whole, division = self.whole, (place.count, place.dim, place.shape)
        if whole is None:
            nbytes = prod(max(size, 1) for size in place.shape) * part.element_size()
            if nbytes > limits.tensor_nbytes:
                raise CodecError(f"a tensor of {nbytes} bytes; the limit is {limits.tensor_nbytes}")
            grow(nbytes)
            whole = self.whole = torch.empty(place.shape, dtype=part.dtype)
            self.division = division
        end = place.start + part.shape[place.dim] if part.dim() == len(place.shape) else 0
        expected = (*place.shape[: place.dim], end - place.start, *place.shape[place.dim + 1 :])
        if self.division != division or whole.dtype != part.dtype or part.shape != expected or end > place.shape[place.dim]:
            raise CodecError(
                f"piece {place.index} is {tuple(part.shape)} of {part.dtype} at {place.start}; that does not fit {place.shape}"
            )
        whole.narrow(place.dim, place.start, end - place.start).copy_(part)
        self.runs.append((place.start, end))
        if len(self.runs) < place.count:
            return None
        starts, ends = zip(*sorted(self.runs), strict=True)
        if (*starts, place.shape[place.dim]) != (0, *ends):  # what no piece filled holds whatever this process had there
            raise CodecError(f"its pieces {sorted(self.runs)} do not fit each other")
        return whole


class Streams:
    """Tensors that arrive in pieces at one stage. `put` is called where packets arrive, `take` by who computes.

    What waits is bounded by `limits.held` tensors and `limits.held_nbytes`, beside the one piece that is being decoded; it goes
    when its deadline is over.
    """

    def __init__(self, limits: Limits, threads: int = 1, slowdown: float = 1.0) -> None:
        self.limits, self.slowdown = limits, slowdown
        self._streams: dict[tuple[str, int, str], _Stream] = {}
        self._lock = threading.Lock()
        # One thread, so that the pieces of a tensor are decoded one after the other, beside the thread that computes.
        self._decoder = ThreadPoolExecutor(1, "decode", initializer=torch.set_num_threads, initargs=(threads,))

    def put(self, packet: Packet, *, now: bool = False) -> None:
        """One piece, decoded here and `now` or in a thread of its own.

        Raises PacketError for a malformed one, or where too many tensors are under way; too large a sum fails its tensor, too.
        """
        if packet.kind is not Kind.PIECE or len(packet.frames) != 1:
            raise PacketError(f"a piece is one frame; got a packet of kind {packet.kind.name} with {len(packet.frames)}")
        place = _Place.of(packet.meta)
        with self._lock:
            until_s = time.monotonic() + min(place.left_s, self.limits.held_s)
            stream = self._stream(packet, packet.frames[0].name, until_s)
            if place.index in stream.seen or stream.tensor.done():
                return  # it came twice, or too late
            try:
                self._grow(stream, packet.held_nbytes)
            except PacketError as error:
                self._fail(stream, packet, error)
                raise
            stream.until_s = max(stream.until_s, until_s)
            stream.seen.add(place.index)
            stream.waiting[place.index] = place, packet
        if now:
            self._decode(stream, place.index)
        else:
            self._decoder.submit(self._decode, stream, place.index)

    def arriving(self, packet: Packet, names: Sequence[str], left_s: float) -> list[Future[Tensor]]:
        """These tensors of a request, for who must not wait in `take`. Raises PacketError where too many are under way."""
        with self._lock:
            return [self._stream(packet, name, time.monotonic() + left_s).tensor for name in names]

    def take(self, packet: Packet, name: str, left_s: float) -> Tensor:
        """A tensor of this request, once its last piece is decoded. Raises RequestTimeout, or PacketError for damaged pieces."""
        with self._lock:
            stream = self._stream(packet, name, time.monotonic() + left_s)
            stream.until_s = time.monotonic() + left_s
        try:
            return stream.tensor.result(min(left_s, threading.TIMEOUT_MAX))
        except TimeoutError:
            raise RequestTimeout(f"the pieces of tensor '{name}' did not arrive within {left_s:.3f} s") from None
        finally:
            with self._lock:
                stream.clear()
                self._streams.pop((packet.request_id, packet.attempt, name), None)

    def _stream(self, packet: Packet, name: str, until_s: float) -> _Stream:
        """The stream of a tensor, new or not; those whose deadline is over go."""
        now, key = time.monotonic(), (packet.request_id, packet.attempt, name)
        for late in [one for one, stream in self._streams.items() if stream.until_s <= now and one != key]:
            self._streams.pop(late).clear()
        if key not in self._streams:
            self.limits.admit("tensors that arrive in pieces", len(self._streams) + 1, 0)
            self._streams[key] = _Stream(until_s)
        return self._streams[key]

    def _grow(self, stream: _Stream, nbytes: int) -> None:
        """Book memory of a stream. Raises PacketError where it is too much."""
        total = sum(held.nbytes for held in self._streams.values())
        self.limits.admit("tensors that arrive in pieces", len(self._streams), total + nbytes)
        stream.nbytes += nbytes

    def _fail(self, stream: _Stream, packet: Packet, error: Exception) -> None:
        """Whoever waits for the tensor gets the error, but not its stack, which would keep the pieces in memory."""
        if not stream.tensor.done():
            reason = str(error) if isinstance(error, SplitinferError) else f"{type(error).__name__}: {error}"
            stream.tensor.set_exception(PacketError(f"tensor '{packet.frames[0].name}': {reason}"))
            stream.clear()

    def _decode(self, stream: _Stream, index: int) -> None:
        with self._lock:
            if index not in stream.waiting:
                return  # nobody asks for it any more
            place, packet = stream.waiting.pop(index)
            stream.nbytes -= packet.held_nbytes
        begun = time.perf_counter()

        def grow(nbytes: int) -> None:
            with self._lock:
                self._grow(stream, nbytes)

        try:
            whole = stream.put(place, packet.frames[0].decode(self.limits, copy=place.count == 1), self.limits, grow)
            with self._lock:
                if whole is not None and not stream.tensor.done():
                    stream.tensor.set_result(whole)
        except Exception as error:  # whoever waits for the tensor gets it
            with self._lock:
                self._fail(stream, packet, error)
        _stretch(begun, self.slowdown)
