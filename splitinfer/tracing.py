"""What a request spent its time on: spans of decode, compute, encode, wire and return, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

KINDS = ("compute", "encode", "wire", "decode", "return")
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
    """Bytes on the wire, for `wire` and `return`."""


@dataclass(frozen=True)
class Trace:
    """One request from the caller's side."""

    request_id: str
    total_s: float
    spans: tuple[Span, ...]
    exit: str = ""
    """The head whose answer this is; empty where the whole model answered."""
    degraded: bool = False
    """Whether the head was not sure enough, but nothing behind it could be asked."""

    def seconds(self, kind: str) -> float:
        """Seconds spent on one kind of work."""
        return sum(span.seconds for span in self.spans if span.kind == kind)

    def nbytes(self, kind: str = "wire") -> int:
        """Bytes that crossed links, up for `wire`, back for `return`."""
        return sum(span.nbytes for span in self.spans if span.kind == kind)

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
        how = {"exit": self.exit, "degraded": self.degraded}
        return {"request_id": self.request_id, "total_s": self.total_s, **how, "spans": [asdict(span) for span in self.spans]}


class Recorder:
    """Collects the spans of one stage; stretches its work when the tier is emulated by a faster machine.

    The stretch is one sleep at the end: sleeping between the pieces would cool the caches that the next one needs,
    which a slower machine does not do.
    """

    def __init__(self, stage: str, tier: str, slowdown: float = 1.0) -> None:
        self.stage, self.tier, self.slowdown = stage, tier, slowdown
        self._worked: list[tuple[str, float, float]] = []

    @contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """Time the block."""
        start = time.perf_counter()
        yield
        self._worked.append((kind, start, time.perf_counter() - start))

    def finish(self) -> tuple[Span, ...]:
        """Sleep (slowdown - 1) times what the work just took; the spans, each with its share of the sleep."""
        total = sum(seconds for _, _, seconds in self._worked)
        slept = 0.0
        if self.slowdown > 1 and total > 0:
            start = time.perf_counter()
            time.sleep((self.slowdown - 1) * total)
            slept = time.perf_counter() - start
        spans, shift = [], 0.0
        for kind, start, seconds in self._worked:
            share = slept * seconds / total if total else 0.0
            spans.append(Span(self.stage, self.tier, kind, start + shift, seconds + share, share))
            shift += share
        return tuple(spans)


def pack_spans(spans: Sequence[Span]) -> list[list[Any]]:
    """Spans as rows, for the way back through the stages."""
    return [[s.stage, s.tier, s.kind, s.start_s, s.seconds, s.slept_s, s.nbytes] for s in spans]


def unpack_spans(rows: Sequence[Sequence[Any]]) -> tuple[Span, ...]:
    """The inverse of :func:`pack_spans`."""
    return tuple(Span(*row) for row in rows)
