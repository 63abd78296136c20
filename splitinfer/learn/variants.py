"""The graphs that what was learned gives, each with what is known of it: the best plan over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.topology import Topology
from partitioners import Objective
from splitinfer.calibrations import Calibration
from splitinfer.errors import PlanError, UsageError
from splitinfer.graph import Graph
from splitinfer.learn.exits import ExitHead, in_order
from splitinfer.learn.learned import Learned
from splitinfer.learn.reach import fitted
from splitinfer.learn.thresholds import Recorded, choose_thresholds
from splitinfer.planner import plan
from splitinfer.plans import Accuracy, Plan
from splitinfer.profiles import Profile


@dataclass(frozen=True)
class Variant:
    """A graph that a plan may be for."""

    graph: Graph
    bare: Graph
    """The same without heads."""
    profile: Profile
    calibration: Calibration | None
    heads: tuple[ExitHead, ...] = ()
    recorded: Recorded | None = None
    lost: float = 0.0
    """By the bottlenecks in it, whatever is cut and however it is sent."""

    def plan(self, topology: Topology, budget: float | None, wishes: dict[str, Any]) -> Plan:
        """The best plan of this graph that loses no more than the budget by adding up. Raises PlanError where there is none."""
        left = None if budget is None else budget - self.lost
        if left is not None and left < 0:
            raise PlanError(f"the bottleneck alone loses {self.lost:.2%}; {budget:.2%} are allowed")
        if self.recorded is None:
            limit = left if self.calibration is not None else None
            return plan(self.profile, topology, calibration=self.calibration, max_accuracy_drop=limit, **wishes)
        assert left is not None  # `best_plan` asks for a budget where there are exits
        return choose_thresholds(
            self.bare, self.heads, self.recorded, self.profile, topology, max_drop=left, calibration=self.calibration, **wishes
        ).plan

    def thresholds(self, made: Plan) -> list[float | None]:
        """Those of a plan, one for each head in order; None: not asked."""
        planned = {each.layer: each.threshold for each in made.exits}
        return [planned.get(head.layer) for head in in_order(self.bare, self.heads)]

    def predicted(self, made: Plan) -> float:
        """What a plan loses by adding up bottlenecks, codecs and exits."""
        early = self.recorded.drop(self.thresholds(made)) if self.recorded and made.exits else 0.0
        return self.lost + (made.cost.error if made.cost else 0.0) + max(0.0, early)


def variants_of(graph: Graph, learned: Learned, profile: Profile, calibration: Calibration | None) -> list[Variant]:
    """`profile` and `calibration` are those of ``learned.apply(graph)``. Raises PlanError where they are not."""
    graphs = learned.graphs(graph)
    for what, fingerprint in (("profile", profile.fingerprint), ("calibration", calibration.fingerprint if calibration else None)):
        if fingerprint not in (graphs[-1].fingerprint, None):
            raise PlanError(f"the {what} is not of the graph with all that was learned; make it again with --learned")
    if learned.heads and learned.recorded is None:
        raise PlanError("the learned exits come without a record, so no threshold can be chosen; learn them with 'splitinfer learn exits'")
    chosen = [*graphs[:-2], graphs[-1]] if learned.heads else graphs
    made = [
        Variant(each, each, fitted(profile, each), calibration and replace(calibration, fingerprint=each.fingerprint)) for each in chosen
    ]
    if learned.heads:
        made[-1] = replace(made[-1], bare=graphs[-2], heads=learned.heads, recorded=learned.recorded)
    return made


def best_of(variants: Sequence[Variant], topology: Topology, budget: float | None, wishes: dict[str, Any]) -> tuple[int, Plan]:
    """The place of the variant with the cheapest plan, and the plan. Raises PlanError where no variant has one."""
    goal = Objective.of(wishes.get("objective", "latency"))
    found: list[tuple[float, int, Plan]] = []
    failure: PlanError | None = None
    for place, variant in enumerate(variants):
        try:
            made = variant.plan(topology, budget, wishes)
        except PlanError as error:
            failure = error
            continue
        found.append((goal.value(made.cost), place, made))
    if not found:
        raise failure or PlanError("no plan fits")
    _, place, made = min(found, key=lambda row: row[:2])
    return place, made


def learned_plan(
    graph: Graph, learned: Learned, profile: Profile, topology: Topology, calibration: Calibration | None = None, *,
    max_accuracy_drop: float | None = None, **wishes: Any,
) -> Plan:  # fmt: skip
    """The best plan with or without what was learned, its losses added up, not measured; see ``accurate_plan``.

    `graph` is the model's own, `profile` and `calibration` those of ``learned.apply(graph)``; `wishes` are those of
    :func:`splitinfer.plan`. What the bottlenecks lose is not known without samples and counts as nothing. Run the plan
    with ``learned.apply(graph, plan)``.
    """
    if learned.heads and max_accuracy_drop is None:
        raise UsageError("early exits change answers; say how many may change, with --max-accuracy-drop 1% for example")
    variants = variants_of(graph, learned, profile, calibration)
    place, made = best_of(variants, topology, max_accuracy_drop, wishes)
    if max_accuracy_drop is None:
        return made
    metric = calibration.metric if calibration else learned.recorded.metric if learned.recorded else "top1"
    return replace(made, accuracy=Accuracy(metric, max_accuracy_drop, variants[place].predicted(made)))
