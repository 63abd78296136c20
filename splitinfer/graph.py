"""The captured model: layers, the tensors between them, the weights they own, and where it may be cut.

A *layer* is a run of operators that came from one module call, so that names read ``features.3.conv``. Two kinds of
operators belong to no layer. A *size* computes a number from the dynamic dimensions of the inputs; it never crosses a
link as a tensor, the caller works it out once per request. A *constant* depends on no input, for example a position
table made in ``forward``; each stage that needs it computes its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from splitinfer.errors import CutError, InputError
from splitinfer.plans import INPUT


@dataclass(frozen=True)
class TensorSpec:
    """A value that one layer produces and others use, or that the caller gets back."""

    name: str
    producer: str
    """Layer name, or INPUT."""
    consumers: tuple[str, ...]
    """Layer names, in the order of the graph."""
    shape: tuple[int | str, ...]
    """A dynamic dimension is an expression such as ``s0`` or ``2*s0``."""
    sample_shape: tuple[int, ...]
    """The shape for the sample that the model was captured with."""
    dtype: str
    nbytes: int
    """Bytes at the sample's shape."""
    returned: bool
    """Whether the caller gets it."""


@dataclass(frozen=True)
class Layer:
    """Operators that stay together."""

    name: str
    module: str
    """Path of the module whose call they came from; empty for the root."""
    ops: tuple[str, ...]
    """Names of the operators in the graph, in order."""
    weights: tuple[str, ...]
    """Names of the parameters, buffers and constants that they read."""
    weight_nbytes: int


@dataclass(frozen=True)
class Together:
    """Layers that must share a stage."""

    layers: frozenset[str]
    reason: str


@dataclass(frozen=True)
class Cut:
    """A place between two layers in the order of the graph."""

    after: str
    """The last layer before the cut."""
    tensors: tuple[str, ...]
    """What crosses, inputs that are still needed included."""
    nbytes: int
    """Raw bytes of these at the sample's shape."""
    reason: str | None
    """Why the graph cannot be cut here; None where it can."""

    @property
    def possible(self) -> bool:
        """Whether the graph can be cut here."""
        return self.reason is None


@dataclass(frozen=True)
class InputLeaf:
    """One leaf of the call's arguments."""

    label: str
    """Where the caller finds it, for example ``kwargs['pixel_values']``."""
    tensor: str | None
    """Name of the tensor that it feeds; None for a value that was fixed at capture."""
    value: Any = None
    """The fixed value."""


@dataclass(frozen=True)
class OutputLeaf:
    """One leaf of the model's result: a tensor, a size, or a fixed value."""

    kind: str
    """``tensor``, ``size`` or ``value``."""
    name: str = ""
    value: Any = None


