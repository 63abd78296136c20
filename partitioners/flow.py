"""Minimum s-t cut with real capacities by an integer max-flow, with a proved lower bound.

`scipy.sparse.csgraph.maximum_flow(method="dinic")` (Dinic 1970, O(V^2 E), in practice near linear on these graphs)
takes integers and silently wraps above 2^31 - 1. So capacities are scaled, *rounded down*, and clipped just above an
upper bound of the cut. Rounding down makes every cut cheaper, so the integer cut is a lower bound of the real one. The
precision lost is won back by iterative refinement: a flow found is a feasible flow of the real network as well; what
it leaves over is a network whose minimum cut is only the rounding, and is scaled afresh.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from partitioners.arrays import Bools, Floats, Ints

# Dinic computes capacity - flow with flow down to -ANCHOR: the difference stays below 2^30 + 2 < 2^31.
ANCHOR = 2**29
ROUNDS = 4  # each multiplies the precision by at least ANCHOR / arcs; two are usual


def minimum_cut(
    tail: Ints, head: Ints, capacity: Floats, source: int, sink: int, upper: float
) -> tuple[float, Bools | None]:
    """Return a lower bound of the minimum cut, tight to about 1e-9 of `upper`, and the nodes on the sink's side.

    Parallel arcs add up; infinity is a capacity. `upper` must not be below the minimum, else the answer is
    (upper, None). Of several minimum cuts the one with the smallest sink side is taken.
    """
    nodes = max(source, sink, int(tail.max()), int(head.max())) + 1
    residual = csr_array(coo_array((capacity, (tail, head)), shape=(nodes, nodes)))
    lower, gap, sink_side = 0.0, upper, None
    for _ in range(ROUNDS):
        # Scale what is left so that the remaining gap is ANCHOR; above it all capacities are alike.
        scale = ANCHOR / gap
        whole = residual.copy()
        whole.data = np.minimum(np.floor(residual.data * scale), ANCHOR + 1).astype(np.int32)
        whole.eliminate_zeros()
        found = maximum_flow(whole, source, sink, method="dinic")
        if found.flow_value > ANCHOR:
            return (upper, None) if sink_side is None else (lower, sink_side)
        lower += found.flow_value / scale
        # The sink's side: everything that still reaches the sink. (Positions with no capacity left are dropped.)
        left = csr_array((whole - found.flow).T)
        left.eliminate_zeros()
        sink_side = np.zeros(nodes, dtype=bool)
        sink_side[breadth_first_order(left, sink, return_predecessors=False)] = True
        # Leave the flow in the real network; what the cut costs there is how far it may be from the minimum.
        residual = csr_array(residual - found.flow / scale)
        residual.data = np.maximum(residual.data, 0.0)
        row = np.repeat(np.arange(nodes), np.diff(residual.indptr))
        gap = float(residual.data[~sink_side[row] & sink_side[residual.indices]].sum())
        if gap <= 1e-9 * upper:
            break
    return lower, sink_side
