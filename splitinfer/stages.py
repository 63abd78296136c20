"""Horizontal stages: parts of a Graph that own only their weights, and the bytes in which they travel.

A stage file holds the operators by name and the weights as raw frames. Loading one runs no code of its sender: only
registered torch operators and a short list of arithmetic functions are looked up. It needs the same torch version,
because operators promise no compatibility across versions.
"""

from __future__ import annotations

import keyword
import math
import operator
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from splitinfer import codecs
from splitinfer.codecs.block import Buffer
from splitinfer.codecs.packet import Frame, Kind, Limits, Packet
from splitinfer.errors import CutError, PlanError, StageError
from splitinfer.graph import Graph, weights_nbytes

STAGE_LIMITS = Limits(packet_nbytes=1 << 40, header_nbytes=1 << 28, tensor_nbytes=1 << 38)
"""A stage file may be large: it comes from the deployer, never from a client."""

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{module.__name__.lstrip('_')}.{name}": getattr(module, name)
    for module, names in (
        (operator, ("getitem", "add", "sub", "mul", "neg", "floordiv", "truediv", "mod", "pow", "eq", "ne", "lt", "le", "gt", "ge")),
        (math, ("ceil", "floor", "sqrt")),
        (torch, ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not", "sym_ite", "sym_sqrt")),
    )
    for name in names
}
_FUNCTION_NAMES = {function: name for name, function in _FUNCTIONS.items()}


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
            _hold(self.root, self.buffers[key], weight, weight.requires_grad)
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


def _hold(root: nn.Module, name: str, weight: Tensor, trained: bool) -> None:
    """Give a stage a weight. Some operators, recurrent ones for example, choose their kernel by `requires_grad`."""
    if trained:
        root.register_parameter(name, weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight))
    else:
        root.register_buffer(name, weight)


