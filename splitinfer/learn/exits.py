"""An early exit: a small trained head at a tensor, whose answer is taken where it is sure enough.

::

    stem --tensor--> body -> rest -> answer
            |
            `-> exit: pool, linear layers -> answer of its own, and a confidence per row

After BranchyNet (Teerapittayanon, McDanel and Kung, ICPR 2016) and its distributed form (DDNN, ICDCS 2017). The head is
distilled from the model's own output, so that it needs no labels: what counts at run time is whether it says what the
model would have said. The model's weights stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import torch
from torch import Tensor, fx

from splitinfer.errors import CutError, PlanError
from splitinfer.graph import Graph, TensorSpec
from splitinfer.learn import files
from splitinfer.learn.editing import GraphEditor, LayerWriter
from splitinfer.learn.halves import checked, fits
from splitinfer.plans import INPUT, PlannedExit

CONFIDENCES = ("softmax", "entropy")
WEIGHTS = ("inner_weight", "inner_bias", "outer_weight", "outer_bias")
_FACTS: dict[str, type | tuple[type, ...]] = {
    "fingerprint": str, "digest": str, "tensor": str, "output": str, "grid": int, "confidence": str,
    "first_loss": float, "last_loss": float,
}  # fmt: skip


@dataclass(frozen=True)
class ExitHead:
    """A trained head for one tensor of one model. Made by ``learn.train_exit``."""

    fingerprint: str
    """Of the graph that it was trained for."""
    digest: str
    """Of the weights of that graph."""
    tensor: str
    """What it reads."""
    output: str
    """The model's output that its answer stands for."""
    grid: int
    """Maps are averaged to grid x grid places; 0: no map."""
    confidence: str
    """"softmax": the largest probability; "entropy": 1 minus the entropy over its largest value."""
    first_loss: float
    """Kullback-Leibler divergence from the model's answers before training."""
    last_loss: float
    inner_weight: Tensor
    """(hidden, features) float32; what the samples' mean and spread are is part of it."""
    inner_bias: Tensor
    """(hidden,)"""
    outer_weight: Tensor
    """(classes, hidden)"""
    outer_bias: Tensor
    """(classes,)"""

    @property
    def layer(self) -> str:
        """The name of its layer in a graph that it is applied to."""
        return f"exit.{self.tensor}"

    def planned(self, graph: Graph, threshold: float, reach: float = 1.0) -> PlannedExit:
        """The exit for a plan; `graph` is one that the head is applied to. See ``Plan.exits`` for the numbers."""
        if self.layer not in graph.layers:
            raise CutError(f"{graph.name} has no layer '{self.layer}'; apply the exit to it first")
        answer, confidence = (tensor.name for tensor in graph.tensors.values() if tensor.producer == self.layer)
        return PlannedExit(self.layer, answer, confidence, self.output, threshold, reach)

    def write(self, editor: GraphEditor) -> None:
        """Add its layer to a graph that is being edited."""
        spec = editor.graph.tensors[self.tensor]
        dtype = getattr(torch, spec.dtype)
        aten = torch.ops.aten
        layer = editor.layer(self.layer, self.tensor, [spec.producer])
        inner = self._linear(layer, _pooled(layer, self.grid), "inner", dtype)
        answer = self._linear(layer, layer.call(aten.relu.default, inner), "outer", dtype, name=f"{self.layer}.answer")
        if self.confidence == "softmax":
            confidence = layer.call(aten.amax.default, layer.call(aten.softmax.int, answer, -1), [-1], name=f"{self.layer}.confidence")
        else:
            logs = layer.call(aten.log_softmax.int, answer, -1)
            terms = layer.call(aten.mul.Tensor, layer.call(aten.exp.default, logs), logs)
            sums = layer.call(aten.sum.dim_IntList, terms, [-1])
            scaled = layer.call(aten.div.Scalar, sums, math.log(len(self.outer_bias)))
            confidence = layer.call(aten.add.Scalar, scaled, 1.0, name=f"{self.layer}.confidence")
        layer.done([answer, confidence], returned=True)
        editor.keep_together([spec.producer, self.layer], "an early exit runs where the tensor is made that it reads")
        editor.exits.append(self.layer)

    def _linear(self, layer: LayerWriter, source: fx.Node, part: str, dtype: torch.dtype, name: str = "") -> fx.Node:
        weight = layer.weight(f"{part}_weight", getattr(self, f"{part}_weight").to(dtype))
        bias = layer.weight(f"{part}_bias", getattr(self, f"{part}_bias").to(dtype))
        return layer.call(torch.ops.aten.linear.default, source, weight, bias, name=name)

    def save(self, path: str | Path) -> None:
        """Write the head's file (docs/learned-compression.md)."""
        files.save(self.pack(), path)

    def pack(self) -> bytes:
        """The file's bytes."""
        facts = {key: getattr(self, key) for key in _FACTS}
        return files.pack("exit", facts, {name: getattr(self, name) for name in WEIGHTS})

    @staticmethod
    def load(path: str | Path) -> ExitHead:
        """Read a head's file; runs no code of it. Raises PlanError, which says what is wrong."""
        return ExitHead.unpack(files.load(path, "exit"), path)

    @staticmethod
    def unpack(data: bytes, path: str | Path) -> ExitHead:
        """A head from its file's bytes; `path` is for errors, which are those of `load`."""
        made = ExitHead(**files.unpack(data, "exit", _FACTS, WEIGHTS, path))
        shapes = [tuple(getattr(made, name).shape) for name in WEIGHTS]
        hidden, classes = made.inner_bias.numel(), made.outer_bias.numel()
        fit = made.inner_weight.dim() == 2 and shapes == [(hidden, shapes[0][1]), (hidden,), (classes, hidden), (classes,)]
        if not fit or {getattr(made, name).dtype for name in WEIGHTS} != {torch.float32}:
            raise PlanError(f"malformed exit {path}: weights of shapes {shapes}")
        if made.confidence not in CONFIDENCES or not 0 <= made.grid <= 64:
            raise PlanError(f"malformed exit {path}: confidence {made.confidence!r}, grid {made.grid}")
        return made

    def __str__(self) -> str:
        return (
            f"exit at '{self.tensor}': {self.inner_weight.shape[1]} features, {len(self.inner_bias)} hidden, {len(self.outer_bias)} "
            f"classes; divergence {self.first_loss:.3g} untrained, {self.last_loss:.3g} trained"
        )


