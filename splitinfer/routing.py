"""Which tensors each stage takes from a packet, encodes for the next stage, passes on as they are, and returns; its exits.

A tensor is raw while it stays on the tier of its producer. The last stage there encodes it once; from then on it is
forwarded as it is, and decoded once on each tier that uses it. The caller is the source: it stands on the first tier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx

from splitinfer.errors import PlanError
from splitinfer.graph import Graph
from splitinfer.plans import INPUT, Plan, PlannedExit

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
    exits: tuple[PlannedExit, ...] = ()
    """Where the request may end before the stage does, in order."""
    streams: tuple[str, ...] = ()
    """Those of `sends` that go in pieces ahead of the packet."""
    streamed: tuple[str, ...] = ()
    """Those of `decodes` that come in pieces ahead of the packet."""
    passes: tuple[str, ...] = ()
    """Passed on to the next stage piece by piece as they come."""


def routes(graph: Graph, plan: Plan) -> tuple[Route, list[Route]]:
    """The caller's route (only `sends` matters) and one for each stage. Raises PlanError for an exit that the graph does not have."""
    _check_exits(graph, plan)
    stage_of = {layer: index for index, stage in enumerate(plan.stages) for layer in stage.layers} | {INPUT: SOURCE}
    tier = [plan.tiers.index(stage.tier) for stage in plan.stages]
    sends: list[dict[str, str]] = [{} for _ in range(len(plan.stages) + 1)]
    forwards: list[list[str]] = [[] for _ in range(len(plan.stages) + 1)]
    decodes: list[list[str]] = [[] for _ in plan.stages]
    pieces: list[set[str]] = [set() for _ in range(len(plan.stages) + 1)]  # what arrives at each stage in pieces
    for tensor in graph.tensors.values():
        born = stage_of[tensor.producer]
        home = tier[born] if born != SOURCE else 0
        users = {stage_of[consumer] for consumer in tensor.consumers} - {born}
        arriving = ""
        for stage in range(born, max(users, default=born)):
            # The boundary between `stage` and the next one.
            leaving = "raw" if tier[stage + 1] == home else plan.codec_of(tensor.name)
            if tier[stage + 1] != home and stage != SOURCE and born != SOURCE and plan.streams(tensor.name):
                pieces[stage + 1].add(tensor.name)
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
    results = {leaf.name for leaf in graph.outputs}  # an exit's tensors return in their place, where it is taken
    returned = [
        tuple(t.name for t in graph.tensors.values() if t.name in results and stage_of[t.producer] == index)
        for index in range(len(plan.stages))
    ]
    made = [
        Route(
            tuple(decodes[index]), sends[index + 1], tuple(name for name in forwards[index + 1] if name not in pieces[index + 1]),
            returned[index], tuple(exit_ for exit_ in plan.exits if stage_of[exit_.layer] == index),
            tuple(name for name in sends[index + 1] if name in pieces[index + 1]),
            tuple(name for name in decodes[index] if name in pieces[index]),
            tuple(name for name in forwards[index + 1] if name in pieces[index + 1]),
        )
        for index in range(len(plan.stages))
    ]  # fmt: skip
    return Route((), sends[0], (), ()), made


def pieces(graph: Graph, plan: Plan) -> list[list[tuple[str, ...]]]:
    """The layers of each stage, divided behind the head of each of its exits: what a taken exit leaves out runs later."""
    made = []
    for stage in plan.stages:
        left, parts = list(stage.layers), []
        for head in (exit_.layer for exit_ in plan.exits if exit_.layer in stage.layers):
            needed = _needed(graph, head)
            parts.append(tuple(name for name in left if name in needed))
            left = [name for name in left if name not in needed]
        made.append([*parts, tuple(left)] if left else parts)
    return made


def _needed(graph: Graph, layer: str) -> set[str]:
    """All that runs up to a layer, with what must stay together with it, the heads of exits that are not planned for example."""
    needed: set[str] = set()
    pending = {layer}
    while pending:
        needed |= pending | set().union(*(nx.ancestors(graph.dag, name) for name in pending))
        pending = set().union(*(group.layers for group in graph.together if group.layers & needed)) - needed
    return needed


def _check_exits(graph: Graph, plan: Plan) -> None:
    results = [leaf.name for leaf in graph.outputs if leaf.kind == "tensor"]
    for exit_ in plan.exits:
        for name in (exit_.answer, exit_.confidence):
            if name not in graph.tensors or graph.tensors[name].producer != exit_.layer:
                raise PlanError(f"{graph.name} does not make '{name}' of the plan's exit '{exit_.layer}'; apply the exit to the graph")
        if results != [exit_.output]:
            raise PlanError(f"the exit '{exit_.layer}' stands for '{exit_.output}' alone; {graph.name} returns {results}")
