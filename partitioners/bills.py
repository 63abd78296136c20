"""What the steps of a hybrid plan add to its labels: work on a tier, results on their way back, tensors on their way up.

A label is a row of numbers, each the better the smaller:

    value    the additive part of what is minimised
    peak     the largest load that no later step adds to
    load     of the tier in use
    sums     each additive cost that is limited
    memory   of the tier in use: what it holds, if that is limited, and what each limited worker holds
    down     the loads of the links towards tier 0, if results return and the interval matters
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import product

import numpy as np

from partitioners.arrays import Bools, Floats
from partitioners.cost import ROUNDING
from partitioners.errors import PartitionerError
from partitioners.hops import Price, hops, price
from partitioners.labels import undominated
from partitioners.objective import ADDITIVE, FIELDS, Objective
from partitioners.placement import Crossing
from partitioners.problem import Problem, Tensor

VALUE, PEAK, LOAD = 0, 1, 2


@dataclass(frozen=True)
class Way:
    """One choice of codecs for the tensors that cross at one cut vertex."""

    added: Floats
    """(width,) value and sums."""
    leaving_s: float
    """Load on the tier left."""
    peak_s: float
    """The largest load on links, and on tiers passed through."""
    arriving_s: float
    """Load on the tier reached."""
    codecs: tuple[Crossing, ...]


class Bills:
    """Prices steps under one objective; `relaxed`: without limits on memory."""

    def __init__(self, problem: Problem, objective: Objective, relaxed: bool) -> None:
        self.problem, limits = problem, problem.limits
        self.weights = np.array([objective.weight(name) for name in ADDITIVE])
        self.interval = objective.weight("interval")
        self.peaked = bool(self.interval) or "interval_s" in limits
        self.sums = [i for i, name in enumerate(ADDITIVE) if FIELDS[name] in limits]
        self.memory = [[] if relaxed else _limited(problem, tier) for tier in range(len(problem.tiers))]
        most = max(map(len, self.memory))
        self.sum_at = slice(LOAD + 1, LOAD + 1 + len(self.sums))
        self.memory_at = slice(self.sum_at.stop, self.sum_at.stop + most)
        returns = self.peaked and any(tensor.returned for tensor in problem.tensors)
        self.down_at = slice(self.memory_at.stop, self.memory_at.stop + (len(problem.links) if returns else 0))
        self.width = self.down_at.stop
        self.scalar = not self.peaked and self.width == LOAD + 1
        """Whether labels differ in nothing but their value."""
        slack = 1 + ROUNDING
        self.sum_limit = np.array([limits[FIELDS[ADDITIVE[i]]] for i in self.sums]) * slack + 1e-12
        self.pace = limits.get("interval_s", np.inf) * slack + 1e-12
        self.memory_limit = np.full((len(problem.tiers), most), np.inf)
        for tier, limited in enumerate(self.memory):
            self.memory_limit[tier, : len(limited)] = [limit * slack + 1e-12 for _, limit in limited]

    def keeps(self, labels: Floats, tier: int) -> Bools:
        """(R,) whether labels keep all limits so far."""
        limits = [*self.sum_limit, *self.memory_limit[tier]]
        within = (labels[:, column] <= limit for column, limit in enumerate(limits, self.sum_at.start))
        return reduce(np.logical_and, within, self.peak(labels) <= self.pace)

    def peak(self, labels: Floats) -> Floats:
        """(R,) the largest load, if nothing is added."""
        return reduce(np.maximum, (labels[:, column] for column in (PEAK, LOAD, *range(self.down_at.start, self.down_at.stop))))

    def total(self, labels: Floats) -> Floats:
        """(R,) what is minimised, if nothing is added."""
        return np.asarray(labels[:, VALUE] + self.interval * self.peak(labels))

    def work(self, tier: int, seconds: Floats, memory_bytes: Floats) -> Floats:
        """(..., width) of seconds (...) spent on a tier, and bytes (..., W) held by its workers."""
        place = self.problem.tiers[tier]
        rows = self._additive(seconds[..., None] * [1.0, place.watts, place.price_per_s, 0.0])
        if self.peaked:
            rows[..., LOAD] = seconds
        for column, (worker, _) in enumerate(self.memory[tier], self.memory_at.start):
            rows[..., column] = memory_bytes.sum(axis=-1) if worker is None else memory_bytes[..., worker]
        return rows

    def rate(self, tier: int) -> float:
        """Return what a second of work on a tier adds to the value."""
        place = self.problem.tiers[tier]
        return float(self.weights @ [1.0, place.watts, place.price_per_s, 0.0])

    def back(self, tier: int, tensors: list[Tensor], latency_reach: float) -> Floats:
        """(width,) results that return from a tier, and the latency of the links, if it is paid here."""
        costs, down = np.zeros(len(ADDITIVE)), np.zeros(len(self.problem.links))
        for j, link in enumerate(self.problem.links[:tier]):
            nbytes = sum(tensor.nbytes * tensor.reach for tensor in tensors)
            down[j] = nbytes / link.back_bytes_per_s
            seconds = down[j] + link.latency_s * latency_reach
            costs += [seconds, nbytes * link.joules_per_byte, nbytes * link.price_per_byte, 0.0]
        row = self._additive(costs[None])[0]
        row[self.down_at] = down[: self.down_at.stop - self.down_at.start]
        return np.asarray(row)

    def cross(self, labels: Floats, way: Way) -> Floats:
        """Take labels to a later tier."""
        moved = labels + way.added
        if self.peaked:
            moved[:, PEAK] = np.maximum(np.maximum(labels[:, PEAK], labels[:, LOAD] + way.leaving_s), way.peak_s)
            moved[:, LOAD] = way.arriving_s
        moved[:, self.memory_at] = 0.0
        return moved

    def ways(self, tensors: list[Tensor], home: int, stop: int) -> list[Way]:
        """Return the choices of codecs that may be best for the tensors at a cut vertex, from one tier to another."""
        k, links = len(self.problem.tiers), self.problem.links
        reach = max((tensor.reach for tensor in tensors), default=0.0)
        latency = sum(link.latency_s for link in links[home:stop]) * reach
        bills, chosen = np.array([[latency] + [0.0] * (len(ADDITIVE) - 1 + 2 * k - 1)]), [tuple[Crossing, ...]()]
        for tensor in tensors:
            for start, stops in hops(self.problem, home, {stop}):
                prices = [price(self.problem, codec, start, stops) for codec in tensor.ways]
                more = np.array([self._bill(tensor, c, each, start, stops) for c, each in enumerate(prices)])
                carried = [
                    tuple(Crossing(tensor.name, j, codec.name, codec.nbytes) for j in range(start, max(stops))) for codec in tensor.ways
                ]
                bills = (bills[:, None] + more).reshape(-1, bills.shape[1])
                chosen = [before + after for before, after in product(chosen, carried)]
                best = self._undominated(bills)
                bills, chosen = bills[best], [chosen[i] for i in best]
        added = self._additive(bills[:, : len(ADDITIVE)])
        loads = bills[:, len(ADDITIVE) :]
        others = np.delete(loads, [home, stop], axis=1).max(axis=1, initial=0.0)
        return [Way(added[i], loads[i, home], others[i], loads[i, stop], codecs) for i, codecs in enumerate(chosen)]

    def _bill(self, tensor: Tensor, at: int, cost: Price, start: int, stops: tuple[int, ...]) -> list[float]:
        """Return the additive costs, the loads of the tiers and those of the links up."""
        codec, k = tensor.ways[at], len(self.problem.tiers)
        loads = [0.0] * (2 * k - 1)
        loads[start] += cost.encode_s
        for stop in stops:
            loads[stop] += codec.decode_s[stop] if codec.decode_s else 0.0
        for j in range(start, max(stops)):
            loads[k + j] += codec.nbytes / self.problem.links[j].bytes_per_s
        scaled = [cost.latency_s, cost.energy_j, cost.money, 0.0, *loads]
        row = [each * tensor.reach for each in scaled]
        row[ADDITIVE.index("error")] = codec.error
        return row

    def _undominated(self, bills: Floats) -> list[int]:
        rows = self._additive(bills[:, : len(ADDITIVE)])
        if self.peaked:
            rows = np.hstack([rows, bills[:, len(ADDITIVE) :]])
        return [int(row) for row in undominated(np.zeros(len(rows), dtype=np.int64), rows)]

    def _additive(self, costs: Floats) -> Floats:
        """(..., width) of additive costs (..., 4)."""
        rows = np.zeros((*costs.shape[:-1], self.width))
        rows[..., VALUE] = costs @ self.weights
        rows[..., self.sum_at] = costs[..., self.sums]
        return rows


def _limited(problem: Problem, tier: int) -> list[tuple[int | None, float]]:
    """Return what is limited on a tier: (worker, bytes); None: all of them together."""
    place = problem.tiers[tier]
    together = [] if place.memory_bytes is None else [(None, place.memory_bytes)]
    return together + [(w, worker.memory_bytes) for w, worker in enumerate(place.workers) if worker.memory_bytes is not None]


def return_latency(problem: Problem, returned: list[list[Tensor]]) -> dict[int, float]:
    """Return the piece that pays the latency of links towards tier 0, as data flows one way the last: piece -> reach."""
    pieces = {i: max(tensor.reach for tensor in tensors) for i, tensors in enumerate(returned) if tensors}
    if len(set(pieces.values())) > 1 and any(link.latency_s for link in problem.links):
        raise PartitionerError("'hybrid' adds costs up; results of different reach would share the latency of links.\n  Take 'milp'.")
    return {max(pieces): pieces[max(pieces)]} if pieces else {}
