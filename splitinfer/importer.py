"""``nn.Module`` + sample call -> :class:`~splitinfer.graph.Graph`; the model is not edited."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Literal

import networkx as nx
import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import ExportGraphSignature, InputKind, OutputKind
from torch.utils import _pytree as pytree

from splitinfer.codecs.block import dtype_name
from splitinfer.errors import CaptureError
from splitinfer.graph import Graph, InputLeaf, Layer, OutputLeaf, TensorSpec, Together, weights_nbytes
from splitinfer.operators import Run, is_getitem, is_random, layer_names, module_path
from splitinfer.plans import INPUT
from splitinfer.program import batch_shapes, functional_program
from splitinfer.sizes import SYMBOLIC, evaluate

_MUTATIONS = {OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION}


def capture(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    *,
    granularity: Literal["module", "op"] = "module",
) -> Graph:
    """Capture a model in evaluation mode with one sample call.

    `args` and `kwargs` are the sample; any nesting of tensors, numbers and None that ``torch.export`` takes.
    `dynamic_shapes` is that of ``torch.export.export`` (``{"images": {0: Dim("batch")}}``), or ``"batch"``: the first
    dimension of every tensor argument varies together. `granularity` "op" makes each operator a layer of its own.

    Raises CaptureError, which names the module and the reason: training mode, random operators, inputs that the model
    writes to, control flow that depends on data, a sample that the model itself does not take.
    """
    kwargs = dict(kwargs or {})
    _refuse_training(model)
    if isinstance(dynamic_shapes, str):
        if dynamic_shapes != "batch":
            raise CaptureError(f"dynamic_shapes is 'batch' or what torch.export takes; got '{dynamic_shapes}'")
        dynamic_shapes = batch_shapes(args, kwargs)
    program = functional_program(model, args, kwargs, dynamic_shapes)
    return _Importer(model, program, (args, kwargs)).graph(granularity)


def _refuse_training(model: nn.Module) -> None:
    names = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if names:
        raise CaptureError(f"the model is in training mode ({', '.join(names[:3])}{', ...' if names[3:] else ''}); call model.eval()")


class _Importer:
    """Turns one exported program into a Graph."""

    def __init__(
        self, model: nn.Module, program: torch.export.ExportedProgram, example: tuple[tuple[Any, ...], dict[str, Any]]
    ) -> None:
        self.model, self.program, self.example = model, program, example
        self.signature: ExportGraphSignature = program.graph_signature
        self.nodes: dict[str, fx.Node] = {node.name: node for node in program.graph.nodes}
        self.weight_of = self._weight_names()
        self.mutated = self._mutations()
        self.dynamic = _symbols(program)
        self.live = self._live()
        self.constant = self._constants()

    def graph(self, granularity: str) -> Graph:
        self._refuse_random()
        runs = self._runs(granularity)
        names = layer_names(runs, granularity)
        weights = self._weights()
        layers = {name: self._layer(name, run, weights) for name, run in zip(names, runs, strict=True)}
        layer_of = {op: layer.name for layer in layers.values() for op in layer.ops}
        tensors, alone = self._tensors(layers, layer_of)
        used = {weight for layer in layers.values() for weight in layer.weights}
        in_spec, out_spec = self.program.call_spec.in_spec, self.program.call_spec.out_spec
        assert in_spec is not None and out_spec is not None  # torch.export always records them
        return Graph(
            fx_graph=self.program.graph, owner=self.program.graph_module,
            weights={name: tensor for name, tensor in weights.items() if name in used},
            weight_nodes=self.weight_of, layers=layers, tensors=tensors, inputs=self._inputs(), outputs=self._outputs(),
            in_spec=in_spec, out_spec=out_spec,
            together=self._together(layers, layer_of, tensors, alone), mutated=self.mutated, example=self.example,
            ranges={str(symbol): _bounds(limits) for symbol, limits in self.program.range_constraints.items()},
            name=type(self.model).__name__,
        )

    # -- what the program's placeholders and outputs mean

    def _weight_names(self) -> dict[str, str]:
        """Placeholder name -> name of the parameter, buffer or constant."""
        kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
        found = {}
        for spec in self.signature.input_specs:
            if spec.kind in kinds:
                found[spec.arg.name] = str(spec.target)
            elif spec.kind != InputKind.USER_INPUT:
                raise CaptureError(f"the model holds '{spec.target}' ({spec.kind.name.lower()}), which cannot be moved to another machine")
        return found

    def _mutations(self) -> dict[str, str]:
        found = {}
        for spec in self.signature.output_specs:
            if spec.kind in _MUTATIONS:
                found[str(spec.target)] = spec.arg.name
            elif spec.kind != OutputKind.USER_OUTPUT:
                raise CaptureError(f"the model writes to its input '{spec.target}'; write to a copy (x = x.clone()) instead")
        return found

    def _weights(self) -> dict[str, Tensor]:
        """Every weight by name; a mutated buffer is copied so that a stage's state is its own."""
        held: dict[str, Any] = {**self.program.constants, **self.program.state_dict}
        return {
            name: held[name].detach().clone() if name in self.mutated else held[name]
            for name in self.weight_of.values()
            if isinstance(held.get(name), Tensor)
        }

    # -- which operators count

    def _live(self) -> set[fx.Node]:
        """Operators that an output or a buffer depends on; assertions about sizes are checked at the call instead."""
        output = next(iter(reversed(self.program.graph.nodes)))
        live: set[fx.Node] = set()
        pending = list(output.all_input_nodes)
        while pending:
            node = pending.pop()
            if node not in live:
                live.add(node)
                pending += node.all_input_nodes
        return live

    def is_size(self, node: fx.Node) -> bool:
        """Whether the node's value follows from the dynamic dimensions of the inputs."""
        value = node.meta.get("val")
        return isinstance(value, SYMBOLIC) and {str(s) for s in value.node.expr.free_symbols} <= self.dynamic

    def _constants(self) -> set[fx.Node]:
        """Operators that depend on no input and no changing buffer; those that are returned stay in a layer."""
        found: set[fx.Node] = set()
        returned = {spec.arg.name for spec in self.signature.output_specs if hasattr(spec.arg, "name")}
        for node in self.program.graph.nodes:
            if node.op == "get_attr":
                found.add(node)
            elif node.op == "placeholder":
                if node.name in self.weight_of and self.weight_of[node.name] not in self.mutated:
                    found.add(node)
            elif (
                node.op == "call_function" and node.name not in returned
                and all(parent in found or self.is_size(parent) for parent in node.all_input_nodes)
            ):
                found.add(node)
        return found

    def _compute_nodes(self) -> Iterable[fx.Node]:
        for node in self.program.graph.nodes:
            if node.op == "call_function" and node in self.live and node not in self.constant and not self.is_size(node):
                yield node

    def _refuse_random(self) -> None:
        for node in self.program.graph.nodes:
            if node in self.live and is_random(node):
                raise CaptureError(
                    f"module '{module_path(node)[0] or type(self.model).__name__}' uses the random operator {node.target}; "
                    f"its answers could not be compared. Pass the noise as an input, or make it conditional on self.training."
                )

    # -- layers

    def _runs(self, granularity: str) -> list[Run]:
        runs: list[Run] = []
        run_of: dict[fx.Node, Run] = {}
        last: object = None
        for node in self._compute_nodes():
            parent = node.all_input_nodes[0] if node.all_input_nodes else None
            if is_getitem(node) and parent in run_of:  # a part of a tuple stays with its operator
                run = run_of[parent]
            else:
                path, call = module_path(node)
                if granularity == "op" or call != last:
                    runs.append(Run(path))
                run, last = runs[-1], call
            run.nodes.append(node)
            run_of[node] = run
        if not runs:
            raise CaptureError("the model computes nothing from its inputs")
        return runs

    def _layer(self, name: str, run: Run, weights: Mapping[str, Tensor]) -> Layer:
        found: dict[str, None] = {}
        pending = list(run.nodes)
        seen: set[fx.Node] = set()
        while pending:
            node = pending.pop()
            for parent in node.all_input_nodes:
                if parent.name in self.weight_of:
                    found[self.weight_of[parent.name]] = None
                elif parent in self.constant and parent not in seen:
                    seen.add(parent)
                    pending.append(parent)
        mine = {node.name for node in run.nodes}
        found.update({buffer: None for buffer, op in self.mutated.items() if op in mine})
        nbytes = weights_nbytes(weights[weight] for weight in found)
        return Layer(name, run.module, tuple(node.name for node in run.nodes), tuple(found), nbytes)

    # -- tensors between layers

    def _tensors(self, layers: Mapping[str, Layer], layer_of: Mapping[str, str]) -> tuple[dict[str, TensorSpec], list[str]]:
        """Tensors that leave their layer, and the names of the values among them that are not tensors."""
        position = {name: index for index, name in enumerate(layers)}
        results = [spec.arg for spec in self.signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
        returned = {result.name for result in results if hasattr(result, "name")}
        tensors, alone = {}, []
        for node in self.program.graph.nodes:
            is_input = node.op == "placeholder" and node.name not in self.weight_of
            if not is_input and node.name not in layer_of:
                continue
            producer = INPUT if is_input else layer_of[node.name]
            users = {layer_of[user.name] for user in node.users if user.name in layer_of} - {producer}
            if not users and not (node.name in returned or is_input):
                continue
            value = node.meta.get("val")
            if not isinstance(value, Tensor):
                if users:
                    alone.append(node.name)
                if is_input or not users:
                    continue
            tensors[node.name] = self._tensor(node, producer, sorted(users, key=position.__getitem__), node.name in returned)
        return tensors, alone

    def _tensor(self, node: fx.Node, producer: str, consumers: list[str], returned: bool) -> TensorSpec:
        value = node.meta["val"]
        if not isinstance(value, Tensor):
            return TensorSpec(node.name, producer, tuple(consumers), (), (), type(value).__name__, 0, returned)
        shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
        sample = self._sample_shape(node)
        count = 1
        for size in sample:
            count *= size
        return TensorSpec(
            node.name, producer, tuple(consumers), shape, sample, dtype_name(value.dtype), count * value.dtype.itemsize, returned
        )

    def _sample_shape(self, node: fx.Node) -> tuple[int, ...]:
        known = self._sample_dimensions
        sizes = node.meta["val"].shape
        if all({str(s) for s in size.node.expr.free_symbols} <= known.keys() for size in sizes if not isinstance(size, int)):
            return tuple(int(evaluate(size, known)) for size in sizes)
        return self._observed_shapes[node.name]  # a size that follows from data is known only after a run

    @cached_property
    def _observed_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor when the program runs on the sample."""
        shapes: dict[str, tuple[int, ...]] = {}

        class Observer(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                result = super().run_node(n)
                if isinstance(result, Tensor):
                    shapes[n.name] = tuple(result.shape)
                return result

        weights, leaves = self._weights(), iter(pytree.tree_leaves(self.example))
        with torch.no_grad():
            Observer(self.program.graph_module).run(
                *(weights[self.weight_of[spec.arg.name]] if spec.arg.name in self.weight_of else next(leaves)
                  for spec in self.signature.input_specs)
            )
        return shapes

    @cached_property
    def _sample_dimensions(self) -> dict[str, int]:
        """Dynamic dimension -> its size in the sample that the user gave (not the widened one)."""
        leaves = pytree.tree_leaves(self.example)
        found: dict[str, int] = {}
        for spec, leaf in zip(self._user_specs(), leaves, strict=True):
            if isinstance(leaf, Tensor) and hasattr(spec.arg, "name"):
                value = self._node(spec.arg.name).meta["val"]
                found |= {str(want): got for got, want in zip(leaf.shape, value.shape, strict=True) if not isinstance(want, int)}
        return found

    def _together(
        self, layers: Mapping[str, Layer], layer_of: Mapping[str, str], tensors: Mapping[str, TensorSpec], alone: list[str]
    ) -> tuple[Together, ...]:
        dag = nx.DiGraph((t.producer, consumer) for t in tensors.values() for consumer in t.consumers)
        dag.add_nodes_from(layers)
        groups = []
        for buffer, op in self.mutated.items():
            users = {name for name, layer in layers.items() if buffer in layer.weights}
            users |= {layer_of[op]} if op in layer_of else set()
            groups.append((users, f"buffer '{buffer}' changes at every call and lives in one stage"))
        for name in alone:
            spec = tensors[name]
            groups.append(({spec.producer, *spec.consumers}, f"'{name}' of '{spec.producer}' is a number computed from data, not a tensor"))
        return tuple(Together(_convex(dag, users), reason) for users, reason in groups if len(users) > 1)

    # -- the call

    def _user_specs(self) -> list[Any]:
        return [spec for spec in self.signature.input_specs if spec.kind == InputKind.USER_INPUT]

    def _node(self, name: str) -> fx.Node:
        return self.nodes[name]

    def _inputs(self) -> tuple[InputLeaf, ...]:
        paths = pytree.tree_flatten_with_path(self.example)[0]
        leaves = []
        for spec, (path, value) in zip(self._user_specs(), paths, strict=True):
            label = ("args" if path[0] == pytree.SequenceKey(0) else "kwargs") + pytree.keystr(path[1:])
            leaves.append(InputLeaf(label, spec.arg.name) if isinstance(value, Tensor) else InputLeaf(label, None, value))
        return tuple(leaves)

    def _outputs(self) -> tuple[OutputLeaf, ...]:
        leaves = []
        for spec in self.signature.output_specs:
            if spec.kind != OutputKind.USER_OUTPUT:
                continue
            if not hasattr(spec.arg, "name") or hasattr(spec.arg, "value"):
                leaves.append(OutputLeaf("value", value=getattr(spec.arg, "value", None)))
            elif self.is_size(self._node(spec.arg.name)):
                leaves.append(OutputLeaf("size", spec.arg.name))
            else:
                leaves.append(OutputLeaf("tensor", spec.arg.name))
        return tuple(leaves)


def _symbols(program: torch.export.ExportedProgram) -> set[str]:
    """The dynamic dimensions that some input has as a dimension of its own."""
    found = set()
    for node in program.graph.nodes:
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor):
            found |= {str(size) for size in node.meta["val"].shape if isinstance(size, torch.SymInt) and size.node.expr.is_symbol}
    return found


def _bounds(limits: Any) -> tuple[int, int]:
    largest = 1 << 62
    return int(limits.lower), int(limits.upper) if limits.upper < largest else largest


def _convex(dag: nx.DiGraph, members: set[str]) -> frozenset[str]:
    """The members and every layer on a path between two of them: what one stage must then hold."""
    after = set().union(*(nx.descendants(dag, name) for name in members))
    before = set().union(*(nx.ancestors(dag, name) for name in members))
    return frozenset(members | (after & before))
