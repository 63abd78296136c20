"""Measured requests from a file: what ``splitinfer run --trace`` wrote, or a list of what `Trace.to_dict` gives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from splitinfer.errors import UsageError
from splitinfer.reading import Malformed, read, text_of
from splitinfer.tracing import KINDS, Span, Trace


@dataclass(frozen=True)
class Traces:
    """Requests, and whether their latency is known from the caller's side."""

    traces: tuple[Trace, ...]
    whole: bool = True
    """False: only from the first span to the last, because the file says no more."""


@dataclass(frozen=True)
class _Details:
    request: str
    stage: str = ""
    nbytes: float = 0.0
    declared_sleep_us: float = 0.0
    total_us: float | None = None
    """Of the whole request, from the caller's side."""


@dataclass(frozen=True)
class _Event:
    """What is read of an event in the Trace Event Format; times in microseconds."""

    cat: str
    pid: int
    ts: float
    dur: float
    args: _Details = field(default_factory=lambda: _Details(""))


def load_traces(path: str | Path) -> Traces:
    """Read a file of traces. Raises UsageError, which names what is malformed."""
    try:
        data = json.loads(text_of(path, "traces", UsageError))
        found = _of_events(data["traceEvents"]) if isinstance(data, dict) and "traceEvents" in data else _of_rows(data)
    except (Malformed, ValueError, RecursionError) as reason:
        raise UsageError(f"malformed traces in {path}: {reason}") from reason
    if not found.traces:
        raise UsageError(f"{path} holds no request; write one with 'splitinfer run --trace'")
    for span in (span for trace in found.traces for span in trace.spans):
        if span.kind not in KINDS or min(span.seconds, span.nbytes, span.slept_s) < 0:
            raise UsageError(
                f"malformed traces in {path}: {span.kind[:40]!r}, {span.seconds:g} s; kinds are {', '.join(KINDS)}, times 0 or more"
            )
    return found


def _of_rows(data: Any) -> Traces:
    if not isinstance(data, list):
        raise Malformed("neither a list of requests nor an object with 'traceEvents'")
    return Traces(tuple(read(Trace, row, f"[{place}]") for place, row in enumerate(data)))


def _of_events(events: Any) -> Traces:
    """Requests from the events of a Chrome trace; a process is a tier."""
    if not isinstance(events, list) or not all(isinstance(event, Mapping) for event in events):
        raise Malformed("'traceEvents' is no list of objects")
    tiers: dict[int, str] = {}
    spans: dict[str, list[Span]] = {}
    totals_s: dict[str, float | None] = {}
    for place, row in enumerate(events):
        if row.get("ph") == "M" and row.get("name") == "process_name":
            name, pid = row.get("args"), row.get("pid")
            if not isinstance(name, Mapping) or not isinstance(pid, int):
                raise Malformed(f"'traceEvents[{place}]' names no process")
            tiers[pid] = str(name.get("name", ""))
        elif row.get("ph") == "X":
            event = _event(row, f"traceEvents[{place}]")
            tier = tiers.get(event.pid, f"process {event.pid}")
            details = event.args
            span = Span(
                details.stage, tier, event.cat, event.ts / 1e6, event.dur / 1e6, details.declared_sleep_us / 1e6, int(details.nbytes)
            )
            spans.setdefault(details.request, []).append(span)
            totals_s[details.request] = None if details.total_us is None else details.total_us / 1e6
    whole = all(total is not None for total in totals_s.values())
    return Traces(tuple(Trace(name, _total_s(totals_s[name], found), tuple(found)) for name, found in spans.items()), whole)


def _event(row: Mapping[str, Any], path: str) -> _Event:
    args = row.get("args")
    details = {key: value for key, value in args.items() if key in _names(_Details)} if isinstance(args, Mapping) else args
    kept = {key: value for key, value in row.items() if key in _names(_Event)} | {"args": details}
    return read(_Event, kept, path)


def _names(kind: type) -> set[str]:
    return {each.name for each in fields(kind)}


def _total_s(known_s: float | None, spans: list[Span]) -> float:
    return known_s if known_s is not None else max(span.end_s for span in spans) - min(span.start_s for span in spans)
