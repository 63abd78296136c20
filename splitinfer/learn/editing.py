"""Adding layers to a captured Graph: a copy of its operators with a few more, everything else as it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from splitinfer.codecs.block import dtype_name
from splitinfer.errors import CutError
from splitinfer.graph import Graph, Layer, TensorSpec, Together, weights_nbytes
from splitinfer.plans import INPUT


class GraphEditor:
    """A copy of a graph that grows; names of layers, operators and tensors that were there stay.

    Editing the operators, not exporting again, is what keeps the names: an exported program carries the module calls that
    it came from, a second export of it would not.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.program = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        self.program.output(self.program.graph_copy(graph.fx_graph, copies))
        self.nodes = {old.name: new for old, new in copies.items()}
        self.weights = dict(graph.weights)
        self.weight_nodes = dict(graph.weight_nodes)
        self.layers = dict(graph.layers)
        self.tensors = dict(graph.tensors)
        self.together = list(graph.together)
        self.exits = list(graph.exits)

    def layer(self, name: str, after: str, behind: Iterable[str]) -> LayerWriter:
        """A new layer that reads the tensor `after`, placed behind the last of the layers `behind`."""
        if name in self.layers:
            raise CutError(f"{self.graph.name} already has a layer '{name}'")
        return LayerWriter(self, name, after, behind)

    def redirect(self, tensor: str, to: str) -> None:
        """Let the layers that take `tensor` take `to` instead; its own layer keeps what it has."""
        spec, node, other = self.tensors[tensor], self.nodes[tensor], self.nodes[to]
        layer_of = self.graph.layer_of
        for user in list(node.users):
            if layer_of.get(user.name, spec.producer) != spec.producer:
                user.replace_input_with(node, other)
        old = tuple(name for name in spec.consumers if name in self.graph.layers)
        self.tensors[tensor] = replace(spec, consumers=tuple(name for name in spec.consumers if name not in old))
        self.tensors[to] = replace(self.tensors[to], consumers=old)

    def drop(self, layer: str) -> None:
        """Take out a layer that no other one needs."""
        gone = self.layers.pop(layer)
        for op in reversed(gone.ops):
            self.program.erase_node(self.nodes.pop(op))
        for weight in [node for node in self.program.nodes if self.weight_nodes.get(node.name) in gone.weights and not node.users]:
            del self.weights[self.weight_nodes.pop(weight.name)]
            self.program.erase_node(weight)
        self.tensors = {
            name: replace(spec, consumers=tuple(user for user in spec.consumers if user != layer))
            for name, spec in self.tensors.items() if spec.producer != layer
        }  # fmt: skip
        groups = [replace(group, layers=group.layers - {layer}) for group in self.together]
        self.together = [group for group in groups if len(group.layers) > 1]
        self.exits.remove(layer)

    def keep_together(self, layers: Iterable[str], reason: str) -> None:
        """Layers that must share a stage."""
        self.together.append(Together(frozenset(layers), reason))

    def finish(self) -> Graph:
        """The new graph."""
        self.program.lint()
        return replace(
            self.graph, fx_graph=self.program, weights=self.weights, weight_nodes=self.weight_nodes, layers=self.layers,
            tensors=self.tensors, together=tuple(self.together), exits=tuple(self.exits),
        )  # fmt: skip


class LayerWriter:
    """Writes the operators of one new layer."""

    def __init__(self, editor: GraphEditor, name: str, after: str, behind: Iterable[str]) -> None:
        self.editor, self.name, self.after = editor, name, after
        self.source = editor.nodes[after]
        order = list(editor.layers)
        self.place = max((order.index(layer) + 1 for layer in behind if layer != INPUT), default=0)
        self._last = self.source
        if self.source.op == "placeholder":  # operators stand behind all of the call's arguments
            self._last = [node for node in editor.program.nodes if node.op == "placeholder"][-1]
        self._first = next(iter(editor.program.nodes))
        self._ops: list[str] = []
        self._held: dict[str, Tensor] = {}

    def weight(self, name: str, value: Tensor) -> fx.Node:
        """A weight of the layer, ``<layer>.<name>`` in the graph."""
        full = f"{self.name}.{name}"
        with self.editor.program.inserting_before(self._first):
            node = self.editor.program.placeholder(_identifier(full))
        node.meta["val"] = self._fake(value)
        self.editor.weights[full] = value
        self.editor.weight_nodes[node.name] = full
        self._held[full] = value
        return node

    def call(self, target: torch._ops.OpOverload, *args: Any, name: str = "") -> fx.Node:
        """An operator on nodes and plain values; `name` is a wish."""
        with self.editor.program.inserting_after(self._last):
            node = self.editor.program.create_node("call_function", target, args, name=_identifier(name) if name else None)
        with torch.no_grad():
            node.meta["val"] = target(*(arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args))
        self._last = node
        self._ops.append(node.name)
        self.editor.nodes[node.name] = node
        return node

    def done(self, results: Sequence[fx.Node], *, returned: bool = False) -> None:
        """Register the layer and the tensors that leave it; they have no consumers yet."""
        editor = self.editor
        made = Layer(self.name, self.name, tuple(self._ops), tuple(self._held), weights_nbytes(self._held.values()))
        rows = list(editor.layers.items())
        editor.layers = dict([*rows[: self.place], (self.name, made), *rows[self.place :]])
        read = editor.tensors[self.after]
        order = list(editor.layers)
        editor.tensors[self.after] = replace(read, consumers=tuple(sorted({*read.consumers, self.name}, key=order.index)))
        editor.tensors |= {node.name: self._spec(node, read, returned) for node in results}

    def _spec(self, node: fx.Node, like: TensorSpec, returned: bool) -> TensorSpec:
        """Its dynamic dimensions are among those of the tensor that the layer reads."""
        value: Tensor = node.meta["val"]
        shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
        known = dict(zip(like.shape, like.sample_shape, strict=True))
        sample = tuple(size if isinstance(size, int) else known[size] for size in shape)
        nbytes = value.dtype.itemsize
        for size in sample:
            nbytes *= size
        return TensorSpec(node.name, self.name, (), shape, sample, dtype_name(value.dtype), nbytes, returned)

    def _fake(self, value: Tensor) -> Tensor:
        fake: Tensor = self.source.meta["val"].fake_mode.from_tensor(value, static_shapes=True)
        return fake


def without_exits(graph: Graph, heads: Iterable[str]) -> Graph:
    """The graph without the layers of these heads."""
    heads = list(heads)
    if not heads:
        return graph
    editor = GraphEditor(graph)
    for head in heads:
        editor.drop(head)
    return editor.finish()


def _identifier(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)
