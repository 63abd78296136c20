"""The bytes in which stages travel: operators by name, weights as raw frames (docs/wire-format.md).

Loading a stage file runs no code of its sender: only registered torch operators and a short list of arithmetic functions
are looked up, and every word that becomes part of generated Python is a plain identifier. It needs the same torch version,
because operators promise no compatibility across versions.
"""

from __future__ import annotations

import keyword
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from splitinfer import codecs
from splitinfer.codecs.block import Buffer
from splitinfer.codecs.packet import Frame, Kind, Limits, Packet
from splitinfer.errors import CutError, PlanError
from splitinfer.stages import Stage, held_weights, hold

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
_FILES = {"filename", "path"}
"""Arguments of operators that touch files: aten::from_file, aten::save, and those of torchvision."""
_FUNCTION_NAMES = {function: name for name, function in _FUNCTIONS.items()}


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
        hold(root, frame.name, frame.decode(STAGE_LIMITS, copy=True).to(device), frame.name in meta["trained"])
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
    if isinstance(found, torch._ops.OpOverload) and _FILES & {argument.name for argument in found._schema.arguments}:
        raise PlanError(f"a stage file holds the operator '{target}', which reads or writes files of this machine; no stage may")
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
