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

import numpy as np

from partitioners.division import AT_HOST, Division
from partitioners.errors import Infeasible
from partitioners.placement import Block
from partitioners.problem import Problem
from partitioners.sizing import Sizing


def fused_blocks(problem: Problem, tier: str, ops: Sequence[str]) -> tuple[float, tuple[Block, ...]]:
    """Cut a chain of ops into blocks; returns the seconds of all blocks together, and the blocks.

    `ops` stand in the order of the data, each takes from the one before it alone, and each has a layout by rows on the
    tier; otherwise raises `Infeasible`. Limits on memory are not looked at.
    """
    forms = [next((f for f in problem.ops[problem.op_index[op]].layouts if (f.tier, f.axis) == (tier, "rows")), None) for op in ops]
    for op, form, before in zip(ops, forms, [None, *ops], strict=False):
        if form is None:
            raise Infeasible(f"{op!r} has no layout by rows on {tier!r}")
        if before is not None and {tensor.producer for tensor in problem.inputs_of[op]} != {before}:
            raise Infeasible(f"{op!r} does not take from {before!r} alone; fused blocks need a chain")
    best: list[tuple[float, tuple[Block, ...]]] = [(0.0, ())]
    for j in range(1, len(ops) + 1):
        ways = []
        for i in range(j):
            division = Division(problem, problem.tier_index[tier], ops[i:j], [form for form in forms[i:j] if form is not None])
            options = Sizing(division, False, np.zeros(0)).options(AT_HOST, "whole")
            block = Block(tuple(ops[i:j]), tier, "rows", tuple(options.shares[0].tolist()))
            ways.append((best[i][0] + float(options.seconds[0, 0]), (*best[i][1], block)))
        best.append(min(ways, key=lambda way: way[0]))
    return best[-1]
