"""The file of a learned part, or of several: a packet at rest, so that reading one runs no code and allocates nothing unchecked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from splitinfer import codecs
from splitinfer.codecs.packet import Frame, Kind, Limits, Packet
from splitinfer.errors import CodecError, PacketError, PlanError

LIMITS = Limits(packet_nbytes=1 << 30, tensor_nbytes=1 << 28, frames=64)
"""A learned part is small: a gigabyte is far more than a 1x1 convolution over any channels needs."""


def pack(part: str, meta: Mapping[str, Any], weights: Mapping[str, Tensor]) -> bytes:
    """The file's bytes; `part` says what it holds."""
    raw = codecs.get("raw")
    frames = tuple(Frame.encode(name, weight.detach().cpu(), raw) for name, weight in weights.items())
    return Packet(Kind.STAGE, part, frames, meta={"part": part, **meta}).pack()


def load(path: str | Path, what: str) -> bytes:
    """The bytes of a file. Raises PlanError where it cannot be read or is larger than anything learned."""
    try:
        size = Path(path).stat().st_size
        if size > LIMITS.packet_nbytes:
            raise PlanError(f"{path} holds {size:,} bytes; a {what} takes at most {LIMITS.packet_nbytes:,}")
        return Path(path).read_bytes()
    except OSError as error:
        raise PlanError(f"cannot read the {what} {path}: {error.strerror}") from error


def save(data: bytes, path: str | Path) -> None:
    """Write a file. Raises PlanError where that is not possible."""
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise PlanError(f"cannot write {path}: {error.strerror}") from error


def unpack(
    data: bytes, part: str, kinds: Mapping[str, type | tuple[type, ...]], names: tuple[str, ...] | None, path: str | Path
) -> dict[str, Any]:
    """The facts, each of its kind, and the weights of these names (None: of any), in one mapping.

    Raises PlanError, which names what is wrong, for bytes that `pack` did not make.
    """
    try:
        packet = Packet.unpack(data, LIMITS)
    except PacketError as error:
        raise PlanError(f"{path} is no {part}: {error}") from error
    meta = dict(packet.meta)
    if packet.kind is not Kind.STAGE or meta.pop("part", None) != part:
        raise PlanError(f"{path} is no {part}: it holds {packet.request_id[:80]!r}")
    for key, kind in kinds.items():
        if not isinstance(meta.get(key), kind) or isinstance(meta[key], bool) is not (kind is bool):
            raise PlanError(f"malformed {part} {path}: '{key}' is {meta.get(key)!r:.80}")
    found = tuple(frame.name for frame in packet.frames)
    names = found if names is None else names
    if found != names or set(meta) != set(kinds):
        raise PlanError(f"malformed {part} {path}: it holds {sorted({*found, *meta})!r:.200}; expected {sorted({*names, *kinds})}")
    try:
        if any(frame.codec != "raw" for frame in packet.frames):
            raise PlanError(f"malformed {part} {path}: its weights must be raw")
        return meta | {frame.name: frame.decode(LIMITS, copy=True) for frame in packet.frames}
    except CodecError as error:
        raise PlanError(f"malformed {part} {path}: {error}") from error
