"""One cell of a benchmark's table: a call in a process of its own, timed, and ended when its time is up.

Seconds are of the processor, not of the clock on the wall: everything here runs in one thread, and on a machine shared
with others the wall clock measures the others.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from partitioners import PartitionerError

REPEATS = 5
ENOUGH_S = 2.0
"""After this a call is not repeated."""
SHORTEST_S = 0.05
"""A shorter call is made several times in a row: the processor's clock may be coarse."""
LATE = "over limit"


@dataclass(frozen=True)
class Cell:
    """What came of a call."""

    seconds: float | None = None
    """Median of up to `REPEATS` runs; None: there is none."""
    answer: Any = None
    """Of the first run; plain data, as it travels between processes."""
    why: str = ""
    """Why there are no seconds: "over limit", or the first line of the refusal."""


def cell(prepare: Callable[[], Callable[[], Any]], limit_s: float, plain: Callable[[Any], Any] = lambda _: None) -> Cell:
    """Time what `prepare` returns, in a fork, which has all that is in memory here; `plain` makes its result fit to send."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(prepare, limit_s, plain, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        found: Cell = ours.recv()
    except EOFError:
        process.join()
        return Cell(why=LATE if process.exitcode == -signal.SIGXCPU else f"died with exit code {process.exitcode}")
    process.join()
    return found


def _work(prepare: Callable[[], Callable[[], Any]], limit_s: float, plain: Callable[[Any], Any], send: Connection) -> None:
    call = prepare()
    spent = time.process_time() + limit_s
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent + ENOUGH_S + 1), resource.RLIM_INFINITY))
    try:
        send.send(_timed(call, limit_s, plain))
    except PartitionerError as error:
        send.send(Cell(why=str(error).splitlines()[0]))


def _timed(call: Callable[[], Any], limit_s: float, plain: Callable[[Any], Any]) -> Cell:
    begun = time.process_time()
    answer = plain(call())
    seconds = [time.process_time() - begun]
    rounds = max(1, int(SHORTEST_S / max(seconds[0], 1e-4)))
    while len(seconds) < REPEATS and sum(seconds) * rounds < ENOUGH_S:
        begun = time.process_time()
        for _ in range(rounds):
            call()
        seconds.append((time.process_time() - begun) / rounds)
    middle = statistics.median(seconds)
    return Cell(middle, answer) if middle <= limit_s else Cell(why=LATE)


def median(cells: Iterable[Cell]) -> float | None:
    """Median seconds of the cells that have some."""
    seconds = [each.seconds for each in cells if each.seconds is not None]
    return statistics.median(seconds) if seconds else None


def show(cells: Sequence[Cell], limit_s: float) -> str:
    """Return the median of cells of one kind, and how many of them have none in time."""
    late, middle = sum(each.why == LATE for each in cells), median(cells)
    if middle is None:
        return f"over {limit_s:g} s" if late else "refused" if cells else ""
    return duration(middle) + (f" ({late} of {len(cells)} over)" if late else "")


def duration(seconds: float | None) -> str:
    """Seconds or milliseconds with three digits."""
    if seconds is None:
        return "none"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
