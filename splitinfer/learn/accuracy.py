"""Plan within an accuracy budget, measure what the whole plan really loses, and repair it where that is too much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.topology import Topology
from splitinfer.calibrations import Calibration
from splitinfer.errors import UsageError
from splitinfer.graph import Graph
from splitinfer.learn.calibrate import as_call
from splitinfer.learn.metrics import METRICS, Metric, Score
from splitinfer.pipeline import Pipeline
from splitinfer.planner import Strategy, plan
from splitinfer.plans import Accuracy, Plan
from splitinfer.profiles import Profile

MOST_REPAIRS = 50  # each forbids at least one combination; five were the most seen on trained models


def accurate_plan(
    graph: Graph,
    samples: Iterable[Any],
    profile: Profile,
    topology: Topology,
    calibration: Calibration,
    *,
    max_accuracy_drop: float,
    labels: Sequence[int] | None = None,
    metric: str | Metric | None = None,
    objective: str = "latency",
    codecs: Sequence[str] | None = None,
    within: Mapping[str, float] | None = None,
    keep_on_device: int | str = 0,
    strategy: Strategy = "auto",
) -> Plan:
    """The best plan whose loss, measured end to end on `samples`, is within `max_accuracy_drop`.

    The `metric` is the calibration's unless labels or another are given, and must be the same as there. `samples` should be
    others than those of the calibration. The planner adds up the losses of single tensors; where the
    combination loses more than the budget, those losses are raised until their sum is what was measured, and the plan
    is made again. That forbids at least this combination, so it ends, at the latest with lossless codecs.
    """
    calls = [as_call(sample) for sample in samples]
    names = tuple(codecs) if codecs is not None else tuple(dict.fromkeys(name for row in calibration.rows.values() for name in row))
    if metric is None and labels is None and calibration.metric in METRICS:
        metric = calibration.metric
    score = Score(metric or "auto", answers(graph, None, calls), labels)
    if score.name != calibration.metric:
        raise UsageError(
            f"the calibration measured '{calibration.metric}' and the budget would be checked by '{score.name}'; use one for both"
            " (labels make it 'accuracy')"
        )
    for repairs in range(MOST_REPAIRS + 1):
        allowed = names if repairs < MOST_REPAIRS else tuple(name for name in names if name in calibration.lossless) or ("raw",)
        made = plan(
            profile, topology, objective, allowed, within=within, keep_on_device=keep_on_device, strategy=strategy,
            calibration=calibration, max_accuracy_drop=max_accuracy_drop,
        )  # fmt: skip
        lossless = ("raw", *calibration.lossless)
        lossy = [(crossing.tensor, crossing.codec) for crossing in made.crossings if crossing.codec not in lossless]
        measured = score.drop(answers(graph, made, calls)) if lossy else 0.0
        predicted = made.cost.error if made.cost else 0.0
        if measured <= max_accuracy_drop:
            break
        calibration = calibration.raised(lossy, max(measured, predicted * (1 + 1e-6)))
    return replace(made, accuracy=Accuracy(score.name, max_accuracy_drop, predicted, measured, len(calls), repairs))


def answers(graph: Graph, made: Plan | None, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
    """What the plan's stages answer in this process; None: the unsplit model."""
    pipeline = Pipeline.local(graph, made or Plan.by_hand(graph, [list(graph.layers)]))
    return [pipeline(*args, **kwargs) for args, kwargs in calls]
