"""The caller's side of a plan: the call becomes the first packet, the last packet becomes the model's result."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from splitinfer import codecs
from splitinfer.codecs.packet import Frame, Kind, Limits, Packet
from splitinfer.errors import PlanError
from splitinfer.graph import Graph
from splitinfer.learn.editing import without_exits
from splitinfer.parts import carved
from splitinfer.plans import Plan
from splitinfer.routing import Route, routes
from splitinfer.sizes import sizes_at
from splitinfer.tracing import Recorder, Span

DEFAULT_TIMEOUT_S = 120.0
"""Two minutes: longer than any sane request, short enough that a lost one is noticed."""


@dataclass(frozen=True)
class Request:
    """A call, ready to be sent."""

    data: bytes
    """The first packet."""
    tensors: Mapping[str, Tensor]
    """The caller's own."""
    sizes: Mapping[str, int | float | bool]
    """Values of the dynamic dimensions."""
    spans: tuple[Span, ...]
    """Of encoding, where the first stage is on another tier."""


class Front:
    """A model and a plan for it, as the caller knows them. Raises PlanError or CutError where they do not fit."""

    def __init__(self, graph: Graph, plan: Plan, *, slowdown: float = 1.0, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        plan.check(graph)
        planned_layers = {layer for stage in plan.stages for layer in stage.layers}
        graph = without_exits(graph, [head for head in graph.exits if head not in planned_layers])
        self.graph, self.plan, self.timeout_s = graph, plan, timeout_s
        self.source: Route
        self.source, self.routes = routes(graph, plan)
        self.slowdown = slowdown
        self.stages = carved(graph, plan)
        self._sizes = {name for stage in self.stages for within in stage for part in within for name in part.sizes}
        self._sizes |= {leaf.name for leaf in graph.outputs if leaf.kind == "size"}

    def request(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], request_id: str = "", attempt: int = 0, left_s: float | None = None
    ) -> Request:
        """Bind a call and encode its tensors. `request_id` is drawn by lot, `left_s` is `timeout_s`, where they are not given.

        Raises InputError for a call that does not fit.
        """
        tensors, dimensions = self.graph.bind(args, kwargs)
        sizes = sizes_at(self.graph, self._sizes, dimensions)
        recorder = Recorder("source", self.plan.tiers[0], self.slowdown)
        with recorder.span("encode"):
            frames = tuple(Frame.encode(name, tensors[name], codecs.get(codec)) for name, codec in self.source.sends.items())
        # Handing raw tensors to a stage on the same tier is the framework's work, not the codec's.
        spans = recorder.finish() if self.plan.stages[0].tier != self.plan.tiers[0] else ()
        meta = {"left_s": self.timeout_s if left_s is None else left_s}
        packet = Packet(Kind.REQUEST, request_id or uuid.uuid4().hex, frames, attempt, sizes, meta)
        return Request(packet.pack(), tensors, sizes, spans)

    def answer(self, frames: tuple[Frame, ...], request: Request, limits: Limits) -> Any:
        """The model's result from the frames that came back for a request."""
        found = {frame.name: frame for frame in frames}
        leaves: list[Any] = []
        for leaf in self.graph.outputs:
            if leaf.kind == "value":
                leaves.append(leaf.value)
            elif leaf.kind == "size":
                leaves.append(request.sizes[leaf.name])
            elif leaf.name in found:
                leaves.append(found[leaf.name].decode(limits, copy=True))
            elif leaf.name in request.tensors:
                leaves.append(request.tensors[leaf.name])
            else:
                raise PlanError(f"no stage returned '{leaf.name}'")
        return pytree.tree_unflatten(leaves, self.graph.out_spec)