def apply_exits(graph: Graph, heads: Iterable[ExitHead]) -> Graph:
    """The graph with a layer for each head. Which of them end a request, and when, is the plan's: ``Plan.exits``.

    Raises CutError for a head of another graph, or two at tensors of one layer.
    """
    heads = list(heads)
    producers = [graph.tensors[head.tensor].producer for head in heads if head.tensor in graph.tensors]
    if len(set(producers)) < len(producers):
        raise CutError(f"two exits read tensors of one layer: {[head.tensor for head in heads]}; one of them is enough")
    editor = GraphEditor(graph)
    for head in heads:
        fits(graph, head.fingerprint, head.digest, f"the exit at '{head.tensor}'")
        output = output_of(graph, checked(graph, head.tensor))
        check_waist(graph, head.tensor, head.grid)
        if head.output != output.name or len(head.outer_bias) != output.shape[1]:
            classes = len(head.outer_bias)
            raise CutError(f"the exit at '{head.tensor}' stands for '{head.output}' of {classes} classes; {graph.name} has none")
        if head.inner_weight.shape[1] != _features(graph.tensors[head.tensor], head.grid):
            raise CutError(f"the exit at '{head.tensor}' has weights for {head.inner_weight.shape[1]} features, which it does not have")
        head.write(editor)
    return editor.finish()


def in_order(graph: Graph, heads: Iterable[ExitHead]) -> list[ExitHead]:
    """The heads in the order in which a request meets them."""
    order = list(graph.tensors)
    return sorted(heads, key=lambda head: order.index(head.tensor))


# -- what is possible


def output_of(graph: Graph, tensor: str) -> TensorSpec:
    """The model's only tensor result, if it is one that a head can stand for."""
    results = [leaf.name for leaf in graph.outputs if leaf.kind == "tensor"]
    spec = graph.tensors.get(results[0]) if len(results) == 1 else None
    if spec is None:
        raise CutError(f"{graph.name} returns {len(results)} tensors {results}; an early exit stands for a single one")
    source = graph.tensors[tensor]
    if len(spec.shape) != 2 or not isinstance(spec.shape[1], int) or spec.shape[1] < 2 or spec.dtype != source.dtype:
        wanted = f"an exit at '{tensor}' needs {source.dtype} (batch, classes)"
        raise CutError(f"{graph.name} returns '{spec.name}' {spec.dtype} {spec.shape}; {wanted}")
    if not source.shape or source.shape[0] != spec.shape[0]:
        raise CutError(f"the rows of '{tensor}' {source.shape} are not those of the answer {spec.shape}")
    return spec


def check_waist(graph: Graph, tensor: str, grid: int) -> int:
    """Raise CutError unless all that runs behind the tensor depends on it and on nothing else but inputs; the grid used.

    Then a taken exit spares everything behind it, and what is spared is what the planner counts as spared.
    """
    spec = graph.tensors[tensor]
    if spec.producer == INPUT:
        raise CutError(f"'{tensor}' is the model's input; an exit reads what a layer made")
    later = set(spec.consumers).union(*(nx.descendants(graph.dag, name) for name in spec.consumers))
    for other in graph.tensors.values():
        if other.name != tensor and other.producer not in {INPUT, *later} and (later & set(other.consumers) or other.returned):
            raise CutError(
                f"an exit at '{tensor}' is not possible: '{other.name}' passes it by. Take a tensor that is the only way, "
                f"such as a block's output."
            )
    for group in graph.together:
        if group.layers & later and not group.layers <= later:
            raise CutError(f"an exit at '{tensor}' is not possible: {group.reason}")
    rank = len(spec.shape)
    fixed = spec.shape[1:] if rank == 4 else spec.shape[-1:]
    if rank not in (2, 3, 4) or not all(isinstance(size, int) for size in fixed):
        raise CutError(f"an exit reads maps, sequences and matrices of fixed width; '{tensor}' is {spec.shape}")
    return max(1, min(grid, *(int(size) for size in spec.shape[2:]))) if rank == 4 else 0


def _features(spec: TensorSpec, grid: int) -> int:
    return int(spec.shape[1]) * grid * grid if len(spec.shape) == 4 else int(spec.shape[-1])


def _pooled(layer: LayerWriter, grid: int) -> fx.Node:
    aten = torch.ops.aten
    rank = layer.source.meta["val"].dim()
    if rank == 4:
        return layer.call(aten.flatten.using_ints, layer.call(aten.adaptive_avg_pool2d.default, layer.source, [grid, grid]), 1)
    return layer.call(aten.mean.dim, layer.source, [1]) if rank == 3 else layer.source