def held_weights(module: nn.Module) -> dict[str, Tensor]:
    """A stage's weights by the name under which it holds them."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


# -- the bytes of a stage


def dump_stage(stage: Stage) -> bytes:
    """A stage file: a packet of kind STAGE (docs/wire-format.md)."""
    weights = held_weights(stage.module)
    meta = {
        "torch": torch.__version__.partition("+")[0], "name": stage.name, "layers": stage.layers, "inputs": stage.inputs,
        "sizes": stage.sizes, "outputs": stage.outputs, "layer_of": dict(stage.layer_of), "stateful": stage.stateful,
        "expects": {name: [dtype, list(shape)] for name, (dtype, shape) in stage.expects.items()},
        "program": _dump_graph(stage.module), "trained": [name for name, weight in weights.items() if weight.requires_grad],
    }
    raw = codecs.get("raw")
    return Packet(Kind.STAGE, stage.name, tuple(Frame.encode(name, tensor, raw) for name, tensor in weights.items()), meta=meta).pack()


def load_stage(data: Buffer, device: str = "cpu") -> Stage:
    """The stage of a stage file, its weights on `device`.

    Raises PacketError for a damaged file, PlanError for one of another torch version or with unknown operators.
    """
    packet = Packet.unpack(data, STAGE_LIMITS)
    try:
        return _loaded(packet, device)
    except (KeyError, TypeError, ValueError, AttributeError, IndentationError, RuntimeError) as error:
        raise PlanError(f"malformed stage file: {type(error).__name__}: {error}") from error


def _loaded(packet: Packet, device: str) -> Stage:
    meta, here = packet.meta, torch.__version__.partition("+")[0]
    if packet.kind is not Kind.STAGE or meta.get("torch") != here:
        raise PlanError(f"a stage file of torch {meta.get('torch')}; this machine has torch {here}: install the same version")
    root = nn.Module()
    for frame in packet.frames:
        _hold(root, frame.name, frame.decode(STAGE_LIMITS, copy=True).to(device), frame.name in meta["trained"])
    module = _load_graph(root, meta["program"], torch.device(device))
    return Stage(
        meta["name"], tuple(meta["layers"]), module, tuple(meta["inputs"]), tuple(meta["sizes"]), tuple(meta["outputs"]),
        meta["layer_of"], {name: (dtype, tuple(shape)) for name, (dtype, shape) in meta["expects"].items()}, meta["stateful"],
    )


def _dump_graph(module: fx.GraphModule) -> dict[str, Any]:
    """Operators as rows of plain values; the subgraphs of control-flow operators likewise, by name."""
    inner = {name: child for name, child in module.named_children() if isinstance(child, fx.GraphModule)}
    rows = [[n.name, n.op, _dump_target(n), _dump(n.args), _dump(dict(n.kwargs))] for n in module.graph.nodes]
    return {"rows": rows, "inner": {name: _dump_graph(child) for name, child in inner.items()}}


def _load_graph(root: nn.Module, program: Mapping[str, Any], device: torch.device) -> fx.GraphModule:
    for name, inner in program["inner"].items():
        root.add_module(name, _load_graph(nn.Module(), inner, device))
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    if not program["rows"] or program["rows"][-1][1] != "output":
        raise PlanError("a stage file's program ends without an output")
    for name, op, target, args, kwargs in program["rows"]:
        loaded = _load(args, made, device), _load(kwargs, made, device)
        _check_names(op, name, target, kwargs)
        made[name] = graph.create_node(op, _load_target(op, target), *loaded, name=name)
    return fx.GraphModule(root, graph, class_name="Stage").eval()


def _check_names(op: str, name: str, target: str, kwargs: Mapping[str, Any]) -> None:
    """fx writes these words into the Python that it generates, so a word must be nothing but a name."""
    words = [name, *kwargs.get("d", {})]
    if op in ("placeholder", "get_attr"):
        words += target.split(".") if op == "get_attr" else [target]
    elif op not in ("call_function", "output"):
        raise PlanError(f"a stage file holds an operation '{op}' that this version does not know")
    for word in words:
        if not (isinstance(word, str) and word.isidentifier() and not keyword.iskeyword(word)):
            raise PlanError(f"a stage file holds {word!r} where a name belongs: it was not written by splitinfer")


def _dump_target(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, str):
        return target
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}::{target._opname}.{target._overloadname}"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order::{target._name}"
    if target in _FUNCTION_NAMES:
        return _FUNCTION_NAMES[target]
    raise CutError(f"operator '{node.name}' calls {target}, which has no name on the wire")


def _load_target(op: str, target: str) -> Any:
    if op != "call_function":
        return target
    if target in _FUNCTIONS:
        return _FUNCTIONS[target]
    namespace, _, name = target.partition("::")
    try:
        packet = getattr(getattr(torch.ops, namespace), name.partition(".")[0])
        found = packet if namespace == "higher_order" else getattr(packet, name.partition(".")[2])
    except AttributeError:
        found = None
    if not isinstance(found, torch._ops.OpOverload | torch._ops.HigherOrderOperator):
        raise PlanError(f"this machine does not know the operator '{target}'; install the package that registers it")
    return found


def _dump(value: Any) -> Any:
    """An argument as plain values; what is not plain becomes a pair under one letter."""
    match value:
        case fx.Node():
            return {"n": value.name}
        case None | bool() | int() | float() | str():
            return value
        case tuple():
            return {"t": [_dump(item) for item in value]}
        case list():
            return {"l": [_dump(item) for item in value]}
        case dict():
            return {"d": {key: _dump(item) for key, item in value.items()}}
        case slice():
            return {"s": [_dump(value.start), _dump(value.stop), _dump(value.step)]}
        case complex():
            return {"c": [value.real, value.imag]}
        case torch.dtype() | torch.layout() | torch.memory_format():
            return {"a": str(value).removeprefix("torch.")}
        case torch.device():
            return {"v": str(value)}
    raise CutError(f"an operator has an argument of type {type(value).__name__}, which has no form on the wire")


def _load(value: Any, made: Mapping[str, fx.Node], device: torch.device) -> Any:
    if not isinstance(value, dict):
        return value
    ((letter, held),) = value.items()
    match letter:
        case "n":
            return made[held]
        case "t":
            return tuple(_load(item, made, device) for item in held)
        case "l":
            return [_load(item, made, device) for item in held]
        case "d":
            return {key: _load(item, made, device) for key, item in held.items()}
        case "s":
            return slice(*(_load(item, made, device) for item in held))
        case "c":
            return complex(*held)
        case "v":
            return device  # constants are made where the stage runs
        case "a":
            found = getattr(torch, held, None)
            if isinstance(found, torch.dtype | torch.layout | torch.memory_format):
                return found
    raise PlanError(f"a stage file holds an argument {value!r} that this version does not know")


def check_input(stage: Stage, name: str, tensor: Tensor) -> None:
    """Raise StageError where a received tensor is not what the stage was carved for."""
    dtype, shape = stage.expects[name]
    fits = len(shape) == tensor.dim() and all(want in (None, got) for want, got in zip(shape, tensor.shape, strict=True))
    if not fits or str(tensor.dtype) != f"torch.{dtype}":
        wanted = "x".join("*" if size is None else str(size) for size in shape)
        cause = f"received '{name}' as {tensor.dtype} {tuple(tensor.shape)}; expected torch.{dtype} {wanted}"
        raise StageError(stage.name, stage.layers[0], cause)

