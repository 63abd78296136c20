"""What a block costs that several workers of one tier share: seconds and bytes held.

    host --scatter--> workers compute, exchange --gather--> host

Each worker's time is the sum of what it receives, computes, exchanges and sends. Workers wait for each other only at the
end of a block, which lasts as long as its slowest worker. A packet between two workers of which neither is the host
passes both their links.

Here are blocks by channels and heads; for those by rows see `rows`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from partitioners.arrays import Floats, Ints
from partitioners.problem import Layout, Problem, Tensor
from partitioners.rows import Rates, RowChain

Leaves = Literal["whole", "divided", "replicated"]


@dataclass(frozen=True)
class Held:
    """Who holds the tensors at a cut vertex."""

    whole: frozenset[int] = frozenset({0})
    """The workers that hold all of them: the host, and others if they are replicated."""
    rows: tuple[int, ...] | None = None
    """(W+1,) where each worker's rows begin and the last one's end; then nobody holds all."""


AT_HOST = Held()


class Priced(NamedTuple):
    """A block with its shares."""

    compute_s: float
    """Of its slowest worker."""
    exchange_s: float
    """Of the same worker: all that is not computing."""
    memory_bytes: Floats
    """(W,) the weights that each worker holds."""
    left: Held
    """Who holds its last tensors."""


class Division:
    """One block in one layout, its shares still open.

    `forms` are the layouts of its ops, which stand in topological order; the last op alone makes what others want.
    """

    def __init__(self, problem: Problem, tier: int, ops: Sequence[str], forms: Sequence[Layout]) -> None:
        self.problem, self.tier, self.workers = problem, tier, problem.tiers[tier].workers
        self.ops = [problem.ops[problem.op_index[name]] for name in ops]
        self.form = dict(zip(ops, forms, strict=True))
        self.last = forms[-1]
        self.axis, self.by_rows = self.last.axis, self.last.axis == "rows"
        self.rates = Rates.of(self.workers)
        taken = {tensor.name: tensor for op in self.ops for tensor in problem.inputs_of[op.name]}
        self.entry = [tensor for tensor in taken.values() if tensor.producer not in self.form]
        self.inner = [tensor for tensor in taken.values() if tensor.producer in self.form]
        self.exit = [tensor for tensor in problem.outputs_of[ops[-1]] if tensor.consumers or tensor.returned]

    @cached_property
    def shared(self) -> list[Layout]:
        """The layouts that are divided, not replicated."""
        return [form for form in self.form.values() if not form.replicated]

    @property
    def fault(self) -> str | None:
        """Say why these layouts cannot be one block; None if they can."""
        if not self.shared:
            return "every worker would compute all of it"
        for op in self.ops[:-1]:
            if not any(name in self.form for tensor in self.problem.outputs_of[op.name] for name in tensor.consumers):
                return f"nothing in it takes what {op.name!r} makes"
        counts = sorted({form.units for form in self.shared})
        return None if self.by_rows or len(counts) == 1 else f"its ops share out {' and '.join(map(str, counts))} {self.axis}"

    @cached_property
    def units(self) -> int:
        """What the shares add up to."""
        return self.last.units if self.by_rows else self.shared[0].units

    @cached_property
    def granularity(self) -> int:
        """What the shares are multiples of, the last one excepted."""
        return self.last.granularity if self.by_rows else math.lcm(*(form.granularity for form in self.shared))

    @cached_property
    def chunks(self) -> int:
        """Shares of one granularity; the rest counts as one."""
        return -(-self.units // self.granularity)

    def weights(self, shares: Ints) -> Floats:
        """(S, W) bytes of weights held, for S ways to share; whoever has no share holds none."""
        fixed = sum(form.weight_bytes + form.replicated * form.units * form.weight_bytes_per_unit for form in self.form.values())
        per_unit = sum(form.weight_bytes_per_unit for form in self.shared)
        return np.where(shares > 0, fixed + per_unit * shares, 0.0)

    def left(self, shares: Sequence[int], leaves: Leaves) -> Held:
        """Return who holds the block's last tensors."""
        if leaves == "divided":
            return Held(frozenset(), tuple(np.cumsum([0, *shares]).tolist()))
        return AT_HOST if leaves == "whole" else Held(frozenset({0, *active(shares)}))

    def price(self, shares: Sequence[int], held: Held, leaves: Leaves) -> Priced:
        """Price it with these shares, in units."""
        n = np.array([shares])
        compute, moves = self.times(n, held, leaves)
        slowest = int(np.where(n > 0, compute + moves, -1.0).argmax())
        return Priced(float(compute[0, slowest]), float(moves[0, slowest]), self.weights(n)[0], self.left(shares, leaves))

    def times(self, shares: Ints, held: Held, leaves: Leaves) -> tuple[Floats, Floats]:
        """(S, W) seconds of computing and of all else, for S ways to share, in units; of no meaning where a share is 0."""
        if self.by_rows:
            return self._times_by_rows(shares, held, leaves)
        moves = [self.moves(n[:, None], held, leaves, active(n.tolist()))[:, 0] for n in shares]
        return self.compute(shares.T).T, np.array(moves)

    def _times_by_rows(self, shares: Ints, held: Held, leaves: Leaves) -> tuple[Floats, Floats]:
        (block,) = RowChain(self.problem, self.tier, [list(self.form)], self.form).endings
        edges = block.cuts(shares)
        if held.rows is None:
            moves = block.received(edges[None], held.whole)[0]
        else:
            moves = block.fetched(np.array([held.rows]), np.array([0]), edges)[0]
        return block.compute.at(edges[None])[0], moves + (block.send.at(edges[None])[0] if leaves == "whole" else 0.0)

    # -- channels and heads

    def compute(self, n: Ints) -> Floats:
        """(W, K) seconds of computing with n units, (1, K) or (W, K)."""
        total = np.zeros((len(self.workers), n.shape[1]))
        for op in self.ops:
            form = self.form[op.name]
            count = np.full_like(n, form.units) if form.replicated else n
            total += op.reach * (np.array(form.fixed_s)[:, None] + np.array(form.seconds_per_unit)[:, None] * count)
        return total

    def moves(self, n: Ints, held: Held, leaves: Leaves, group: Collection[int]) -> Floats:
        """(W, K) seconds of all that is not computing with n units, where exactly the `group` has a share."""
        total = np.zeros((len(self.workers), 1)) + 0.0 * n
        if self.entry:
            nbytes = sum(t.nbytes * t.reach * (1 if self._needed_whole(t) else n / self.units) for t in self.entry)
            receive = nbytes / self.rates.forth[:, None] + (self.rates.latency * _reach(self.entry))[:, None]
            total += np.where([[w in held.whole] for w in range(len(self.workers))], 0.0, receive)
        for tensor in self.pooled:
            total += self._collective(self.form[tensor.producer].gives, n, [tensor], group)
        if self.exit:
            total += self._leave(n, leaves, group)
        return total

    @cached_property
    def pooled(self) -> list[Tensor]:
        """The tensors inside that all workers must come to hold: terms of a sum, or shares of what somebody takes whole."""
        gives = {tensor.name: self.form[tensor.producer].gives for tensor in self.inner}
        return [t for t in self.inner if gives[t.name] == "partial" or (gives[t.name] == "split" and self._needed_whole(t))]

    def alone(self, leaves: Leaves) -> bool:
        """Whether a worker's time does not depend on who else has a share."""
        return leaves == "whole" and self.last.gives != "whole" and not self.pooled

    def _leave(self, n: Ints, leaves: Leaves, group: Collection[int]) -> Floats:
        gives, first = self.last.gives, min(group)
        if gives != "whole" and leaves == "replicated":
            return self._collective(gives, n, self.exit, {0, *group})
        if gives == "whole":  # the host has it, or the first who has sends it there
            share = np.array([[w == first] for w in range(len(self.workers))]) + 0.0 * n
        else:
            share = n / self.units if gives == "split" else np.ones_like(n, dtype=float)
        latency = (share > 0) * (self.rates.latency * _reach(self.exit))[:, None]
        return np.asarray(share * _nbytes(self.exit) / self.rates.back[:, None] + latency)

    def _collective(self, gives: str, n: Ints, tensors: Sequence[Tensor], group: Collection[int]) -> Floats:
        """(W, K) or (1, 1) seconds until each of the group has all: of a sum, or of what each has a share of."""
        if len(group) < 2:
            return np.zeros((1, 1))
        nbytes, reach, p, others = _nbytes(tensors), _reach(tensors), len(group), sorted(group)
        furthest = sorted(self.rates.latency[others])[-2:]
        if gives == "partial":
            # Two exchange their terms; more do a reduce-scatter and an all-gather.
            rate, rounds = float(np.minimum(self.rates.forth, self.rates.back)[others].min()), 1 if p == 2 else 2
            return np.array([[(nbytes if p == 2 else 2 * (p - 1) / p * nbytes) / rate + rounds * sum(furthest) * reach]])
        sent = n / self.units * nbytes * (p - 1) / self.rates.back[:, None]
        received = (1 - n / self.units) * nbytes / self.rates.forth[:, None]
        peer = np.array([max((self.rates.latency[v] for v in others if v != w), default=0.0) for w in range(len(self.workers))])
        return np.asarray(np.maximum(sent, received) + ((self.rates.latency + peer) * reach)[:, None])

    def _needed_whole(self, tensor: Tensor) -> bool:
        return any(self.form[name].takes == "whole" for name in tensor.consumers if name in self.form)


def active(shares: Sequence[int]) -> tuple[int, ...]:
    """Return the workers that have a share."""
    return tuple(w for w, share in enumerate(shares) if share)


def _nbytes(tensors: Sequence[Tensor]) -> float:
    return sum(tensor.nbytes * tensor.reach for tensor in tensors)


def _reach(tensors: Sequence[Tensor]) -> float:
    return max((tensor.reach for tensor in tensors), default=0.0)
