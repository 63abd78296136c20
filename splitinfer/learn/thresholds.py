"""Thresholds of early exits, chosen together with the split: the plan of least expected cost within an accuracy budget."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tabulate import tabulate
from torch import Tensor

from cluster.topology import Topology
from partitioners import Objective
from splitinfer.errors import PlanError, UsageError
from splitinfer.graph import Graph
from splitinfer.learn import files
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
    doubt: float = 0.0
    """Lost besides by each request that a head answers: what other samples showed that these did not."""

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
        return float((self.wrong[ends, np.arange(self.requests)] - self.wrong[-1]).mean()) + self.doubt * self._early(thresholds)

    def _early(self, thresholds: Sequence[float | None]) -> float:
        """Share of the requests that a head answers; where one is asked, not nothing: on other samples some may be."""
        least = 1 / self.requests if any(threshold is not None for threshold in thresholds) else 0.0
        return max(least, float((self.ends(thresholds) < len(self.tensors)).mean()))

    def doubted(self, thresholds: Sequence[float | None], drop: float) -> Recorded:
        """The same with as much more doubt as makes the drop of these thresholds at least `drop`."""
        return replace(self, doubt=self.doubt + max(0.0, drop - self.drop(thresholds)) / self._early(thresholds))

    def reach(self, thresholds: Sequence[float | None]) -> tuple[float, ...]:
        """Share of the requests that go on behind each head."""
        ends = self.ends(thresholds)
        return tuple(float((ends > place).mean()) for place in range(len(self.tensors)))

    @property
    def metric(self) -> str:
        """The name under which a calibration measures the same: accuracy or top1."""
        return "accuracy" if self.labelled else "top1"

    def pack(self) -> bytes:
        """As part of a learned file (docs/learned-compression.md)."""
        arrays = {"confidence": torch.from_numpy(self.confidence), "wrong": torch.from_numpy(self.wrong)}
        return files.pack("record", {"tensors": list(self.tensors), "labelled": self.labelled}, arrays)

    @staticmethod
    def unpack(data: bytes, path: str | Path) -> Recorded:
        """A record from its bytes. Raises PlanError, which says what is wrong."""
        held = files.unpack(data, "record", {"tensors": list, "labelled": bool}, ("confidence", "wrong"), path)
        tensors, confidence, wrong = tuple(held["tensors"]), held["confidence"].numpy(), held["wrong"].numpy()
        heads, requests = len(tensors), confidence.shape[-1] if confidence.ndim else 0
        shapes, dtypes = (confidence.shape, wrong.shape), {confidence.dtype, wrong.dtype}
        fit = requests > 0 and shapes == ((heads, requests), (heads + 1, requests)) and dtypes == {np.dtype(np.float64)}
        if not fit or not all(isinstance(name, str) for name in tensors):
            raise PlanError(f"malformed record {path}: {heads} heads, arrays of shapes {shapes}")
        if not (np.isfinite(confidence).all() and ((wrong >= 0) & (wrong <= 1)).all()):
            raise PlanError(f"malformed record {path}: a confidence is not finite, or a share is not between 0 and 1")
        return Recorded(tensors, confidence, wrong, held["labelled"])

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
    """With all the heads; those that the plan's stages leave out do not run."""
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
    those of :func:`splitinfer.plan` (objective, codecs, within, ...). With a `calibration` and no `max_accuracy_drop` of
    its own the codecs may lose what the exits leave of `max_drop`.

    Exact over this grid: costs never fall as more requests go on, so a choice that lets at least as many go on at every
    head as another one, and leaves the codecs no more, is not planned for. On other samples the drop is as uncertain as a
    share of n samples is. Raises PlanError for a profile of another graph, or where no plan keeps the limits.
    """
    ordered = in_order(graph, heads)
    if tuple(head.tensor for head in ordered) != recorded.tensors:
        raise UsageError(f"recorded are exits at {list(recorded.tensors)}; asked for are {[head.tensor for head in ordered]}")
    if (candidates + 1) ** len(ordered) > _MOST_POLICIES:
        raise UsageError(f"{candidates} candidates for each of {len(ordered)} exits are more than {_MOST_POLICIES:,} choices; take fewer")
    applied = apply_exits(graph, ordered)
    if profile.fingerprint != applied.fingerprint:
        raise PlanError("the profile is of another graph; profile the one that apply_exits gives for all these heads")
    goal = Objective.of(wishes.get("objective", "latency"))
    shared = wishes.get("calibration") is not None and wishes.get("max_accuracy_drop") is None
    least = 1 / (recorded.requests + 2)  # Laplace's rule of succession: that none of n went on does not mean that none will
    found, plans, failure = None, 0, PlanError("no plan fits")
    for thresholds in _worth_planning(recorded, max_drop, candidates, shared):
        reach = recorded.reach(thresholds)
        exits = [
            head.planned(applied, threshold, max(share, least))
            for head, threshold, share in zip(ordered, thresholds, reach, strict=True) if threshold is not None
        ]  # fmt: skip
        left = {"max_accuracy_drop": max_drop - max(0.0, recorded.drop(thresholds))} if shared else {}
        asked = {**wishes, **left, "exits": exits}
        try:
            value = goal.value(plan(profile, topology, **asked, compare=False).cost)
        except PlanError as error:
            failure = error
            continue
        plans += 1
        if found is None or value < found[0]:
            found = value, thresholds, asked
    if found is None:
        raise failure
    _, thresholds, asked = found
    ends = recorded.ends(thresholds)
    shares = {head.layer: float((ends == place).mean()) for place, head in enumerate(ordered) if thresholds[place] is not None}
    shares[""] = float((ends == len(ordered)).mean())
    return Choice(applied, plan(profile, topology, **asked), recorded.drop(thresholds), shares, plans)


def _worth_planning(recorded: Recorded, max_drop: float, candidates: int, shared: bool) -> Iterator[tuple[float | None, ...]]:
    """Choices within the budget, each head asked or left out; of those that ask the same heads none is beaten by another.

    One beats another where it lets no more requests go on at any head and, if codecs share the budget, loses no more.
    """
    spaced = [_spaced(row, candidates) for row in recorded.confidence]
    for used in itertools.product((False, True), repeat=len(spaced)):
        grid = [row if one else [None] for row, one in zip(spaced, used, strict=True)]
        rows = [(recorded.reach(choice), recorded.drop(choice), choice) for choice in itertools.product(*grid)]
        kept: list[tuple[float, ...]] = []
        for reach, drop, choice in sorted((row for row in rows if row[1] <= max_drop), key=lambda row: row[:2]):
            weighed = (*reach, max(0.0, drop) if shared else 0.0)
            if not any(all(other <= own for other, own in zip(one, weighed, strict=True)) for one in kept):
                kept.append(weighed)
                yield choice


def _spaced(confidence: Floats, candidates: int) -> list[float | None]:
    """Thresholds evenly spaced in rank, the least confidence among them: there every request ends."""
    values = np.unique(confidence)
    places = np.unique(np.linspace(0, len(values) - 1, min(candidates, len(values))).round().astype(int))
    return [float(values[place]) for place in places]
