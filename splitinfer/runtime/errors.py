"""Errors as packets: plain values, so that nothing is pickled between stages."""

from __future__ import annotations

from splitinfer.codecs.packet import Kind, Packet
from splitinfer.errors import Overloaded, PacketError, Regrouped, RequestTimeout, StageError, StageLost, WorkerLost

_STAGE = {kind.__name__: kind for kind in (StageError, StageLost, WorkerLost, Regrouped)}
_PLAIN = {kind.__name__: kind for kind in (RequestTimeout, Overloaded, PacketError)}


def error_packet(error: Exception, tier: str) -> Packet:
    """An error as plain values."""
    meta = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, StageError):
        meta |= {"stage": error.stage, "layer": error.layer, "cause": error.cause, "traceback": error.remote_traceback}
    return Packet(Kind.ERROR, "", meta=meta | {"tier": tier})


def raised(packet: Packet) -> Exception:
    """The error that an error packet describes."""
    meta = packet.meta
    name = str(meta.get("type"))
    if name in _STAGE:
        return _STAGE[name](*(str(meta.get(key, "")) for key in ("stage", "layer", "cause", "traceback")))
    if name in _PLAIN:
        return _PLAIN[name](str(meta.get("message", "")))
    return StageError(f"on tier '{meta.get('tier')}'", "framework", f"{name}: {meta.get('message')}")
