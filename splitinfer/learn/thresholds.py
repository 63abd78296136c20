"""Thresholds of early exits, chosen together with the split: the plan of least expected cost within an accuracy budget."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tabulate import tabulate
from torch import Tensor

from cluster.topology import Topology
from partitioners import Objective
from splitinfer.errors import PlanError, UsageError
from splitinfer.graph import Graph
from splitinfer.learn.exits import ExitHead, apply_exits, in_order
from splitinfer.learn.halves import Samples
from splitinfer.pipeline import whole
from splitinfer.planner import plan
from splitinfer.plans import Plan
from splitinfer.profiles import Profile
from splitinfer.sizes import sizes_at

_MOST_POLICIES = 100_000  # a few seconds of counting; three heads of 32 candidates are 36,000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Recorded:
    """What some heads and the whole model said to each of n requests. Made by :func:`record_exits`."""

    tensors: tuple[str, ...]
    """Of the heads, in the order in which a request meets them."""
    confidence: Floats
    """(heads, n): the least over the request's rows, as at run time."""
    wrong: Floats
    """(heads + 1, n): share of a request's rows that are lost if the head, or at last the whole model, answers.

    Lost: another top class than the whole model's, or than the label, where there are labels.
    """
    labelled: bool

    @property
    def requests(self) -> int:
        """n."""
        return int(self.wrong.shape[1])

    def ends(self, thresholds: Sequence[float | None]) -> npt.NDArray[np.intp]:
        """(n,) the head at which each request ends, or the number of heads for the whole model; None: not asked."""
        ends = np.full(self.requests, len(self.tensors))
        for place, threshold in reversed(list(enumerate(thresholds))):
            if threshold is not None:
                ends[self.confidence[place] >= threshold] = place
        return ends

    def drop(self, thresholds: Sequence[float | None]) -> float:
        """Share of the answers that change, or the accuracy lost, which may be negative."""
        ends = self.ends(thresholds)
        return float((self.wrong[ends, np.arange(self.requests)] - self.wrong[-1]).mean())

    def reach(self, thresholds: Sequence[float | None]) -> tuple[float, ...]:
        """Share of the requests that go on behind each head."""
        ends = self.ends(thresholds)
        return tuple(float((ends > place).mean()) for place in range(len(self.tensors)))

    def __str__(self) -> str:
        names = [*(f"exit at '{name}'" for name in self.tensors), "whole model"]
        sure = [*(f"{mean:.3f}" for mean in self.confidence.mean(1)), ""]
        rows = [[name, f"{1 - wrong:.2%}", mean] for name, wrong, mean in zip(names, self.wrong.mean(1), sure, strict=True)]
        right = "accuracy" if self.labelled else "agreement with the whole model"
        return tabulate(rows, [f"on {self.requests} samples", right, "mean confidence"], disable_numparse=True)


@dataclass(frozen=True)
class Choice:
    """Thresholds and the plan made for them."""

    graph: Graph
    """With the heads that are used, and no others."""
    plan: Plan
    """Its `exits` hold the thresholds; its cost is an expectation over requests."""
    drop: float
    """As `Recorded.drop`."""
    shares: Mapping[str, float]
    """Share of the requests that end at each head, by layer; those of the whole model under ""."""
    plans: int
    """How many plans were made and compared."""


def record_exits(graph: Graph, heads: Iterable[ExitHead], samples: Iterable[Any], labels: Sequence[int] | Tensor | None = None) -> Recorded:
    """Ask all heads and the whole model about each sample, as a request of its own; `graph` without the heads.

    Take samples that the heads were not trained on. Raises CutError where a head does not fit, InputError for a sample.
    """
    ordered = in_order(graph, heads)
    if not ordered:
        raise UsageError("there is no exit to record")
    applied = apply_exits(graph, ordered)
    exits = [head.planned(applied, 1.0) for head in ordered]
    given, stage = Samples(graph, samples, labels), whole(applied)
    sure, wrong = [], []
    for index in range(len(given)):
        (batch,) = given.batches([index])
        outputs = stage(batch.tensors, sizes_at(applied, stage.sizes, batch.dimensions))
        said = [outputs[exit_.answer].argmax(-1) for exit_ in exits] + [outputs[ordered[0].output].argmax(-1)]
        truth = said[-1] if batch.labels is None else batch.labels
        sure.append([float(outputs[exit_.confidence].min()) for exit_ in exits])
        wrong.append([float((rows != truth).float().mean()) for rows in said])
    return Recorded(
        tuple(head.tensor for head in ordered), np.array(sure, dtype=float).T, np.array(wrong, dtype=float).T, labels is not None
    )


