"""Does the vertically divided model equal the whole one? Compared with the user's own eager module, within a tolerance."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from splitinfer.errors import ShardError
from splitinfer.graph import Graph
from splitinfer.shards.blocks import plan_blocks
from splitinfer.shards.divide import divide
from splitinfer.shards.program import ShardedBlock
from splitinfer.shards.whole import ShardedModel
from splitinfer.verify import Call, compare, fresh_calls

TOLERANCE = 1e-5
"""Largest difference, relative to the largest magnitude of each output: the parts are summed in another order."""


@dataclass(frozen=True)
class ShardVerdict:
    """The outcome of comparing a vertically divided model with the whole one."""

    max_relative_difference: float
    """Largest over all outputs and calls, relative to the largest magnitude of each output.

    Infinity where shapes, dtypes or NaNs differ.
    """
    blocks: tuple[ShardedBlock, ...]
    whole_layers: Mapping[str, str]
    """Layer that is not divided -> why."""
    calls: int

    @property
    def close(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.max_relative_difference <= TOLERANCE

    @property
    def sharded_layers(self) -> int:
        """Layers of which each worker does a part."""
        return sum(len(block.divided) for block in self.blocks)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "max_relative_difference": self.max_relative_difference,
            "sharded_layers": self.sharded_layers,
            "whole_layers": dict(self.whole_layers),
        }

    def __str__(self) -> str:
        verdict = "equal" if self.close else "differs"
        first = f"{verdict}: largest difference {self.max_relative_difference:.3g} of the largest magnitude, {self.calls} calls"
        rows = [
            [
                block.axis,
                f"{len(block.divided)} of {len(block.layers)}",
                block.layers[0],
                block.layers[-1],
                ", ".join(map(str, block.shares)),
                ", ".join(f"{p.weight_nbytes / 1e6:.2f}" for p in block.programs.values()),
            ]
            for block in self.blocks
        ]
        blocks = tabulate(rows, ["divided by", "layers", "first layer", "last layer", "shares", "weights MB"], disable_numparse=True)
        whole = tabulate([[name, why] for name, why in self.whole_layers.items()], ["whole layer", "why"])
        return f"{first}\n\n{blocks}\n\n{whole}" if self.whole_layers else f"{first}\n\n{blocks}"


def verify_shards(
    graph: Graph, model: nn.Module, shares: Sequence[int], axis: str = "auto", *, calls: Sequence[Call] | None = None, fresh: int = 2
) -> ShardVerdict:
    """Divide every block that can be divided over ``len(shares)`` workers, and compare with the eager module.

    On the sample and `fresh` other inputs; `shares` are relative weights. Raises ShardError where nothing can be divided.
    """
    plan = plan_blocks(graph, axis)
    blocks = tuple(divide(graph, block.layers, block.axis, shares) for block in plan.blocks)
    if not blocks:
        name, why = next(iter(plan.whole_layers.items()))
        raise ShardError(f"{graph.name} has no block that can be divided by {axis}; '{name}' for example: {why}")
    whole = dict(plan.whole_layers) | {name: why for block in blocks for name, why in block.reasons.items()}
    chosen = list(calls) if calls is not None else [graph.example, *fresh_calls(graph, fresh)]
    eager, sharded, worst = copy.deepcopy(model) if graph.stateful else model, ShardedModel(graph, blocks), 0.0
    for args, kwargs in chosen:
        with torch.no_grad():
            expected = pytree.tree_leaves(eager(*args, **kwargs))
        worst = max(worst, relative_difference(expected, pytree.tree_leaves(sharded(*args, **kwargs))))
    return ShardVerdict(worst, blocks, {name: whole[name] for name in graph.layers if name in whole}, len(chosen))


def relative_difference(expected: Sequence[Any], got: Sequence[Any]) -> float:
    """Largest absolute difference of each output over the largest magnitude of it."""
    if len(expected) != len(got):
        return float("inf")
    worst = 0.0
    for one, two in zip(expected, got, strict=True):
        difference = compare([one], [two])[0]
        if isinstance(one, Tensor) and difference:
            finite = one[one.isfinite()].abs().double() if one.is_floating_point() else one.abs().double()
            difference /= float(finite.max()) or 1.0
        worst = max(worst, difference)
    return worst
