r"""Horizontal, vertical and hybrid splits in one search: a shortest path over (cut vertex, who holds what).

    host@device --piece, whole--> host@device --codec, link--> host@edge --block by rows--> rows@edge --> ...

A node is a cut vertex and how its tensors are held: whole at the host of a tier, replicated over some of its workers, or
divided by rows. An edge runs the piece up to the next cut vertex whole, or a block of one or more pieces in one layout and
one way to share it, or takes the tensors to a later tier with some codecs. Of two labels of one node (see `bills`), one
that is no better in any column is dropped.

What is searched: blocks begin and end at cut vertices; a block by channels or heads ends where its workers come to hold
everything; and rows that stay divided are cut in every way where there are at most `EVERY`, else in the ways of the
fastest gathered blocks that end there. Under limits on memory, of many labels only the cheapest are kept. What is not
tried is bounded by a relaxation, in which rows that stay divided are neither sent nor fetched, and memory is not limited.

Rows on one tier, gathered after each block, are the fused blocks of AOFL (Zhou et al., 2019).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from partitioners.arrays import Floats, Ints
from partitioners.bills import Bills, Way, return_latency
from partitioners.division import AT_HOST, Held, Leaves, active
from partitioners.errors import PartitionerError
from partitioners.labels import undominated
from partitioners.objective import Objective
from partitioners.pieces import Pieces, Run
from partitioners.placement import Block, Crossing
from partitioners.problem import AXES, Axis, Problem
from partitioners.sizing import Sizing

CANDIDATES = 12  # ways to cut rows that stay divided, where not all are tried
LABELS = 400  # of one node and way to divide its rows; half of them are kept for a fair use of memory

Kind = frozenset[int] | None
"""How tensors are held: whole, by these workers; None: divided by rows."""
HOST = AT_HOST.whole
Node = tuple[int, int, Kind, bool]
"""Pieces done, tier, how its tensors are held, whether a link may have been crossed since."""


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
        self.complete = all(sizing.complete for (run, sizing) in self.runs if limited[run.tier] or run.division.by_rows)
        """Whether every way to share is tried that may be needed."""
        self.may_stay = {
            (run.tier, run.begin)
            for run, _ in self.runs
            if run.division.by_rows and run.begin and self.pieces.alive(run.begin) and not self.returned[run.begin - 1]
        }
        """The tiers and cut vertices where rows may stay divided."""
        self._rows: dict[tuple[int, int], Ints] = {}

    def rows(self, tier: int, position: int) -> Ints:
        """(S, W) the ways to cut rows at a cut vertex."""
        if (tier, position) not in self._rows:
            ending = [s for run, s in self.runs if (run.end, run.tier) == (position, tier) and run.division.by_rows]
            if ending[0].complete:
                found = ending[0].every
            else:
                count = Counter(tuple(shares) for s in ending for shares in s.options(AT_HOST, "whole").shares.tolist())
                found = np.array([shares for shares, _ in count.most_common(CANDIDATES)])
            self._rows[tier, position] = found
        return self._rows[tier, position]


def _weights(problem: Problem, tier: str) -> dict[str, float]:
    """Return the bytes of each op that the workers of a tier may share out."""
    return {op.name: max((f.weight_bytes_per_unit * f.units for f in op.layouts if f.tier == tier), default=0.0) for op in problem.ops}


def _fair(problem: Problem, tier: int, weights: dict[str, float]) -> Floats:
    """(W,) the part of all weights that each worker of a tier may hold if they are shared out everywhere alike."""
    limits = [np.inf if worker.memory_bytes is None else worker.memory_bytes for worker in problem.tiers[tier].workers]
    return np.asarray(limits) / max(sum(weights.values()), 1e-12)


@dataclass(frozen=True)
class Plan:
    """The best that was found."""

    value: float
    placement: dict[str, str]
    blocks: tuple[Block, ...]
    codecs: tuple[Crossing, ...]


@dataclass(frozen=True)
class _Front:
    """Labels of one node, one a row."""

    labels: Floats
    rows: Ints
    """Of rows that are divided, the way: its place in `Space.rows`."""
    edge: Ints
    """By which each was reached: its place in `_Search.edges`."""
    option: Ints
    """Which of the edge's ways."""
    parent: Ints
    """The row of the node before."""

    def __getitem__(self, at: Ints) -> _Front:
        return _Front(self.labels[at], self.rows[at], self.edge[at], self.option[at], self.parent[at])


@dataclass(frozen=True)
class _Edge:
    """A step, and the node from which it was taken."""

    source: Node
    run: Run | None = None
    shares: Ints | None = None
    """(S, W)"""
    leaves: Leaves = "whole"
    ways: tuple[Way, ...] = ()


