"""What the workers of a tier do in one block, by the plainest walk: worker by worker, row by row, packet by packet.

Written apart from `division`, which prices blocks for `cost` and the search, so that their agreement means something.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from partitioners.placement import Block
from partitioners.problem import Layout, Problem, Tensor, Worker


class Share(NamedTuple):
    """What one worker does."""

    compute_s: float
    exchange_s: float
    memory_bytes: float


@dataclass(frozen=True)
class Team:
    """One block and those who share it; `before` is the block that left its tensors with them, if there is one."""

    problem: Problem
    block: Block
    before: Block | None

    @property
    def workers(self) -> Sequence[Worker]:
        """Of its tier, the host first."""
        return self.problem.tiers[self.problem.tier_index[self.block.tier]].workers

    @property
    def busy(self) -> list[int]:
        """Who has a share."""
        return [w for w, share in enumerate(self.block.shares) if share]

    def layout(self, name: str) -> Layout:
        """Return the layout in which an op of the block is divided."""
        takes = dict(zip(self.block.ops, self.block.takes or ["split"] * len(self.block.ops), strict=True))
        key = self.block.tier, self.block.axis, takes[name]
        return next(each for each in self.problem.ops[self.problem.op_index[name]].layouts if (each.tier, each.axis, each.takes) == key)

    def tensors(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return the tensors that come in, those that stay inside and those that go out."""
        ops = set(self.block.ops)
        taken = [t for t in self.problem.tensors if ops & set(t.consumers)]
        out = [t for t in self.problem.tensors if t.producer == self.block.ops[-1] and (t.consumers or t.returned)]
        return [t for t in taken if t.producer not in ops], [t for t in taken if t.producer in ops], out

    def takers(self, tensor: Tensor) -> list[str]:
        """Return the ops of the block that take a tensor."""
        return [name for name in tensor.consumers if name in self.block.ops]

    def link(self, sender: int, receiver: int, nbytes: float) -> float:
        """Return the wire time between two workers, without latency: that of the slower one of their two links."""
        up, down = self.workers[sender].return_bytes_per_s or self.workers[sender].bytes_per_s, self.workers[receiver].bytes_per_s
        return max(nbytes / (up or inf), nbytes / (down or inf))

    def latency(self, *workers: int) -> float:
        """Return the latency of their links together."""
        return sum(self.workers[w].latency_s for w in workers)

    def shares(self) -> dict[int, Share]:
        """Return what each worker does that has a share."""
        return {w: self.by_rows(w) if self.block.axis == "rows" else self.by_units(w) for w in self.busy}

    # -- rows

    def computed(self, name: str, w: int) -> range:
        """Return the output rows of an op that a worker computes: the hull of what the ops after it need."""
        if name == self.block.ops[-1]:
            first = sum(self.block.shares[:w])
            return range(first, first + self.block.shares[w])
        outputs = [t for t in self.problem.tensors if t.producer == name and self.takers(t)]
        needs = [self.needed(user, w) for t in outputs for user in self.takers(t)]
        return range(min(need.start for need in needs), max(need.stop for need in needs))

    def needed(self, name: str, w: int) -> range:
        """Return the input rows that an op needs of which there are any: padding is none."""
        layout, rows = self.layout(name), self.computed(name, w)
        height = layout.input_units or layout.units
        first = rows.start * layout.stride - layout.padding
        last = (rows.stop - 1) * layout.stride - layout.padding + layout.dilation * (layout.kernel - 1)
        return range(min(max(first, 0), height), min(max(last + 1, 0), height))

    def by_rows(self, w: int) -> Share:
        """Return what one worker does for its rows."""
        ops, (enters, _, leaves) = self.problem.ops, self.tensors()
        compute = memory = 0.0
        for name in self.block.ops:
            layout, rows = self.layout(name), self.computed(name, w)
            compute += ops[self.problem.op_index[name]].reach * (layout.fixed_s[w] + layout.seconds_per_unit[w] * (rows.stop - rows.start))
            memory += layout.weight_bytes
        sent = 0.0
        if self.block.leaves == "whole" and leaves and w:
            nbytes = sum(t.reach * t.nbytes for t in leaves) * self.block.shares[w] / self.layout(self.block.ops[-1]).units
            sent = self.link(w, 0, nbytes) + max(t.reach for t in leaves) * self.latency(w)
        return Share(compute, self.received(enters, w) + sent, memory)

    def received(self, enters: Sequence[Tensor], w: int) -> float:
        """Return the seconds until one worker has the rows that it needs."""
        parts: dict[int, float] = {}
        held = self.before
        for tensor in enters:
            layout = self.layout(self.takers(tensor)[0])
            row_bytes = tensor.reach * tensor.nbytes / (layout.input_units or layout.units)
            needs = [self.needed(name, w) for name in self.takers(tensor)]
            rows = range(min(need.start for need in needs), max(need.stop for need in needs))
            if held is not None and held.leaves == "divided":
                owner = [v for v, share in enumerate(held.shares) for _ in range(share)]
                for v, count in Counter(owner[row] for row in rows if owner[row] != w).items():
                    parts[v] = parts.get(v, 0.0) + count * row_bytes
            elif w and not (held is not None and w in _everything(held)):
                parts[0] = parts.get(0, 0.0) + (rows.stop - rows.start) * row_bytes
        if not parts:
            return 0.0
        own = sum(parts.values()) / (self.workers[w].bytes_per_s or inf)
        wire = max(own, *(self.link(v, w, nbytes) for v, nbytes in parts.items()))
        return wire + max(t.reach for t in enters) * max(self.latency(v, w) for v in parts)

    # -- channels and heads

    def by_units(self, w: int) -> Share:
        """Return what one worker does for its channels or heads."""
        enters, inside, leaves = self.tensors()
        mine = self.block.shares[w]
        compute = memory = exchange = 0.0
        for name in self.block.ops:
            layout, op = self.layout(name), self.problem.ops[self.problem.op_index[name]]
            count = layout.units if (layout.takes, layout.gives) == ("whole", "whole") else mine
            compute += op.reach * (layout.fixed_s[w] + count * layout.seconds_per_unit[w])
            memory += layout.weight_bytes + count * layout.weight_bytes_per_unit
        if enters and w and not (self.before is not None and w in _everything(self.before)):
            nbytes = sum(t.reach * t.nbytes * (1.0 if self.wants_all(t) else mine / sum(self.block.shares)) for t in enters)
            exchange += self.link(0, w, nbytes) + max(t.reach for t in enters) * self.latency(w)
        for tensor in inside:
            gives = self.layout(tensor.producer).gives
            if gives == "partial":
                exchange += self.all_reduce([tensor], self.busy)
            elif gives == "split" and self.wants_all(tensor):
                exchange += self.all_gather([tensor], w, self.busy)
        return Share(compute, exchange + (self.leave(leaves, w) if leaves else 0.0), memory)

    def wants_all(self, tensor: Tensor) -> bool:
        """Whether some op of the block takes all of it."""
        return any(self.layout(name).takes == "whole" for name in self.takers(tensor))

    def leave(self, tensors: Sequence[Tensor], w: int) -> float:
        """Return the seconds until the block's last tensors are where they shall be."""
        gives, everyone = self.layout(self.block.ops[-1]).gives, sorted({0, *self.busy})
        if gives != "whole" and self.block.leaves == "replicated":
            return self.all_reduce(tensors, everyone) if gives == "partial" else self.all_gather(tensors, w, everyone)
        part = {"whole": float(w == self.busy[0]), "partial": 1.0, "split": self.block.shares[w] / sum(self.block.shares)}[gives]
        if not part or not w:
            return 0.0
        return self.link(w, 0, part * sum(t.reach * t.nbytes for t in tensors)) + max(t.reach for t in tensors) * self.latency(w)

    def all_reduce(self, tensors: Sequence[Tensor], team: Sequence[int]) -> float:
        """Two send each other all; more do a reduce-scatter and an all-gather, over the slowest link."""
        nbytes, reach, p = sum(t.reach * t.nbytes for t in tensors), max(t.reach for t in tensors), len(team)
        pairs = [(v, w) for v in team for w in team if v != w]
        if not pairs:
            return 0.0
        volume, rounds = (nbytes, 1) if p == 2 else (2 * (p - 1) / p * nbytes, 2)
        return max(self.link(*pair, volume) for pair in pairs) + rounds * reach * max(self.latency(*pair) for pair in pairs)

    def all_gather(self, tensors: Sequence[Tensor], w: int, team: Sequence[int]) -> float:
        """Everyone sends its part to each of the others, and receives theirs."""
        nbytes, reach, part = sum(t.reach * t.nbytes for t in tensors), max(t.reach for t in tensors), self.block.shares[w]
        others = [v for v in team if v != w]
        if not others:
            return 0.0
        mine = nbytes * part / sum(self.block.shares)
        sent, received = self.link(w, 0, len(others) * mine), self.link(0, w, nbytes - mine)
        return max(sent, received) + reach * max(self.latency(v, w) for v in others)


def _everything(block: Block) -> set[int]:
    """Return who holds all that a block left."""
    return {0, *(w for w, share in enumerate(block.shares) if share)} if block.leaves == "replicated" else {0}


def teams(problem: Problem, blocks: Sequence[Block]) -> dict[str, Team]:
    """Return each block with the one before it, by the last op."""
    last: Mapping[str, Block] = {block.ops[-1]: block for block in blocks}
    found = {}
    for name, block in last.items():
        sources = {t.producer for t in problem.tensors if set(t.consumers) & set(block.ops)} - set(block.ops)
        before = [last[source] for source in sources if source in last and last[source].tier == block.tier]
        found[name] = Team(problem, block, before[0] if before else None)
    return found
