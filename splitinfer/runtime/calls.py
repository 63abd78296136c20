"""Calls between actors, each with a deadline of our own: Ray waits for a machine that is gone as long as it takes."""

from __future__ import annotations

import asyncio
from dataclasses import astuple
from typing import Any

import msgpack
from ray.exceptions import RayError

from splitinfer.codecs.packet import Kind, Limits, Packet
from splitinfer.errors import PacketError, RequestTimeout, StageLost
from splitinfer.tracing import Span, unpack_spans


async def call_stage(actor: Any, data: bytes, left_s: float, caller: str) -> tuple[bytes, tuple[Span, ...]]:
    """Call a stage with a deadline: the packet of its answer, and where the time went behind there.

    Raises RequestTimeout, StageLost where the stage's process is gone, PacketError for spans that are none.
    """
    try:
        answer, spans = await in_time(actor.handle.remote(data), left_s)
    except TimeoutError:
        raise RequestTimeout(f"no answer from behind {caller} before the deadline ({max(left_s, 0.0):.3f} s were left there)") from None
    except RayError as error:
        raise StageLost(f"behind {caller}", "process", first_line(error)) from error
    return answer, _spans(spans)


def reply(answer: bytes, request: Packet, limits: Limits) -> Packet:
    """The packet that answers a request: its response, or an error. Raises PacketError for anything else."""
    packet = Packet.unpack(answer, limits)
    is_response = packet.kind is Kind.RESPONSE and (packet.request_id, packet.attempt) == (request.request_id, request.attempt)
    if not is_response and packet.kind is not Kind.ERROR:
        raise PacketError(
            f"attempt {request.attempt} of request {request.request_id:.40} was answered by a packet of kind {packet.kind.name} "
            f"for attempt {packet.attempt} of request {packet.request_id:.40}"
        )
    return packet


def _spans(data: bytes) -> tuple[Span, ...]:
    try:
        spans = unpack_spans(msgpack.unpackb(data))
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise PacketError(f"the spans of an answer are malformed: {error}") from error
    for span in spans:
        *texts, start_s, seconds, slept_s, nbytes = astuple(span)
        numbers = (start_s, seconds, slept_s, nbytes)
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(number, int | float) for number in numbers):
            raise PacketError(f"the spans of an answer are malformed: {span!s:.200}")
    return spans


async def in_time(awaitable: Any, left_s: float) -> Any:
    """What an object reference or a coroutine gives. Raises TimeoutError after `left_s`."""
    return await asyncio.wait_for(awaited(awaitable), max(left_s, 0.0))


def first_line(error: BaseException, *, last: bool = False) -> str:
    """An error of Ray's in one line: its kind, and the first or the last line of its text."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1 if last else 0]}" if lines[0] else type(error).__name__


async def awaited(reference: Any) -> Any:
    """An object reference is awaitable, but no coroutine, which wait_for wants."""
    return await reference