def choose_thresholds(
    graph: Graph,
    heads: Iterable[ExitHead],
    recorded: Recorded,
    profile: Profile,
    topology: Topology,
    *,
    max_drop: float = 0.005,
    candidates: int = 16,
    **wishes: Any,
) -> Choice:
    """The heads, thresholds, cut, tiers and codecs of least expected cost whose recorded drop is within `max_drop`.

    `graph` is the one that the heads were trained for, `profile` that of ``apply_exits(graph, heads)``. `max_drop`: share of
    answers that may differ from the whole model's, or accuracy that may be lost where the record has labels. Each head
    may be left out or take one of `candidates` thresholds, evenly spaced among the recorded confidences; `wishes` are
    those of :func:`splitinfer.plan` (objective, codecs, within, ...).

    Exact over this grid: costs never fall as more requests go on, so a choice that lets at least as many go on at every
    head as another one is not planned for. On other samples the drop is as uncertain as a share of n samples is.
    Raises PlanError for a profile of another graph, or where no plan keeps the limits.
    """
    ordered = in_order(graph, heads)
    if tuple(head.tensor for head in ordered) != recorded.tensors:
        raise UsageError(f"recorded are exits at {list(recorded.tensors)}; asked for are {[head.tensor for head in ordered]}")
    if (candidates + 1) ** len(ordered) > _MOST_POLICIES:
        raise UsageError(f"{candidates} candidates for each of {len(ordered)} exits are more than {_MOST_POLICIES:,} choices; take fewer")
    if profile.fingerprint != apply_exits(graph, ordered).fingerprint:
        raise PlanError("the profile is of another graph; profile the one that apply_exits gives for all these heads")
    goal = Objective.of(wishes.get("objective", "latency"))
    found, plans, failure = None, 0, PlanError("no plan fits")
    for used in itertools.product((False, True), repeat=len(ordered)):
        chosen = [head for head, one in zip(ordered, used, strict=True) if one]
        applied = apply_exits(graph, chosen)
        asked = dict(wishes)
        if wishes.get("calibration"):  # of the same tensors
            asked["calibration"] = replace(wishes["calibration"], fingerprint=applied.fingerprint)
        part = _part(profile, applied)
        for thresholds in _worth_planning(recorded, used, max_drop, candidates):
            reach = recorded.reach(thresholds)
            exits = [
                head.planned(applied, threshold, share)
                for head, threshold, share in zip(ordered, thresholds, reach, strict=True) if threshold is not None
            ]  # fmt: skip
            try:
                made = plan(part, topology, exits=exits, **asked)
            except PlanError as error:
                failure = error
                continue
            plans += 1
            if found is None or goal.value(made.cost) < goal.value(found[1].cost):
                found = applied, made, thresholds
    if found is None:
        raise failure
    graph, made, thresholds = found
    ends = recorded.ends(thresholds)
    shares = {head.layer: float((ends == place).mean()) for place, head in enumerate(ordered) if thresholds[place] is not None}
    return Choice(graph, made, recorded.drop(thresholds), shares | {"": float((ends == len(ordered)).mean())}, plans)


def _worth_planning(recorded: Recorded, used: Sequence[bool], max_drop: float, candidates: int) -> Iterator[tuple[float | None, ...]]:
    """Choices for the used heads within the budget, none of which lets as many requests go on everywhere as another."""
    grid = [_spaced(row, candidates) if one else [None] for row, one in zip(recorded.confidence, used, strict=True)]
    rows = [(recorded.reach(choice), recorded.drop(choice), choice) for choice in itertools.product(*grid)]
    kept: list[tuple[float, ...]] = []
    for reach, _, choice in sorted((row for row in rows if row[1] <= max_drop), key=lambda row: row[:2]):
        if not any(all(other <= own for other, own in zip(one, reach, strict=True)) for one in kept):
            kept.append(reach)
            yield choice


def _spaced(confidence: Floats, candidates: int) -> list[float | None]:
    """Thresholds evenly spaced in rank, the least confidence among them: there every request ends."""
    values = np.unique(confidence)
    places = np.unique(np.linspace(0, len(values) - 1, min(candidates, len(values))).round().astype(int))
    return [float(values[place]) for place in places]


def _part(profile: Profile, graph: Graph) -> Profile:
    """The profile without the heads that a graph does not have."""

    def kept(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
        return {name: row[name] for name in names if name in row}

    return replace(
        profile, fingerprint=graph.fingerprint,
        layers=tuple(layer for layer in profile.layers if layer.name in graph.layers),
        tensors=tuple(
            replace(tensor, consumers=graph.tensors[tensor.name].consumers) for tensor in profile.tensors if tensor.name in graph.tensors
        ),
        together=tuple((tuple(sorted(group.layers)), group.reason) for group in graph.together),
        measurements=tuple(
            replace(
                m, seconds=kept(m.seconds, graph.layers), spread_s=kept(m.spread_s, graph.layers),
                codec_s=kept(m.codec_s, graph.tensors),
            )
            for m in profile.measurements
        ),
    )  # fmt: skip


