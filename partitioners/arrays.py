"""A problem as numpy arrays: what the solvers share, so that 100,000 ops are built without a Python loop per arc."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from partitioners.errors import Infeasible
from partitioners.problem import Problem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Arrays:
    """n ops, T tensors, E consumers of tensors, k tiers, C codecs of all tensors together. `reach` is multiplied in."""

    problem: Problem
    low: Ints
    """(n,) the lowest tier that the pins upstream leave open."""
    high: Ints
    """(n,) the highest tier that the pins downstream leave open."""
    seconds: Floats
    """(n, k)"""
    memory_bytes: Floats
    """(n,)"""
    returned_bytes: Floats
    """(n,) that an op's results put on the way back to tier 0."""
    return_reach: Floats
    """(n,) the largest reach among an op's returned tensors; 0: none."""
    producer: Ints
    """(T,)"""
    reach: Floats
    """(T,)"""
    owner: Ints
    """(E,) the tensor, ascending."""
    consumer: Ints
    """(E,) the op."""
    fan_out: Ints
    """(T,) number of consumers."""
    first_codec: Ints
    """(T,) where each tensor's codecs begin."""
    codec_owner: Ints
    """(C,) the tensor."""
    nbytes: Floats
    """(C,)"""
    encode_s: Floats
    """(C, k)"""
    decode_s: Floats
    """(C, k)"""
    transfer_s: Floats
    """(C, k-1); NaN where it is not given."""
    error: Floats
    """(C,)"""

    @classmethod
    def of(cls, problem: Problem) -> Arrays:
        """Convert; raises `Infeasible` when the pins contradict the direction of the data."""
        low, high = allowed_tiers(problem)
        index, k = problem.op_index, len(problem.tiers)
        zeros, unknown = (0.0,) * k, (np.nan,) * (k - 1)
        ways = [tensor.ways for tensor in problem.tensors]
        codecs = [codec for each in ways for codec in each]
        fan_out = np.array([len(tensor.consumers) for tensor in problem.tensors], dtype=np.int64)
        producer = np.array([index[tensor.producer] for tensor in problem.tensors], dtype=np.int64)
        reach = np.array([tensor.reach for tensor in problem.tensors], dtype=float)
        returned = np.array([tensor.returned for tensor in problem.tensors], dtype=bool)
        returned_bytes, return_reach = np.zeros((2, len(problem.ops)))
        np.add.at(returned_bytes, producer[returned], np.array([t.nbytes * t.reach for t in problem.tensors if t.returned]))
        np.maximum.at(return_reach, producer[returned], reach[returned])
        codec_owner = np.repeat(np.arange(len(ways)), np.array([len(each) for each in ways], dtype=np.int64))
        share = reach[codec_owner]
        return cls(
            problem=problem,
            low=low,
            high=high,
            seconds=np.array([op.seconds for op in problem.ops], dtype=float) * [[op.reach] for op in problem.ops],
            memory_bytes=np.array([op.memory_bytes for op in problem.ops], dtype=float),
            returned_bytes=returned_bytes,
            return_reach=return_reach,
            producer=producer,
            reach=reach,
            owner=np.repeat(np.arange(len(fan_out)), fan_out),
            consumer=np.array([index[name] for t in problem.tensors for name in t.consumers], dtype=np.int64),
            fan_out=fan_out,
            first_codec=np.cumsum([0, *map(len, ways)], dtype=np.int64)[:-1],
            codec_owner=codec_owner,
            nbytes=np.array([codec.nbytes for codec in codecs], dtype=float) * share,
            encode_s=np.array([codec.encode_s or zeros for codec in codecs], dtype=float).reshape(len(codecs), k) * share[:, None],
            decode_s=np.array([codec.decode_s or zeros for codec in codecs], dtype=float).reshape(len(codecs), k) * share[:, None],
            transfer_s=share[:, None] * np.array([c.transfer_s or unknown for c in codecs], dtype=float).reshape(len(codecs), k - 1),
            error=np.array([codec.error for codec in codecs], dtype=float),
        )

    @property
    def tiers(self) -> int:
        """k."""
        return len(self.problem.tiers)

    @cached_property
    def topological(self) -> list[int]:
        """Ops, producers before consumers."""
        return [self.problem.op_index[name] for name in self.problem.predecessors]

    @cached_property
    def sure(self) -> tuple[Floats, Floats]:
        """(n, k-1) twice: an op beyond link j proves the link used up, and down, by a tensor of at least this reach.

        Up: some ancestor cannot be beyond j, so on the way from there to the op a tensor crosses. Down: the same
        downstream, or a result that returns.
        """
        links = range(self.tiers - 1)
        up = np.zeros((self.tiers - 1, len(self.low)))
        down = np.repeat(self.return_reach[None], self.tiers - 1, axis=0)
        for j in links:
            self._prove(self.topological, self.producers_of, self.high <= j, up[j])
            if self.problem.two_way:
                self._prove(self.topological[::-1], self.consumers_of, self.high <= j, down[j])
        return up.T, down.T

    @cached_property
    def possible(self) -> tuple[Floats, Floats]:
        """(n, k-1) twice: the largest reach with which a tensor into, or out of, an op beyond link j can use the link."""
        up, down = np.zeros((len(self.low), self.tiers - 1)), np.repeat(self.return_reach[:, None], self.tiers - 1, axis=1)
        source = self.producer[self.owner]
        for j in range(self.tiers - 1):
            may = self.low[source] <= j
            np.maximum.at(up[:, j], self.consumer[may], self.reach[self.owner[may]])
            if self.problem.two_way:
                may = self.low[self.consumer] <= j
                np.maximum.at(down[:, j], source[may], self.reach[self.owner[may]])
        return up, down

    @staticmethod
    def _prove(order: Sequence[int], neighbours: Sequence[Sequence[tuple[int, float]]], held: Bools, level: Floats) -> None:
        held_, level_ = held.tolist(), level.tolist()
        for v in order:
            for u, reach in neighbours[v]:
                proved = reach if held_[u] or level_[u] > reach else level_[u]
                if proved > level_[v]:
                    level_[v] = proved
        level[:] = level_

    @cached_property
    def producers_of(self) -> list[list[tuple[int, float]]]:
        """For each op: the ops it takes data from, and the reach of the tensor."""
        found: list[list[tuple[int, float]]] = [[] for _ in self.low]
        for u, v, reach in self._edges():
            found[v].append((u, reach))
        return found

    @cached_property
    def consumers_of(self) -> list[list[tuple[int, float]]]:
        """For each op: the ops that take data from it, and the reach of the tensor."""
        found: list[list[tuple[int, float]]] = [[] for _ in self.low]
        for u, v, reach in self._edges():
            found[u].append((v, reach))
        return found

    def _edges(self) -> Iterator[tuple[int, int, float]]:
        return zip(self.producer[self.owner].tolist(), self.consumer.tolist(), self.reach[self.owner].tolist(), strict=True)

    def names(self, tier: Ints) -> dict[str, str]:
        """Return the placement that puts op v on tier[v]."""
        tiers = [t.name for t in self.problem.tiers]
        return {op.name: tiers[i] for op, i in zip(self.problem.ops, tier.tolist(), strict=True)}

    def stretch(self, tier: Ints) -> tuple[Ints, Ints, Ints]:
        """(T,) three times, in a placement: tier of the producer, lowest and highest tier that the tensor is on."""
        home = tier[self.producer]
        bottom, top = home.copy(), home.copy()
        np.minimum.at(bottom, self.owner, tier[self.consumer])
        np.maximum.at(top, self.owner, tier[self.consumer])
        return home, bottom, top

    def crosses(self, tier: Ints) -> tuple[Bools, Bools]:
        """(T, k-1) twice: the links each tensor crosses up, and down, in a placement."""
        home, bottom, top = (side[:, None] for side in self.stretch(tier))
        link = np.arange(self.tiers - 1)
        return (home <= link) & (link < top), (bottom <= link) & (link < home)

    def travels(self, tier: Ints) -> Iterator[tuple[int, tuple[int, ...], Bools]]:
        """Every hop of a placement, and which tensors, as (T,), take it."""
        home, bottom, top = self.stretch(tier)
        if self.problem.relay == "transcode":
            for j in range(self.tiers - 1):
                yield j, (j + 1,), (home <= j) & (j < top)
                yield j + 1, (j,), (bottom <= j) & (j < home)
            return
        served = np.zeros(len(home), dtype=np.int64)
        np.bitwise_or.at(served, self.owner, 1 << tier[self.consumer])
        served &= ~(1 << home)
        for start, stops in sorted({*zip(home.tolist(), served.tolist(), strict=True)}):
            if stops:
                yield start, tuple(i for i in range(self.tiers) if stops >> i & 1), (home == start) & (served == stops)

    def usage(self, tier: Ints) -> Floats:
        """(2, k-1): the largest reach on each link up, and down, in a placement."""
        up, down = (np.where(side, self.reach[:, None], 0.0).max(axis=0, initial=0.0) for side in self.crosses(tier))
        back = np.where(tier[:, None] > np.arange(self.tiers - 1), self.return_reach[:, None], 0.0).max(axis=0, initial=0.0)
        return np.stack([up, np.maximum(down, back)])

    def cheapest(self, each: Floats) -> Floats:
        """(T,) the least of the codecs of each tensor, from (C,)."""
        return np.minimum.reduceat(each, self.first_codec) if len(each) else each

    def cheapest_codec(self, each: Floats) -> Ints:
        """(T,) the first codec that costs no more than the others of its tensor."""
        least = np.flatnonzero(each <= self.cheapest(each)[self.codec_owner])
        return least[np.unique(self.codec_owner[least], return_index=True)[1]]


