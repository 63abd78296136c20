"""Latencies as bars of their parts, and one request as a Gantt chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from splitinfer.report.chart import CHARACTER, Scale, box, legend, line, picture, text
from splitinfer.report.figures import ms, nbytes, number
from splitinfer.report.markup import Markup, joined
from splitinfer.report.request import PARTS, Bar, Request

_WIDTH, _LEFT, _ROW = 900.0, 236.0, 34.0
_NAMES = {
    "coding": "coding: encode, decode",
    "waking": "waking up",
    "transfer": "transfer in pieces",
    "framework": "framework: calls, packing",
}
_ROOM_FOR_TOTAL = 100.0


def named(kind: str) -> str:
    """What a part is called on the page."""
    return _NAMES.get(kind, kind)


def part_bars(name: str, title: str, rows: Sequence[tuple[str, float, Mapping[str, float]]]) -> Markup:
    """One bar for each row: its name, its latency in seconds, and the seconds of its parts."""
    used = [part for part in PARTS if any(parts.get(part, 0.0) > 0 for _, _, parts in rows)]
    key, top = legend([(named(part), box(0, 0, 24, 12, f"fill-{part}")) for part in used], _LEFT, 4, _WIDTH)
    longest = max((seconds for _, seconds, _ in rows), default=0.0) * 1e3
    scale = Scale(0.0, longest or 1.0, _LEFT, _WIDTH - _ROOM_FOR_TOTAL)
    drawn: list[str] = [key]
    for place, (label, seconds, parts) in enumerate(rows):
        y = top + 8 + place * _ROW
        drawn.append(text(_LEFT - 10, y + 17, label, "", "end", _LEFT - 14))
        at = 0.0
        for part in used:
            spent = max(0.0, parts.get(part, 0.0))
            if spent:
                drawn.append(_piece(scale, at, spent, y, part, f"{label}: {named(part)} {ms(spent)}"))
            at += spent
        drawn.append(text(scale(at * 1e3) + 8, y + 17, ms(seconds), "strong"))
    description = "; ".join(f"{label} {ms(seconds)}" for label, seconds, _ in rows)
    return picture(name, title, description, _WIDTH, top + 8 + len(rows) * _ROW, *drawn)


def gantt(name: str, title: str, request: Request, span_s: float, since: str) -> Markup:
    """A lane for each tier and for what it sends; `span_s` is the width of the time axis, from `since` on."""
    kinds = list(dict.fromkeys(bar.kind for bar in request.bars))
    key, top = legend([(named(kind), box(0, 0, 24, 12, f"fill-{kind}")) for kind in kinds], _LEFT, 4, _WIDTH)
    scale = Scale(0.0, span_s * 1e3 or 1.0, _LEFT, _WIDTH - 24)
    rows = [(lane, row) for lane in request.lanes for row in _apart([bar for bar in request.bars if bar.lane == lane])]
    bottom = top + 10 + len(rows) * _ROW
    drawn: list[str] = [key]
    for tick in scale.ticks():
        drawn.append(line(scale(tick), top, scale(tick), bottom, "grid"))
        drawn.append(text(scale(tick), bottom + 18, number(tick), "tick", "middle"))
    drawn.append(text((_LEFT + _WIDTH) / 2, bottom + 38, f"ms from {since}", "label", "middle"))
    before = ""
    for place, (lane, bars) in enumerate(rows):
        y = top + 10 + place * _ROW
        if lane != before:
            drawn.append(line(10, y - 4, _WIDTH - 24, y - 4, "grid"))
            drawn.append(text(_LEFT - 10, y + 17, lane, "", "end", _LEFT - 14))
        before = lane
        for bar in bars:
            sent = f", {nbytes(bar.nbytes)}" if bar.nbytes else ""
            tip = f"{lane}: {named(bar.kind)} {ms(bar.seconds)} from {ms(bar.start_s)}{sent}"
            drawn.append(_piece(scale, bar.start_s, bar.seconds, y, bar.kind, tip))
    description = f"{len(request.bars)} pieces of work on {', '.join(request.lanes)}; {ms(request.latency_s)} in all"
    return picture(name, title, description, _WIDTH, bottom + 48, *drawn)


def _piece(scale: Scale, start_s: float, seconds: float, y: float, kind: str, tip: str) -> Markup:
    """A bar at least as wide as can be seen, with its name where there is room. The scale is in milliseconds."""
    left, right = scale(start_s * 1e3), scale((start_s + seconds) * 1e3)
    width = max(right - left, 1.5)
    drawn = box(left, y, width, _ROW - 10, f"bar fill-{kind}", tip)
    if CHARACTER * len(kind) + 8 > width:
        return drawn
    return joined(drawn, text(left + width / 2, y + 16, kind, "on-fill", "middle"))


def _apart(bars: Sequence[Bar]) -> list[list[Bar]]:
    """Rows in which no two bars overlap."""
    rows: list[list[Bar]] = []
    for bar in sorted(bars, key=lambda bar: bar.start_s):
        # Clocks and rounding: what overlaps by a hair does not overlap.
        row = next((row for row in rows if row[-1].end_s <= bar.start_s + 1e-6), None)
        if row is None:
            rows.append([bar])
        else:
            row.append(bar)
    return rows