class Search:
    """One search; `axes` are those that blocks may have. `relaxed`: a bound from below of all that `Space` leaves out."""

    def __init__(self, space: Space, objective: Objective, axes: Collection[Axis] = AXES, relaxed: bool = False) -> None:
        """Refuse what is no sum along the data."""
        if "critical_path" in objective.weights or "critical_path_s" in space.problem.within:
            raise PartitionerError("'hybrid' adds costs up along the data; a critical path is no sum.\n  Take 'critical_path' or 'milp'.")
        self.space, self.problem, self.pieces = space, space.problem, space.pieces
        self.objective, self.relaxed = objective, relaxed
        self.bills = Bills(space.problem, objective, relaxed)
        self.runs: list[list[tuple[Run, Sizing]]] = [[] for _ in range(len(self.pieces))]
        for run, sizing in space.runs:
            if run.division.axis in axes:
                self.runs[run.begin].append((run, sizing))
        self.edges: list[_Edge] = []
        self.fronts: dict[Node, _Front] = {}
        self._made: dict[Node, list[_Front]] = {}
        self.complete = True
        """Whether no label was left out for their number."""

    def least(self) -> Plan | None:
        """Return the best plan; None if nothing keeps the limits."""
        nothing = np.zeros(1, dtype=np.int64)
        for tier in range(len(self.problem.tiers)):
            self.fronts[0, tier, HOST, True] = _Front(np.zeros((1, self.bills.width)), nothing, nothing, nothing, nothing)
        for position in range(len(self.pieces)):
            if position:
                self._settle(position)
                self._cross(position)
                self._settle(position)
            for node in [node for node in self.fronts if node[0] == position and node[3]]:
                self._advance(node)
        self._settle(len(self.pieces))
        ends = [node for node in self.fronts if node[0] == len(self.pieces)]
        if not ends:
            return None
        totals = {node: self.bills.total(self.fronts[node].labels) for node in ends}
        best = min(ends, key=lambda node: float(totals[node].min()))
        return self._trace(float(totals[best].min()), best, int(totals[best].argmin()))

    def _advance(self, node: Node) -> None:
        """Take every edge from a node to a later cut vertex."""
        position, tier, kind, _ = node
        if kind is not None and self.pieces.fits(position, tier):
            ops = [self.problem.ops[self.problem.op_index[name]] for name in self.pieces.ops[position]]
            seconds = np.array([[sum(op.seconds[tier] * op.reach for op in ops)]])
            held = np.zeros((1, max(1, len(self.problem.tiers[tier].workers))))
            held[0, 0] = sum(op.memory_bytes for op in ops)
            step = self.bills.work(tier, seconds, held) + self._back(position, tier)
            self._reach((position + 1, tier, HOST, False), node, self._edge(_Edge(node)), step)
        for run, sizing in self.runs[position]:
            if run.tier == tier and (kind is not None or run.division.by_rows):
                for leaves in self._leavings(run):
                    self._share(node, run, sizing, leaves)

    def _leavings(self, run: Run) -> Iterator[Leaves]:
        yield "whole"
        if not run.division.by_rows and run.end < len(self.pieces):
            yield "replicated"
        if run.division.by_rows and (run.tier, run.end) in self.space.may_stay:
            yield "divided"

    def _share(self, node: Node, run: Run, sizing: Sizing, leaves: Leaves) -> None:
        """Take one run as a block, in every way that may be best."""
        kind = node[2]
        divided = kind is None or leaves == "divided"
        if self.relaxed and divided:
            options = sizing.least(None if kind is None else Held(kind), leaves)
        elif kind is None:
            options = sizing.between(self.space.rows(run.tier, run.begin), leaves, self.space.rows(run.tier, run.end))
        else:
            options = sizing.options(Held(kind), leaves, self.space.rows(run.tier, run.end) if divided else None)
        steps = self.bills.work(run.tier, options.seconds, options.memory_bytes) + self._back(run.end - 1, run.tier)
        edge = self._edge(_Edge(node, run, options.shares, leaves))
        if leaves == "replicated":
            groups = [frozenset({0, *active(shares)}) for shares in options.shares.tolist()]
            for group in dict.fromkeys(groups):
                which = np.array([i for i, each in enumerate(groups) if each == group])
                self._reach((run.end, run.tier, group, False), node, edge, steps, which)
        else:
            self._reach((run.end, run.tier, HOST if leaves == "whole" else None, False), node, edge, steps)

    def _reach(self, node: Node, source: Node, edge: int, steps: Floats, which: Ints | None = None) -> None:
        """Add to each label of a node each of the steps (H, S, width), or `which` of the S, by the way its rows are held."""
        front = self.fronts[source]
        which = np.arange(steps.shape[1]) if which is None else which
        parent, option = np.repeat(np.arange(len(front.rows)), len(which)), np.tile(which, len(front.rows))
        labels = front.labels[parent] + steps[front.rows[parent], option]
        rows = option if node[2] is None else np.zeros_like(option)
        self._add(node, _Front(labels, rows, np.full_like(option, edge), option, parent))

    def _add(self, node: Node, front: _Front) -> None:
        self._made.setdefault(node, []).append(front[np.flatnonzero(self.bills.keeps(front.labels, node[1]))])

    def _cross(self, position: int) -> None:
        """Take tensors to later tiers; a front that was reached without counts as well."""
        before = [(node, front) for node, front in self.fronts.items() if node[0] == position]
        tensors, ways_of = self.pieces.alive(position), dict[tuple[int, int], tuple[Way, ...]]()
        for (_, tier, kind, _), front in before:
            self._made.setdefault((position, tier, kind, True), []).append(front)
        for node, front in before:
            for stop in range(node[1] + 1, len(self.problem.tiers)) if node[2] is not None else ():
                if (node[1], stop) not in ways_of:
                    ways_of[node[1], stop] = tuple(self.bills.ways(tensors, node[1], stop))
                ways = ways_of[node[1], stop]
                edge = self._edge(_Edge(node, ways=ways))
                every = np.arange(len(front.rows))
                for option, way in enumerate(ways):
                    labels = self.bills.cross(front.labels, way)
                    same = np.zeros_like(every)
                    self._add((position, stop, HOST, True), _Front(labels, same, same + edge, same + option, every))

    def _settle(self, position: int) -> None:
        """Make fronts of all that was added to one cut vertex, without what other labels beat."""
        for node in [node for node in self._made if node[0] == position]:
            fronts = self._made.pop(node)
            merged = _Front(*(np.concatenate([getattr(front, name) for front in fronts]) for name in _Front.__dataclass_fields__))
            ways = len(np.unique(merged.rows))
            if self.bills.memory_at.stop > self.bills.memory_at.start:  # many columns, in which few labels beat each other
                merged = self._promising(node, merged, 10 * LABELS * ways)
            merged = self._promising(node, merged[undominated(merged.rows, merged.labels)], LABELS * ways)
            if len(merged.rows):
                self.fronts[node] = merged

    def _promising(self, node: Node, front: _Front, most: int) -> _Front:
        """Keep at most so many: the cheapest, and the cheapest of those who have used no more memory than is due by now."""
        if self.relaxed or len(front.rows) <= most:
            return front
        self.complete = False
        cheapest = np.argsort(self.bills.total(front.labels), kind="stable")
        due = self.bills.memory_limit[node[1]] * max(self.space.weighed[node[1]][node[0]], 1e-12)  # a limit may be infinite
        on_track = (front.labels[cheapest][:, self.bills.memory_at] <= due).all(axis=1)
        return front[np.unique(np.concatenate([cheapest[: most // 2], cheapest[on_track][: most // 2]]))]

    def _back(self, position: int, tier: int) -> Floats:
        """(width,) what returns from a piece."""
        return self.bills.back(tier, self.space.returned[position], self.space.latency_reach.get(position, 0.0))

    def _edge(self, edge: _Edge) -> int:
        self.edges.append(edge)
        return len(self.edges) - 1

    def _trace(self, value: float, node: Node, row: int) -> Plan:
        """Walk back from a row of a last node."""
        placement, blocks, codecs = dict[str, str](), list[Block](), list[Crossing]()
        while node[0]:
            front = self.fronts[node]
            edge, option = self.edges[front.edge[row]], int(front.option[row])
            if edge.ways:
                codecs += edge.ways[option].codecs
            elif edge.run is not None and edge.shares is not None:
                blocks.append(self._block(edge.run, tuple(edge.shares[option].tolist()), edge.leaves))
            for piece in self.pieces.ops[edge.source[0] : node[0]]:
                placement |= dict.fromkeys(piece, self.problem.tiers[node[1]].name)
            node, row = edge.source, int(front.parent[row])
        return Plan(value, placement, tuple(reversed(blocks)), tuple(codecs))

    def _block(self, run: Run, shares: tuple[int, ...], leaves: Leaves) -> Block:
        form = run.division.form
        takes = () if run.division.by_rows else tuple(each.takes for each in form.values())
        return Block(tuple(form), self.problem.tiers[run.tier].name, run.division.axis, shares, takes, leaves)
