"""The Plan: which layers run on which tier, what crosses between them and how, and what that should cost.

A plan is plain data. The in-process pipeline, the simulator and the Ray runtime all execute the same plan, so that
prediction and measurement can be laid side by side. Its file is JSON (docs/plan-format.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from splitinfer.errors import PlanError

if TYPE_CHECKING:
    from splitinfer.graph import Graph

VERSION = 1
INPUT = "<input>"
"""The producer of the model's inputs, where a layer's name would stand."""


@dataclass(frozen=True)
class PlannedStage:
    """Layers that run together on one tier."""

    name: str
    tier: str
    layers: tuple[str, ...]
    seconds: float = 0.0
    """Predicted compute time of one request, waking up included."""
    weight_nbytes: int = 0


@dataclass(frozen=True)
class Crossing:
    """A tensor that leaves its tier."""

    tensor: str
    producer: str
    """Layer name, or ``<input>``."""
    codec: str
    links: tuple[int, ...]
    """The links that it crosses, counted from the device."""
    raw_nbytes: int
    nbytes: float
    """Encoded bytes, as measured by the profile."""


@dataclass(frozen=True)
class Cost:
    """Predicted seconds of one request, by kind of work."""

    latency_s: float
    compute_s: float = 0.0
    encode_s: float = 0.0
    wire_s: float = 0.0
    """Bytes over bandwidth, and one latency for each link used."""
    decode_s: float = 0.0
    return_s: float = 0.0
    """The way back of the results."""
    framework_s: float = 0.0
    """Calls between processes, as the profile measured them; 0 where it did not."""
    up_nbytes: float = 0.0
    """Bytes over all links towards the cloud."""
    return_nbytes: float = 0.0


@dataclass(frozen=True)
class Candidate:
    """A plan that was weighed: an honest baseline."""

    name: str
    cost: Cost | None
    """None where it is not possible."""
    why_not: str = ""


@dataclass(frozen=True)
class Plan:
    """Where each layer runs, what crosses and how, and the predicted cost."""

    model: str
    fingerprint: str
    """Of the graph that it was made for."""
    tiers: tuple[str, ...]
    """The line of tiers, the data's birthplace first."""
    stages: tuple[PlannedStage, ...]
    crossings: tuple[Crossing, ...] = ()
    objective: str = "latency"
    cost: Cost | None = None
    """None for a plan made by hand."""
    baselines: tuple[Candidate, ...] = ()
    certificate: Mapping[str, Any] = field(default_factory=dict)
    """Strategy, status ("optimal", "within", "feasible"), bound in seconds and relative gap."""
    times_from: Mapping[str, str] = field(default_factory=dict)
    """Tier -> where its times come from."""
    stateful: bool = False
    """Whether a call changes a buffer: requests then run one at a time and cannot be repeated."""
    topology: Mapping[str, Any] | None = None
    """The tiers and links that it was made for, as ``Topology.to_dict`` gives them; None for a plan made by hand."""

    @staticmethod
    def by_hand(
        graph: Graph, stages: Sequence[Sequence[str]], tiers: Sequence[str] | None = None, codecs: Mapping[str, str] | None = None
    ) -> Plan:
        """A plan from lists of layers. `tiers` names each stage's tier, `codecs` a codec by tensor (default raw).

        Raises CutError where the stages are not possible.
        """
        graph.check_stages(stages)
        names = list(tiers) if tiers is not None else [f"tier{index}" for index in range(len(stages))]
        if len(names) != len(stages):
            raise PlanError(f"{len(stages)} stages and {len(names)} tiers; each stage needs one")
        line = tuple(dict.fromkeys(names))
        planned = tuple(
            PlannedStage(f"stage{index}", tier, tuple(name for name in graph.layers if name in set(layers)))
            for index, (tier, layers) in enumerate(zip(names, stages, strict=True))
        )
        home = {INPUT: 0} | {layer: line.index(stage.tier) for stage in planned for layer in stage.layers}
        crossings = []
        for spec in graph.tensors.values():
            furthest = max((home[consumer] for consumer in spec.consumers), default=0)
            if furthest > home[spec.producer]:
                links = tuple(range(home[spec.producer], furthest))
                codec = (codecs or {}).get(spec.name, "raw")
                crossings.append(Crossing(spec.name, spec.producer, codec, links, spec.nbytes, spec.nbytes))
        return Plan(graph.name, graph.fingerprint, line, planned, tuple(crossings), objective="by hand", stateful=graph.stateful)

    def codec_of(self, tensor: str) -> str:
        """The codec in which a tensor leaves its tier."""
        return next((crossing.codec for crossing in self.crossings if crossing.tensor == tensor), "raw")

    def check(self, graph: Graph) -> None:
        """Raise PlanError or CutError unless the plan fits the graph."""
        if self.fingerprint != graph.fingerprint:
            raise PlanError(
                f"the plan was made for {self.model} {self.fingerprint}; this model is {graph.name} {graph.fingerprint}. Plan again."
            )
        graph.check_stages([stage.layers for stage in self.stages])

    def to_json(self) -> str:
        """The plan's file."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1)

    def save(self, path: str | Path) -> None:
        """Write the plan's file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan's file. Raises PlanError, which names the field, for one that is malformed."""
        try:
            return Plan.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"cannot read the plan {path}: {error.strerror}") from error

    @staticmethod
    def from_json(text: str) -> Plan:
        """A plan from its file's text. Raises PlanError, which names the field, for one that is malformed."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise PlanError(f"a plan is JSON: {error}") from error
        if not isinstance(data, dict) or data.pop("version", None) != VERSION:
            raise PlanError(f"not a plan of version {VERSION}; make it again with 'splitinfer plan'")
        try:
            data["tiers"] = tuple(data["tiers"])
            data["stages"] = tuple(_build(PlannedStage, "stages", row, layers=tuple) for row in data["stages"])
            data["crossings"] = tuple(_build(Crossing, "crossings", row, links=tuple) for row in data["crossings"])
            data["cost"] = data["cost"] and _build(Cost, "cost", data["cost"])
            data["baselines"] = tuple(
                _build(Candidate, "baselines", row | {"cost": row["cost"] and _build(Cost, "baselines.cost", row["cost"])})
                for row in data["baselines"]
            )
            plan: Plan = _build(Plan, "plan", data)
        except (KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"malformed plan: {error}") from error
        unknown = [stage.tier for stage in plan.stages if stage.tier not in plan.tiers]
        if unknown:
            raise PlanError(f"malformed plan: a stage runs on '{unknown[0]}', which is not among its tiers {list(plan.tiers)}")
        return plan

    def __str__(self) -> str:
        return "\n".join([self._headline(), *self._stage_table(), *self._crossing_table(), *self._cost_table()])

    def _headline(self) -> str:
        where = " -> ".join(f"{stage.tier} ({len(stage.layers)} layers)" for stage in self.stages)
        verdict = f", {self.certificate['status']} by {self.certificate['strategy']}" if self.certificate else ""
        return f"{self.model}: {where}; minimises {self.objective}{verdict}"

    def _stage_table(self) -> list[str]:
        rows = [
            [s.name, s.tier, s.layers[0], s.layers[-1], _ms(s.seconds), f"{s.weight_nbytes / 1e6:.2f}", self.times_from.get(s.tier, "-")]
            for s in self.stages
        ]
        return ["", tabulate(rows, ["stage", "tier", "first layer", "last layer", "compute ms", "weights MB", "times from"])]

    def _crossing_table(self) -> list[str]:
        rows = [
            [" -> ".join(self.tiers[c.links[0] : c.links[-1] + 2]), c.tensor, c.producer, f"{c.raw_nbytes:,}", c.codec, f"{c.nbytes:,.0f}"]
            for c in self.crossings
        ]
        return ["", tabulate(rows, ["link", "tensor", "of layer", "raw bytes", "codec", "sent bytes"])] if rows else []

    def _cost_table(self) -> list[str]:
        if self.cost is None:
            return []
        kinds = ("compute_s", "encode_s", "wire_s", "decode_s", "return_s", "framework_s")
        head = ["plan", "latency ms", *(kind.removesuffix("_s") for kind in kinds), "bytes up", "against the plan"]
        rows = [["this plan", *_cost_row(self.cost, kinds), ""]]
        for rival in self.baselines:
            if rival.cost is None:
                rows.append([rival.name, "-", *[""] * (len(kinds) + 1), rival.why_not])
            else:
                worse = rival.cost.latency_s / self.cost.latency_s if self.cost.latency_s else 1.0
                verdict = "the same" if worse < 1.0005 else f"{worse:.2f} times slower"
                rows.append([rival.name, *_cost_row(rival.cost, kinds), verdict])
        table = tabulate(rows, head, disable_numparse=True, colalign=("left", *["right"] * (len(kinds) + 2), "left"))
        return ["", table, "", self._verdict()]

    def _verdict(self) -> str:
        """Does splitting help here, and by how much."""
        assert self.cost is not None
        whole = [rival for rival in self.baselines if rival.cost is not None and rival.name.endswith(" only")]
        if not whole:
            return ""
        best = min(whole, key=lambda rival: rival.cost.latency_s if rival.cost else float("inf"))
        assert best.cost is not None
        if len({stage.tier for stage in self.stages}) == 1:
            others = [rival.cost.latency_s for rival in self.baselines if rival.cost and not rival.name.endswith(" only")]
            margin = f"; the split after the first layer is {min(others) / self.cost.latency_s:.2f} times slower" if others else ""
            return f"Splitting does not help here: {self.stages[0].tier} only is best{margin}."
        return f"Splitting helps: {best.cost.latency_s / self.cost.latency_s:.2f} times faster than {best.name}, the best single tier."


def _cost_row(cost: Cost, kinds: Sequence[str]) -> list[str]:
    return [_ms(cost.latency_s), *(_ms(getattr(cost, kind)) for kind in kinds), f"{cost.up_nbytes:,.0f}"]


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1e3, 2) + 0.0:.2f}"  # + 0.0: no negative zero


def _build(kind: type[Any], path: str, row: Mapping[str, Any], **convert: Any) -> Any:
    """A dataclass from a JSON object; unknown keys are refused by name."""
    known = {spec.name for spec in fields(kind)}
    unknown = sorted(set(row) - known)
    if unknown:
        raise PlanError(f"malformed plan: '{path}' has an unknown key '{unknown[0]}'")
    return kind(**{key: convert[key](value) if key in convert else value for key, value in row.items()})
