"""From a division to the programs of its workers: each phase becomes a Stage with the worker's own weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from splitinfer.graph import Graph
from splitinfer.shards.exchange import Exchange, Piece
from splitinfer.shards.layouts import Cut, Local, Partial, Placed, Rows, Split, Window
from splitinfer.shards.program import ShardProgram
from splitinfer.shards.rounds import Names, Rounds
from splitinfer.shards.schedule import Division, Schedule, resolved, schedule, static_dims
from splitinfer.stages import Stage, hold

aten = torch.ops.aten
_OF_ANY_STRIDES = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}
"""A part, or what came from peers, may lie in memory otherwise than the whole tensor did."""


def assemble(graph: Graph, division: Division) -> tuple[dict[int, ShardProgram], dict[int, tuple[Piece, ...]]]:
    """Worker -> program, and worker -> what it gets of the inputs."""
    plan = schedule(division)
    placed = [entry for entry in division.placed if plan.local[entry.node.name]]
    divided = frozenset(e.node.name for e in placed if isinstance(division.layout(e.node.name), Split | Partial | Rows))
    names = Names(frozenset(graph.nodes), divided)
    rounds, weights = Rounds(division, plan, names), Weights(graph)
    phases = max((plan.phase[entry.node.name] for entry in placed), default=0) + 1
    steps: dict[int, list[_StageMaker | Exchange]] = {worker: [] for worker in division.workers}
    for phase in range(phases):
        makers = {worker: _StageMaker(graph, division, names, weights, worker, phase) for worker in division.workers}
        for entry in placed:
            if plan.phase[entry.node.name] == phase:
                for worker in sorted(plan.local[entry.node.name]):
                    makers[worker].add(entry)
        exchanges = rounds.after(phase)
        for worker, maker in makers.items():
            steps[worker] += [maker] if maker.made else []
            steps[worker] += [exchange[worker] for exchange in exchanges]
    scatter = {worker: _pieces(division, plan, worker) for worker in division.workers}
    programs = {worker: _program(division, worker, steps[worker], scatter[worker]) for worker in division.workers}
    return programs, scatter


def _pieces(division: Division, plan: Schedule, worker: int) -> tuple[Piece, ...]:
    found = []
    for name in division.inputs:
        if worker in plan.local[name]:
            layout = division.layout(name)
            whole = not isinstance(layout, Rows)
            found.append(Piece(name) if whole else Piece(name, layout.dim, *layout.spans[worker]))  # type: ignore[union-attr]
    return tuple(found)


def _program(division: Division, worker: int, steps: list[_StageMaker | Exchange], pieces: tuple[Piece, ...]) -> ShardProgram:
    outputs = division.outputs if worker == division.workers[0] else ()
    wanted = set(outputs)
    made: list[Stage | Exchange] = []
    for step in reversed(steps):
        if isinstance(step, Exchange):
            wanted |= {send.tensor for send in step.sends}
            wanted |= {part.tensor for combine in step.combines for part in combine.parts if part.source == worker}
            made.append(step)
        else:
            made.append(step.stage([name for name in step.made if name in wanted]))
            wanted |= set(made[-1].inputs)  # type: ignore[union-attr]
    return ShardProgram(worker, tuple(piece.tensor for piece in pieces), outputs, tuple(reversed(made)))


class Weights:
    """The values of constants that depend on weights only, computed once; shared by all workers of a block."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.values: dict[str, Any] = {}

    def foldable(self, node: fx.Node) -> bool:
        """Whether the value is known before any call."""
        value = node.meta.get("val")
        static = isinstance(value, Tensor) and all(isinstance(size, int) for size in value.shape)
        return static and all(self.foldable(parent) for parent in node.all_input_nodes)

    def of(self, node: fx.Node) -> Any:
        """The value of a foldable constant."""
        if node.name in self.graph.weight_nodes:
            return self.graph.weights[self.graph.weight_nodes[node.name]]
        if node.name not in self.values:
            if node.op == "get_attr":
                self.values[node.name] = getattr(self.graph.owner, str(node.target))
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.of)
                with torch.no_grad():
                    self.values[node.name] = node.target(*args, **kwargs)  # type: ignore[operator]
        return self.values[node.name]


