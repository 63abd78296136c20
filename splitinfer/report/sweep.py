"""Latency against the bandwidth of one link: the best plan at every rate, each tier alone, and this plan where it stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, floor, log10, sqrt

import partitioners as p
from cluster.topology import LinkSpec, Topology
from splitinfer.errors import PlanError, SplitinferError, UsageError
from splitinfer.planner import plan as planned
from splitinfer.plans import Plan
from splitinfer.profiles import Profile
from splitinfer.report.figures import MBPS, NONE
from splitinfer.report.request import idle_request

SLOWEST, FASTEST = 0.1, 1000.0
"""Mbps that every figure shows; it goes further where the declared rate lies outside."""
_CLOSE = 1.03  # ratio of two rates between which no change of plans is looked for
Progress = Callable[[], object]
"""Called after each plan."""


@dataclass(frozen=True)
class Regime:
    """A plan, and the rates at which it is the best."""

    name: str
    """A, B, C ...; plans that win twice keep their letter."""
    low: float
    high: float
    shape: str
    """Tiers and how many layers each runs."""
    codecs: str
    first_cut: str
    """The last layer on the first tier; empty where it runs none."""


@dataclass(frozen=True)
class Sweep:
    """Curves of latency over the rate up one link."""

    link: tuple[str, str]
    declared: float
    """Its rate in the topology, bytes per second."""
    rates: tuple[float, ...]
    curves: Mapping[str, tuple[float | None, ...]]
    """Plan -> latency in seconds at each rate; None where it is not possible."""
    regimes: tuple[Regime, ...]
    codecs: tuple[str, ...]
    """Those that could be chosen."""


def sweep(
    plan: Plan, profile: Profile, topology: Topology, codecs: Sequence[str], link: LinkSpec, points: int = 25,
    progress: Progress = lambda: None,
) -> Sweep:  # fmt: skip
    """Plan again at `points` rates, evenly spaced on a logarithmic scale, and between two of them where their plans differ.

    The least latency is sought, within the plan's limits on other costs, with as many layers kept on the device.
    """
    solver = _Solver(plan, profile, topology, tuple(codecs), link, progress)
    low = 10.0 ** floor(log10(min(link.up_bytes_per_s / MBPS, SLOWEST)))
    high = 10.0 ** ceil(log10(max(link.up_bytes_per_s / MBPS, FASTEST)))
    grid = [MBPS * low * (high / low) ** (place / (points - 1)) for place in range(points)]
    for rate in grid:
        solver.at(rate)
    for one, two in pairwise(grid):
        solver.refine(one, two)
    rates = tuple(sorted(solver.found))
    return Sweep(link.between, link.up_bytes_per_s, rates, solver.curves(rates), tuple(solver.regimes(rates)), tuple(codecs))


def link_named(topology: Topology, name: str | None) -> LinkSpec:
    """``device:edge``; without a name the link of the first tier. Raises UsageError."""
    specs = [*topology.links, *filter(None, [topology.direct])]
    names = {":".join(spec.between): spec for spec in specs}
    if not specs:
        raise UsageError("the topology has a single tier and no link whose bandwidth could vary")
    if name is None:
        return specs[0]
    if name not in names:
        raise UsageError(f"there is no link '{name}'; choose from {', '.join(names)}")
    return names[name]


def usable_codecs(plan: Plan, profile: Profile, wished: Sequence[str] = ()) -> tuple[str, ...]:
    """What other plans may use: the wish, else raw, zstd and what this plan uses, as far as the profile measured them."""
    if wished:
        return tuple(wished)
    names = dict.fromkeys(["raw", "zstd", *(crossing.codec for crossing in plan.crossings)])
    return tuple(name for name in names if name in profile.codecs) or profile.codecs[:1]


def kept_limits(plan: Plan) -> dict[str, float]:
    """The plan's limits as the planner takes them, by the names of objectives."""
    names = {field: name for name, field in p.FIELDS.items()}
    return {names[field]: limit for field, limit in plan.limits.items() if field in names}


