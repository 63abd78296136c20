"""What was learned for a model, in one file: bottlenecks, then exits on top of them, and what the exits were seen to say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from splitinfer.codecs.packet import Packet
from splitinfer.errors import CutError, PacketError, PlanError
from splitinfer.graph import Graph
from splitinfer.learn import files
from splitinfer.learn.bottleneck import Bottleneck
from splitinfer.learn.exits import ExitHead, apply_exits
from splitinfer.learn.thresholds import Recorded
from splitinfer.plans import INPUT, Plan

_PARTS: Mapping[str, Any] = {"bottleneck": Bottleneck, "exit": ExitHead, "record": Recorded}


@dataclass(frozen=True, eq=False)
class Learned:
    """Bottlenecks in the order in which they were trained, each for the graph that the ones before it give; then exits."""

    bottlenecks: tuple[Bottleneck, ...] = ()
    heads: tuple[ExitHead, ...] = ()
    """All for the graph with all the bottlenecks."""
    recorded: Recorded | None = None
    """What the heads and the whole model said to samples that the heads were not trained on."""

    def graphs(self, graph: Graph) -> list[Graph]:
        """The graph itself, with one bottleneck more at a time, and with everything: each is one that a plan may be for.

        Raises CutError where something was learned for another graph or other weights.
        """
        made = [graph]
        for bottleneck in self.bottlenecks:
            made.append(bottleneck.apply(made[-1]))
        if self.heads:
            made.append(apply_exits(made[-1], self.heads))
        return made

    def apply(self, graph: Graph, plan: Plan | None = None) -> Graph:
        """The graph with everything that was learned, or as far as the plan uses it."""
        made = self.graphs(graph)
        return next((each for each in made if plan is not None and each.fingerprint == plan.fingerprint), made[-1])

    def save(self, path: str | Path) -> None:
        """Write the file (docs/learned-compression.md). Raises PlanError."""
        parts: list[Any] = [*self.bottlenecks, *self.heads, *([self.recorded] if self.recorded else [])]
        held = {str(place): torch.frombuffer(bytearray(part.pack()), dtype=torch.uint8) for place, part in enumerate(parts)}
        files.save(files.pack("learned", {}, held), path)

    @staticmethod
    def load(path: str | Path) -> Learned:
        """Read a file of `save`, or of a single bottleneck or exit; runs no code of it. Raises PlanError."""
        data = files.load(path, "learned part")
        rows = [data]
        if _part(data, path) == "learned":
            held = files.unpack(data, "learned", {}, None, path)
            if any(each.dtype != torch.uint8 for each in held.values()):
                raise PlanError(f"malformed learned part {path}: it holds no bytes")
            rows = [each.numpy().tobytes() for each in held.values()]
        found: dict[str, list[Any]] = {name: [] for name in _PARTS}
        for row in rows:
            part = _part(row, path)
            found[part].append(_PARTS[part].unpack(row, path))
        if len(found["record"]) > 1 or (found["record"] and set(found["record"][0].tensors) != {head.tensor for head in found["exit"]}):
            raise PlanError(f"malformed learned part {path}: its record is not of its exits")
        return Learned(tuple(found["bottleneck"]), tuple(found["exit"]), next(iter(found["record"]), None))

    def __str__(self) -> str:
        record = ["", str(self.recorded)] if self.recorded else []
        return "\n".join([*map(str, self.bottlenecks), *map(str, self.heads), *record])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what was learned and how well, without weights."""
        return {
            "bottlenecks": [
                {"tensor": each.tensor, "channels": each.channels, "of": len(each.decode_bias), "bits": each.bits, **_losses(each)}
                for each in self.bottlenecks
            ],
            "exits": [{"tensor": head.tensor, "layer": head.layer, "output": head.output, **_losses(head)} for head in self.heads],
            "recorded": self.recorded and {
                "samples": self.recorded.requests, "metric": self.recorded.metric,
                "wrong": dict(zip((*self.recorded.tensors, ""), self.recorded.wrong.mean(1).tolist(), strict=True)),
            },
        }  # fmt: skip


def tensor_behind(graph: Graph, name: str) -> str:
    """The tensor that a layer gives to the layers behind it; a tensor's own name is taken as it is. Raises CutError."""
    if name in graph.tensors:
        return name
    found = [spec.name for spec in graph.tensors.values() if spec.producer == name and spec.consumers and name != INPUT]
    if len(found) == 1:
        return found[0]
    if name in graph.layers:
        raise CutError(f"layer '{name}' gives {len(found)} tensors to others, {found}; name the one that is meant")
    near = [layer for layer in graph.layers if name.rpartition(".")[2] in layer][:3]
    raise CutError(f"{graph.name} has no layer or tensor '{name}'; layers like it: {near or list(graph.layers)[:3]}")


def _losses(part: Bottleneck | ExitHead) -> dict[str, float]:
    return {"first_loss": part.first_loss, "last_loss": part.last_loss}


def _part(data: bytes, path: str | Path) -> str:
    try:
        part = Packet.unpack(data, files.LIMITS).meta.get("part")
    except PacketError as error:
        raise PlanError(f"{path} is no learned part: {error}") from error
    if part not in (*_PARTS, "learned"):
        raise PlanError(f"{path} is no learned part: it holds {str(part)[:80]!r}")
    return str(part)
