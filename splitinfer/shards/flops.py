"""Floating-point operations of each worker of a divided block: what halos cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from splitinfer.flops import register_formulas
from splitinfer.graph import Graph
from splitinfer.shards.program import ShardedBlock, run_local
from splitinfer.sizes import sizes_at


def shard_flops(graph: Graph, block: ShardedBlock) -> dict[int, int]:
    """Worker -> FLOPs at the sample's shapes, a multiply-add counted as two. Runs the block once, on zeros."""
    register_formulas()
    counted = dict.fromkeys(block.workers, 0)

    @contextmanager
    def turn(worker: int) -> Iterator[None]:
        with FlopCounterMode(display=False) as mode:
            yield
        counted[worker] += mode.get_total_flops()

    tensors = {name: torch.zeros(graph.tensors[name].sample_shape, dtype=graph.nodes[name].meta["val"].dtype) for name in block.inputs}
    _, dimensions = graph.bind(*graph.example)
    run_local(block, tensors, sizes_at(graph, block.sizes, dimensions), turn)
    return counted
