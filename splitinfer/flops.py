"""Floating-point operations of each layer, counted while the model runs once.

A multiply-add counts as two. torch's own counter misses the CPU attention kernels and the fused recurrent ones; the
formulas for these are registered here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula, sdpa_flop_count

from splitinfer.graph import Graph
from splitinfer.pipeline import whole
from splitinfer.sizes import sizes_at


def layer_flops(graph: Graph) -> dict[str, int]:
    """Layer -> FLOPs for the sample."""
    register_formulas()
    stage = whole(graph)
    counted = dict.fromkeys(graph.layers, 0)

    class Counter(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            with FlopCounterMode(display=False) as mode:
                result = super().run_node(n)
            layer = stage.layer_of.get(n.name)
            if layer is not None:
                counted[layer] += mode.get_total_flops()
            return result

    tensors, dimensions = graph.bind(*graph.example)
    sizes = sizes_at(graph, stage.sizes, dimensions)
    with torch.no_grad():
        Counter(stage.module).run(*(tensors[name] for name in stage.inputs), *sizes.values())
    return counted


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _recurrent(inputs: Sequence[int], weight: Sequence[int], recurrent: Sequence[int], *_: Any, **__: Any) -> int:
    """One direction of one layer: each step multiplies with both weight matrices."""
    steps = 1
    for size in inputs[:-1]:
        steps *= size
    return 2 * steps * (weight[0] * weight[1] + recurrent[0] * recurrent[1])


def register_formulas() -> None:
    """Teach torch's counter the operators that it misses."""
    from torch.utils.flop_counter import flop_registry

    missing = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        torch.ops.aten.mkldnn_rnn_layer: _recurrent,
    }
    for operator, formula in missing.items():
        if operator not in flop_registry:
            register_flop_formula(operator)(formula)
