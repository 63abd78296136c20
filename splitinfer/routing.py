"""Which tensors each stage takes from a packet, encodes for the next stage, passes on as they are, and returns.

A tensor is raw while it stays on the tier of its producer. The last stage there encodes it once; from then on it is
forwarded as it is, and decoded once on each tier that uses it. The caller is the source: it stands on the first tier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from splitinfer.graph import Graph
from splitinfer.plans import INPUT, Plan

SOURCE = -1
"""The position of the caller in front of stage 0."""


@dataclass(frozen=True)
class Route:
    """What one stage does with tensors; plain data that travels to its actor."""

    decodes: tuple[str, ...]
    """Taken from the packet for this stage's own layers."""
    sends: Mapping[str, str]
    """Encoded here for the next stage: tensor -> codec."""
    forwards: tuple[str, ...]
    """Passed on to the next stage as they came."""
    returns: tuple[str, ...]
    """Results that go back to the caller."""


def routes(graph: Graph, plan: Plan) -> tuple[Route, list[Route]]:
    """The caller's route (only `sends` matters) and one for each stage."""
    stage_of = {layer: index for index, stage in enumerate(plan.stages) for layer in stage.layers} | {INPUT: SOURCE}
    tier = [plan.tiers.index(stage.tier) for stage in plan.stages]
    sends: list[dict[str, str]] = [{} for _ in range(len(plan.stages) + 1)]
    forwards: list[list[str]] = [[] for _ in range(len(plan.stages) + 1)]
    decodes: list[list[str]] = [[] for _ in plan.stages]
    for tensor in graph.tensors.values():
        born = stage_of[tensor.producer]
        home = tier[born] if born != SOURCE else 0
        users = {stage_of[consumer] for consumer in tensor.consumers} - {born}
        arriving = ""
        for stage in range(born, max(users, default=born)):
            # The boundary between `stage` and the next one.
            leaving = "raw" if tier[stage + 1] == home else plan.codec_of(tensor.name)
            if stage == born or leaving != arriving:
                sends[stage + 1][tensor.name] = leaving
                if stage != born and tensor.name not in decodes[stage]:
                    decodes[stage].append(tensor.name)
            else:
                forwards[stage + 1].append(tensor.name)
            arriving = leaving
        for user in users:
            if tensor.name not in decodes[user]:
                decodes[user].append(tensor.name)
    returned = [
        tuple(t.name for t in graph.tensors.values() if t.returned and stage_of[t.producer] == index)
        for index in range(len(plan.stages))
    ]
    made = [
        Route(tuple(decodes[index]), sends[index + 1], tuple(forwards[index + 1]), returned[index])
        for index in range(len(plan.stages))
    ]
    return Route((), sends[0], (), ()), made
