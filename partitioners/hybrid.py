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

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from partitioners.arrays import Floats, Ints
from partitioners.bills import VALUE, Bills, Way
from partitioners.division import AT_HOST, Held, Leaves, active
from partitioners.errors import PartitionerError
from partitioners.labels import undominated
from partitioners.objective import Objective
from partitioners.pieces import Run
from partitioners.placement import Block, Crossing
from partitioners.problem import AXES, Axis
from partitioners.row_sizing import RowOptions
from partitioners.sizing import Sizing
from partitioners.space import RowBlocks, Space

LABELS = 400  # of one node and way to divide its rows; half of them are kept for a fair use of memory

Kind = frozenset[int] | None
"""How tensors are held: whole, by these workers; None: divided by rows."""
HOST = AT_HOST.whole
Node = tuple[int, int, Kind, bool]
"""Pieces done, tier, how its tensors are held, whether a link may have been crossed since."""


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
    """Of rows that are divided, the way: its place in `Space.cuts`."""
    edge: Ints
    """By which each was reached: its place in `_Search.edges`."""
    option: Ints
    """Which of the edge's ways."""
    parent: Ints
    """The row of the node before."""

    def __getitem__(self, at: Ints) -> _Front:
        return _Front(self.labels[at], self.rows[at], self.edge[at], self.option[at], self.parent[at])

    @staticmethod
    def together(fronts: Sequence[_Front]) -> _Front:
        return _Front(*(np.concatenate([getattr(front, name) for front in fronts]) for name in _Front.__dataclass_fields__))


