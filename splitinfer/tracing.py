"""What a request spent its time on: spans of decode, compute, encode, wire and return, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
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
        return {"request_id": self.request_id, "total_s": self.total_s, "spans": [asdict(span) for span in self.spans]}


class Recorder:
    """Collects the spans of one stage; stretches its work when the tier is emulated by a faster machine."""

    def __init__(self, stage: str, tier: str, slowdown: float = 1.0) -> None:
        self.stage, self.tier, self.slowdown = stage, tier, slowdown
        self.spans: list[Span] = []

    @contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """Time the block; then sleep (slowdown - 1) times what it just took."""
        start = time.perf_counter()
        yield
        worked = time.perf_counter() - start
        if self.slowdown > 1:
            time.sleep((self.slowdown - 1) * worked)
        seconds = time.perf_counter() - start
        self.spans.append(Span(self.stage, self.tier, kind, start, seconds, seconds - worked))

    def add(self, kind: str, start_s: float, seconds: float, slept_s: float, nbytes: int) -> None:
        """Add a span that was timed elsewhere."""
        self.spans.append(Span(self.stage, self.tier, kind, start_s, seconds, slept_s, nbytes))


def pack_spans(spans: Sequence[Span]) -> list[list[Any]]:
    """Spans as rows, for the way back through the stages."""
    return [[s.stage, s.tier, s.kind, s.start_s, s.seconds, s.slept_s, s.nbytes] for s in spans]


def unpack_spans(rows: Sequence[Sequence[Any]]) -> tuple[Span, ...]:
    """The inverse of :func:`pack_spans`."""
    return tuple(Span(*row) for row in rows)


def mean_breakdown(traces: Sequence[Trace]) -> Mapping[str, float]:
    """Mean seconds by kind over several requests."""
    parts = [trace.breakdown() for trace in traces]
    return {kind: sum(part[kind] for part in parts) / len(parts) for kind in parts[0]}
