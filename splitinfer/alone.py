"""What the caller's own machine answers when nobody else can be asked: in this process, without a network, without Ray."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cluster.topology import Topology
from cluster.units import format_bytes
from splitinfer.errors import PlanError
from splitinfer.graph import Graph
from splitinfer.pipeline import LocalPipeline
from splitinfer.plans import Plan
from splitinfer.tracing import Trace

Answer = tuple[Any, Trace]


class Alone:
    """One way to answer on the first tier. Not thread-safe: a device does one thing at a time."""

    def __init__(self, name: str, answer: Callable[..., Answer]) -> None:
        self.name = name
        """What it is, for people: ``the whole model``."""
        self._answer = answer

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer:
        """The answer and its trace, which says that it is degraded."""
        answer, trace = self._answer(*args, **kwargs)
        return answer, replace(trace, degraded=True, answered_by=self.name)


def alone(graph: Graph, plans: Sequence[Plan], topology: Topology, slowdown: float, smaller: Callable[..., Any] | None = None) -> Alone:
    """The best that the first tier can do alone: the whole model where its memory allows, a plan's early exit, `smaller`.

    Raises PlanError, with what to do, where it can do nothing.
    """
    first = topology.tier(plans[0].tiers[0])
    nbytes = sum({weight.data_ptr(): weight.nbytes for weight in graph.weights.values()}.values())
    if first.memory_bytes is None or nbytes <= first.memory_bytes:
        layers = [layer for layer in graph.layers if layer not in graph.exits]
        whole = LocalPipeline(graph, Plan.by_hand(graph, [layers], [first.name]), slowdown=slowdown)
        return Alone("the whole model", whole.traced)
    for plan in plans:
        near = [stage for stage in plan.stages if stage.tier == first.name]
        if any(each.layer in stage.layers for each in plan.exits for stage in near):
            return Alone("an early exit", LocalPipeline(graph, plan, slowdown=slowdown).degraded)
    if smaller is not None:
        return Alone("a smaller model", _timed(smaller))
    raise PlanError(
        f"without network '{first.name}' can give no answer: the model's weights take {format_bytes(nbytes)} and its memory is "
        f"{format_bytes(first.memory_bytes)}, and no plan has an early exit there. Give `smaller`, a callable that takes the same "
        f"arguments, or offline=False"
    )


def _timed(model: Callable[..., Any]) -> Callable[..., Answer]:
    def answer(*args: Any, **kwargs: Any) -> Answer:
        start = time.perf_counter()
        made = model(*args, **kwargs)
        return made, Trace(uuid.uuid4().hex, time.perf_counter() - start, ())

    return answer
