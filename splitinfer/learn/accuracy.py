"""Plan within an accuracy budget, measure what the whole plan really loses, and repair it where that is too much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.topology import Topology
from splitinfer import codecs as registry
from splitinfer.calibrations import Calibration, Measured
from splitinfer.errors import UsageError
from splitinfer.graph import Graph
from splitinfer.learn.calibrate import Call, as_call
from splitinfer.learn.learned import Learned
from splitinfer.learn.metrics import METRICS, Metric, Score
from splitinfer.learn.variants import Variant, best_of, variants_of
from splitinfer.pipeline import Pipeline
from splitinfer.planner import Strategy
from splitinfer.plans import Accuracy, Plan
from splitinfer.profiles import Profile

MOST_REPAIRS = 50  # each forbids at least one combination; five were the most seen on trained models


def accurate_plan(
    graph: Graph,
    samples: Iterable[Any],
    profile: Profile,
    topology: Topology,
    calibration: Calibration | None = None,
    *,
    max_accuracy_drop: float,
    labels: Sequence[int] | None = None,
    metric: str | Metric | None = None,
    learned: Learned | None = None,
    objective: str = "latency",
    codecs: Sequence[str] | None = None,
    within: Mapping[str, float] | None = None,
    keep_on_device: int | str = 0,
    strategy: Strategy = "auto",
    vertical: bool = True,
) -> Plan:
    """The best plan whose loss against the unsplit model, measured end to end on `samples`, is within `max_accuracy_drop`.

    With `learned`, `graph` is the model's own and `profile` and `calibration` are those of ``learned.apply(graph)``:
    bottlenecks, exits with their thresholds, cut, tiers and codecs are chosen together, each where it pays; run the plan
    with ``learned.apply(graph, plan)``. The `metric` is the calibration's unless labels or another are given, and
    must be the same as there and as in the record of the exits. `samples` should be others than those. Without a
    calibration every codec named passes for lossless until a plan with it was measured.

    The planner adds up the losses of single tensors and exits. Where the whole loses more than the budget, the codecs'
    losses are raised until their sum is what was measured without exits, and the exits' by what is left, in proportion
    to the requests that they answer; then the plan is made again. That forbids at least this combination, so it ends,
    at the latest with lossless codecs on the model as it was.
    """
    calls = [as_call(sample) for sample in samples]
    learned = learned or Learned()
    if metric is None and labels is None:
        known = calibration.metric if calibration else learned.recorded.metric if learned.recorded else None
        metric = known if known in METRICS else None
    score = Score(metric or "auto", answers(graph, None, calls), labels)
    for what, one in (("calibration", calibration), ("record of the exits", learned.recorded)):
        if one is not None and one.metric != score.name:
            raise UsageError(
                f"the {what} measured '{one.metric}' and the budget would be checked by '{score.name}'; use one for both"
                " (labels make it 'accuracy')"
            )
    names = tuple(codecs) if codecs is not None else _tried(calibration) if calibration else ("raw", "zstd")
    variants = variants_of(graph, learned, profile, calibration or _innocent(profile, names, score.name))
    variants = [_with_loss(variant, graph, score, calls) for variant in variants]
    wishes = {"objective": objective, "within": within, "keep_on_device": keep_on_device, "strategy": strategy, "vertical": vertical}
    for repairs in range(MOST_REPAIRS + 1):
        last = repairs == MOST_REPAIRS
        allowed = [name for name in names if registry.get(name).lossless] or ["raw"] if last else names
        rest = [replace(variants[0], heads=(), recorded=None)] if last else variants
        place, made = best_of(rest, topology, max_accuracy_drop, {**wishes, "codecs": allowed})
        found = _measured(rest[place], made, score, calls)
        if found.lost <= max_accuracy_drop:
            break
        variants[place] = _corrected(variants[place], made, found)
    predicted = rest[place].predicted(made)
    return replace(made, accuracy=Accuracy(score.name, max_accuracy_drop, predicted, found.lost, len(calls), repairs, found.ended))


def answers(graph: Graph, made: Plan | None, calls: Sequence[Call]) -> list[Any]:
    """What the plan's stages answer in this process; None: the unsplit model."""
    pipeline = Pipeline.local(graph, made or Plan.by_hand(graph, [list(graph.layers)]))
    return [pipeline(*args, **kwargs) for args, kwargs in calls]


@dataclass(frozen=True)
class _Found:
    """A plan measured end to end."""

    lost: float
    without_exits: float
    """The same if nobody left early."""
    lossy: tuple[tuple[str, str], ...]
    """Tensors sent with a loss, and their codecs."""
    ended: Mapping[str, float]
    """Share of the samples that ended at each exit."""


def _measured(variant: Variant, made: Plan, score: Score, calls: Sequence[Call]) -> _Found:
    lossy = tuple((c.tensor, c.codec) for c in made.crossings if not registry.get(c.codec).lossless)
    quiet = score.drop(answers(variant.graph, replace(made, exits=()), calls)) if lossy else variant.lost
    if not made.exits:
        return _Found(quiet, quiet, lossy, {})
    pipeline = Pipeline.local(variant.graph, made)
    found = [pipeline.traced(*args, **kwargs) for args, kwargs in calls]
    ended = Counter(trace.exit for _, trace in found)
    shares = {each.layer: ended[each.layer] / len(calls) for each in made.exits}
    return _Found(score.drop([answer for answer, _ in found]), quiet, lossy, shares)


def _corrected(variant: Variant, made: Plan, found: _Found) -> Variant:
    """What is known of the variant, so that this plan is above the budget by adding up too."""
    assert made.cost is not None
    calibration = variant.calibration
    assert calibration is not None  # `accurate_plan` gives each one
    if made.exits and variant.recorded is not None:
        thresholds = variant.thresholds(made)
        variant = replace(variant, recorded=variant.recorded.doubted(thresholds, found.lost - found.without_exits))
    by_codecs = found.without_exits - variant.lost
    if not made.exits or by_codecs > made.cost.error:
        above = max(by_codecs, made.cost.error * (1 + 1e-6))
        variant = replace(variant, calibration=calibration.raised(found.lossy, above))
    return variant


def _with_loss(variant: Variant, graph: Graph, score: Score, calls: Sequence[Call]) -> Variant:
    """With what its bottlenecks alone lose."""
    same = len(variant.bare.layers) == len(graph.layers)
    return variant if same else replace(variant, lost=score.drop(answers(variant.bare, None, calls)))


def _tried(calibration: Calibration) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for row in calibration.rows.values() for name in row))


def _innocent(profile: Profile, names: Sequence[str], metric: str) -> Calibration:
    """No codec loses anything, as far as is known."""
    times = profile.measurements[0].codec_s
    rows = {
        tensor.name: {
            name: Measured(tensor.sent_nbytes[name], *times[tensor.name].get(name, (0.0, 0.0)), 0.0, 0.0)
            for name in names if name in tensor.sent_nbytes
        }
        for tensor in profile.tensors
    }  # fmt: skip
    lossless = tuple(name for name in names if registry.get(name).lossless)
    return Calibration(profile.model, profile.fingerprint, metric, 0, lossless, rows)
