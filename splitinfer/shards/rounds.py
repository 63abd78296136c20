"""The messages between two phases: gathers, reductions and halos of divided tensors, for every worker."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from splitinfer.shards.exchange import Combine, Exchange, Part, Send
from splitinfer.shards.layouts import Partial, Rows, Span, Split, apportion_units, spans_of
from splitinfer.shards.schedule import Division, Schedule, givers, static_dims


@dataclass(frozen=True)
class Names:
    """Under which name each form of a tensor goes."""

    taken: frozenset[str]
    divided: frozenset[str]

    def local(self, tensor: str) -> str:
        """What a worker holds."""
        return self._fresh(tensor, "part") if tensor in self.divided else tensor

    def halo(self, tensor: str) -> str:
        """Own rows with those of the neighbours."""
        return self._fresh(tensor, "halo")

    def slice(self, tensor: str) -> str:
        """A slice of a sum that is not gathered yet."""
        return self._fresh(tensor, "slice")

    def _fresh(self, tensor: str, suffix: str) -> str:
        name = f"{tensor}_{suffix}"
        while name in self.taken:
            name += "_"
        return name


@dataclass(frozen=True)
class Joined:
    """A tensor that a worker makes of the parts of several."""

    made: str
    source: str
    """The tensor of which each worker gives a part."""
    parts: Mapping[int, Span | None]
    """Worker -> slice along `dim`; None for all that it has."""
    dim: int = 0
    blocks: int = 1
    how: str = "concatenate"


class Rounds:
    """Collects what is sent behind each phase. A reduction among more than two workers takes a second round."""

    def __init__(self, division: Division, plan: Schedule, names: Names) -> None:
        self.division, self.plan, self.names = division, plan, names
        self.sends: dict[tuple[int, int], list[Send]] = defaultdict(list)
        """Round and worker."""
        self.combines: dict[tuple[int, int], list[Combine]] = defaultdict(list)
        self.nodes = {entry.node.name: entry.node for entry in division.placed}

    def after(self, phase: int) -> list[dict[int, Exchange]]:
        """One or two rounds, each worker -> exchange; none where nothing is sent."""
        self.sends.clear()
        self.combines.clear()
        for name in self.nodes:
            if self.plan.phase[name] == phase:
                if self.plan.whole[name]:
                    self._whole(name, sorted(self.plan.whole[name]))
                if self.plan.halo[name]:
                    self._halo(name, sorted(self.plan.halo[name]))
        rounds = sorted({number for number, _ in (*self.sends, *self.combines)})
        return [{worker: self._exchange(number, worker) for worker in self.division.workers} for number in rounds]

    def _exchange(self, number: int, worker: int) -> Exchange:
        return Exchange(worker, tuple(self.sends[number, worker]), tuple(self.combines[number, worker]))

    def _whole(self, name: str, receivers: list[int]) -> None:
        layout = self.division.layout(name)
        if isinstance(layout, Partial):
            self._sum(name, receivers)
        elif isinstance(layout, Split):
            self._gather(name, receivers, dict.fromkeys(givers(self.division, name)), layout.dim, layout.outer)
        elif isinstance(layout, Rows):
            parts: dict[int, Span | None] = {}
            for worker in givers(self.division, name):
                own, held = layout.owned[worker], layout.spans[worker]
                parts[worker] = None if own == held else (own[0] - held[0], own[1] - held[0])
            self._gather(name, receivers, parts, layout.dim, 1)

    def _gather(self, name: str, receivers: list[int], parts: dict[int, Span | None], dim: int, blocks: int) -> None:
        """Every receiver joins a slice, or all, of what each holder has."""
        for receiver in receivers:
            self._join(0, receiver, Joined(name, self.names.local(name), parts, dim, blocks))

    def _join(self, number: int, receiver: int, joined: Joined) -> None:
        found = []
        for worker, span in joined.parts.items():
            where = (None, 0, 0) if span is None else (joined.dim, *span)
            if worker == receiver:
                found.append(Part(worker, joined.source, *where))
            else:
                self.sends[number, worker].append(Send(receiver, joined.source, joined.made, *where))
                found.append(Part(worker, joined.made))
        self.combines[number, receiver].append(Combine(joined.made, joined.how, joined.dim, joined.blocks, tuple(found)))

    def _sum(self, name: str, receivers: list[int]) -> None:
        """To one worker, or among two, directly; else each sums a slice and sends it on: 2 (p - 1) / p of the tensor each."""
        holders, tensor = givers(self.division, name), self.names.local(name)
        sizes = static_dims(self.nodes[name])
        dim = max(range(len(sizes)), key=lambda axis: (sizes[axis] or 0, -axis), default=0)
        if len(receivers) == 1 or len({*holders, *receivers}) == 2 or len(holders) == 1 or (sizes[dim] or 0) < len(receivers):
            for receiver in receivers:
                self._join(0, receiver, Joined(name, tensor, dict.fromkeys(holders), how="sum"))
            return
        slices = dict(zip(receivers, spans_of(apportion_units(sizes[dim] or 0, [1] * len(receivers))), strict=True))
        for receiver, span in slices.items():
            self._join(0, receiver, Joined(self.names.slice(name), tensor, dict.fromkeys(holders, span), dim, how="sum"))
        for receiver in receivers:
            self._join(1, receiver, Joined(name, self.names.slice(name), dict.fromkeys(receivers), dim))

    def _halo(self, name: str, receivers: list[int]) -> None:
        layout = self.division.layout(name)
        assert isinstance(layout, Rows)  # only rows have neighbours
        for receiver in receivers:
            start, stop = self.division.halos[name][receiver]
            parts: dict[int, Span | None] = {}
            for worker in givers(self.division, name):
                (own_start, own_stop), held = layout.owned[worker], layout.spans[worker][0]
                first, last = max(start, own_start), min(stop, own_stop)
                if first < last:
                    parts[worker] = first - held, last - held
            self._join(0, receiver, Joined(self.names.halo(name), self.names.local(name), parts, layout.dim))
