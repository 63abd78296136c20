r"""Narrow graphs, exactly: a dynamic programme along a topological order, block by block between cut vertices.

       o---->o---->o            At a cut vertex, x or y, only one op's tensors are alive: produced, and wanted by later
      /             \           ops. The state is that op's tier, as on a chain. Inside a block it is the product over
    x----->o-->o---->y          all tensors alive, so what a block costs is its width: residual blocks and inception
      \_____________/           modules are cheap, and what is too wide is refused.

For each tensor alive the state holds the tiers where it is wanted so far, as a set of bits, its producer's the lowest;
under relay "transcode" the lowest and the highest bit tell all. A tensor is paid when its last consumer is placed, by its
set alone, so both relays are exact. Limits, the interval and link latency are columns of a label (see `labels`): of two
labels of one state, one that is no better in any column is dropped. A first run keeps only the most promising labels; the
second, if one is needed, drops every label that cannot lead to less than the first one found.

O(n k S A) for S labels at once and A ways to pay a tensor, and O(S) comparisons a label where limits or the interval give
it columns. Without these A is 1 and S the number of states: for one tensor alive k (k+1) / 2, under "forward" 2^k - 1, for
several at most the product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from partitioners.arrays import Arrays, Floats, Ints
from partitioners.cost import ROUNDING, exceeds, solution
from partitioners.errors import Infeasible, PartitionerError
from partitioners.hops import hops
from partitioners.labels import CHUNK, VALUE, Columns, memory_of, undominated
from partitioners.objective import FIELDS, Objective
from partitioners.order import Step, steps
from partitioners.placement import Crossing, Solution
from partitioners.problem import Problem

BEAM = 256  # labels of the first run: one chunk of comparisons an op
LABELS = 200_000  # made at once: some 50 MB
COMPARISONS = 5_000_000_000  # of labels, in all: some ten seconds
TIERS = 8  # a table has every set of tiers for each tensor


def by_blocks(problem: Problem, objective: Objective) -> Solution:
    """Place a narrow one-way graph, under any objective and limits but the critical path."""
    if "critical_path" in objective.weights or "critical_path_s" in problem.within:
        raise PartitionerError("'blocks' adds costs up along the data; a critical path is no sum.\n  Take 'critical_path' or 'milp'.")
    if problem.two_way:
        raise PartitionerError("'blocks' sends data one way; the problem is two_way.\n  Take 'mincut' or 'milp'.")
    if len(problem.tiers) > TIERS:
        raise PartitionerError(
            f"'blocks' tries every set of tiers, of at most {TIERS}; there are {len(problem.tiers)}.\n  Take 'mincut' or 'milp'."
        )
    a = Arrays.of(problem)
    order = steps(a)
    weights = {FIELDS[name]: weight for name, weight in objective.weights.items()}
    memory = {memory_of(tier.name): tier.memory_bytes for tier in problem.tiers if tier.memory_bytes is not None}
    limits = memory | problem.limits
    found = _Programme(a, order, Columns(a, weights, limits)).least()
    if found is None:
        raise Infeasible(_missed(a, order, limits))
    value, placement, codecs = found
    return solution(problem, placement, "blocks", value, objective, codecs)


def _missed(a: Arrays, order: list[Step], limits: Mapping[str, float]) -> str:
    """Say which limit cannot be kept: the first whose cost, at its least under those before it, exceeds it."""
    kept: dict[str, float] = {}
    for name, limit in limits.items():
        found = _Programme(a, order, Columns(a, {name: 1.0}, kept)).least()
        if found and exceeds(found[0], limit):
            others = " and ".join(f"{other} at most {most:,.10g}" for other, most in kept.items())
            over = f"{name} is at least {found[0]:,.10g}, {found[0] - limit:,.6g} over the limit of {limit:,.10g}"
            return f"with {others}, {over}" if kept else over
        kept[name] = limit
    return f"nothing keeps {', '.join(limits)} all at once, by rounding alone"


@dataclass(frozen=True)
class _Front:
    """Partial placements up to one op that may still be the best, one a row."""

    keys: Ints
    """The sets of all tensors alive: the state."""
    labels: Floats
    parent: Ints
    """The row before this op."""
    tier: Ints
    """Of this op."""
    ways: Ints
    """(rows, tensors paid at this op)."""

    def __getitem__(self, rows: Ints) -> _Front:
        return _Front(self.keys[rows], self.labels[rows], self.parent[rows], self.tier[rows], self.ways[rows])


_Back = tuple[Ints, Ints, Ints]
"""Of a front: parent, tier, ways."""


class _Programme:
    """The dynamic programme over one graph with one kind of labels."""

    def __init__(self, a: Arrays, order: list[Step], columns: Columns) -> None:
        self.a, self.steps, self.columns, tier = a, order, columns, np.arange(a.tiers)
        self.open = (a.low[:, None] <= tier) & (tier <= a.high[:, None])
        self.bit, self.up_to, self.all = 1 << tier, (2 << tier) - 1, (1 << a.tiers) - 1
        # Of each set of tiers: the lowest, its producer's; the links on the way; the part of the set that tells the way.
        bits = (np.arange(self.all + 1)[:, None] >> tier & 1).astype(bool)
        self.home, top = bits.argmax(axis=1), a.tiers - 1 - bits[:, ::-1].argmax(axis=1)
        self.crossed = (self.home[:, None] <= tier[:-1]) & (tier[:-1] < top[:, None])
        self.telling = np.arange(len(bits)) if a.problem.relay == "forward" else self.bit[self.home] | self.bit[top]
        self.ops = columns.ops()
        self.ways, self.codecs = self._ways()
        self.must, self.may = self._outlook()

    def least(self) -> tuple[float, dict[str, str], list[Crossing]] | None:
        """Return the least value, a placement of that value and its codecs; None if nothing keeps the limits."""
        last, history, complete = self._run(np.inf, BEAM)
        if not complete:  # what the most promising labels led to is a bound for all the others
            last, history, _ = self._run(self.columns.total(last.labels).min(initial=np.inf))
        if not len(last.keys):
            return None
        total = self.columns.total(last.labels)
        best = int(total.argmin())
        return float(total[best]), *self._trace(history, best)

    def _run(self, upper: float, beam: int | None = None) -> tuple[_Front, list[_Back], bool]:
        """Extend the labels that may lead to `upper` or less through the order; if need be, only the `beam` most promising."""
        nothing, complete, event, compared = np.zeros(1, dtype=np.int64), True, 0, 0
        front = _Front(nothing, np.zeros((1, self.columns.width)), nothing, nothing, np.zeros((1, 0), dtype=np.int64))
        history = []
        for position, step in enumerate(self.steps):
            front = self._place(step, front)
            for unpaid in range(len(step.last), -1, -1):
                made = len(front.keys)
                if not unpaid or made > CHUNK:  # before the last is paid only if there is much to drop
                    alive = step.alive + [at for _, at in step.last[len(step.last) - unpaid :]]
                    front, promise = self._worthwhile(step, event, alive, front, upper)
                    if beam and len(front.keys) > beam:
                        complete, front = False, front[np.argsort(promise)[:beam]]
                    compared += made * max(CHUNK, int(np.unique(front.keys, return_counts=True)[1].max(initial=0)))
                    self._check(position, compared, COMPARISONS, "comparisons")
                if unpaid:
                    front = self._pay(position, *step.last[-unpaid], front)
                event += 1
            history.append((front.parent, front.tier, front.ways))
        return front, history, complete

    def _place(self, step: Step, before: _Front) -> _Front:
        """Put the op on every tier open to it that is not below any of its inputs."""
        fits = np.repeat(self.open[[step.op]], len(before.keys), axis=0)
        for at in step.inputs:
            fits &= (before.keys[:, None] >> at & self.up_to) != 0
        parent, tier = np.nonzero(fits)
        keys, labels = before.keys[parent], before.labels[parent] + self.ops[step.op, tier]
        for at in step.inputs:
            set_ = keys >> at & self.all
            keys += self.telling[set_ | self.bit[tier]] - set_ << at
        for at in step.born:
            keys += self.bit[tier] << at
        if reach := self.a.return_reach[step.op]:
            self.columns.pay_latency(labels, "down", tier[:, None] > np.arange(self.a.tiers - 1), reach)
        return _Front(keys, labels, parent, tier, np.zeros((len(keys), 0), dtype=np.int64))

    def _pay(self, position: int, tensor: int, at: int, front: _Front) -> _Front:
        """Pay a tensor whose last consumer is placed, in every way that may be best, and forget its set."""
        set_ = front.keys >> at & self.all
        row, way = np.nonzero(np.isfinite(self.ways[tensor, set_, :, VALUE]))
        self._check(position, len(row), LABELS, "labels")
        set_, front = set_[row], front[row]
        labels = front.labels + self.ways[tensor, set_, way]
        self.columns.pay_latency(labels, "up", self.crossed[set_], self.a.reach[tensor])
        return _Front(front.keys - (set_ << at), labels, front.parent, front.tier, np.hstack([front.ways, way[:, None]]))

    def _worthwhile(self, step: Step, event: int, alive: list[int], front: _Front, upper: float) -> tuple[_Front, Floats]:
        """Drop what cannot keep a limit or the bound, and what another label of its state beats; returns bounds of the rest."""
        lowest = np.full(len(front.keys), min(step.source, self.a.tiers - 1))
        for at in alive:
            lowest = np.minimum(lowest, self.home[front.keys >> at & self.all])
        must = self.must[event, lowest]
        kept = self.columns.settle(front.labels, must, self.may[event, lowest])
        promise = self.columns.total(front.labels + must)
        rows = np.flatnonzero(kept & (promise <= upper * (1 + ROUNDING)))
        rows = rows[undominated(front.keys[rows], front.labels[rows])]
        return front[rows], promise[rows]

    def _check(self, position: int, count: int, limit: int, what: str) -> None:
        if count <= limit:
            return
        names = [repr(self.a.problem.ops[step.op].name) for step in self.steps]
        cuts = [p for p, step in enumerate(self.steps) if step.is_cut]
        before, after = [p for p in cuts if p < position], [p for p in cuts if p >= position]
        block = f"{names[before[-1]] if before else 'the start'} to {names[after[0]] if after else 'the end'}"
        alive = len(self.steps[position].alive) + len(self.steps[position].last)
        raise PartitionerError(
            f"'blocks' keeps every state that tensors may be in; at {names[position]}, in the block from {block}, with"
            f" {alive} tensors alive, it came to {count:,} {what}, the limit is {limit:,}.\n  Take 'mincut' or 'milp'."
        )

    def _trace(self, history: list[_Back], row: int) -> tuple[dict[str, str], list[Crossing]]:
        """Walk back from a row of the last front."""
        tier, way = np.zeros(len(self.steps), dtype=np.int64), dict[int, int]()
        for step, (parent, placed, ways) in zip(reversed(self.steps), reversed(history), strict=True):
            tier[step.op] = placed[row]
            way |= {tensor: int(chosen) for (tensor, _), chosen in zip(step.last, ways[row], strict=True)}
            row = int(parent[row])
        crossings = []
        for t, chosen in way.items():
            tensor, home = self.a.problem.tensors[t], int(tier[self.a.producer[t]])
            users = {int(tier[self.a.problem.op_index[name]]) for name in tensor.consumers}
            set_ = self.telling[sum(1 << i for i in {home, *users})]
            for (start, stops), codec in zip(hops(self.a.problem, home, users), self.codecs[t, set_, chosen].tolist(), strict=False):
                taken = tensor.ways[codec - self.a.first_codec[t]]
                crossings += [Crossing(tensor.name, j, taken.name, taken.nbytes) for j in range(start, max(stops))]
        return self.a.names(tier), crossings

    def _ways(self) -> tuple[Floats, Ints]:
        """For each tensor and set (T, sets, ways, ...) the ways to pay that may be best: labels, and the codecs of their hops."""
        a, tensors = self.a, len(self.a.fan_out)
        hop_ways: dict[tuple[int, tuple[int, ...]], tuple[Floats, Ints]] = {}
        found = {}
        for set_ in np.unique(self.telling[1:]).tolist():
            owner, labels, codecs = np.arange(tensors), np.zeros((tensors, self.columns.width)), np.zeros((tensors, 0), dtype=np.int64)
            for hop in hops(a.problem, int(self.home[set_]), np.flatnonzero(set_ >> np.arange(a.tiers) & 1).tolist()):
                if hop not in hop_ways:
                    prices = self.columns.hop(*hop)
                    best = undominated(a.codec_owner, prices)
                    hop_ways[hop] = prices[best], best
                # Each way so far with each codec for this hop.
                prices, codec = hop_ways[hop]
                left, right = _pairs(owner, a.codec_owner[codec], tensors)
                owner, labels, codecs = owner[left], labels[left] + prices[right], np.hstack([codecs[left], codec[right][:, None]])
                best = undominated(owner, labels)
                owner, labels, codecs = owner[best], labels[best], codecs[best]
            found[set_] = owner, labels, codecs
        most = max((int(np.bincount(owner, minlength=1).max()) for owner, _, _ in found.values()), default=0)
        table = np.full((tensors, self.all + 1, most, self.columns.width), np.inf)
        chosen = np.full((tensors, self.all + 1, most, self.a.tiers), -1)
        for set_, (owner, labels, codecs) in found.items():
            position = np.arange(len(owner)) - np.searchsorted(owner, owner)
            table[owner, set_, position] = labels
            chosen[owner, set_, position, : codecs.shape[1]] = codecs
        return table, chosen

    def _outlook(self) -> tuple[Floats, Floats]:
        """(events, k, width) twice: at least and at most what is still added if nothing more goes below a tier.

        An event is an op that is placed or a tensor that is paid.
        """
        # Ops on the cheapest and the dearest of the tiers left to them; tensors not at all, and in the dearest way left.
        open_ = self.open[:, ::-1, None]
        cheapest = np.minimum.accumulate(np.where(open_, self.ops[:, ::-1], np.inf), axis=1)[:, ::-1]
        dearest = np.maximum.accumulate(np.where(open_, self.ops[:, ::-1], -np.inf), axis=1)[:, ::-1]
        ways = np.where(np.isfinite(self.ways), self.ways, 0.0).max(axis=2, initial=0.0)
        paid = np.stack([ways[:, self.home >= i].max(axis=1) for i in range(self.a.tiers)], axis=1)
        least, most = [], []
        for step in self.steps:
            tensors = [tensor for tensor, _ in step.last]
            least += [cheapest[[step.op]], np.zeros_like(paid[tensors])]
            most += [dearest[[step.op]], paid[tensors]]
        must, may = np.concatenate(least), np.concatenate(most)
        for each in (must, may):
            each[:-1] = each[:0:-1].cumsum(axis=0)[::-1]
            each[-1] = 0.0
        may[:-1] += 2 * self.columns.latency.sum(axis=0)
        return must, may


def _pairs(left: Ints, right: Ints, owners: int) -> tuple[Ints, Ints]:
    """Return the positions of all pairs of the same owner; both are sorted by owner."""
    count = np.bincount(right, minlength=owners)
    repeat, first = count[left], np.cumsum(count) - count
    start = first[left] - (np.cumsum(repeat) - repeat)
    return np.repeat(np.arange(len(left)), repeat), np.repeat(start, repeat) + np.arange(repeat.sum())
