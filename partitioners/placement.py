"""What a solver hands back: where each op goes, what that costs, and how good it provably is. All of it prints."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

OPTIMAL_GAP = 1e-6  # relative; below it the rest is rounding in the clocks that measured the seconds


@dataclass(frozen=True)
class Cost:
    """One request's latency, taken apart. All parts but the last two add up to it."""

    compute_s: float
    encode_s: float
    wire_s: float
    """Bytes over rate, towards the last tier."""
    link_latency_s: float
    decode_s: float
    return_s: float
    """Bytes over rate and latency, towards tier 0."""
    tier_compute_s: Mapping[str, float]
    link_nbytes: tuple[float, ...]
    """Bytes put on each link, towards the last tier."""

    @property
    def latency_s(self) -> float:
        """The sum of the parts."""
        return sum(self.parts_s.values())

    @property
    def parts_s(self) -> dict[str, float]:
        """The parts of the latency by name."""
        parts = ("compute", "encode", "wire", "link_latency", "decode", "return")
        return {part.replace("_", " "): getattr(self, f"{part}_s") for part in parts}

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, the total first."""
        return {"latency_s": self.latency_s, **asdict(self)}

    def __str__(self) -> str:
        """One line: the total and its parts."""
        parts = " + ".join(f"{part} {seconds:.6g}" for part, seconds in self.parts_s.items() if seconds)
        return f"{self.latency_s:.6g} s = {parts or 'nothing'}"


@dataclass(frozen=True)
class Crossing:
    """A cut tensor: encoded before the first of `links`, decoded after the last (and where else it is consumed)."""

    tensor: str
    codec: str
    links: tuple[int, ...]
    nbytes: float
    """On each of the links."""


@dataclass(frozen=True)
class Certificate:
    """What is proved: no placement costs less than `bound`."""

    status: Literal["optimal", "within", "feasible"]
    bound: float | None = None
    """In seconds; None: nothing is claimed."""
    gap: float | None = None
    """(cost - bound) / cost."""

    def __str__(self) -> str:
        """The claim in words."""
        if self.bound is None or self.gap is None:
            return f"{self.status}, no bound"
        return f"{self.status}, bound {self.bound:.6g} s, gap {self.gap:.1e}"


def certify(cost_s: float, bound_s: float) -> Certificate:
    """Put a cost beside a proved lower bound of every cost."""
    cost_s, bound_s = float(cost_s), float(min(bound_s, cost_s))  # the bound is above by rounding only
    gap = (cost_s - bound_s) / cost_s if cost_s else 0.0
    return Certificate("optimal" if gap <= OPTIMAL_GAP else "within", bound_s, gap)


@dataclass(frozen=True)
class Solution:
    """A placement with its price and its proof."""

    placement: dict[str, str]
    """Op -> tier."""
    codecs: tuple[Crossing, ...]
    cost: Cost
    strategy: str
    certificate: Certificate

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers."""
        return {**asdict(self), "cost": self.cost.to_dict()}

    def to_json(self) -> str:
        """Return JSON text."""
        return json.dumps(self.to_dict(), indent=1, default=float)

    def __str__(self) -> str:
        """A table of tiers and a table of crossings."""
        ops = Counter(self.placement.values())
        names = list(self.cost.tier_compute_s)
        wide = max(map(len, names))
        lines = [f"{self.strategy}: {self.cost}", f"  {self.certificate}"]
        for tier, seconds in self.cost.tier_compute_s.items():
            lines.append(f"  {tier:<{wide}}  {ops[tier]:>6} ops  {seconds:.6g} s")
        wide = max((len(c.tensor) for c in self.codecs), default=0)
        for c in self.codecs:
            way = " -> ".join(names[c.links[0] : c.links[-1] + 2])
            lines.append(f"  {c.tensor:<{wide}}  {way}  {c.codec}  {c.nbytes:,.0f} bytes")
        return "\n".join(lines)
