"""What all pictures share: scales, ticks, axes and the frame that names a picture to those who cannot see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from splitinfer.report.figures import number
from splitinfer.report.markup import Markup, joined, shortened, tag

CHARACTER = 7.0
"""Width of a character at the size of text in pictures, on average and generously."""


@dataclass(frozen=True)
class Scale:
    """From values to places on the page."""

    low: float
    high: float
    start: float
    """Where `low` is drawn."""
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (log10(max(x, 1e-300)) for x in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (self.end - self.start) * ((value - low) / (high - low) if high > low else 0.5)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values between the ends."""
        if self.log and self.high / self.low >= 10**1.5:
            decades = range(ceil(log10(self.low) - 1e-9), floor(log10(self.high) + 1e-9) + 1)
            steps = (1, 2, 5) if len(decades) <= 2 else (1, 3) if len(decades) <= 3 else (1,)
            found = [step * 10.0**d for d in range(decades[0] - 1, decades[-1] + 1) for step in steps] if decades else []
            return [value for value in found if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]
        span = (self.high - self.low) or 1.0
        size = 10.0 ** floor(log10(span / most))
        step = next((size * factor for factor in (1, 2, 5, 10) if span / (size * factor) <= most), size * 10)
        return [step * place for place in range(ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9) + 1)]


def picture(name: str, title: str, description: str, width: float, height: float, *content: str) -> Markup:
    """An SVG in a box of its own, which scrolls sideways where the screen is narrow."""
    described = {"role": "img", "aria_labelledby": f"{name}-title {name}-desc", "viewBox": f"0 0 {width:g} {height:g}"}
    drawn = tag("svg", tag("title", title, id=f"{name}-title"), tag("desc", description, id=f"{name}-desc"), *content, **described)
    return tag("div", drawn, class_="picture", tabindex="0", role="region", aria_label=f"{title} (picture)")


def text(
    x: float, y: float, content: str, class_: str = "", anchor: str | None = None, room: float | None = None, *, tip: str = "",
    name: bool = False,
) -> Markup:  # fmt: skip
    """A line of text; one longer than its room is shortened, a name at its beginning, and says all when pointed at."""
    fits = content if room is None else shortened(content, max(2, int(room / CHARACTER)), name)
    more = tip or (content if fits != content else "")
    return tag("text", fits, *([tag("title", more)] if more else []), x=x, y=y, text_anchor=anchor, class_=class_ or None)


def line(x1: float, y1: float, x2: float, y2: float, class_: str, **more: str) -> Markup:
    """A straight line."""
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_, **more)


def box(x: float, y: float, width: float, height: float, class_: str, tip: str = "", **more: float) -> Markup:
    """A rectangle that says something when pointed at."""
    inner = [tag("title", tip)] if tip else []
    return tag("rect", *inner, x=float(x), y=float(y), width=float(max(width, 0.0)), height=float(height), class_=class_, **more)


def axes(x: Scale, y: Scale, x_label: str, y_label: str) -> Markup:
    """Grid, ticks and what they count."""
    parts: list[str] = []
    for value in x.ticks():
        parts.append(line(x(value), y.start, x(value), y.end, "grid"))
        parts.append(text(x(value), y.start + 18, number(value), "tick", "middle"))
    for value in y.ticks():
        parts.append(line(x.start, y(value), x.end, y(value), "grid"))
        parts.append(text(x.start - 8, y(value) + 4, number(value), "tick", "end"))
    parts.append(text((x.start + x.end) / 2, y.start + 40, x_label, "label", "middle"))
    parts.append(text(x.start - 50, y.end - 12, y_label, "label", "start"))
    return joined(*parts)


def legend(entries: Sequence[tuple[str, Markup]], x: float, y: float, width: float) -> tuple[Markup, float]:
    """Swatches (24 wide, 12 high, drawn from 0, 0) with their names, in as many rows as needed; and where they end."""
    parts, at = [], x
    for name, swatch in entries:
        room = 38 + CHARACTER * len(name)
        if at + room > width and at > x:
            at, y = x, y + 22
        parts.append(tag("g", swatch, text(30, 11, name, "tick"), transform=f"translate({at:g} {y:g})"))
        at += room + 8
    return joined(*parts), y + 22


def bounds(values: Sequence[float], room: float = 0.05) -> tuple[float, float]:
    """The least and the most, with some room around them."""
    low, high = min(values), max(values)
    space = (high - low) * room or abs(high) * room or 1.0
    return max(0.0, low - space) if low >= 0 else low - space, high + space
