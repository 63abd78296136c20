"""Plain-text tables, and the two cells that say what a plan does: how families of plans print themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from partitioners.placement import Solution


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns two spaces apart, flush right but for the last two, which are words."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    words = len(head) - 2
    cells = [[f"{cell:{'<' if i >= words else '>'}{widths[i]}}" for i, cell in enumerate(row)] for row in (head, *rows)]
    return "\n".join("  ".join(row).rstrip() for row in cells)


def ops_per_tier(solution: Solution) -> str:
    """Return for example "3 / 0 / 12", tier 0 first."""
    count = Counter(solution.placement.values())
    return " / ".join(str(count[tier]) for tier in solution.cost.tier_load_s)


def codecs_used(solution: Solution) -> str:
    """Return for example "int8 x2, raw", or "-" where nothing crosses a link."""
    count = Counter(codec for _, codec in {(c.tensor, c.codec) for c in solution.codecs})
    return ", ".join(f"{codec} x{n}" if n > 1 else codec for codec, n in sorted(count.items())) or "-"
