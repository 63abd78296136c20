"""Numbers that follow from the dynamic dimensions of a call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from splitinfer.graph import Graph

SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def evaluate(value: Any, dimensions: Mapping[str, int]) -> int | float | bool:
    """A symbolic number at these sizes of the dynamic dimensions; a plain one as it is."""
    if not isinstance(value, SYMBOLIC):
        return value  # type: ignore[no-any-return]
    expression = value.node.expr
    result = expression.subs({symbol: dimensions[str(symbol)] for symbol in expression.free_symbols})
    if isinstance(value, torch.SymBool):
        return bool(result)
    return int(result) if isinstance(value, torch.SymInt) else float(result)


def sizes_at(graph: Graph, names: Iterable[str], dimensions: Mapping[str, int]) -> dict[str, int | float | bool]:
    """The named sizes of a graph at these dimensions."""
    return {name: evaluate(graph.nodes[name].meta["val"], dimensions) for name in names}
