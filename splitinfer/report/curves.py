"""Latency against bandwidth with the winning plan shaded, and fronts of two costs."""

from __future__ import annotations

from math import sqrt

from splitinfer.report.chart import CHARACTER, Scale, axes, bounds, legend, line, picture, text
from splitinfer.report.figures import MBPS, UNITS, amount, mbps, ms, number
from splitinfer.report.fronts import TradeOff
from splitinfer.report.markup import Markup, joined, tag
from splitinfer.report.sweep import Sweep

_WIDTH, _LEFT, _RIGHT = 900.0, 90.0, 880.0
_SHADES = 6


def latency_curves(sweep: Sweep) -> Markup:
    """The figure: both axes logarithmic, a line for each plan, the winner's letter over its shade."""
    rates = [rate / MBPS for rate in sweep.rates]
    seconds = [value * 1e3 for curve in sweep.curves.values() for value in curve if value]
    if not seconds:
        return tag("p", "No plan keeps the limits at any of these rates.")
    looks = {name: _look(name, place) for place, name in enumerate(_order(sweep))}
    entries = [(name, line(0, 6, 24, 6, look)) for name, look in looks.items()]
    key, top = legend(entries, _LEFT, 4, _WIDTH)
    best = [value * 1e3 for value in sweep.curves["best plan"] if value]
    # A curve that leaves the page upwards tells no more than that it does.
    high = min(max(seconds), 30 * max(best or seconds))
    x, y = Scale(rates[0], rates[-1], _LEFT, _RIGHT, log=True), Scale(0.8 * min(seconds), 1.25 * high, top + 380, top + 40, log=True)
    shades = [
        _shade(regime.low / MBPS, regime.high / MBPS, regime.name, f"{regime.name}: {regime.shape}; {regime.codecs}", x, y)
        for regime in sweep.regimes
    ]
    lines = [_curve(name, sweep, x, y, look) for name, look in looks.items()]
    declared = x(sweep.declared / MBPS)
    here = joined(
        line(declared, y.start, declared, y.end - 8, "declared"),
        text(declared, y.end - 12, f"declared: {mbps(sweep.declared)}", "tick", _anchor(declared)),
    )
    frame = tag("clipPath", tag("rect", x=x.start, y=y.end, width=x.end - x.start, height=y.start - y.end), id="curves-clip")
    title = f"Latency against the rate from {sweep.link[0]} to {sweep.link[1]}"
    description = "; ".join(f"{regime.name} {regime.shape} wins from {mbps(regime.low)} to {mbps(regime.high)}" for regime in sweep.regimes)
    label = f"rate from {sweep.link[0]} to {sweep.link[1]}, Mbps"
    drawn = [key, tag("defs", frame), *shades, axes(x, y, label, "latency, ms"), tag("g", *lines, clip_path="url(#curves-clip)"), here]
    return picture("curves", title, description, _WIDTH, y.start + 52, *drawn)


