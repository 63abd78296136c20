"""What the checker has to say about an answer: the claims that hold, and those that do not."""

from __future__ import annotations

from dataclasses import dataclass
from reprlib import repr as short
from typing import Any


@dataclass(frozen=True)
class Refutation:
    """A claim that does not hold."""

    field: str
    """Where it stands in the answer, as in codecs[2].nbytes; a limit stands in the problem."""
    claimed: Any
    recomputed: Any
    """The true number, or what is wrong in words."""

    def __str__(self) -> str:
        """One line with both numbers."""
        true = self.recomputed if isinstance(self.recomputed, str) else _shown(self.recomputed)
        return f"{self.field}: claimed {_shown(self.claimed)}, but {true}"


@dataclass(frozen=True)
class Verdict:
    """All claims of an answer; true if none is refuted."""

    confirmed: tuple[str, ...]
    refuted: tuple[Refutation, ...]

    def __bool__(self) -> bool:
        """Whether everything claimed holds."""
        return not self.refuted

    def __str__(self) -> str:
        """The count, then one line for each claim that does not hold."""
        head = f"{len(self.confirmed)} claims confirmed, {len(self.refuted)} refuted"
        return "\n".join([head, *(f"  {refutation}" for refutation in self.refuted)])


def _shown(value: Any) -> str:
    """A short text of anything."""
    try:
        return f"{value:.12g}" if isinstance(value, float) else short(value)
    except Exception:  # whatever its own repr raises; an integer of too many digits, for one
        return f"a {type(value).__name__}"
