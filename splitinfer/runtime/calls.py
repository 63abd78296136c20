"""Calls between actors, each with a deadline of our own: Ray waits for a machine that is gone as long as it takes."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.exceptions import RayError

from splitinfer.errors import RequestTimeout, StageLost


async def call_stage(actor: Any, data: bytes, left_s: float, caller: str) -> tuple[bytes, bytes]:
    """Call a stage with a deadline. Raises RequestTimeout, or StageLost where the stage's process is gone."""
    try:
        answer, spans = await in_time(actor.handle.remote(data), left_s)
    except TimeoutError:
        raise RequestTimeout(f"no answer from behind {caller} before the deadline ({max(left_s, 0.0):.3f} s were left there)") from None
    except RayError as error:
        raise StageLost(f"behind {caller}", "process", first_line(error)) from error
    return answer, spans


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
