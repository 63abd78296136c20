"""What learning needs of a captured model: its samples in batches, and the model divided at one tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
import xxhash
from torch import Tensor

from splitinfer.errors import CutError, InputError
from splitinfer.graph import Graph
from splitinfer.learn.calibrate import as_call
from splitinfer.sizes import sizes_at
from splitinfer.stagefile import dump_stage, load_stage
from splitinfer.stages import Stage, carve


@dataclass(frozen=True)
class Batch:
    """Some samples as one call."""

    tensors: Mapping[str, Tensor]
    dimensions: Mapping[str, int]
    labels: Tensor | None


class Samples:
    """The user's samples, bound to the graph's inputs; those that fit are joined along a dynamic batch."""

    def __init__(self, graph: Graph, samples: Iterable[Any], labels: Sequence[int] | Tensor | None = None) -> None:
        """Raises InputError for no samples, for one that does not fit the graph, or a wrong number of labels."""
        self.graph = graph
        self.bound = [graph.bind(*as_call(sample)) for sample in samples]
        if not self.bound:
            raise InputError("learning needs samples; a few hundred make a good start")
        rows = [next((len(t) for t in tensors.values() if t.dim()), 1) for tensors, _ in self.bound]
        self.labels: list[Tensor] | None = None
        if labels is not None:
            flat = torch.as_tensor(labels).reshape(-1)
            if len(flat) != sum(rows):
                raise InputError(f"{len(flat)} labels for {sum(rows)} rows of samples; each row needs one")
            self.labels = list(torch.split(flat, rows))
        symbols = {spec.shape[0] if spec.shape else None for spec in graph.input_tensors}
        symbol = next(iter(symbols)) if len(symbols) == 1 else None
        self._batch = symbol if isinstance(symbol, str) else None

    def __len__(self) -> int:
        return len(self.bound)

    def batches(self, chosen: Sequence[int]) -> list[Batch]:
        """The chosen samples, as few calls as their shapes allow."""
        groups: dict[Any, list[int]] = {}
        for index in chosen:
            tensors, _ = self.bound[index]
            shapes = tuple((name, tuple(tensor.shape[1:])) for name, tensor in tensors.items())
            groups.setdefault(shapes if self._batch else index, []).append(index)
        return [self._joined(group) for group in groups.values()]

    def all(self, most: int = 64) -> list[Batch]:
        """Every sample once, in order, at most so many joined."""
        places = range(len(self.bound))
        return [batch for start in range(0, len(places), most) for batch in self.batches(places[start : start + most])]

    def _joined(self, group: Sequence[int]) -> Batch:
        labels = torch.cat([self.labels[index] for index in group]) if self.labels else None
        tensors, dimensions = self.bound[group[0]]
        if self._batch is not None and len(group) > 1:
            tensors = {name: torch.cat([self.bound[index][0][name] for index in group]) for name in tensors}
            dimensions = dimensions | {self._batch: len(next(iter(tensors.values())))}
        return Batch(tensors, dimensions, labels)


class Halves:
    """A model divided at one tensor: `front`, which makes it, and `tail`, all that depends on it."""

    def __init__(self, graph: Graph, tensor: str, device: str | None = None) -> None:
        """Raises CutError where the tensor is none to learn at, with the reason."""
        self.graph, self.tensor, self.device = graph, tensor, device or "cpu"
        spec = graph.tensors[checked(graph, tensor)]
        later = set(spec.consumers).union(*(nx.descendants(graph.dag, name) for name in spec.consumers))
        first = [name for name in graph.layers if name not in later]
        self.tail = self._placed(carve(graph, later, "tail"))
        self.front = self._placed(carve(graph, first, "front")) if first else None
        floats = [node.name for node in map(graph.nodes.__getitem__, self.tail.outputs) if node.meta["val"].is_floating_point()]
        if not floats:
            raise CutError(f"no result of {graph.name} that could teach depends on '{tensor}': none is a floating tensor")
        self.results = tuple(floats)

    def _placed(self, stage: Stage) -> Stage:
        """On the device; a stage file is how a stage moves, because its constants are made where it runs."""
        return stage if self.device == "cpu" else load_stage(dump_stage(stage), self.device)

    def before(self, batch: Batch) -> dict[str, Tensor]:
        """Every tensor that the tail takes, `tensor` among them; without gradients."""
        values = {name: tensor.to(self.device) for name, tensor in batch.tensors.items()}
        if self.front is None:
            return values
        return values | self.front(values, self._sizes(self.front, batch))

    def behind(self, values: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The results that depend on the tensor; gradients flow through."""
        sizes = self._sizes(self.tail, batch)
        arguments = [values[name] for name in self.tail.inputs] + [sizes[name] for name in self.tail.sizes]
        outputs = dict(zip(self.tail.outputs, self.tail.module(*arguments), strict=True))
        return {name: outputs[name] for name in self.results}

    def _sizes(self, stage: Stage, batch: Batch) -> dict[str, int | float | bool]:
        return sizes_at(self.graph, stage.sizes, batch.dimensions)


def checked(graph: Graph, tensor: str) -> str:
    """The name of a tensor at which something can be learned. Raises CutError, which says why not."""
    spec = graph.tensors.get(tensor)
    if spec is None:
        near = [name for name in graph.tensors if tensor.rpartition("_")[0] in name][:3]
        raise CutError(f"{graph.name} has no tensor '{tensor}' between its layers; tensors like it: {near or list(graph.tensors)[:3]}")
    if not getattr(torch, spec.dtype).is_floating_point:
        raise CutError(f"'{tensor}' is {spec.dtype}; only a floating tensor can be learned at")
    if spec.returned:
        raise CutError(f"'{tensor}' is a result of {graph.name}, which must come back as it is")
    if not spec.consumers:
        raise CutError(f"no layer takes '{tensor}'")
    if graph.stateful:
        raise CutError(f"{graph.name} changes its own buffers when called: its answers to one sample differ, so nothing can be learned")
    for group in graph.together:
        if spec.producer in group.layers and group.layers & set(spec.consumers):
            raise CutError(f"'{tensor}' cannot be cut: {group.reason}")
    return tensor


def weights_digest(graph: Graph) -> str:
    """16 hex digits that name the values of all weights: what was learned for these fits no others."""
    digest = xxhash.xxh3_64()
    for name, weight in sorted(graph.weights.items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fits(graph: Graph, fingerprint: str, digest: str, what: str) -> None:
    """Raise CutError unless `what` was learned for this graph and these weights."""
    if graph.fingerprint != fingerprint:
        raise CutError(f"{what} was learned for a graph {fingerprint}; this is {graph.name} {graph.fingerprint}: train it again")
    if weights_digest(graph) != digest:
        raise CutError(f"{what} was learned for other weights of {graph.name}: train it again")
