"""A graph as a chain of pieces between cut vertices, and the runs of pieces that the workers of a tier may share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, product

from partitioners.arrays import Arrays
from partitioners.division import Division
from partitioners.order import steps
from partitioners.problem import Axis, Layout, Problem, Tensor
from partitioners.rows import RowChain

FORMS = 256  # ways to choose one layout for each op of a piece; enough for eight ops with two each


@dataclass(frozen=True)
class Run:
    """The pieces from `begin` up to `end` on one tier, by channels or heads, in one layout for each op."""

    begin: int
    end: int
    tier: int
    division: Division


@dataclass(frozen=True)
class Rows:
    """The pieces from `begin` up to `end` on one tier, all of whose runs may be divided by rows; rows have one layout an op."""

    begin: int
    end: int
    tier: int
    chain: RowChain


class Pieces:
    """The ops of a problem, cut after each cut vertex."""

    def __init__(self, problem: Problem) -> None:
        """Order the ops; raises `PartitionerError` where too many tensors are alive at once."""
        self.problem = problem
        self.ops: list[list[str]] = [[]]
        for step in steps(Arrays.of(problem)):
            self.ops[-1].append(problem.ops[step.op].name)
            if step.is_cut:
                self.ops.append([])
        self.ops = [ops for ops in self.ops if ops]
        self.all_forms = True
        """Whether no piece has more than `FORMS` ways to choose its layouts."""

    def __len__(self) -> int:
        return len(self.ops)

    def alive(self, position: int) -> list[Tensor]:
        """Return the tensors that later pieces take, after so many pieces."""
        return [tensor for tensor in self.problem.outputs_of[self.ops[position - 1][-1]] if tensor.consumers] if position else []

    def returned(self, position: int) -> list[Tensor]:
        """Return the tensors of one piece that must come back to tier 0."""
        return [tensor for name in self.ops[position] for tensor in self.problem.outputs_of[name] if tensor.returned]

    def fits(self, position: int, tier: int) -> bool:
        """Whether the pins let one piece run on a tier."""
        name = self.problem.tiers[tier].name
        return all(self.problem.ops[self.problem.op_index[op]].pinned in (None, name) for op in self.ops[position])

    @cached_property
    def runs(self) -> list[Run]:
        """All runs by channels or heads that some layout allows; they end where every worker comes to hold everything."""
        found: list[Run] = []
        for tier, place in enumerate(self.problem.tiers):
            for axis in ("channels", "heads") if len(place.workers) > 1 else ():
                for begin in range(len(self)):
                    found += self._from(begin, tier, axis)
        return found

    @cached_property
    def by_rows(self) -> list[Rows]:
        """The longest runs by rows; every part of one is a run as well."""
        found: list[Rows] = []
        for tier, place in enumerate(self.problem.tiers):
            forms: list[tuple[Layout, ...]] = []
            for end in range(len(self) + 1) if len(place.workers) > 1 else ():
                more = self._rows(end, tier) if end < len(self) else []
                if forms and not (more and self.alive(end) and not self.returned(end - 1)):
                    found.append(self._chain(end - len(forms), end, tier, forms))
                    forms = []
                forms += more
        return found

    def _rows(self, position: int, tier: int) -> list[tuple[Layout, ...]]:
        """Return the layouts by rows of the ops of one piece, if they can be one block; there is no other choice."""
        ops = self.ops[position]
        return [each for each in self._forms(position, tier, "rows") if Division(self.problem, tier, ops, each).fault is None]

    def _chain(self, begin: int, end: int, tier: int, forms: list[tuple[Layout, ...]]) -> Rows:
        ops = self.ops[begin:end]
        form = {name: each for names, layouts in zip(ops, forms, strict=True) for name, each in zip(names, layouts, strict=True)}
        return Rows(begin, end, tier, RowChain(self.problem, tier, ops, form))

    def _from(self, begin: int, tier: int, axis: Axis) -> Iterator[Run]:
        """Yield the runs of one axis from one piece on: longer and longer ones, in each choice of layouts."""
        todo: list[tuple[int, tuple[Layout, ...]]] = [(begin, ())]
        while todo:
            end, before = todo.pop()
            for forms in self._forms(end, tier, axis) if end < len(self) else ():
                if before and not self._carries_on(end, before[-1], forms):
                    continue
                ops = [op for piece in self.ops[begin : end + 1] for op in piece]
                division = Division(self.problem, tier, ops, before + forms)
                if division.fault is None:
                    yield Run(begin, end + 1, tier, division)
                if not self.returned(end):
                    todo.append((end + 1, before + forms))

    def _forms(self, position: int, tier: int, axis: Axis) -> list[tuple[Layout, ...]]:
        """Return each way to choose layouts for the ops of one piece."""
        place = self.problem.tiers[tier].name
        ops = [self.problem.ops[self.problem.op_index[name]] for name in self.ops[position]]
        inside = any(tensor.returned for op in ops[:-1] for tensor in self.problem.outputs_of[op.name])
        if inside or not self.fits(position, tier):
            return []
        choices = [[form for form in op.layouts if (form.tier, form.axis) == (place, axis)] for op in ops]
        found = list(islice(product(*choices), FORMS + 1))
        self.all_forms &= len(found) <= FORMS
        return found[:FORMS]

    def _carries_on(self, position: int, last: Layout, forms: tuple[Layout, ...]) -> bool:
        """Whether what is split before a piece is taken as it is."""
        form = dict(zip(self.ops[position], forms, strict=True))
        return last.gives == "split" and all(form[name].takes == "split" for tensor in self.alive(position) for name in tensor.consumers)
