"""The packet: what crosses a link. One msgpack header, frames without copies, one checksum (docs/wire-format.md).

::

    offset  size  field
    0       4     magic "SPLI"
    4       1     version, 1
    5       1     kind: 1 request, 2 response, 3 error, 4 stage, 5 piece, 6 shard
    6       2     reserved, 0
    8       4     header bytes, before padding
    12      8     payload bytes
    20      4     reserved, 0
    24      8     xxh3-64 of bytes 0..24 and of everything from byte 32
    32      -     msgpack header, padded with zeros to 16
    -       -     frames, each padded with zeros to 16

Integers are little-endian. The checksum finds damage, not malice; who may send is the business of authentication.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import msgpack
import xxhash
from torch import Tensor

from splitinfer import codecs
from splitinfer.codecs.base import Codec
from splitinfer.codecs.block import ALIGNMENT, DEFAULT_LIMIT_NBYTES, Buffer, Header
from splitinfer.errors import CodecError, PacketError

MAGIC = b"SPLI"
VERSION = 1
_PREFIX = struct.Struct("<4sBBHIQI")  # 24 bytes
_CHECKSUM = struct.Struct("<Q")
_START = _PREFIX.size + _CHECKSUM.size
_FIELDS = {"id", "try", "sizes", "frames", "meta"}
_LONGEST_NAME = 1024
_HEADER_FACTOR = 128  # two bytes of msgpack, a map with one key, make a dictionary of 184


class Kind(IntEnum):
    """What a packet is for."""

    REQUEST = 1
    RESPONSE = 2
    ERROR = 3
    STAGE = 4
    PIECE = 5
    """Of one large tensor of a request that follows."""
    SHARD = 6
    """Between the workers of a block that is divided."""


_KINDS = frozenset(map(int, Kind))


@dataclass(frozen=True)
class Limits:
    """What a receiver accepts; checked before anything is allocated."""

    packet_nbytes: int = 1 << 31
    """Whole packet: 2 GiB."""
    header_nbytes: int = 1 << 20
    """Header: 1 MiB; parsing one of 16 MiB can take seconds and a gigabyte."""
    tensor_nbytes: int = DEFAULT_LIMIT_NBYTES
    """Each decoded tensor: 1 GiB."""
    frames: int = 1 << 16
    held: int = 4096
    """What waits in one place: tensors that arrive in pieces, messages of a block."""
    held_nbytes: int = 1 << 32
    """The memory of it, encoded and decoded: 4 GiB, twice what the largest tensor needs that arrives in pieces."""
    held_s: float = 600.0
    """How long one of them waits at most: 10 minutes. Raise it where requests are given longer than that."""

    def admit(self, what: str, number: int, nbytes: int) -> None:
        """Raise PacketError where so many, or so many bytes, may not wait in one place."""
        if number > self.held or nbytes > self.held_nbytes:
            raise PacketError(
                f"{what}: {number} would wait and take {nbytes} bytes; the limits are {self.held} and {self.held_nbytes} bytes. "
                "Ask less at once, or raise Limits.held and Limits.held_nbytes"
            )


@dataclass(frozen=True)
class Frame:
    """One encoded tensor inside a packet."""

    name: str
    codec: str
    parts: tuple[Buffer, ...]
    """The encoded bytes, in pieces; a received frame is one view into its packet."""

    @staticmethod
    def encode(name: str, tensor: Tensor, codec: Codec) -> Frame:
        """The tensor, encoded."""
        return Frame(name, codec.name, tuple(codec.parts(tensor)))

    def decode(self, limits: Limits, *, copy: bool = False) -> Tensor:
        """The tensor. Raises CodecError where the bytes do not hold one within `limits`."""
        data = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        return codecs.get(self.codec).decode(data, limit_nbytes=limits.tensor_nbytes, copy=copy)

    def decoded_nbytes(self, limits: Limits) -> int:
        """Bytes of the tensor, read off its header; 0 where `decode` refuses it."""
        try:
            return self.header(limits).nbytes
        except CodecError:
            return 0

    def header(self, limits: Limits) -> Header:
        """Dtype, shape and layout that the tensor is said to have. Raises CodecError where that is more than `limits` allow."""
        return Header.unpack(self.parts[0] if self.parts else b"", limits.tensor_nbytes)[0]

    @property
    def nbytes(self) -> int:
        """Encoded bytes, before padding."""
        return sum(len(part) for part in self.parts)

    @property
    def wire_nbytes(self) -> int:
        """What the frame adds to a packet: its row in the header, its bytes, its padding."""
        return len(msgpack.packb([self.name, self.codec, self.nbytes])) + self.nbytes + -self.nbytes % ALIGNMENT


@dataclass(frozen=True)
class Packet:
    """A request, its answer, an error, or a stage at rest."""

    kind: Kind
    request_id: str
    frames: tuple[Frame, ...] = ()
    attempt: int = 0
    """0 for the first try; a stage answers each pair of request and attempt once."""
    sizes: Mapping[str, int | float | bool] = field(default_factory=dict)
    """Values of the dynamic dimensions that later stages need, by the name of the node that computes them."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Small msgpack values: the seconds left for a request, the description of an error."""
    held_nbytes: int = field(default=0, compare=False)
    """Memory that it takes as it came, at most: all its bytes, which any of its frames keeps, and what its header is as Python
    objects. 0 for a packet that was made here."""

    def frame(self, name: str) -> Frame:
        """The frame of this tensor. Raises PacketError where there is none."""
        for frame in self.frames:
            if frame.name == name:
                return frame
        raise PacketError(f"no tensor '{name}' in the packet; it holds {[frame.name for frame in self.frames]}")

    def pack(self) -> bytes:
        """The packet's bytes; each frame is copied once."""
        table = [[frame.name, frame.codec, frame.nbytes] for frame in self.frames]
        header = msgpack.packb(
            {"id": self.request_id, "try": self.attempt, "sizes": dict(self.sizes), "frames": table, "meta": dict(self.meta)}
        )
        parts: list[Buffer] = [header, bytes(-len(header) % ALIGNMENT)]
        for frame in self.frames:
            parts += [*frame.parts, bytes(-frame.nbytes % ALIGNMENT)]
        payload = sum(frame.nbytes + -frame.nbytes % ALIGNMENT for frame in self.frames)
        prefix = _PREFIX.pack(MAGIC, VERSION, self.kind, 0, len(header), payload, 0)
        digest = xxhash.xxh3_64(prefix)
        for part in parts:
            digest.update(part)
        return b"".join([prefix, _CHECKSUM.pack(digest.intdigest()), *parts])

    @staticmethod
    def unpack(data: Buffer, limits: Limits = Limits()) -> Packet:
        """The packet; its frames are views into `data`. Raises PacketError, which says what is wrong."""
        view = memoryview(data).cast("B")
        kind, header_nbytes = _checked_prefix(view, limits)
        held_nbytes = len(view) + _HEADER_FACTOR * header_nbytes
        frames_at = _START + header_nbytes + -header_nbytes % ALIGNMENT
        request_id, attempt, sizes, table, meta = _checked_header(view[_START : _START + header_nbytes])
        if len(table) > limits.frames:
            raise PacketError(f"{len(table)} frames; the limit is {limits.frames}")
        frames = []
        for name, codec, nbytes in table:
            if nbytes > len(view) - frames_at:
                raise PacketError(f"frame '{name}' declares {nbytes} bytes; {len(view) - frames_at} are left")
            frames.append(Frame(name, codec, (view[frames_at : frames_at + nbytes],)))
            frames_at += nbytes + -nbytes % ALIGNMENT
        if len({frame.name for frame in frames}) != len(frames):
            raise PacketError("two frames bear the same name")
        if frames_at != len(view):
            raise PacketError(f"the frames end at byte {frames_at}, the packet at {len(view)}")
        return Packet(kind, request_id, tuple(frames), attempt, sizes, meta, held_nbytes)