class _StageMaker:
    """One phase of one worker."""

    def __init__(self, graph: Graph, division: Division, names: Names, weights: Weights, worker: int, phase: int) -> None:
        self.source, self.division, self.names, self.weights, self.worker = graph, division, names, weights, worker
        self.name = f"worker {worker}, phase {phase}"
        self.root, self.graph = nn.Module(), fx.Graph()
        self.inputs: dict[str, fx.Node] = {}
        self.sizes: dict[str, fx.Node] = {}
        self.expects: dict[str, tuple[str, tuple[int | None, ...]]] = {}
        self.constants: dict[Any, fx.Node] = {}
        self.made: dict[str, fx.Node] = {}
        self.layer_of: dict[str, str] = {}

    def add(self, placed: Placed) -> None:
        """One operator."""
        args = resolved(placed.args, self.worker, self.division, self._take)
        kwargs = resolved(placed.kwargs, self.worker, self.division, self._take)
        node = self.graph.call_function(_OF_ANY_STRIDES.get(placed.target, placed.target), args, kwargs)
        if placed.divisors:
            divisor = placed.divisors[self.worker]
            node = self.graph.call_function(aten.div.Tensor, (node, self._hold(divisor, ("divisor", placed.node.name))))
        if placed.trims and isinstance(placed.layout, Rows):
            start, stop = placed.trims[self.worker]
            node = self.graph.call_function(aten.slice.Tensor, (node, placed.layout.dim, start, stop))
        self.made[self.names.local(placed.node.name)] = node
        self.layer_of[node.name] = self.source.layer_of[placed.node.name]

    def stage(self, outputs: list[str]) -> Stage:
        """The stage that gives these."""
        self.graph.output(tuple(self.made[name] for name in outputs))
        _placeholders_first(self.graph, [*self.inputs.values(), *self.sizes.values()])
        module = fx.GraphModule(self.root, self.graph, class_name="Stage").eval()
        layers = tuple(dict.fromkeys(self.layer_of.values()))
        return Stage(self.name, layers, module, tuple(self.inputs), tuple(self.sizes), tuple(outputs), self.layer_of, self.expects, False)

    # -- what operators read

    def _take(self, value: Any) -> fx.Node:
        match value:
            case Local():
                return self._held(value.node, self.names.local(value.node.name), "local")
            case Cut():
                return self._cut(value)
            case Window():
                return self._window(value)
        return self._whole(value)

    def _whole(self, node: fx.Node) -> fx.Node:
        if node.name in self.division.inputs or node.name in self.source.layer_of:
            return self._held(node, node.name, "whole")
        if isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool):
            if node.name not in self.sizes:
                self.sizes[node.name] = self.graph.placeholder(node.name)
            return self.sizes[node.name]
        return self._constant(node)

    def _held(self, node: fx.Node, name: str, form: str) -> fx.Node:
        if name in self.made:
            return self.made[name]
        if name not in self.inputs:
            self.inputs[name] = self.graph.placeholder(name)
            self.expects[name] = str(node.meta["val"].dtype).removeprefix("torch."), self._shape(node, form)
        return self.inputs[name]

    def _shape(self, node: fx.Node, form: str) -> tuple[int | None, ...]:
        sizes, layout = list(static_dims(node)), self.division.layout(node.name)
        if form == "halo" and isinstance(layout, Rows):
            start, stop = self.division.halos[node.name][self.worker]
            sizes[layout.dim] = stop - start
        elif form == "local" and isinstance(layout, Rows):
            sizes[layout.dim] = layout.spans[self.worker][1] - layout.spans[self.worker][0]
        elif form == "local" and isinstance(layout, Split) and sizes[layout.dim] is not None:
            sizes[layout.dim] = layout.local(self.division.spans[layout.axis][self.worker])
        return tuple(sizes)

    def _constant(self, node: fx.Node) -> fx.Node:
        """A weight, or a copy of the operators that compute it."""
        if node.name not in self.constants:
            if node.name in self.source.weight_nodes:
                weight = self.source.weights[self.source.weight_nodes[node.name]]
                self.constants[node.name] = self._hold(weight, (weight.data_ptr(), tuple(weight.shape), weight.stride()))
            elif node.op == "get_attr":
                self.root.add_module(str(node.target), getattr(self.source.owner, str(node.target)))
                self.constants[node.name] = self.graph.get_attr(str(node.target))
            else:
                self.constants[node.name] = self.graph.node_copy(node, self._whole)
        return self.constants[node.name]

    def _hold(self, weight: Tensor, key: Any) -> fx.Node:
        """The weight under a name of the stage's own; tied weights are held once."""
        if ("held", key) not in self.constants:
            name = f"weight_{sum(isinstance(key, tuple) and key[0] == 'held' for key in self.constants)}"
            hold(self.root, name, weight, weight.requires_grad)
            self.constants["held", key] = self.graph.get_attr(name)
        return self.constants["held", key]

    def _cut(self, cut: Cut) -> fx.Node:
        runs = cut.split.runs(self.division.spans[cut.split.axis][self.worker])
        if cut.node.name in self.division.constants and self.weights.foldable(cut.node):
            weight = self.weights.of(cut.node)
            own = torch.cat([weight.detach().narrow(cut.split.dim, start, stop - start) for start, stop in runs], cut.split.dim)
            own = nn.Parameter(own.t() if cut.turned else own, requires_grad=weight.requires_grad)
            return self._hold(own, (weight.data_ptr(), tuple(weight.shape), weight.stride(), cut.split.dim, tuple(runs), cut.turned))
        whole = self._whole(cut.node)
        parts = [self.graph.call_function(aten.slice.Tensor, (whole, cut.split.dim, start, stop)) for start, stop in runs]
        own_node = parts[0] if len(parts) == 1 else self.graph.call_function(aten.cat.default, (parts, cut.split.dim))
        return self.graph.call_function(aten.t.default, (own_node,)) if cut.turned else own_node

    def _window(self, window: Window) -> fx.Node:
        tensor, worker = window.node.name, self.worker
        layout = self.division.layout(tensor)
        if not isinstance(layout, Rows):
            node, held = self._whole(window.node), (0, int(window.node.meta["val"].shape[window.dim]))
        elif tensor in self.division.halos:
            node, held = self._held(window.node, self.names.halo(tensor), "halo"), self.division.halos[tensor][worker]
        else:
            node, held = self._held(window.node, self.names.local(tensor), "local"), layout.spans[worker]
        start, stop = window.spans[worker]
        if (start, stop) != held:
            node = self.graph.call_function(aten.slice.Tensor, (node, window.dim, start - held[0], stop - held[0]))
        if window.before[worker] or window.after[worker]:
            behind = len(window.node.meta["val"].shape) - 1 - window.dim
            pad = [0, 0] * behind + [window.before[worker], window.after[worker]]
            node = self.graph.call_function(aten.constant_pad_nd.default, (node, pad, window.fill))
        return node


def _placeholders_first(graph: fx.Graph, placeholders: list[fx.Node]) -> None:
    """Inputs, then sizes: the order in which a Stage gives them."""
    first = next(iter(graph.nodes))
    for node in placeholders:
        if node is not first:
            first.prepend(node)
        else:
            first = node.next
