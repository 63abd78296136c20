"""Numbers with their units, as the page shows them."""

from __future__ import annotations

MBPS = 1e6 / 8
"""Bytes per second in a megabit per second."""
UNITS = {"energy": "J", "money": "$ per million requests"}
"""Of costs beside the latency, as `amount` gives them."""
NONE = "-"
"""Where there is no number."""


def ms(seconds: float | None) -> str:
    """12.34 ms."""
    return NONE if seconds is None else f"{number(seconds * 1e3)} ms"


def number(value: float) -> str:
    """Four digits that matter, thousands set apart."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    shown = f"{value:.4g}"
    return f"{value:.3e}" if "e" in shown else shown


def amount(cost: str, value: float) -> float:
    """Joules as they are, dollars for a million requests, which is a number that people can read."""
    return value * 1e6 if cost == "money" else value


def nbytes(count: float | None) -> str:
    """150,616 B."""
    return NONE if count is None else f"{count:,.0f} B"


def mbps(bytes_per_s: float) -> str:
    """18.88 Mbps."""
    return f"{bytes_per_s / MBPS:.4g} Mbps"


def percent(share: float | None) -> str:
    """25.0 %."""
    return NONE if share is None else f"{share * 100:.1f} %"


def difference(value: float | None, reference: float | None) -> str:
    """By how much a value is above its reference, +3.2 %."""
    if value is None or not reference:
        return NONE
    return f"{round((value / reference - 1) * 100, 1) + 0.0:+.1f} %"  # + 0.0: no negative zero


def counted(count: int, what: str) -> str:
    """1 layer, 2 layers."""
    return f"{count:,} {what}{'s' * (count != 1)}"