@dataclass(frozen=True)
class _Edge:
    """A step, and the node from which it was taken: of blocks by rows, the first one from which it might have been."""

    source: Node
    run: Run | None = None
    shares: Ints | None = None
    """(B, S, W) of a block from each of B nodes, at one cut vertex after the other; an option counts through B and S."""
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
        self.by_rows = space.by_rows if "rows" in axes else [[] for _ in space.by_rows]
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
        for position in range(len(self.pieces) + 1):
            for blocks in self.by_rows[position]:
                self._share_rows(blocks)
            self._settle(position)
            if 0 < position < len(self.pieces):
                self._cross(position)
                self._settle(position)
            for node in [node for node in self.fronts if node[0] == position and node[3]]:
                self._advance(node)
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
            seconds = np.array([sum(op.seconds[tier] * op.reach for op in ops)])
            held = np.zeros((1, max(1, len(self.problem.tiers[tier].workers))))
            held[0, 0] = sum(op.memory_bytes for op in ops)
            step = self.bills.work(tier, seconds, held) + self._back(position, tier)
            self._reach((position + 1, tier, HOST, False), node, self._edge(_Edge(node)), step, np.zeros(1, dtype=np.int64))
        for run, sizing in self.runs[position]:
            if run.tier == tier and kind is not None:
                self._share(node, run, sizing, "whole")
                if run.end < len(self.pieces):
                    self._share(node, run, sizing, "replicated")

    def _share(self, node: Node, run: Run, sizing: Sizing, leaves: Leaves) -> None:
        """Take one run as a block, in every way that may be best."""
        options = sizing.options(Held(node[2] or HOST), leaves)
        steps = self.bills.work(run.tier, options.seconds, options.memory_bytes) + self._back(run.end - 1, run.tier)
        edge = self._edge(_Edge(node, run, options.shares[None], leaves))
        groups = [HOST if leaves == "whole" else frozenset({0, *active(shares)}) for shares in options.shares.tolist()]
        for group in dict.fromkeys(groups):
            which = np.array([i for i, each in enumerate(groups) if each == group])
            self._reach((run.end, run.tier, group, False), node, edge, steps, which)

    def _reach(self, node: Node, source: Node, edge: int, steps: Floats, which: Ints) -> None:
        """Add to each label of a node, where no rows are divided, each of the steps (S, width) that are asked for."""
        front = self.fronts[source]
        parent, option = np.repeat(np.arange(len(front.rows)), len(which)), np.tile(which, len(front.rows))
        self._add(node, _Front(front.labels[parent] + steps[option], np.zeros_like(option), np.full_like(option, edge), option, parent))

    def _share_rows(self, blocks: RowBlocks) -> None:
        """Take all blocks by rows that end at one cut vertex, from every node before, in every way that may be best."""
        nodes = [node for node in self.fronts if node[1] == blocks.tier and node[3] and blocks.begin <= node[0] < blocks.end]
        for kind in dict.fromkeys(node[2] for node in nodes):
            begins = np.array([node[0] for node in nodes if node[2] == kind])
            for gathers in (True, False) if blocks.may_stay else (True,):
                self._take_rows(blocks, kind, begins, gathers, self._row_options(blocks, kind, gathers))

    def _row_options(self, blocks: RowBlocks, kind: Kind, gathers: bool) -> RowOptions:
        if self.relaxed and not (gathers and kind is not None):
            return blocks.sizing.least(kind, gathers)
        if kind is None:
            return blocks.sizing.between(self.space.cuts_before(blocks), self.space.cuts(blocks.tier, blocks.end), gathers)
        return blocks.sizing.gathered(kind) if gathers else blocks.sizing.divided(kind, self.space.cuts(blocks.tier, blocks.end))

    def _take_rows(self, blocks: RowBlocks, kind: Kind, begins: Ints, gathers: bool, options: RowOptions) -> None:
        """Add to each label at the cut vertices `begins` each of the options."""
        fronts = [self.fronts[begin, blocks.tier, kind, True] for begin in begins.tolist()]
        labels, rows = np.concatenate([front.labels for front in fronts]), np.concatenate([front.rows for front in fronts])
        many = [len(front.rows) for front in fronts]
        block, parent = np.repeat(begins - blocks.begin, many), np.concatenate([np.arange(each) for each in many])
        seconds = options.seconds[options.first[block] + rows]
        possible = np.isfinite(seconds)
        if self.bills.scalar:  # the best label before each way will do
            added = np.multiply(self.bills.rate(blocks.tier), seconds, out=np.full_like(seconds, np.inf), where=possible)
            possible &= np.arange(len(seconds))[:, None] == (labels[:, [VALUE]] + added).argmin(axis=0)
        at, way = np.nonzero(possible)
        steps = self.bills.work(blocks.tier, seconds[at, way], options.memory_bytes[block[at], way])
        edge = self._edge(_Edge((blocks.begin, blocks.tier, kind, True), None, options.shares, "whole" if gathers else "divided"))
        option, made = block[at] * seconds.shape[1] + way, labels[at] + steps + self._back(blocks.end - 1, blocks.tier)
        node = (blocks.end, blocks.tier, HOST if gathers else None, False)
        self._add(node, _Front(made, np.zeros_like(way) if gathers else way, np.full_like(way, edge), option, parent[at]))

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
            merged = _Front.together(fronts)
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
            source = edge.source
            if edge.ways:
                codecs += edge.ways[option].codecs
            elif edge.shares is not None:
                after, way = divmod(option, edge.shares.shape[1])
                source = (source[0] + after, *source[1:])
                blocks.append(self._block(edge, source[0], node, tuple(edge.shares[after, way].tolist())))
            for piece in self.pieces.ops[source[0] : node[0]]:
                placement |= dict.fromkeys(piece, self.problem.tiers[node[1]].name)
            node, row = source, int(front.parent[row])
        return Plan(value, placement, tuple(reversed(blocks)), tuple(codecs))

    def _block(self, edge: _Edge, begin: int, node: Node, shares: tuple[int, ...]) -> Block:
        tier = self.problem.tiers[node[1]].name
        if edge.run is None:
            return Block(tuple(op for piece in self.pieces.ops[begin : node[0]] for op in piece), tier, "rows", shares, (), edge.leaves)
        form = edge.run.division.form
        return Block(tuple(form), tier, edge.run.division.axis, shares, tuple(each.takes for each in form.values()), edge.leaves)