def front_points(trade_off: TradeOff) -> Markup:
    """Circles for the front, squares for this plan and each tier alone."""
    unit = UNITS[trade_off.cost]
    inside = [(point.latency_s, amount(trade_off.cost, point.other)) for point in trade_off.points]
    marks = {name: (latency, amount(trade_off.cost, other)) for name, (latency, other) in trade_off.marks.items()}
    every = [*inside, *marks.values()]
    entries = [("Pareto front", _circle(12, 6)), ("this plan", _square(12, 6, "mark this")), ("one tier alone", _square(12, 6, "mark"))]
    key, top = legend(entries, _LEFT, 4, _WIDTH)
    x = Scale(*bounds([latency * 1e3 for latency, _ in every]), _LEFT, _RIGHT - 60)
    y = Scale(*bounds([other for _, other in every]), top + 360, top + 30)
    steps = [f"{x(latency * 1e3):.1f} {y(other):.1f}" for latency, other in _staircase(inside)]
    what = f"{trade_off.cost}, {unit}" if trade_off.cost == "money" else f"{trade_off.cost} of one request, {unit}"
    drawn: list[str] = [key, axes(x, y, "latency of one request, ms", what)]
    drawn.append(tag("path", d="M" + "L".join(steps), class_="staircase"))
    for name, (latency, other) in marks.items():
        at, up = x(latency * 1e3), y(other)
        tip = f"{name}: {ms(latency)}, {number(other)} {unit}"
        drawn.append(_square(at, up, "mark this" if name == "this plan" else "mark", tip))
    for point, (latency, other) in zip(trade_off.points, inside, strict=True):
        tip = f"{point.shape}; {point.codecs}: {ms(latency)}, {number(other)} {unit}"
        drawn.append(_circle(x(latency * 1e3), y(other), tip))
    drawn += _labels([(name, x(latency * 1e3), y(other)) for name, (latency, other) in marks.items()])
    title = f"Latency against {trade_off.cost}"
    description = f"{len(trade_off.points)} plans that no other beats in both"
    return picture(f"front-{trade_off.cost}", title, description, _WIDTH, y.start + 52, *drawn)


def _order(sweep: Sweep) -> list[str]:
    """The best plan last but one, this plan on top."""
    singles = [name for name in sweep.curves if name not in ("best plan", "this plan")]
    return [*singles, *(name for name in ("best plan", "this plan") if name in sweep.curves)]


def _look(name: str, place: int) -> str:
    return {"best plan": "curve best", "this plan": "curve this"}.get(name, f"curve curve-{place % 4}")


def _curve(name: str, sweep: Sweep, x: Scale, y: Scale, look: str) -> Markup:
    """A line, broken where the plan is not possible."""
    path, pen = [], "M"
    for rate, value in zip(sweep.rates, sweep.curves[name], strict=True):
        if value is None:
            pen = "M"
        else:
            path.append(f"{pen}{x(rate / MBPS):.1f} {y(value * 1e3):.1f}")
            pen = "L"
    return tag("path", tag("title", name), d="".join(path), class_=look)


def _shade(low: float, high: float, letter: str, tip: str, x: Scale, y: Scale) -> Markup:
    left, right = x(low), x(high)
    shade = tag(
        "rect", tag("title", tip), x=left, y=y.end, width=right - left, height=y.start - y.end,
        class_=f"shade shade-{(ord(letter[0]) - ord('A')) % _SHADES}",
    )  # fmt: skip
    return joined(shade, text(x(sqrt(low * high)), y.end + 18, letter, "strong", "middle")) if right - left > 12 else shade


def _staircase(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """What is attained: right, then down."""
    corners = points[:1]
    for latency, other in points[1:]:
        corners += [(latency, corners[-1][1]), (latency, other)]
    return corners


def _labels(marks: list[tuple[str, float, float]]) -> list[Markup]:
    """Names beside their marks, the lower one moved down where two would overlap."""
    drawn, taken = [], list[tuple[float, float, float]]()
    for name, x, y in sorted(marks, key=lambda mark: mark[2]):
        wide, up = CHARACTER * len(name), y - 9
        left = x + 10 if x + 12 + wide < _WIDTH else x - 10 - wide
        while any(left < end and left + wide > start and abs(up - other) < 15 for start, end, other in taken):
            up += 15
        taken.append((left, left + wide, up))
        drawn.append(text(left, up, name, "tick"))
    return drawn


def _circle(x: float, y: float, tip: str = "") -> Markup:
    return tag("circle", *([tag("title", tip)] if tip else []), cx=float(x), cy=float(y), r=5, class_="point")


def _square(x: float, y: float, class_: str, tip: str = "") -> Markup:
    return tag("rect", *([tag("title", tip)] if tip else []), x=float(x) - 6, y=float(y) - 6, width=12, height=12, class_=class_)


def _anchor(x: float) -> str:
    return "start" if x < _LEFT + 80 else "end" if x > _RIGHT - 80 else "middle"
