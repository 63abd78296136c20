"""A plan as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tabulate import tabulate

from splitinfer.errors import PlanError
from splitinfer.plans import Cost, Plan
from splitinfer.tracing import KINDS

if TYPE_CHECKING:
    from partitioners.objective import Objective

_COSTS = {"interval": "interval_s", "critical_path": "critical_path_s", "energy": "energy_j", "money": "money", "error": "error"}
"""What a plan's table shows beside the latency, where it is minimised or limited: name in an objective -> field."""


def as_text(plan: Plan) -> str:
    """Stages, blocks, crossings, exits, and the cost beside the baselines. Raises PlanError for an objective that is none."""
    parts = (_stage_table, _block_table, _crossing_table, _exit_table, _cost_table)
    return "\n".join([_headline(plan), *(line for part in parts for line in part(plan))])


def _headline(plan: Plan) -> str:
    where = " -> ".join(f"{stage.tier} ({len(stage.layers)} layers)" for stage in plan.stages)
    verdict = f", {plan.certificate['status']} by {plan.certificate['strategy']}" if plan.certificate else ""
    return f"{plan.model}: {where}; minimises {plan.objective}{verdict}"


def _stage_table(plan: Plan) -> list[str]:
    rows = [
        [s.name, s.tier, s.layers[0], s.layers[-1], _ms(s.seconds), f"{s.weight_nbytes / 1e6:.2f}", plan.times_from.get(s.tier, "-")]
        for s in plan.stages
    ]
    return ["", tabulate(rows, ["stage", "tier", "first layer", "last layer", "compute ms", "weights MB", "times from"])]


def _block_table(plan: Plan) -> list[str]:
    rows = [
        [
            stage.name, block.axis, block.layers[0], block.layers[-1], len(block.exchange_after) or "-",
            ", ".join(f"{name} {share}" for name, share in zip(block.workers, block.shares, strict=True)),
        ]
        for stage in plan.stages for block in stage.blocks
    ]  # fmt: skip
    return ["", tabulate(rows, ["shared layers of", "by", "first layer", "last layer", "halo exchanges", "units"])] if rows else []


def _crossing_table(plan: Plan) -> list[str]:
    rows = [
        [
            " -> ".join(plan.tiers[c.links[0] : c.links[-1] + 2]),
            c.tensor,
            c.producer,
            f"{c.raw_nbytes:,}",
            f"{c.codec}, in pieces" if c.streamed else c.codec,
            f"{c.nbytes:,.0f}",
        ]
        for c in plan.crossings
    ]
    return ["", tabulate(rows, ["link", "tensor", "of layer", "raw bytes", "codec", "sent bytes"])] if rows else []


def _exit_table(plan: Plan) -> list[str]:
    tier_of = {layer: stage.tier for stage in plan.stages for layer in stage.layers}
    rows = [[each.layer, tier_of.get(each.layer, "-"), f"{each.threshold:.3f}", f"{1 - each.reach:.1%}"] for each in plan.exits]
    return ["", tabulate(rows, ["exit", "tier", "from confidence", "have left by here"], disable_numparse=True)] if rows else []


def goal_of(plan: Plan) -> Objective:
    """What it minimises; latency for a plan made by hand."""
    from partitioners.errors import PartitionerError  # here: they load scipy, and running a plan needs none
    from partitioners.objective import LATENCY, Objective

    if plan.objective in ("by hand", "baseline"):
        return LATENCY
    try:
        return Objective.of(plan.objective)
    except PartitionerError as error:
        raise PlanError(f"malformed plan: {error}") from error


def _cost_table(plan: Plan) -> list[str]:
    if plan.cost is None:
        return []
    costs = [cost for cost in (plan.cost, *(rival.cost for rival in plan.baselines)) if cost is not None]
    rare = {kind for kind in ("exchange_s", "transfer_s") if not any(getattr(cost, kind) for cost in costs)}
    kinds = [f"{kind}_s" for kind in (*KINDS, "framework") if f"{kind}_s" not in rare]
    others = [(name, key) for name, key in _COSTS.items() if name in goal_of(plan).weights or key in plan.limits]
    head = ["plan", "latency ms", *(kind.removesuffix("_s") for kind in kinds), "bytes up"]
    head += [*(_titled(name, key) for name, key in others), "against the plan"]
    rows = [["this plan", *_cost_row(plan.cost, kinds, others), ""]]
    value = goal_of(plan).value(plan.cost)
    for rival in plan.baselines:
        if rival.cost is None:
            rows.append([rival.name, "-", *[""] * (len(kinds) + 1 + len(others)), rival.why_not.splitlines()[0]])
        else:
            ratio = goal_of(plan).value(rival.cost) / value if value else 1.0
            verdict = "the same" if ratio < 1.0005 else f"{ratio:.2f} times {_worse(plan)}"
            rows.append([rival.name, *_cost_row(rival.cost, kinds, others), verdict])
    table = tabulate(rows, head, disable_numparse=True, colalign=("left", *["right"] * (len(head) - 2), "left"))
    limits = ", ".join(f"{name} <= {limit:g}" for name, limit in plan.limits.items())
    notes = ([f"within {limits}"] if limits else []) + ([str(plan.accuracy)] if plan.accuracy else [])
    return ["", table, *notes, "", _verdict(plan)]


def _worse(plan: Plan) -> str:
    return "slower" if set(goal_of(plan).weights) <= {"latency", "interval", "critical_path"} else "the cost"


def _verdict(plan: Plan) -> str:
    """Does splitting help here, and by how much."""
    assert plan.cost is not None
    value = goal_of(plan).value(plan.cost)
    rivals = [(rival.name, goal_of(plan).value(rival.cost)) for rival in plan.baselines if rival.cost is not None]
    whole = [(name, other) for name, other in rivals if name.endswith(" only")]
    shared = any(stage.blocks for stage in plan.stages)
    alone = next((other for name, other in rivals if name == "no vertical split"), None)
    if shared and alone is not None:
        best = f"; the best plan without it is {alone / value:.2f} times {_worse(plan)}" if value else ""
        return f"A vertical split helps{best}."
    if len({stage.tier for stage in plan.stages}) == 1:
        others = [other for name, other in rivals if name.startswith("first layer")]
        margin = f"; the split after the first layer is {min(others) / value:.2f} times {_worse(plan)}" if others and value else ""
        return f"Splitting does not help here: {plan.stages[0].tier} only is best{margin}."
    if not whole:
        return "No single tier can do this alone." if plan.baselines else ""
    name, other = min(whole, key=lambda pair: pair[1])
    better = f"{other / value:.2f} times " if value else ""
    gain = f"{better}faster than" if _worse(plan) == "slower" else f"{plan.objective} is {better}lower than with"
    return f"Splitting helps: {gain} {name}, the best single tier."


def _cost_row(cost: Cost, kinds: Sequence[str], others: Sequence[tuple[str, str]]) -> list[str]:
    more = [(key, getattr(cost, key)) for _, key in others]
    shown = [_ms(value) if key.endswith("_s") else f"{value:.4g}" for key, value in more]
    return [_ms(cost.latency_s), *(_ms(getattr(cost, kind)) for kind in kinds), f"{cost.up_nbytes:,.0f}", *shown]


def _titled(name: str, key: str) -> str:
    return f"{name.replace('_', ' ')} ms" if key.endswith("_s") else {"energy": "energy J"}.get(name, name)


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1e3, 2) + 0.0:.2f}"  # + 0.0: no negative zero