def allowed_tiers(problem: Problem) -> tuple[Ints, Ints]:
    """Return the lowest and the highest tier of each op that its own pin and, one-way, those up and downstream leave open.

    Data flows down the line, so an op is at or after every pin upstream and at or before every pin downstream. Both
    bounds are monotone along the data, hence clipping any single tier to them is a placement: one exists.
    """
    top = len(problem.tiers) - 1
    pin = {op.name: problem.tier_index[op.pinned] for op in problem.ops if op.pinned is not None}
    low = {op.name: (pin.get(op.name, 0), op.name) for op in problem.ops}
    high = {op.name: (pin.get(op.name, top), op.name) for op in problem.ops}
    if not problem.two_way:
        for name, before in problem.predecessors.items():
            low[name] = max([low[name], *(low[p] for p in before)])
        for name, before in reversed(problem.predecessors.items()):
            for p in before:
                high[p] = min(high[p], high[name])
    for name, (tier, upstream) in low.items():
        if tier > high[name][0]:
            limit, downstream = high[name]
            raise Infeasible(
                f"{downstream!r} is pinned to {problem.tiers[limit].name!r} but takes data from {upstream!r}, pinned"
                f" to {problem.tiers[tier].name!r}; data flows down the line only.\n  Move one of the two pins."
            )
    return tuple(np.array([side[op.name][0] for op in problem.ops]) for side in (low, high))  # type: ignore[return-value]
