"""From the whole inputs of a run of layers to the layout of every tensor in it, by one rule per operator.

An operator with weights and a whole input is a *seed*: it divides its output channels and opens an axis, at first with
one unit per channel. Rules downstream coarsen the units (a view into heads), merge axes (gate times up), or take another
dimension of a view. Each such wish takes the propagation back to the seeds concerned; units only get coarser and axes
fewer, so it ends. A seed whose axis would be left with one unit stays whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from splitinfer.graph import Graph
from splitinfer.shards import matrix_rules, view_rules  # noqa: F401  they register rules
from splitinfer.shards.layouts import WHOLE, Cut, First, LayoutOf, Partial, Placed, Split
from splitinfer.shards.plain_rules import elementwise, is_elementwise, moved_sum
from splitinfer.shards.rules import RULES, Ban, Call, Drop, Merge, NoRule, Refine, op_name
from splitinfer.sizes import evaluate

_PRIMES = (1000003, 1000033, 1000037, 1000039, 1000081, 1000099, 1000117, 1000121, 1000133, 1000151, 1000159, 1000171)
"""They stand for dynamic dimensions, so that sizes are plain numbers with products that tell them apart."""
_SEEDS = {"linear", "addmm", "mm", "matmul", "conv1d", "conv2d", "conv3d", "convolution"}
ATTENTION = {"scaled_dot_product_attention", "softmax", "_softmax"}


class Shapes:
    """Sizes of a graph's tensors as plain numbers; dynamic dimensions are primes."""

    def __init__(self) -> None:
        self._primes: dict[str, int] = defaultdict(lambda: _PRIMES[len(self._primes) % len(_PRIMES)])
        self._known: dict[str, tuple[int, ...]] = {}

    def __call__(self, node: fx.Node) -> tuple[int, ...]:
        """Sizes of a tensor."""
        if node.name not in self._known:
            self._known[node.name] = tuple(int(evaluate(size, self._primes)) for size in node.meta["val"].shape)
        return self._known[node.name]


@dataclass(frozen=True)
class Axis:
    """A set of units that shares divide."""

    name: str
    """The operator that opened it."""
    units: int
    outer: int
    inner: int
    """Of the output channels of that operator."""
    heads: int = 0
    """Heads of the attention that it divides; 0 where there is none."""


@dataclass(frozen=True)
class Propagated:
    """The outcome."""

    placed: tuple[Placed, ...]
    """In the order of the graph."""
    axes: tuple[Axis, ...]
    """In the order in which they appear."""
    reasons: dict[str, str]
    """Operator that takes whole inputs although some are divided, or stays whole although it has channels -> why."""


def constants(graph: Graph) -> frozenset[str]:
    """Operators and placeholders that depend on no input: weights and what is computed from them."""
    known = set()
    inputs = {leaf.tensor for leaf in graph.inputs}
    for node in graph.fx_graph.nodes:
        weight = node.op == "placeholder" and node.name in graph.weight_nodes and graph.weight_nodes[node.name] not in graph.mutated
        derived = node.op == "call_function" and node.name not in graph.layer_of and node.name not in inputs
        if weight or node.op == "get_attr" or (derived and isinstance(node.meta.get("val"), Tensor)):
            known.add(node.name)
    return frozenset(known)


def propagate(graph: Graph, layers: Sequence[str], *, attention: bool) -> Propagated:
    """Layouts of a run of layers whose inputs are whole; `attention` lets heads be divided."""
    ops = {op for layer in layers for op in graph.layers[layer].ops}
    nodes = [node for node in graph.fx_graph.nodes if node.name in ops]
    return _Propagation(graph, nodes, attention, set(leaving(graph, layers))).run()


def leaving(graph: Graph, layers: Iterable[str]) -> tuple[str, ...]:
    """Tensors of these layers that others, or the caller, use."""
    inside = set(layers)
    return tuple(
        tensor.name
        for tensor in graph.tensors.values()
        if tensor.producer in inside and (tensor.returned or any(consumer not in inside for consumer in tensor.consumers))
    )


