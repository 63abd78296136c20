"""Fused blocks of ops divided by rows, on one tier (AOFL, Zhou et al., 2019).

    ops      conv1  relu1  conv2 | conv3  pool | conv4  conv5
    blocks   |--- halo of 2 ----|--- ...

Inside a block nothing is exchanged: each worker computes the halo of its rows itself, so longer blocks cost more
computing; between two blocks rows are gathered at the host and scattered again, so shorter blocks cost more sending. For
n ops the best of all 2^(n-1) ways to cut follows from best[j] = min over i of best[i] + block(i, j), where a block has its best
shares over any of the workers: O(n^2) blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

from partitioners.division import AT_HOST
from partitioners.errors import Infeasible
from partitioners.placement import Block
from partitioners.problem import Problem
from partitioners.row_sizing import RowSizing
from partitioners.rows import RowChain


def fused_blocks(problem: Problem, tier: str, ops: Sequence[str]) -> tuple[float, tuple[Block, ...]]:
    """Cut a chain of ops into blocks; returns the seconds of all blocks together, and the blocks.

    `ops` stand in the order of the data, each takes from the one before it alone, and each has a layout by rows on the
    tier; otherwise raises `Infeasible`. Limits on memory are not looked at.
    """
    found = {op: [f for f in problem.ops[problem.op_index[op]].layouts if (f.tier, f.axis) == (tier, "rows")] for op in ops}
    for op, before in zip(ops, [None, *ops], strict=False):
        if not found[op]:
            raise Infeasible(f"{op!r} has no layout by rows on {tier!r}")
        if before is not None and {tensor.producer for tensor in problem.inputs_of[op]} != {before}:
            raise Infeasible(f"{op!r} does not take from {before!r} alone; fused blocks need a chain")
    chain = RowChain(problem, problem.tier_index[tier], [[op] for op in ops], {op: forms[0] for op, forms in found.items()})
    best: list[tuple[float, tuple[Block, ...]]] = [(0.0, ())]
    for j, ending in enumerate(chain.endings, 1):
        options = RowSizing(ending, scarce=False).gathered(AT_HOST.whole)
        totals = [best[i][0] + float(options.seconds[i, 0]) for i in range(j)]
        i = min(range(j), key=totals.__getitem__)
        best.append((totals[i], (*best[i][1], Block(tuple(ops[i:j]), tier, "rows", tuple(options.shares[i, 0].tolist())))))
    return best[-1]
