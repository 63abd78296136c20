"""Horizontal stages: parts of a Graph that own only their weights."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from splitinfer.codecs.block import TensorLike
from splitinfer.errors import CutError, StageError
from splitinfer.graph import Graph, weights_nbytes


@dataclass(frozen=True)
class Stage:
    """A part of a model, ready to run."""

    name: str
    layers: tuple[str, ...]
    module: fx.GraphModule
    """Takes the inputs, then the sizes; returns the outputs as a tuple."""
    inputs: tuple[str, ...]
    """Tensors from outside, by name."""
    sizes: tuple[str, ...]
    """Dynamic dimensions, by the name of the operator that computes them."""
    outputs: tuple[str, ...]
    """Tensors that other stages or the caller use, by name."""
    layer_of: Mapping[str, str]
    """Operator -> layer, to name the place of a failure."""
    expects: Mapping[str, tuple[str, tuple[int | None, ...]]]
    """Input -> dtype and shape; None where dynamic."""
    stateful: bool

    @property
    def weight_nbytes(self) -> int:
        """Bytes of the weights that this stage holds, tied ones once."""
        return weights_nbytes(held_weights(self.module).values())

    def __call__(self, tensors: Mapping[str, Tensor], sizes: Mapping[str, int | float | bool]) -> dict[str, Tensor]:
        """Outputs by name. Raises StageError, which names the layer, for whatever goes wrong inside."""
        arguments = [tensors[name] for name in self.inputs] + [sizes[name] for name in self.sizes]
        try:
            with torch.no_grad():
                results = self.module(*arguments)
        except Exception as error:  # any operator may raise anything
            cause = f"{type(error).__name__}: {error}".strip()
            raise StageError(self.name, self._failing_layer(error), cause, traceback.format_exc()) from error
        return dict(zip(self.outputs, results, strict=True))

    def _failing_layer(self, error: BaseException) -> str:
        """The layer of the line of generated code that raised."""
        lines = self.module.code.splitlines()
        for frame, line in traceback.walk_tb(error.__traceback__):
            if "eval_with_key" in frame.f_code.co_filename and 0 < line <= len(lines):
                found = re.match(r"\s*(\w+)", lines[line - 1])
                if found and found[1] in self.layer_of:
                    return self.layer_of[found[1]]
        return self.layers[0]


def carve(graph: Graph, layers: Iterable[str], name: str = "stage") -> Stage:
    """The stage of these layers. Raises CutError for an unknown layer or for what must stay together."""
    return _Carver(graph, tuple(layers), name).stage()


class _Carver:
    """Copies the operators of some layers, and the constants they need, into a graph of their own."""

    def __init__(self, graph: Graph, layers: tuple[str, ...], name: str) -> None:
        unknown = [layer for layer in layers if layer not in graph.layers]
        if unknown or not layers:
            raise CutError(f"no layer '{unknown[0]}' in {graph.name}" if unknown else f"stage '{name}' has no layers")
        for group in graph.together:
            if group.layers & set(layers) and not group.layers <= set(layers):
                raise CutError(f"stage '{name}' divides what must stay together: {group.reason}")
        self.graph, self.name = graph, name
        self.layers = tuple(layer for layer in graph.layers if layer in set(layers))
        self.ops = {op for layer in self.layers for op in graph.layers[layer].ops}
        self.weight_names = graph.weight_nodes
        self.root = nn.Module()
        self.carved = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}
        self.state: dict[str, Tensor] = {}
        self.buffers: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}

    def stage(self) -> Stage:
        needed = self._needed()
        inputs = [node for node in needed if node.name in self.graph.tensors and node.name not in self.ops]
        sizes = [node for node in needed if node not in inputs and node.name not in self.ops and self._is_size(node)]
        for node in (*inputs, *sizes):
            self.copies[node] = self.carved.placeholder(node.name)
        for node in needed:
            if node not in self.copies:
                self._copy(node)
        outputs = self._outputs()
        stateful = self._write_back()
        self.carved.output(tuple(self.copies[self.graph.nodes[name]] for name in outputs))
        module = fx.GraphModule(self.root, self.carved, class_name="Stage").eval()
        return Stage(
            self.name, self.layers, module, tuple(node.name for node in inputs), tuple(node.name for node in sizes), outputs,
            {self.copies[self.graph.nodes[op]].name: self.graph.layer_of[op] for op in self.ops},
            {node.name: _expected(self.graph, node.name) for node in inputs}, stateful,
        )

    def _is_size(self, node: fx.Node) -> bool:
        return node.name not in self.weight_names and isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool)

    def _needed(self) -> list[fx.Node]:
        """Own operators, what they read, and constants all the way up; in the order of the graph."""
        found: set[fx.Node] = set()
        pending = [self.graph.nodes[op] for op in self.ops]
        while pending:
            node = pending.pop()
            if node in found:
                continue
            found.add(node)
            boundary = node.name not in self.ops and (node.name in self.graph.tensors or self._is_size(node))
            if not boundary:
                pending += node.all_input_nodes
        return [node for node in self.graph.fx_graph.nodes if node in found]

    def _copy(self, node: fx.Node) -> None:
        if node.name in self.weight_names:
            self.copies[node] = self.carved.get_attr(self._weight(self.weight_names[node.name]))
        elif node.op == "get_attr":
            self.root.add_module(str(node.target), getattr(self.graph.owner, str(node.target)))
            self.copies[node] = self.carved.get_attr(str(node.target))
        else:
            self.copies[node] = self.carved.node_copy(node, self.copies.__getitem__)

    def _weight(self, name: str) -> str:
        """The name under which the stage holds a weight; tied weights are held once, changing buffers are its own."""
        weight = self.graph.weights[name]
        if name in self.graph.mutated:
            weight = self.state.setdefault(name, weight.clone())
        key = (weight.data_ptr(), tuple(weight.shape), tuple(weight.stride()))
        if key not in self.buffers or not weight.numel():
            self.buffers[key] = f"weight_{len(self.buffers)}"
            hold(self.root, self.buffers[key], weight, weight.requires_grad)
        return self.buffers[key]

    def _outputs(self) -> tuple[str, ...]:
        return tuple(
            tensor.name for tensor in self.graph.tensors.values()
            if tensor.name in self.ops and (tensor.returned or any(consumer not in self.layers for consumer in tensor.consumers))
        )

    def _write_back(self) -> bool:
        """Store the next value of each changing buffer at the end of the call."""
        written = False
        for buffer, op in self.graph.mutated.items():
            if op in self.ops:
                held = self.carved.get_attr(self._weight(buffer))
                self.carved.call_function(torch.ops.aten.copy_.default, (held, self.copies[self.graph.nodes[op]]))
                written = True
        return written


def _expected(graph: Graph, name: str) -> tuple[str, tuple[int | None, ...]]:
    spec = graph.tensors[name]
    return spec.dtype, tuple(size if isinstance(size, int) else None for size in spec.shape)


def hold(root: nn.Module, name: str, weight: Tensor, trained: bool) -> None:
    """Give a stage a weight. Some operators, recurrent ones for example, choose their kernel by `requires_grad`."""
    if trained:
        root.register_parameter(name, weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight))
    else:
        root.register_buffer(name, weight)


def held_weights(module: nn.Module) -> dict[str, Tensor]:
    """A stage's weights by the name under which it holds them."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def check_input(stage: Stage, name: str, tensor: TensorLike) -> None:
    """Raise StageError where a received tensor is not what the stage was carved for."""
    dtype, shape = stage.expects[name]
    fits = len(shape) == len(tensor.shape) and all(want in (None, got) for want, got in zip(shape, tensor.shape, strict=True))
    if not fits or str(tensor.dtype) != f"torch.{dtype}":
        wanted = "x".join("*" if size is None else str(size) for size in shape)
        cause = f"received '{name}' as {tensor.dtype} {tuple(tensor.shape)}; expected torch.{dtype} {wanted}"
        raise StageError(stage.name, stage.layers[0], cause)
