"""What blocks by rows cost: how far a range of output rows reaches back, and the seconds that follow from it.

    rows of      input      conv 3      conv 3      rows of the last op, cut at C+1 edges
                 |----- needed -----|
                       |-- computed --|
                          |---- share ----|

How far a range reaches back through kernels and strides depends on its begin and on its end separately, so all ranges of
a block cost O(rows) per op, not O(rows^2). It does not depend on where the block begins either: one pass against the data
serves all blocks of a chain, and goes over all edges at which any of them may be cut at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from partitioners.arrays import Floats, Ints
from partitioners.problem import Layout, Problem, Tensor, Worker
from partitioners.shares import edges_of

Rows = tuple[Ints, Ints]
"""Ranges of rows, by the edges of the blocks: from, and up to."""
NO_ROWS: Rows = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


class Rates(NamedTuple):
    """(W,) each: of the links between the host of a tier and its workers."""

    forth: Floats
    back: Floats
    latency: Floats

    @classmethod
    def of(cls, workers: Sequence[Worker]) -> Rates:
        """Bytes per second forth and back, infinite for the host; seconds."""
        forth, back = [worker.forth_bytes_per_s for worker in workers], [worker.back_bytes_per_s for worker in workers]
        return cls(np.array(forth), np.array(back), np.array([worker.latency_s for worker in workers]))


class Spans(NamedTuple):
    """(B, W, C+1) twice: a worker's seconds for the rows between two edges are `begin` of the one plus `end` of the other."""

    begin: Floats
    end: Floats

    def at(self, edges: Ints) -> Floats:
        """(B, S, W) of S ways to share each block, alike (1, S, W+1) or each its own (B, S, W+1), in chunks."""
        block, worker = np.arange(len(self.begin))[:, None, None], np.arange(self.begin.shape[1])
        return np.asarray(self.begin[block, worker, edges[..., :-1]] + self.end[block, worker, edges[..., 1:]])


def input_rows(form: Layout, begin: Ints, end: Ints) -> Rows:
    """Return the input rows, from and up to, for the output rows from `begin` up to `end`; padding is no row."""
    low = begin * form.stride - form.padding
    high = (end - 1) * form.stride - form.padding + form.dilation * (form.kernel - 1) + 1
    return np.clip(low, 0, form.input_rows), np.clip(high, 0, form.input_rows)