@dataclass
class Graph:
    """A captured model. Made by :func:`splitinfer.capture`."""

    fx_graph: fx.Graph
    """The operators, functional: nothing is written in place."""
    owner: torch.nn.Module
    """Holds the subgraphs that control-flow operators refer to."""
    weights: Mapping[str, Tensor]
    """Parameter, buffer or constant name -> tensor; tied names map to one tensor."""
    weight_nodes: Mapping[str, str]
    """Name of the operator graph's placeholder -> name of the weight that it stands for."""
    layers: dict[str, Layer]
    """In the order of the graph, which is topological."""
    tensors: dict[str, TensorSpec]
    inputs: tuple[InputLeaf, ...]
    outputs: tuple[OutputLeaf, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    together: tuple[Together, ...]
    mutated: Mapping[str, str]
    """Buffer name -> operator that computes its next value."""
    example: tuple[tuple[Any, ...], dict[str, Any]]
    """The sample call."""
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Dynamic dimension -> smallest and largest size that the model accepts."""
    name: str = "model"
    exits: tuple[str, ...] = ()
    """Layers that are heads of early exits (``splitinfer.learn``): stages may leave them out."""

    @cached_property
    def nodes(self) -> dict[str, fx.Node]:
        """Operator name -> node."""
        return {node.name: node for node in self.fx_graph.nodes}

    @cached_property
    def layer_of(self) -> dict[str, str]:
        """Operator name -> layer name."""
        return {op: layer.name for layer in self.layers.values() for op in layer.ops}

    @cached_property
    def dag(self) -> nx.DiGraph:
        """The layers and the inputs as a directed acyclic graph; edges list their tensors."""
        dag = nx.DiGraph()
        for leaf in self.input_tensors:
            dag.add_node(INPUT, kind="input", tensors=[*dag.nodes.get(INPUT, {}).get("tensors", []), leaf.name])
        dag.add_nodes_from((name, {"kind": "layer", "layer": layer}) for name, layer in self.layers.items())
        for tensor in self.tensors.values():
            for consumer in tensor.consumers:
                if dag.has_edge(tensor.producer, consumer):
                    dag.edges[tensor.producer, consumer]["tensors"].append(tensor.name)
                else:
                    dag.add_edge(tensor.producer, consumer, tensors=[tensor.name])
        return dag

    @property
    def input_tensors(self) -> list[TensorSpec]:
        """The tensors that the caller gives."""
        return [tensor for tensor in self.tensors.values() if tensor.producer == INPUT]

    @property
    def stateful(self) -> bool:
        """Whether a call changes a buffer, so that the answer depends on the calls before."""
        return bool(self.mutated)

    @property
    def weight_nbytes(self) -> int:
        """Bytes of all weights, tied ones once."""
        return weights_nbytes(self.weights.values())

    @cached_property
    def fingerprint(self) -> str:
        """Names the structure: layers, operators with their arguments, shapes and dtypes; not the weights' values."""
        rows = [[node.name, str(node.target), repr(node.args), repr(node.kwargs)] for node in self.fx_graph.nodes]
        specs = [[t.name, list(t.shape), t.dtype, t.producer, t.returned] for t in self.tensors.values()]
        layers = [[layer.name, list(layer.ops)] for layer in self.layers.values()]
        text = json.dumps([rows, specs, layers])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def cuts(self) -> Iterator[Cut]:
        """Every place between two layers in the order of the graph, with what crosses there."""
        order = list(self.layers)
        position = {name: index for index, name in enumerate(order)} | {INPUT: -1}
        spans = [(position[t.producer], max(map(position.__getitem__, t.consumers), default=-1), t) for t in self.tensors.values()]
        groups = [(sorted(position[name] for name in group.layers), group.reason) for group in self.together]
        for index, name in enumerate(order[:-1]):
            crossing = [tensor for start, end, tensor in spans if start <= index < end]
            reason = next((why for places, why in groups if places[0] <= index < places[-1]), None)
            yield Cut(name, tuple(t.name for t in crossing), sum(t.nbytes for t in crossing), reason)

    def cut_after(self, layer: str) -> Cut:
        """The cut behind this layer. Raises CutError where it is not possible, with the reason."""
        for cut in self.cuts():
            if cut.after == layer:
                if cut.reason is not None:
                    raise CutError(f"cannot cut after '{layer}': {cut.reason}")
                return cut
        near = [name for name in self.layers if layer.rpartition(".")[2] in name][:3]
        raise CutError(f"no cut after '{layer}'; layers like it: {near or list(self.layers)[:3]}")

    def check_stages(self, stages: Sequence[Sequence[str]]) -> None:
        """Raise CutError unless every layer but heads of exits is in exactly one stage and data flows forward only."""
        stage_of: dict[str, int] = {INPUT: -1}
        for index, layers in enumerate(stages):
            for name in layers:
                if name not in self.layers:
                    raise CutError(f"stage {index} names a layer '{name}' that the model does not have")
                if name in stage_of:
                    raise CutError(f"layer '{name}' is in stage {stage_of[name]} and in stage {index}")
                stage_of[name] = index
        missing = [name for name in self.layers if name not in stage_of and name not in self.exits]
        if missing:
            raise CutError(f"{len(missing)} of {len(self.layers)} layers are in no stage, the first is '{missing[0]}'")
        for tensor in self.tensors.values():
            for consumer in tensor.consumers:
                if stage_of.get(consumer, len(stages)) < stage_of[tensor.producer]:
                    raise CutError(
                        f"'{consumer}' in stage {stage_of[consumer]} needs '{tensor.name}' of '{tensor.producer}' "
                        f"in the later stage {stage_of[tensor.producer]}: data flows forward only"
                    )
        for group in self.together:
            used = {stage_of[name] for name in group.layers if name in stage_of}
            if len(used) > 1:
                raise CutError(f"stages {sorted(used)} divide what must stay together: {group.reason}")

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The call's tensors by name, and its dynamic dimensions. Raises InputError where the call does not fit."""
        leaves, spec = pytree.tree_flatten((args, self._in_order(kwargs)))
        if spec != self.in_spec:
            raise InputError(f"the call's structure is {_describe(spec)}; the model was captured with {_describe(self.in_spec)}")
        tensors: dict[str, Tensor] = {}
        dimensions: dict[str, int] = {}
        for leaf, value in zip(self.inputs, leaves, strict=True):
            if leaf.tensor is None:
                if not _same(value, leaf.value):
                    raise InputError(f"{leaf.label} was fixed to {leaf.value!r} at capture; got {value!r}. Capture again for it.")
                continue
            if not isinstance(value, Tensor):
                raise InputError(f"{leaf.label} must be a tensor; got {type(value).__name__}")
            if leaf.tensor in self.tensors:
                tensors[leaf.tensor] = value
            self._check_shape(leaf, value, dimensions)
        return tensors, dimensions

    def _in_order(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments in the order of the sample: the pytree of a dict depends on it."""
        expected = list(self.example[1])
        if set(kwargs) != set(expected):
            raise InputError(f"keyword arguments {sorted(kwargs)}; the model was captured with {sorted(expected)}")
        return {name: kwargs[name] for name in expected}

    def _check_shape(self, leaf: InputLeaf, value: Tensor, dimensions: dict[str, int]) -> None:
        node = self.nodes[str(leaf.tensor)]
        fake: Tensor = node.meta["val"]
        if value.dtype != fake.dtype:
            raise InputError(f"{leaf.label} has dtype {value.dtype}; the model was captured with {fake.dtype}")
        if value.dim() != fake.dim():
            raise InputError(f"{leaf.label} has {value.dim()} dimensions; the model was captured with {fake.dim()}")
        for axis, (got, want) in enumerate(zip(value.shape, fake.shape, strict=True)):
            symbol = str(want)
            if isinstance(want, int):
                if got != want:
                    raise InputError(
                        f"{leaf.label} has size {got} in dimension {axis}; the model was captured with {want}. "
                        f"To let it vary, capture with dynamic_shapes."
                    )
                continue
            low, high = self.ranges.get(symbol, (0, 1 << 62))
            if not low <= got <= high:
                raise InputError(f"{leaf.label} has size {got} in dimension {axis}; allowed are {low} to {high}")
            if dimensions.setdefault(symbol, got) != got:
                raise InputError(f"{leaf.label} has size {got} in dimension {axis}; another input has {dimensions[symbol]} there")

    def __str__(self) -> str:
        return (
            f"{self.name}: {len(self.layers)} layers, {sum(len(layer.ops) for layer in self.layers.values())} operators, "
            f"{self.weight_nbytes / 1e6:.1f} MB of weights, {sum(cut.possible for cut in self.cuts())} of "
            f"{max(0, len(self.layers) - 1)} cuts possible"
        )


def weights_nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors; those that share memory count once."""
    return sum({(t.data_ptr(), t.nbytes): t.nbytes for t in tensors}.values())


def _same(value: object, fixed: object) -> bool:
    return type(value) is type(fixed) and bool(value == fixed)


def _describe(spec: pytree.TreeSpec) -> str:
    """The structure of a call as a person would write it."""
    return str(pytree.tree_unflatten(["*"] * spec.num_leaves, spec))