def _checked_prefix(view: memoryview, limits: Limits) -> tuple[Kind, int]:
    """Kind and header bytes, after sizes, version and checksum were checked, in that order."""
    if len(view) > limits.packet_nbytes:
        raise PacketError(f"a packet of {len(view)} bytes; the limit is {limits.packet_nbytes}")
    if len(view) < _START:
        raise PacketError(f"a packet has at least {_START} bytes; this has {len(view)}")
    magic, version, kind, reserved, header_nbytes, payload, reserved_2 = _PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise PacketError("not a splitinfer packet")
    if version != VERSION:
        raise PacketError(f"packet version {version}; this side speaks version {VERSION}: install the same splitinfer")
    if header_nbytes > limits.header_nbytes:
        raise PacketError(f"a header of {header_nbytes} bytes; the limit is {limits.header_nbytes}")
    expected = _START + header_nbytes + -header_nbytes % ALIGNMENT + payload
    if expected != len(view):
        raise PacketError(f"truncated or padded: the packet declares {expected} bytes and has {len(view)}")
    digest = xxhash.xxh3_64(view[: _PREFIX.size])
    digest.update(view[_START:])
    if digest.intdigest() != _CHECKSUM.unpack_from(view, _PREFIX.size)[0]:
        raise PacketError("checksum mismatch: the packet was damaged on its way")
    if kind not in _KINDS:
        raise PacketError(f"unknown packet kind {kind}")
    if reserved or reserved_2:
        raise PacketError(f"reserved fields hold {reserved} and {reserved_2}; version {VERSION} has zeros there")
    return Kind(kind), header_nbytes


def _checked_header(data: memoryview) -> tuple[str, int, dict[str, Any], list[Sequence[Any]], dict[str, Any]]:
    """The header's five fields, each of the type that it must have."""
    try:
        header = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise PacketError(f"malformed header: {error}") from error
    if not isinstance(header, dict) or set(header) != _FIELDS:
        raise PacketError(f"a header holds exactly {sorted(_FIELDS)}")
    request_id, attempt, sizes, table, meta = (header[key] for key in ("id", "try", "sizes", "frames", "meta"))
    good = (
        isinstance(request_id, str) and _whole(attempt) and isinstance(meta, dict) and isinstance(table, list)
        and isinstance(sizes, dict) and all(isinstance(size, int | float) for size in sizes.values())
        and all(isinstance(row, list) and len(row) == 3 and isinstance(row[0], str) and isinstance(row[1], str)
                and _whole(row[2]) for row in table)
    )
    if not good:
        raise PacketError("malformed header: a field has the wrong type")
    longest = max(map(len, (request_id, *(row[0] for row in table))))
    if longest > _LONGEST_NAME:  # names are kept while a tensor arrives, after its packets are gone
        raise PacketError(f"a name of {longest} characters; the limit is {_LONGEST_NAME}")
    return request_id, attempt, sizes, table, meta


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
