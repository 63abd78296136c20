"""Time behind one protocol: the real one, and a virtual one that advances only when told.

Code that waits takes a `Clock`, so that tests and simulations run the same lines without sleeping.
"""

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from cluster.errors import ClusterError

T = TypeVar("T")


class Clock(Protocol):
    """What waiting code needs of time."""

    def now_s(self) -> float:
        """Seconds since an arbitrary origin; never decreases."""

    async def sleep_until(self, t_s: float) -> None:
        """Return at `t_s` or later; at once, though after one turn of the event loop, if that has passed."""


_TIMER_S = 0.002  # the resolution of the event loop's timers, and as much again for its own work


class RealClock:
    """The machine's monotonic clock. On Linux all processes of one machine share its origin."""

    def now_s(self) -> float:
        """Seconds since an origin that belongs to the machine."""
        return time.monotonic()

    async def sleep_until(self, t_s: float) -> None:
        """Sleep to `t_s`, never waking before it; raises ValueError if `t_s` is not finite."""
        _check_finite(t_s)
        if (coarse_s := t_s - time.monotonic() - _TIMER_S) > 0:
            await asyncio.sleep(coarse_s)
        # The event loop's timers count in milliseconds; a thread's sleep is exact to about 0.1 ms.
        while (rest_s := t_s - time.monotonic()) > 0:
            await asyncio.get_running_loop().run_in_executor(None, time.sleep, rest_s)


class VirtualClock:
    """A clock for tests: deterministic, and still unless `advance` or `run` moves it.

    Sleepers wake in the order of their times, equal times in the order in which they fell asleep, and each is let run
    until it waits again before the next one wakes. asyncio has no public sign of an idle event loop, so "let run"
    means `settle_turns` turns of the loop: enough for code whose chain of awaits between two sleeps is shorter.
    """

    def __init__(self, start_s: float = 0.0, settle_turns: int = 20) -> None:
        """Start at `start_s` virtual seconds."""
        self._now_s = start_s
        self._settle_turns = settle_turns
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now_s(self) -> float:
        """Virtual seconds."""
        return self._now_s

    async def sleep_until(self, t_s: float) -> None:
        """Wait until the clock has been advanced to `t_s`; raises ValueError if `t_s` is not finite."""
        _check_finite(t_s)
        if t_s <= self._now_s:
            await asyncio.sleep(0)
            return
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (t_s, next(self._order), wake))
        await wake

    async def advance(self, seconds: float) -> None:
        """Move forward by `seconds` (0 or more), waking whoever sleeps until then, in order."""
        if not (seconds >= 0 and math.isfinite(seconds)):
            raise ValueError(f"cannot advance by {seconds} s; time moves forward by a finite number of seconds")
        end_s = self._now_s + seconds
        await self._settle()
        while (next_s := self._next_s()) is not None and next_s <= end_s:
            await self._wake_next()
        self._now_s = end_s

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Result of `work`, advancing as far as it sleeps; raises ClusterError if it waits for anything else."""
        task = asyncio.ensure_future(work)
        await self._settle()
        while not task.done():
            if self._next_s() is None:
                task.cancel()
                raise ClusterError(f"at {self._now_s} s the work waits, but nothing sleeps on this clock")
            await self._wake_next()
        return task.result()

    def _next_s(self) -> float | None:
        while self._sleepers and self._sleepers[0][2].done():  # cancelled while asleep
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    async def _wake_next(self) -> None:
        self._now_s, _, wake = heapq.heappop(self._sleepers)
        wake.set_result(None)
        await self._settle()

    async def _settle(self) -> None:
        for _ in range(self._settle_turns):
            await asyncio.sleep(0)


def _check_finite(t_s: float) -> None:
    if not math.isfinite(t_s):
        raise ValueError(f"cannot sleep until {t_s} s; the time must be finite")