class _Propagation:
    def __init__(self, graph: Graph, nodes: Sequence[fx.Node], attention: bool, outputs: set[str]) -> None:
        self.nodes, self.attention, self.outputs = nodes, attention, outputs
        self.order = {node.name: place for place, node in enumerate(nodes)}
        self.shape = Shapes()
        self.constants = constants(graph)
        self.placed: list[Placed] = []
        self.layouts: dict[str, LayoutOf] = {}
        self.axes: dict[str, tuple[str, int, int, int]] = {}
        """Seed -> axis, outer, units, inner."""
        self.dropped: dict[str, str] = {}
        self.banned: set[tuple[str, int]] = set()
        self.gathered: dict[str, str] = {}
        """Divided tensor -> the first operator that takes it whole."""
        self.reasons: dict[str, str] = {}
        self.heads: dict[str, int] = {}

    def run(self) -> Propagated:
        while True:
            try:
                for node in self.nodes[len(self.placed) :]:
                    self.placed.append(self._place(node))
                    self.layouts[node.name] = self.placed[-1].layout
                self._check_gathers()
                return self._propagated()
            except Refine as wish:
                self._back(self._seeds(wish.axis))
                self._refine(wish)
            except Merge as wish:
                self._back(self._seeds(wish.one) + self._seeds(wish.two))
                self._rename(wish.two, wish.one)
            except Drop as wish:
                self._back(self._seeds(wish.axis))
                self._drop(wish.axis, wish.reason)
            except Ban as wish:
                self.banned.add(wish.choice)
                self._back([node.name for node in self.nodes[:1]])
                self.axes, self.dropped = {}, {}  # what the choice had coarsened

    def _propagated(self) -> Propagated:
        used = dict.fromkeys(axis for entry in self.placed for axis in _axes_of(entry.layout))
        first = [next(entry for entry in self.axes.values() if entry[0] == axis) for axis in used]
        axes = tuple(Axis(name, units, outer, inner, self.heads.get(name, 0)) for name, outer, units, inner in first)
        return Propagated(tuple(self.placed), axes, self.reasons)

    def _seeds(self, axis: str) -> list[str]:
        return [seed for seed, entry in self.axes.items() if entry[0] == axis]

    def _back(self, seeds: Sequence[str]) -> None:
        """Forget everything from the first of these operators on."""
        start = min(self.order[seed] for seed in seeds)
        gone = {node.name for node in self.nodes[start:]}
        self.placed = self.placed[:start]
        for facts in (self.layouts, self.reasons):
            for name in gone & facts.keys():
                del facts[name]
        self.gathered = {name: by for name, by in self.gathered.items() if by not in gone}

    # -- what rules ask

    def seed(self, node: fx.Node, dim: int, size: int, inner: int = 1) -> Split:
        """The output of a seed."""
        if node.name in self.dropped:
            raise NoRule(self.dropped[node.name])
        axis, outer, units, inner = self.axes.setdefault(node.name, (node.name, 1, size // inner, inner))
        if units < 2:
            raise NoRule("it has one unit, which cannot be divided")
        return Split(axis, dim, outer, units, inner)

    def constant(self, node: fx.Node) -> bool:
        """Whether it depends on no input."""
        return node.name in self.constants

    # -- one operator

    def _place(self, node: fx.Node) -> Placed:
        name = op_name(node)
        touched = any(self.layouts.get(value.name, WHOLE) != WHOLE for value in node.all_input_nodes)
        if not touched and name not in _SEEDS:
            return Placed(node, WHOLE, node.target, node.args, node.kwargs)
        call = Call(node, self)
        try:
            placed = moved_sum(call) or self._by_rule(call)
        except NoRule as why:
            self.reasons[node.name] = f"{name}: {why}"
            for value in node.all_input_nodes:
                self.gathered.setdefault(value.name, node.name)
            return Placed(node, WHOLE, node.target, node.args, node.kwargs)
        if name in ATTENTION and isinstance(placed.layout, Split):
            self.heads.setdefault(placed.layout.axis, placed.layout.size)
        return placed

    def _by_rule(self, call: Call) -> Placed:
        divided = any(call.split(value) or isinstance(call.layout(value), tuple) for value in call.node.all_input_nodes)
        if call.name in RULES and (divided or call.name in _SEEDS):
            return RULES[call.name](call)
        if divided and is_elementwise(call.node):
            return elementwise(call)
        raise NoRule("its input is whole only after a sum over the workers" if not divided else "no rule for this operator")

    def _check_gathers(self) -> None:
        """A divided tensor that is gathered must consist of blocks whose number is known. Raises Drop otherwise."""
        for entry in self.placed:
            for node in [*whole_uses(entry), *([entry.node] if entry.node.name in self.outputs else [])]:
                layout = self.layouts.get(node.name, WHOLE)
                if isinstance(layout, Split) and not isinstance(node.meta["val"].shape[layout.dim], int):
                    raise Drop(layout.axis, "its parts are mixed with a dimension that varies")

    # -- wishes

    def _refine(self, wish: Refine) -> None:
        factor = wish.outer * wish.inner
        for seed, (axis, outer, units, inner) in list(self.axes.items()):
            if axis != wish.axis:
                continue
            if units % factor or units // factor < 2:
                self._drop(axis, f"its {units} channels cannot be divided into units of {factor}")
                return
            self.axes[seed] = axis, outer * wish.outer, units // factor, inner * wish.inner

    def _drop(self, axis: str, reason: str) -> None:
        """The seeds of an axis stay whole."""
        for seed, entry in list(self.axes.items()):
            if entry[0] == axis:
                del self.axes[seed]
                self.dropped[seed] = reason

    def _rename(self, old: str, new: str) -> None:
        for seed, (axis, *rest) in list(self.axes.items()):
            if axis == old:
                self.axes[seed] = (new, *rest)  # type: ignore[assignment]


def _axes_of(layout: LayoutOf) -> list[str]:
    if isinstance(layout, tuple):
        return [axis for part in layout for axis in _axes_of(part)]
    return [layout.axis] if isinstance(layout, Split | Partial) else []


def whole_uses(placed: Placed) -> list[fx.Node]:
    """The inputs that an operator takes whole."""
    found: list[fx.Node] = []

    def walk(value: Any) -> None:
        if isinstance(value, fx.Node):
            found.append(value)
        elif isinstance(value, Cut):
            found.append(value.node)
        elif isinstance(value, First):
            walk(value.value)
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)
        elif isinstance(value, dict):
            walk(list(value.values()))

    walk((placed.args, placed.kwargs))
    return found
