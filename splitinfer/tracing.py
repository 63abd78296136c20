"""What a request spent its time on: spans of decode, compute, encode, wire, transfer and return, stage by stage."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

KINDS = ("compute", "exchange", "encode", "wire", "transfer", "decode", "return")
"""The parts of a latency, in the order in which plans and tables show them."""


@dataclass(frozen=True)
class Span:
    """One piece of work of one request."""

    stage: str
    tier: str
    kind: str
    """One of KINDS."""
    start_s: float
    """On the machine's monotonic clock."""
    seconds: float
    """Whole duration, sleep included."""
    slept_s: float = 0.0
    """The part that was declared sleep: a paced link, or the stretch of an emulated slower tier."""
    nbytes: int = 0
    """Bytes on the wire, for `wire`, `transfer` (encoding, wire and decoding at once) and `return`."""

    @property
    def end_s(self) -> float:
        """When it was over."""
        return self.start_s + self.seconds


@dataclass(frozen=True)
class Trace:
    """One request from the caller's side."""

    request_id: str
    total_s: float
    spans: tuple[Span, ...]
    exit: str = ""
    """The head whose answer this is; empty where the whole model answered."""
    degraded: bool = False
    """Whether the first tier answered alone because nobody else could be asked."""
    answered_by: str = ""
    """The plan of a family that answered, or what the first tier answered with alone; empty where there was no choice."""

    def seconds(self, kind: str) -> float:
        """Seconds spent on one kind of work."""
        return sum(span.seconds for span in self.spans if span.kind == kind)

    def nbytes(self, kind: str = "wire") -> int:
        """Bytes that crossed links, up for `wire`, back for `return`."""
        kinds = ("wire", "transfer") if kind == "wire" else (kind,)
        return sum(span.nbytes for span in self.spans if span.kind in kinds)

    @property
    def slept_s(self) -> float:
        """Declared sleep: paced links and emulated slower tiers."""
        return sum(span.slept_s for span in self.spans)

    @property
    def framework_s(self) -> float:
        """What no span covers: calls between processes, packing, queues."""
        return self.total_s - sum(span.seconds for span in self.spans)

    def breakdown(self) -> dict[str, float]:
        """Seconds by kind of work, with `framework` for the rest."""
        return {kind: self.seconds(kind) for kind in KINDS} | {"framework": self.framework_s}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        how = {"exit": self.exit, "degraded": self.degraded, "answered_by": self.answered_by}
        return {"request_id": self.request_id, "total_s": self.total_s, **how, "spans": [asdict(span) for span in self.spans]}

    def to_chrome(self) -> dict[str, Any]:
        """This request alone, as `chrome_trace` shows several."""
        return chrome_trace([self])


@dataclass(frozen=True)
class _Worked:
    """A span before the sleep at the end."""

    kind: str
    start: float
    seconds: float
    slept: float
    """Of `seconds`, what was slept at once."""
    stretch: bool


class Recorder:
    """Collects the spans of one stage; stretches its work when the tier is emulated by a faster machine.

    The stretch is one sleep at the end: sleeping between the pieces would cool the caches that the next one needs,
    which a slower machine does not do.
    """

    def __init__(self, stage: str, tier: str, slowdown: float = 1.0) -> None:
        self.stage, self.tier, self.slowdown = stage, tier, slowdown
        self._worked: list[_Worked] = []

    @contextmanager
    def span(self, kind: str, stretch: bool = True) -> Iterator[None]:
        """Time the block; it is not stretched where it waits for what was stretched already."""
        start = time.perf_counter()
        yield
        self._add(kind, start, 0.0, stretch)

    @contextmanager
    def stretched(self, kind: str, slowdown: float) -> Iterator[None]:
        """Time the block and stretch it here and now, because others wait for it."""
        start = time.perf_counter()
        slept = 0.0
        try:
            yield
        finally:
            if slowdown > 1:
                awake = time.perf_counter()
                time.sleep((slowdown - 1) * (awake - start))
                slept = time.perf_counter() - awake
            self._add(kind, start, slept, stretch=False)

    def _add(self, kind: str, start: float, slept: float, stretch: bool) -> None:
        """A span; one that goes on where the last of its kind ended prolongs it."""
        seconds = time.perf_counter() - start
        if self._worked and (self._worked[-1].kind, self._worked[-1].stretch) == (kind, stretch):
            seconds, slept = time.perf_counter() - self._worked[-1].start, slept + self._worked[-1].slept
            start = self._worked.pop().start
        self._worked.append(_Worked(kind, start, seconds, slept, stretch))

    def finish(self) -> tuple[Span, ...]:
        """Sleep (slowdown - 1) times what the work just took; the spans, each with its share of the sleep."""
        total = sum(worked.seconds for worked in self._worked if worked.stretch)
        slept = 0.0
        if self.slowdown > 1 and total > 0:
            start = time.perf_counter()
            time.sleep((self.slowdown - 1) * total)
            slept = time.perf_counter() - start
        spans, shift = [], 0.0
        for worked in self._worked:
            share = slept * worked.seconds / total if total and worked.stretch else 0.0
            spans.append(Span(self.stage, self.tier, worked.kind, worked.start + shift, worked.seconds + share, share + worked.slept))
            shift += share
        return tuple(spans)