class _Solver:
    """Plans at rates, each once."""

    def __init__(
        self, plan: Plan, profile: Profile, topology: Topology, codecs: tuple[str, ...], link: LinkSpec, progress: Progress
    ) -> None:  # fmt: skip
        self.plan, self.profile, self.topology, self.codecs, self.link, self.progress = plan, profile, topology, codecs, link, progress
        # A limit on times would only cut the figure off: the least latency is sought anyway.
        self.limits = {name: limit for name, limit in kept_limits(plan).items() if not p.FIELDS[name].endswith("_s")}
        self.found: dict[float, Plan | None] = {}

    def at(self, rate: float) -> Plan | None:
        """The best plan at a rate; None where none keeps the limits."""
        if rate not in self.found:
            try:
                self.found[rate] = planned(
                    self.profile, self.topology_at(rate), "latency", self.codecs, within=self.limits, keep_on_device=self.plan.kept_layers,
                    exits=self.plan.exits,
                )  # fmt: skip
            except PlanError:
                self.found[rate] = None
            self.progress()
        return self.found[rate]

    def refine(self, low: float, high: float) -> None:
        """Find where one plan takes over from another."""
        if high / low > _CLOSE and _shape(self.at(low)) != _shape(self.at(high)):
            middle = sqrt(low * high)
            self.refine(low, middle)
            self.refine(middle, high)

    def topology_at(self, rate: float) -> Topology:
        """The topology with another rate up the link."""
        changed = replace(self.link, up_bytes_per_s=rate)
        links = tuple(changed if link == self.link else link for link in self.topology.links)
        return replace(self.topology, links=links, direct=changed if self.topology.direct == self.link else self.topology.direct)

    def curves(self, rates: Sequence[float]) -> dict[str, tuple[float | None, ...]]:
        """Latencies of the best plan, of each tier alone, and of this plan."""
        best = [self.found[rate] for rate in rates]
        curves = {"best plan": tuple(made.cost.latency_s if made and made.cost else None for made in best)}
        for tier in self.topology.tiers:
            name = f"{tier.name} only"
            curves[name] = tuple(_alone(made, name) for made in best)
        curves["this plan"] = tuple(self._this(rate) for rate in rates)
        return {name: curve for name, curve in curves.items() if any(value is not None for value in curve)}

    def _this(self, rate: float) -> float | None:
        try:
            return idle_request(self.plan, self.profile, self.topology_at(rate)).latency_s
        except SplitinferError:
            return None

    def regimes(self, rates: Sequence[float]) -> list[Regime]:
        """Neighbours with one plan, joined; the border between two plans is half-way on the scale."""
        made: list[Regime] = []
        letters: dict[object, str] = {}
        edge = rates[0]
        for place, rate in enumerate(rates):
            plan = self.found[rate]
            last = place == len(rates) - 1
            if not last and _shape(plan) == _shape(self.found[rates[place + 1]]):
                continue
            end = rate if last else sqrt(rate * rates[place + 1])
            if plan is not None:
                letter = letters.setdefault(_shape(plan), _letter(len(letters)))
                made.append(Regime(letter, edge, end, *described(plan)))
            edge = end
        return made


def described(plan: Plan) -> tuple[str, str, str]:
    """Tiers with their layers, codecs, and the last layer on the first tier."""
    shape = " → ".join(f"{stage.tier} {len(stage.layers)}" for stage in plan.stages)
    codecs = ", ".join(sorted({f"{c.codec}{' in pieces' if c.streamed else ''}" for c in plan.crossings})) or NONE
    first = plan.stages[0]
    return shape, codecs, first.layers[-1] if first.tier == plan.tiers[0] and len(plan.stages) > 1 else ""


def _shape(plan: Plan | None) -> object:
    """What makes two plans the same."""
    if plan is None:
        return None
    return tuple((s.tier, s.layers, s.blocks) for s in plan.stages), frozenset((c.tensor, c.codec, c.streamed) for c in plan.crossings)


def _alone(made: Plan | None, name: str) -> float | None:
    found = [each.cost for each in made.baselines if each.name == name] if made else []
    return found[0].latency_s if found and found[0] else None


def _letter(place: int) -> str:
    return chr(ord("A") + place % 26) + (str(place // 26 + 1) if place >= 26 else "")
