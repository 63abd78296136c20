"""What a solver hands back: where each op goes, what that costs, and how good it provably is. All of it prints."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from partitioners.objective import LATENCY, Objective
from partitioners.problem import Axis

OPTIMAL_GAP = 1e-6  # relative; below it the rest is rounding in the clocks that measured the seconds

Direction = Literal["up", "down"]
"""Of a link: "up" towards the last tier, "down" towards tier 0."""


@dataclass(frozen=True)
class Cost:
    """Everything that one request costs at one placement and one choice of codecs."""

    # The parts of the latency: they add up to it.
    compute_s: float
    encode_s: float
    wire_s: float
    """Bytes over rate, for consumers on other tiers."""
    transfer_s: float
    """Where a codec states encoding, wire and decoding as measured together."""
    decode_s: float
    return_s: float
    """Bytes over rate, of results on the way to tier 0."""
    link_latency_s: float
    """Both directions."""
    # The other costs.
    interval_s: float
    """The largest of the loads: seconds between results in steady state."""
    critical_path_s: float
    """Latency where branches overlap and nothing waits for a busy machine."""
    energy_j: float
    """Watts times busy seconds and joules per byte, from the figures declared."""
    money: float
    error: float
    """Sum of the errors of the codecs used."""
    # The loads, in seconds of work per request.
    tier_load_s: Mapping[str, float]
    """Ops, encoding and decoding."""
    link_load_s: tuple[float, ...]
    """Wire time up each link."""
    return_load_s: tuple[float, ...]
    """Wire time down each link."""
    tier_memory_bytes: Mapping[str, float]
    link_nbytes: tuple[float, ...]
    """Bytes up each link."""
    return_nbytes: tuple[float, ...]
    """Bytes down each link."""
    exchange_s: float = 0.0
    """A part of the latency: what the slowest worker of each block receives and sends."""
    worker_memory_bytes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Of each tier that has workers, what each of them holds."""

    @property
    def latency_s(self) -> float:
        """The sum of the parts."""
        return sum(self.parts_s.values())

    @property
    def parts_s(self) -> dict[str, float]:
        """The parts of the latency by name."""
        parts = ("compute", "exchange", "encode", "wire", "transfer", "link_latency", "decode", "return")
        return {part.replace("_", " "): getattr(self, f"{part}_s") for part in parts}

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, the total first."""
        return {"latency_s": self.latency_s, **asdict(self)}

    def __str__(self) -> str:
        """One line: the latency and its parts."""
        parts = " + ".join(f"{part} {seconds:.6g}" for part, seconds in self.parts_s.items() if seconds)
        return f"{self.latency_s:.6g} s = {parts or 'nothing'}"


@dataclass(frozen=True)
class Crossing:
    """A cut tensor on one link. Results on the way back to tier 0 travel raw and are not listed."""

    tensor: str
    link: int
    codec: str
    nbytes: float
    direction: Direction = "up"


@dataclass(frozen=True)
class Block:
    """Consecutive ops that the workers of one tier share: a vertical split."""

    ops: tuple[str, ...]
    """In topological order; what enters comes from one op, and only the last op's tensors are wanted outside."""
    tier: str
    axis: Axis
    shares: tuple[int, ...]
    """One for each worker, in units, 0 for who takes no part; each worker's begins where the one before ends."""
    takes: tuple[Literal["whole", "split"], ...] = ()
    """One for each op: which of its layouts; (): all split."""
    leaves: Literal["whole", "divided", "replicated"] = "whole"
    """Its last tensors: gathered at the host; rows, left where they are; or with everyone who has a share, and the host."""

    def __str__(self) -> str:
        """The ops, how they are shared, and what follows."""
        name = self.ops[0] if len(self.ops) == 1 else f"{self.ops[0]} ... {self.ops[-1]} ({len(self.ops)} ops)"
        then = "" if self.leaves == "whole" else f", left {self.leaves}"
        return f"{name}  on {self.tier} by {self.axis}  {' + '.join(map(str, self.shares))}{then}"


@dataclass(frozen=True)
class Certificate:
    """What is proved: no placement costs less than `bound`."""

    status: Literal["optimal", "within", "feasible"]
    bound: float | None = None
    """In units of the objective; None: nothing is claimed."""
    gap: float | None = None
    """(cost - bound) / cost."""

    def __str__(self) -> str:
        """The claim in words."""
        if self.bound is None or self.gap is None:
            return f"{self.status}, no bound"
        return f"{self.status}, bound {self.bound:.6g}, gap {self.gap:.1e}"


def certify(cost: float, bound: float) -> Certificate:
    """Put a cost beside a proved lower bound of every cost."""
    cost, bound = float(cost), float(min(bound, cost))  # the bound is above by rounding only
    gap = (cost - bound) / cost if cost else 0.0
    return Certificate("optimal" if gap <= OPTIMAL_GAP else "within", bound, gap)


@dataclass(frozen=True)
class Solution:
    """A placement with its price and its proof."""

    placement: dict[str, str]
    """Op -> tier."""
    codecs: tuple[Crossing, ...]
    cost: Cost
    strategy: str
    certificate: Certificate
    objective: Objective = LATENCY
    baselines: Mapping[str, float | str] = field(default_factory=dict)
    """What plainer plans cost under the same objective, or why they cannot be."""
    blocks: tuple[Block, ...] = ()
    """What the workers of a tier share; all other ops run whole."""

    @property
    def value(self) -> float:
        """What it costs under its objective."""
        return self.objective.value(self.cost)

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers."""
        return {**asdict(self), "cost": self.cost.to_dict(), "objective": str(self.objective)}

    def to_json(self) -> str:
        """Return JSON text."""
        return json.dumps(self.to_dict(), indent=1, default=float)

    def __str__(self) -> str:
        """The price and its proof, a table of tiers, a table of crossings, and the baselines."""
        ops = Counter(self.placement.values())
        cost, names = self.cost, list(self.cost.tier_load_s)
        wide = max(map(len, names))
        lines = [f"{self.strategy}: {self.objective} {self.value:.6g}", f"  {self.certificate}", f"  latency {cost}"]
        others = {"interval": cost.interval_s, "critical path": cost.critical_path_s, "energy": cost.energy_j}
        others |= {"money": cost.money, "error": cost.error}
        lines.append("  " + ", ".join(f"{name} {value:.6g}" for name, value in others.items() if value))
        for tier, seconds in cost.tier_load_s.items():
            lines.append(f"  {tier:<{wide}}  {ops[tier]:>6} ops  {seconds:.6g} s busy  {cost.tier_memory_bytes[tier]:,.0f} bytes held")
        wide = max((len(c.tensor) for c in self.codecs), default=0)
        for c in self.codecs:
            ends = names[c.link : c.link + 2]
            way = " -> ".join(ends if c.direction == "up" else ends[::-1])
            lines.append(f"  {c.tensor:<{wide}}  {way}  {c.codec}  {c.nbytes:,.0f} bytes")
        lines += [f"  {block}" for block in self.blocks]
        for name, value in self.baselines.items():
            if isinstance(value, str):
                lines.append(f"  {name}: {value.splitlines()[0]}")
            else:
                lines.append(f"  {name}: {value:.6g}" + (f", {value / self.value:.2f} times this" if self.value else ""))
        return "\n".join(lines)
