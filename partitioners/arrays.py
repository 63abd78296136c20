"""A problem as numpy arrays: what the solvers share, so that 100,000 ops are built without a Python loop per arc."""

from __future__ import annotations

from collections.abc import Sequence
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
    """n ops, T tensors, E consumers of tensors, k tiers, C codecs of all tensors together."""

    problem: Problem
    low: Ints
    """(n,) the lowest tier that the pins upstream leave open."""
    high: Ints
    """(n,) the highest tier that the pins downstream leave open."""
    stay_s: Floats
    """(n, k) compute, and what the op's results then pay in bytes on the way back to tier 0."""
    producer: Ints
    """(T,)"""
    owner: Ints
    """(E,) the tensor, ascending."""
    consumer: Ints
    """(E,) the op."""
    fan_out: Ints
    """(T,) number of consumers."""
    returning: Ints
    """Ops with a returned tensor."""
    latency_s: Floats
    """(k-1,)"""
    seconds_per_byte: Floats
    """(k-1,)"""
    codec_nbytes: Floats
    """(C,)"""
    encode_s: Floats
    """(C, k)"""
    decode_s: Floats
    """(C, k)"""
    first_codec: Ints
    """(T,) where each tensor's codecs begin."""

    @classmethod
    def of(cls, problem: Problem) -> Arrays:
        """Convert; raises `Infeasible` when the pins contradict the direction of the data."""
        low, high = allowed_tiers(problem)
        index, zeros = problem.op_index, (0.0,) * len(problem.tiers)
        ways = [codec for tensor in problem.tensors for codec in tensor.ways]
        fan_out = np.array([len(tensor.consumers) for tensor in problem.tensors], dtype=np.int64)
        producer = np.array([index[tensor.producer] for tensor in problem.tensors], dtype=np.int64)
        returned = np.array([tensor.nbytes if tensor.returned else 0.0 for tensor in problem.tensors])
        back = np.cumsum([0.0] + [1 / link.back_bytes_per_s for link in problem.links])
        stay_s = np.array([op.seconds for op in problem.ops], dtype=float)
        np.add.at(stay_s, producer, returned[:, None] * back)
        return cls(
            problem=problem,
            low=low,
            high=high,
            stay_s=stay_s,
            producer=producer,
            owner=np.repeat(np.arange(len(fan_out)), fan_out),
            consumer=np.array([index[name] for t in problem.tensors for name in t.consumers], dtype=np.int64),
            fan_out=fan_out,
            returning=np.unique(producer[np.array([tensor.returned for tensor in problem.tensors], dtype=bool)]),
            latency_s=np.array([link.latency_s for link in problem.links], dtype=float),
            seconds_per_byte=np.array([1 / link.bytes_per_s for link in problem.links], dtype=float),
            codec_nbytes=np.array([codec.nbytes for codec in ways], dtype=float),
            encode_s=np.array([codec.encode_s or zeros for codec in ways], dtype=float).reshape(-1, len(zeros)),
            decode_s=np.array([codec.decode_s or zeros for codec in ways], dtype=float).reshape(-1, len(zeros)),
            first_codec=np.cumsum([0] + [len(t.ways) for t in problem.tensors], dtype=np.int64)[:-1],
        )

    @property
    def tiers(self) -> int:
        """k."""
        return len(self.latency_s) + 1

    @cached_property
    def uses_link(self) -> tuple[Bools, Bools]:
        """(n, k-1) twice: op v beyond link j proves it used; op v cannot be what makes it used."""
        index, low, high = self.problem.op_index, self.low.tolist(), self.high.tolist()
        forced = [self.tiers] * len(low)  # the lowest tier that some ancestor cannot exceed
        nearest = forced.copy()  # the lowest tier open to some predecessor
        for name, before in self.problem.predecessors.items():
            up = [index[p] for p in before]
            if up:
                forced[index[name]] = min(min(forced[p], high[p]) for p in up)
                nearest[index[name]] = min(low[p] for p in up)
        link = np.arange(self.tiers - 1)
        return np.array(forced)[:, None] <= link, np.array(nearest)[:, None] > link

    def hop_s(self, start: int, stops: Sequence[int]) -> Floats:
        """(T,) cheapest codec for: encode at `start`, carry to the last stop, decode at every stop."""
        carry = self.seconds_per_byte[start : stops[-1]].sum()
        each = self.encode_s[:, start] + self.codec_nbytes * carry + self.decode_s[:, list(stops)].sum(axis=1)
        return np.minimum.reduceat(each, self.first_codec) if len(each) else each

    def names(self, tier: Ints) -> dict[str, str]:
        """Return the placement that puts op v on tier[v]."""
        tiers = [t.name for t in self.problem.tiers]
        return {op.name: tiers[i] for op, i in zip(self.problem.ops, tier.tolist(), strict=True)}

    def crosses(self, tier: Ints) -> Bools:
        """(T, k-1): the links each tensor crosses in a placement."""
        far = tier[self.producer].copy()
        np.maximum.at(far, self.owner, tier[self.consumer])
        link = np.arange(self.tiers - 1)
        return (tier[self.producer][:, None] <= link) & (link < far[:, None])


def allowed_tiers(problem: Problem) -> tuple[Ints, Ints]:
    """Return the lowest and the highest tier of each op that its own pin and those up and downstream leave open.

    Data flows down the line, so an op is at or after every pin upstream and at or before every pin downstream. Both
    bounds are monotone along the data, hence clipping any single tier to them is a placement: one exists.
    """
    top = len(problem.tiers) - 1
    pin = {op.name: problem.tier_index[op.pinned] for op in problem.ops if op.pinned is not None}
    low: dict[str, tuple[int, str]] = {}
    high = {op.name: (pin.get(op.name, top), op.name) for op in problem.ops}
    for name, before in problem.predecessors.items():
        low[name] = max([(pin.get(name, 0), name), *(low[p] for p in before)])
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
