"""A model of which some blocks are divided, in one process: the reference that every backend must match."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils import _pytree as pytree

from splitinfer.errors import ShardError
from splitinfer.graph import Graph
from splitinfer.shards.program import ShardedBlock, run_local
from splitinfer.sizes import sizes_at
from splitinfer.stages import Stage, carve


class ShardedModel:
    """Calls like the model: divided blocks, and the layers between them whole."""

    def __init__(self, graph: Graph, blocks: Sequence[ShardedBlock]) -> None:
        self.graph = graph
        block_of = {name: block for block in blocks for name in block.layers}
        if sum(len(block.layers) for block in blocks) != len(block_of):
            raise ShardError("a layer is in two blocks")
        self.steps: list[Stage | ShardedBlock] = []
        between: list[str] = []
        for name in graph.layers:
            block = block_of.get(name)
            if block is None:
                between.append(name)
                continue
            if name == block.layers[0]:
                self._flush(between)
                self.steps.append(block)
                between = []
        self._flush(between)

    def _flush(self, layers: Sequence[str]) -> None:
        if layers:
            self.steps.append(carve(self.graph, layers, f"whole {len(self.steps)}"))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns for this call."""
        tensors, dimensions = self.graph.bind(args, kwargs)
        names = {name for step in self.steps for name in step.sizes} | {leaf.name for leaf in self.graph.outputs if leaf.kind == "size"}
        sizes = sizes_at(self.graph, names, dimensions)
        for step in self.steps:
            tensors |= step(tensors, sizes) if isinstance(step, Stage) else run_local(step, tensors, sizes)
        found = {"tensor": tensors, "size": sizes}
        leaves = [leaf.value if leaf.kind == "value" else found[leaf.kind][leaf.name] for leaf in self.graph.outputs]  # type: ignore[index]
        return pytree.tree_unflatten(leaves, self.graph.out_spec)