@dataclass(frozen=True)
class Ending:
    """B blocks that end with the same op, each at a piece of its own from which it begins, and tensors enter, T at most."""

    rates: Rates
    units: int
    granularity: int
    compute: Spans
    """Seconds of computing, halos included."""
    receive: Spans
    """Seconds of receiving all rows needed from the host."""
    send: Spans
    """Seconds of sending the rows of the last op's tensors to the host; of all blocks alike, so B is 1."""
    low: Ints
    """(B, T, C+1) the first row needed of each tensor that enters, by the edge where a range begins."""
    high: Ints
    """(B, T, C+1) where those needed end, by the edge where it ends."""
    row_nbytes: Floats
    """(B, T)"""
    reach: Floats
    """(B,) the largest of the tensors that enter."""
    weight_bytes: Floats
    """(B,) held by whoever has a share."""

    @property
    def chunks(self) -> int:
        """Shares of one granularity; the rest counts as one."""
        return -(-self.units // self.granularity)

    def cuts(self, shares: Ints) -> Ints:
        """(..., W+1) where shares (..., W) in units begin and end, in chunks."""
        return -(-edges_of(shares) // self.granularity)

    def memory(self, shares: Ints) -> Floats:
        """(B, S, W) bytes of weights, for shares (B or 1, S, W)."""
        return np.where(shares > 0, self.weight_bytes[:, None, None], 0.0)

    def received(self, edges: Ints, whole: Collection[int]) -> Floats:
        """(B, S, W) seconds until all has come from the host, where the workers of `whole` hold everything."""
        at_hand = [worker in whole for worker in range(len(self.rates.forth))]
        return np.asarray(np.where(at_hand, 0.0, self.receive.at(edges)))

    def fetched(self, held: Ints, block: Ints, edges: Ints) -> Floats:
        """(H, S, W) seconds of fetching from the others what is missing, for S ways to share (S, W+1).

        H ways in which rows are held, each where the W+1 begin and end, before one of the B blocks (H,).
        """
        return np.stack([self._from_peers(held, block, edges, w) for w in range(len(self.rates.forth))], axis=2)

    def _from_peers(self, held: Ints, block: Ints, edges: Ints, w: int) -> Floats:
        """(H, S) seconds of worker w for the rows that it needs and others hold."""
        low, high = self.low[:, :, edges[:, w]], self.high[:, :, edges[:, w + 1]]
        arriving, sending, latency = np.zeros((3, len(held), len(edges)))
        for v in (v for v in range(len(self.rates.forth)) if v != w):
            nbytes, there = np.zeros(latency.shape), np.zeros(latency.shape, dtype=bool)
            for tensor in range(low.shape[1]):
                first, last = np.maximum(low[block, tensor], held[:, v, None]), np.minimum(high[block, tensor], held[:, v + 1, None])
                nbytes += np.maximum(last - first, 0) * self.row_nbytes[block, tensor, None]
                there |= last > first
            arriving += nbytes / self.rates.forth[w]
            sending = np.maximum(sending, nbytes / self.rates.back[v])
            latency = np.maximum(latency, there * (self.rates.latency[w] + self.rates.latency[v]))
        return np.asarray(np.maximum(arriving, sending) + latency * self.reach[block, None])


class RowChain:
    """Consecutive pieces of a graph on one tier, and all blocks by rows of one or more of them.

    Each piece is ops in topological order, of which the last alone makes what the next piece takes.
    """

    def __init__(self, problem: Problem, tier: int, pieces: Sequence[Sequence[str]], form: Mapping[str, Layout]) -> None:
        """`form` holds the layouts of all ops."""
        self.problem, self.pieces, self.form = problem, pieces, form
        self.rates = Rates.of(problem.tiers[tier].workers)
        self._enter = [self._entering(piece) for piece in pieces]
        # The edges of the last op of each piece, one after the other, from the last piece to the first: those that reach
        # back to a piece are then the first of all.
        self._edges = [_cuts(form[piece[-1]]) for piece in pieces]
        sizes = [len(edges) for edges in self._edges]
        self._start = [sum(sizes[end + 1 :]) for end in range(len(pieces))]
        span = (len(pieces), len(self.rates.forth), sum(sizes))
        self._compute, self._receive = Spans(*np.zeros((2, *span))), Spans(*np.zeros((2, *span)))
        self._low, self._high = np.zeros((2, len(pieces), max(map(len, self._enter)), sum(sizes)), dtype=np.int64)
        self._reach_back()

    def _entering(self, piece: Sequence[str]) -> list[Tensor]:
        """Return the tensors that a piece takes from others."""
        taken = {tensor.name: tensor for name in piece for tensor in self.problem.inputs_of[name]}
        return [tensor for tensor in taken.values() if tensor.producer not in piece]

    def _reach_back(self) -> None:
        """Go over all ops against the data, with the ranges of all blocks that they may be in.

        What several consumers need of a tensor, or of the tensors of one op, is the hull of it.
        """
        needed = dict[str, Rows]()
        begin, end = np.zeros((2, *self._compute.begin.shape[1:]))
        for at in reversed(range(len(self.pieces))):
            for name in reversed(self.pieces[at]):
                op, form = self.problem.ops[self.problem.op_index[name]], self.form[name]
                wanted = [needed[tensor.name] for tensor in self.problem.outputs_of[name] if tensor.name in needed]
                low, high = _hull(wanted) if wanted else NO_ROWS
                if name == self.pieces[at][-1]:  # the blocks that end here
                    low, high = np.concatenate([low, self._edges[at]]), np.concatenate([high, self._edges[at]])
                rate, fixed = (np.array(each)[:, None] * op.reach for each in (form.seconds_per_unit, form.fixed_s))
                begin[:, : len(low)] -= rate * low
                end[:, : len(high)] += rate * high + fixed
                rows = input_rows(form, low, high)
                for tensor in self.problem.inputs_of[name]:
                    needed[tensor.name] = _hull([needed[tensor.name], rows]) if tensor.name in needed else rows
            self._compute.begin[at], self._compute.end[at] = begin, end
            self._enters(at, [needed[tensor.name] for tensor in self._enter[at]])

    def _enters(self, at: int, needed: Sequence[Rows]) -> None:
        """Keep what blocks that begin with a piece need, and the seconds to get it from the host."""
        for i, (tensor, (low, high)) in enumerate(zip(self._enter[at], needed, strict=True)):
            self._low[at, i, : len(low)], self._high[at, i, : len(high)] = low, high
            row_s = self._row_nbytes(tensor) / self.rates.forth[:, None]
            self._receive.begin[at, :, : len(low)] -= row_s * low
            self._receive.end[at, :, : len(high)] += row_s * high
        self._receive.end[at] += (self.rates.latency * _reach(self._enter[at]))[:, None]

    @cached_property
    def endings(self) -> list[Ending]:
        """For each piece the blocks that end with it, by the piece with which they begin."""
        return [self._ending(piece) for piece in range(len(self.pieces))]

    def _ending(self, piece: int) -> Ending:
        last, many = self.form[self.pieces[piece][-1]], slice(piece + 1)
        cut = slice(self._start[piece], self._start[piece] + len(self._edges[piece]))
        leave = [tensor for tensor in self.problem.outputs_of[self.pieces[piece][-1]] if tensor.consumers or tensor.returned]
        row_s = sum(tensor.nbytes * tensor.reach for tensor in leave) / last.units / self.rates.back[:, None] * self._edges[piece]
        row_nbytes = np.zeros(self._low.shape[:2])
        for at, tensors in enumerate(self._enter):
            row_nbytes[at, : len(tensors)] = [self._row_nbytes(tensor) for tensor in tensors]
        weights = [sum(self.form[name].weight_bytes for name in ops) for ops in self.pieces[many]]
        return Ending(
            rates=self.rates,
            units=last.units,
            granularity=last.granularity,
            compute=Spans(*(each[many, :, cut] for each in self._compute)),
            receive=Spans(*(each[many, :, cut] for each in self._receive)),
            send=Spans(-row_s[None], (row_s + (self.rates.latency * _reach(leave))[:, None])[None]),
            low=self._low[many, :, cut],
            high=self._high[many, :, cut],
            row_nbytes=row_nbytes[many],
            reach=np.array([_reach(tensors) for tensors in self._enter[many]]),
            weight_bytes=np.cumsum(weights[::-1])[::-1],
        )

    def _row_nbytes(self, tensor: Tensor) -> float:
        height = next(self.form[name].input_rows for name in tensor.consumers if name in self.form)
        return tensor.nbytes * tensor.reach / height


def _cuts(form: Layout) -> Ints:
    """(C+1,) the rows of an op's output between which shares are cut."""
    return np.minimum(np.arange(-(-form.units // form.granularity) + 1) * form.granularity, form.units)


def _hull(ranges: Sequence[Rows]) -> Rows:
    return np.minimum.reduce([low for low, _ in ranges]), np.maximum.reduce([high for _, high in ranges])


def _reach(tensors: Sequence[Tensor]) -> float:
    return max((tensor.reach for tensor in tensors), default=0.0)
