"""Errors as packets: plain values, so that nothing is pickled between stages."""

from __future__ import annotations

from splitinfer.codecs.packet import Kind, Packet
from splitinfer.errors import PacketError, Regrouped, RequestTimeout, StageError, WorkerLost

_KINDS = {kind.__name__: kind for kind in (StageError, WorkerLost, Regrouped)}


def error_packet(error: Exception, tier: str) -> Packet:
    """An error as plain values."""
    meta = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, StageError):
        meta |= {"stage": error.stage, "layer": error.layer, "cause": error.cause, "traceback": error.remote_traceback}
    return Packet(Kind.ERROR, "", meta=meta | {"tier": tier})


def raised(packet: Packet) -> Exception:
    """The error that an error packet describes."""
    meta = packet.meta
    match meta.get("type"):
        case "StageError" | "WorkerLost" | "Regrouped" as name:
            return _KINDS[name](*(str(meta.get(key, "")) for key in ("stage", "layer", "cause", "traceback")))
        case "RequestTimeout":
            return RequestTimeout(str(meta["message"]))
        case "PacketError":
            return PacketError(str(meta["message"]))
    return StageError(f"on tier '{meta.get('tier')}'", "framework", f"{meta.get('type')}: {meta.get('message')}")
