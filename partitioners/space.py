"""What the search for hybrid plans chooses from, under any objective: blocks, and the ways to share each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from partitioners.arrays import Floats, Ints
from partitioners.bills import return_latency
from partitioners.division import AT_HOST
from partitioners.errors import PartitionerError
from partitioners.pieces import Pieces
from partitioners.problem import AXES, Axis, Problem
from partitioners.row_sizing import RowSizing
from partitioners.sizing import Sizing

CANDIDATES = 12  # ways to cut rows that stay divided, where not all are tried


@dataclass(frozen=True)
class RowBlocks:
    """The blocks by rows on one tier that end at one cut vertex, each from `begin` up to before `end` from where it begins."""

    tier: int
    begin: int
    end: int
    sizing: RowSizing
    may_stay: bool
    """Whether rows may stay divided at their end."""


class Space:
    """What is searched for one problem, under any objective."""

    def __init__(self, problem: Problem) -> None:
        """Find the blocks; raises `PartitionerError` where the problem has no one way along the data."""
        if problem.two_way:
            raise PartitionerError("'hybrid' sends data one way; the problem is two_way.\n  Take 'mincut' or 'milp'.")
        self.problem, self.pieces = problem, Pieces(problem)
        self.returned = [self.pieces.returned(i) for i in range(len(self.pieces))]
        self.latency_reach = return_latency(problem, self.returned)
        limited = [tier.memory_bytes is not None or any(w.memory_bytes is not None for w in tier.workers) for tier in problem.tiers]
        weights = [_weights(problem, tier.name) for tier in problem.tiers]
        fair = [_fair(problem, tier, weights[tier]) for tier in range(len(problem.tiers))]
        by_piece = [np.array([0.0, *(sum(held[op] for op in ops) for ops in self.pieces.ops)]) for held in weights]
        self.weighed = [held.cumsum() / max(held.sum(), 1e-12) for held in by_piece]
        """For each tier, the part of all weights that belongs to so many pieces."""
        self.runs = [(run, Sizing(run.division, limited[run.tier], fair[run.tier])) for run in self.pieces.runs]
        self.by_rows: list[list[RowBlocks]] = [[] for _ in range(len(self.pieces) + 1)]
        """By the cut vertex where they end."""
        for run in self.pieces.by_rows:
            for end, ending in enumerate(run.chain.endings, run.begin + 1):
                self.by_rows[end].append(RowBlocks(run.tier, run.begin, end, RowSizing(ending, limited[run.tier]), end < run.end))
        self.complete = all(sizing.complete for run, sizing in self.runs if limited[run.tier]) and all(
            blocks.sizing.complete for ending in self.by_rows for blocks in ending
        )
        """Whether every way to share is tried that may be needed."""
        self.bounded = self.pieces.all_forms and all(sizing.bounded for _, sizing in self.runs)
        """Whether a relaxed search bounds what is not tried."""
        self._cuts: dict[tuple[int, int], Ints] = {}

    @property
    def axes(self) -> list[Axis]:
        """Those along which something may be divided."""
        found = {run.division.axis for run, _ in self.runs} | ({"rows"} if any(self.by_rows) else set())
        return [axis for axis in AXES if axis in found]

    def cuts(self, tier: int, position: int) -> Ints:
        """(S, W) the ways to cut rows at a cut vertex where blocks by rows end."""
        if (tier, position) not in self._cuts:
            (sizing,) = (blocks.sizing for blocks in self.by_rows[position] if blocks.tier == tier)
            if sizing.complete:
                found = sizing.every[0]
            else:
                best = sizing.gathered(AT_HOST.whole)
                count = Counter(map(tuple, best.shares[np.isfinite(best.seconds)].tolist()))
                found = np.array([shares for shares, _ in count.most_common(CANDIDATES)])
            self._cuts[tier, position] = found
        return self._cuts[tier, position]

    def cuts_before(self, blocks: RowBlocks) -> list[Ints]:
        """(H, W) the ways in which rows may be divided before each of some blocks."""
        nothing = np.zeros((0, len(self.problem.tiers[blocks.tier].workers)), dtype=np.int64)
        return [nothing, *(self.cuts(blocks.tier, begin) for begin in range(blocks.begin + 1, blocks.end))]


def _weights(problem: Problem, tier: str) -> dict[str, float]:
    """Return the bytes of each op that the workers of a tier may share out."""
    return {op.name: max((f.weight_bytes_per_unit * f.units for f in op.layouts if f.tier == tier), default=0.0) for op in problem.ops}


def _fair(problem: Problem, tier: int, weights: dict[str, float]) -> Floats:
    """(W,) the part of all weights that each worker of a tier may hold if they are shared out everywhere alike."""
    limits = [np.inf if worker.memory_bytes is None else worker.memory_bytes for worker in problem.tiers[tier].workers]
    return np.asarray(limits) / max(sum(weights.values()), 1e-12)