def pack_spans(spans: Sequence[Span]) -> list[list[Any]]:
    """Spans as rows, for the way back through the stages."""
    return [[s.stage, s.tier, s.kind, s.start_s, s.seconds, s.slept_s, s.nbytes] for s in spans]


def unpack_spans(rows: Sequence[Sequence[Any]]) -> tuple[Span, ...]:
    """The inverse of :func:`pack_spans`."""
    return tuple(Span(*row) for row in rows)


# -- for chrome://tracing and ui.perfetto.dev: the JSON of the Trace Event Format


def chrome_trace(traces: Sequence[Trace]) -> dict[str, Any]:
    """Requests as a JSON object: a process for each tier, a thread for each kind of work, times in microseconds from the first span.

    Events of one thread may not overlap other than nested, so where requests do, the kind gets more threads: "wire 2".
    The tiers' clocks are taken as one, which holds where all run on one machine.
    """
    spans = sorted(((span, trace) for trace in traces for span in trace.spans), key=lambda pair: pair[0].start_s)
    origin_s = spans[0][0].start_s if spans else 0.0
    tiers = list(dict.fromkeys(span.tier for trace in traces for span in trace.spans))  # a request meets them in order
    ends_s: dict[tuple[str, str], list[float]] = {}
    events, rows = [], set()
    for span, trace in spans:
        lane = _free_lane(ends_s.setdefault((span.tier, span.kind), []), span)
        row = tiers.index(span.tier) + 1, _LANES * KINDS.index(span.kind) + lane + 1
        rows.add((*row, span.kind if lane == 0 else f"{span.kind} {lane + 1}"))
        events.append(_event(span, trace, row, origin_s))
    return {"traceEvents": [*_names(tiers, sorted(rows)), *events], "displayTimeUnit": "ms"}


def save_chrome(traces: Sequence[Trace], path: str | Path) -> None:
    """Write `chrome_trace` to a file, which both viewers open."""
    Path(path).write_text(json.dumps(chrome_trace(traces)), encoding="utf-8")


_LANES = 1000  # room between the numbers of two kinds' threads


def _free_lane(ends_s: list[float], span: Span) -> int:
    """The first lane that is free when the span starts; it is taken until the span ends."""
    lane = next((lane for lane, end_s in enumerate(ends_s) if end_s <= span.start_s), len(ends_s))
    ends_s[lane : lane + 1] = [span.end_s]
    return lane


def _event(span: Span, trace: Trace, row: tuple[int, int], origin_s: float) -> dict[str, Any]:
    details = {"request": trace.request_id, "stage": span.stage, "nbytes": span.nbytes, "declared_sleep_us": span.slept_s * 1e6,
               "total_us": trace.total_s * 1e6}  # fmt: skip
    return {
        "ph": "X", "name": f"{span.kind} {span.stage}", "cat": span.kind, "pid": row[0], "tid": row[1],
        "ts": (span.start_s - origin_s) * 1e6, "dur": span.seconds * 1e6, "args": details,
    }  # fmt: skip


def _names(tiers: Sequence[str], rows: Sequence[tuple[int, int, str]]) -> list[dict[str, Any]]:
    """Metadata: what each process and thread is called, and in which order they stand."""
    found = []
    for pid, tier in enumerate(tiers, 1):
        found.append(_metadata("process_name", pid, 0, name=tier))
        found.append(_metadata("process_sort_index", pid, 0, sort_index=pid))
    for pid, tid, name in rows:
        found.append(_metadata("thread_name", pid, tid, name=name))
        found.append(_metadata("thread_sort_index", pid, tid, sort_index=tid))
    return found


def _metadata(event: str, pid: int, tid: int, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "name": event, "pid": pid, "tid": tid, "args": args}
