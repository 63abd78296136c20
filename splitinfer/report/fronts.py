"""Trade-offs of latency against energy and money, over all lines of tiers together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import partitioners as p
from cluster.topology import Topology
from partitioners.pareto import pareto_front
from partitioners.tabular import codecs_used
from splitinfer.errors import PlanError
from splitinfer.planner import problems
from splitinfer.plans import Cost, Plan
from splitinfer.profiles import Profile
from splitinfer.report.sweep import kept_limits

_MOST_SOLVES = 100  # for each line of tiers: a few seconds for a network of 200 layers


@dataclass(frozen=True)
class Point:
    """A plan on the front."""

    latency_s: float
    other: float
    """The second cost: joules or dollars."""
    shape: str
    codecs: str


@dataclass(frozen=True)
class TradeOff:
    """One front, and the plans beside it."""

    cost: str
    """energy or money."""
    points: tuple[Point, ...]
    """Ascending in latency."""
    marks: Mapping[str, tuple[float, float]]
    """This plan and each tier alone -> latency and the other cost."""
    unproved: str
    """Why there may be more or better points; empty: there are none."""


def trade_offs(
    plan: Plan, profile: Profile, topology: Topology, codecs: Sequence[str], progress: Callable[[], object] = lambda: None
) -> tuple[TradeOff, ...]:  # fmt: skip
    """A front for each cost that the topology declares figures of."""
    costs = [cost for cost, known in (("energy", _has_energy(topology)), ("money", _has_money(topology))) if known]
    return tuple(found for cost in costs if (found := _front(cost, plan, profile, topology, codecs, progress)) is not None)


def _has_energy(topology: Topology) -> bool:
    return any(tier.watts for tier in topology.tiers) or any(link.joules_per_byte for link in topology.links)


def _has_money(topology: Topology) -> bool:
    return any(tier.price_per_s for tier in topology.tiers) or any(link.price_per_byte for link in topology.links)


def _front(
    cost: str, plan: Plan, profile: Profile, topology: Topology, codecs: Sequence[str], progress: Callable[[], object]
) -> TradeOff | None:  # fmt: skip
    points: list[Point] = []
    unproved: dict[str, None] = {}
    for problem in _problems(plan, profile, topology, codecs):
        try:
            front = pareto_front(problem, ("latency", cost), most_solves=_MOST_SOLVES)
        except p.Infeasible:
            continue
        except p.PartitionerError as error:
            unproved[str(error)] = None
            continue
        points += [
            Point(latency_s, other, _shape(found), codecs_used(found))
            for (latency_s, other), found in zip(front.values, front.points, strict=True)
        ]
        if front.unproved:
            unproved[front.unproved] = None
        progress()
    marks = {name: (found.latency_s, found.energy_j if cost == "energy" else found.money) for name, found in _priced(plan)}
    return TradeOff(cost, _undominated(points), marks, "; ".join(unproved)) if points else None


def _problems(plan: Plan, profile: Profile, topology: Topology, codecs: Sequence[str]) -> list[p.Problem]:
    try:
        return list(problems(profile, topology, codecs, within=kept_limits(plan), keep_on_device=plan.kept_layers).values())
    except PlanError:  # a limit that plans are no longer made under
        return []


def _priced(plan: Plan) -> list[tuple[str, Cost]]:
    named = [("this plan", plan.cost), *((each.name, each.cost) for each in plan.baselines if each.name.endswith(" only"))]
    return [(name, cost) for name, cost in named if cost is not None]


def _undominated(points: Sequence[Point]) -> tuple[Point, ...]:
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.latency_s, point.other)):
        if not kept or point.other < kept[-1].other * (1 - 1e-6):
            kept.append(point)
    return tuple(kept)


def _shape(found: p.Solution) -> str:
    """Tiers and how many operators each runs; what stands for the model's inputs is none."""
    where = [tier for op, tier in found.placement.items() if not op.startswith("<")]
    return " → ".join(f"{tier} {where.count(tier)}" for tier in dict.fromkeys(found.cost.tier_load_s) if tier in where)
