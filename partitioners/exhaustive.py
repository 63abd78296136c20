"""The oracle: every placement and every choice of codecs, for every objective and limit, priced by `walk`.

    all placements --the least each could cost--> in that order, all choices of codecs --until no rest can be better

Nothing is shared with the cost function and the arrays that solvers use. It is quick enough for thousands of problems
because a tensor's price depends on few tiers only, so it is walked once and looked up for all placements; and a branch
is left as soon as even the cheapest codecs for all that is still open would not help it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from partitioners.cost import solution
from partitioners.errors import Infeasible, PartitionerError
from partitioners.objective import FIELDS, LATENCY, Objective
from partitioners.placement import Crossing, Direction, Solution
from partitioners.problem import Codec, Op, Problem, Tensor
from partitioners.walk import TOLERANCE, Step, send, send_back, sendings

LIMIT = 1_000_000  # placements, and steps in choosing codecs: about a minute and half a gigabyte

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Amounts = Mapping[str, float]
"""By cost, or by the path of a tier's memory: weights or limits."""


def by_exhaustion(problem: Problem, objective: Objective | str = LATENCY) -> Solution:
    """Try everything; raises `PartitionerError` where that is more than `LIMIT`, pins taken into account.

    O(tiers^ops x tensors), and in the worst case the product of all numbers of codecs at each placement.
    """
    objective = Objective.of(objective)
    best = optimum(problem, objective)
    if best is None:
        raise Infeasible(why_not(problem))
    return solution(problem, best.placement, "exhaustive", best.value, objective, best.codecs)


class Optimum(NamedTuple):
    """Of all that keeps the rules and the limits, the best."""

    value: float
    placement: dict[str, str]
    codecs: list[Crossing]


def optimum(problem: Problem, objective: Objective | str) -> Optimum | None:
    """Return what `by_exhaustion` prices, or None where nothing keeps all limits."""
    free = sum(op.pinned is None for op in problem.ops)
    if len(problem.tiers) ** free > LIMIT:
        raise PartitionerError(
            f"{free} free ops on {len(problem.tiers)} tiers are {len(problem.tiers)}^{free} placements;"
            f" the limit of 'exhaustive' is {LIMIT:,}.\n  Take another strategy."
        )
    search = Search(problem, {FIELDS[name]: weight for name, weight in Objective.of(objective).weights.items()})
    found = search.least(limits(problem))
    if found is None:
        return None
    placement = {name: problem.tiers[i].name for name, i in zip(problem.predecessors, search.at[found.row], strict=True)}
    chosen = []
    for hop, pick in found.codecs:
        tensor = problem.tensors[hop.tensor]
        codec = tensor.ways[pick]
        chosen += [Crossing(tensor.name, link, codec.name, codec.nbytes, direction) for direction, link in hop.way]
    return Optimum(found.value, placement, chosen)


def limits(problem: Problem) -> dict[str, float]:
    """Return all limits by the path of their field in the problem: memory, error budget, then `within`."""
    given: dict[str, float | None] = {f"tiers[{i}].memory_bytes": tier.memory_bytes for i, tier in enumerate(problem.tiers)}
    given |= {"error_budget": problem.error_budget} | {f"within.{name}": limit for name, limit in problem.within.items()}
    return {field: limit for field, limit in given.items() if limit is not None}


def why_not(problem: Problem) -> str:
    """Name the first limit that cannot be kept beside those before it, and by how much it is missed at least."""
    kept: dict[str, float] = {}
    for field, limit in limits(problem).items():
        best = Search(problem, {_cost_of(field): 1.0}).least(kept)
        if best is None:
            break
        if best.value > limit * (1 + TOLERANCE):
            beside = f" where {', '.join(kept)} {'is' if len(kept) == 1 else 'are'} kept" if kept else ""
            return f"{field} is {limit:.6g}, but at least {best.value:.6g} is needed{beside}: {best.value - limit:.6g} too much"
        kept[field] = limit
    return "no placement keeps the pins and the direction of the data"


def _cost_of(field: str) -> str:
    """Which cost a limit bounds."""
    return "error" if field == "error_budget" else field.removeprefix("within.")


class Hop(NamedTuple):
    """One encoding of a tensor, still without a codec."""

    tensor: int
    way: Sequence[tuple[Direction, int]]
    prices: Floats
    """A row for each codec."""


class Found(NamedTuple):
    """The best placement and choice of codecs so far."""

    value: float
    row: int
    codecs: Sequence[tuple[Hop, int]]


class Prices:
    """Rows of numbers from steps of the walk: objective, sums | load of each place | seconds of the trip to each tier."""

    def __init__(self, problem: Problem, weights: Amounts) -> None:
        """Lay out the columns."""
        self.problem = problem
        self.tiers, self.links = len(problem.tiers), len(problem.links)
        self.sums = ["latency_s", "energy_j", "money", "error", *(f"tiers[{i}].memory_bytes" for i in range(self.tiers))]
        self.loads = slice(1 + len(self.sums), 1 + len(self.sums) + self.tiers + 2 * self.links)
        self.trips = slice(self.loads.stop, self.loads.stop + self.tiers)
        self.weights = np.array([weights.get(name, 0.0) for name in self.sums])

    def row(self, steps: Iterable[Step], **sums: float) -> Floats:
        """Add up steps, and what is given by name."""
        total = np.zeros(self.trips.stop)
        for name, value in sums.items():
            total[1 + self.sums.index(name)] += value
        for part, place, seconds, nbytes in steps:
            total[1] += seconds if part else 0.0
            if place is None:
                continue
            kind, i = place
            if kind == "tier":
                total[2] += self.problem.tiers[i].watts * seconds
                total[3] += self.problem.tiers[i].price_per_s * seconds
            else:
                total[2] += self.problem.links[i].joules_per_byte * nbytes
                total[3] += self.problem.links[i].price_per_byte * nbytes
            total[self.loads.start + i + {"tier": 0, "up": self.tiers, "down": self.tiers + self.links}[kind]] += seconds
        return self.weigh(total)

    def op(self, op: Op) -> Floats:
        """Return a row for each tier."""
        steps = [Step("compute", ("tier", i), op.reach * seconds) for i, seconds in enumerate(op.seconds)]
        return np.array([self.row([step], **{f"tiers[{i}].memory_bytes": op.memory_bytes}) for i, step in enumerate(steps)])

    def back(self, tensor: Tensor, home: int) -> Floats:
        """Return the row of the return to tier 0, which is the trip there."""
        row = self.row(send_back(self.problem, tensor, home))
        if tensor.returned:
            row[self.trips.start] = row[1] + tensor.reach * sum(link.latency_s for link in self.problem.links[:home])
        return row

    def weigh(self, total: Floats) -> Floats:
        """Fill in the objective, as far as it is a sum."""
        total[..., 0] = total[..., 1 : self.loads.start] @ self.weights
        return total

    def hops(self, position: int, home: int, stops: frozenset[int]) -> list[Hop]:
        """Return the encodings of a tensor that is made on `home` and used on `stops`."""
        tensor, hops = self.problem.tensors[position], []
        for start, ends, way in sendings(self.problem, home, stops):
            rows = []
            for codec in tensor.ways:
                price = self.row(send(self.problem, tensor, codec, start, ends), error=codec.error)
                for stop in stops:
                    price[self.trips.start + stop] = self.trip(tensor, codec, home, stop, way)
                rows.append(price)
            hops.append(Hop(position, way, np.array(rows)))
        return hops

    def trip(self, tensor: Tensor, codec: Codec, home: int, stop: int, passed: Sequence[tuple[Direction, int]]) -> float:
        """What the encoding that crosses `passed` adds to the trip to `stop`; 0 if that one lies elsewhere."""
        seconds = 0.0
        for start, ends, way in sendings(self.problem, home, {stop}):
            if way[0] in passed:
                seconds += sum(step.seconds for step in send(self.problem, tensor, codec, start, ends) if step.part)
                seconds += tensor.reach * sum(self.problem.links[j].latency_s for _, j in way)
        return seconds


class Search:
    """All placements that keep the pins and the direction of the data, with the least that each could cost."""

    def __init__(self, problem: Problem, weights: Amounts) -> None:
        """Enumerate and price for one weighted sum of costs; O(placements x (ops + tensors))."""
        self.problem, self.weights, self.prices = problem, weights, Prices(problem, weights)
        self.ops = [problem.ops[problem.op_index[name]] for name in problem.predecessors]
        self.column = {op.name: i for i, op in enumerate(self.ops)}
        self.seconds = [op.reach * np.array(op.seconds) for op in self.ops]
        self.made_by = [[t for t, tensor in enumerate(problem.tensors) if tensor.producer == op.name] for op in self.ops]
        self.at = self._placements()
        """A row each; the ops in topological order."""
        self.state = [self._state(tensor) for tensor in problem.tensors]
        """For each tensor: where it is made and used in each placement, as one number."""
        self.hops: list[dict[int, list[Hop]]] = [{} for _ in problem.tensors]
        """For each tensor by state."""
        states = len(problem.tiers) << len(problem.tiers)
        self.trips = np.zeros((len(problem.tensors), states, len(problem.tiers)))
        """For each tensor by state: the least seconds to each tier."""
        self.back_s = np.zeros((len(problem.tensors), len(problem.tiers)))
        """For each tensor: the seconds of its return from each tier."""
        self.total = self._price_all()
        """A row for each placement: in each column what it costs with the codecs that are cheapest there."""
        self.steps = 0

    def least(self, bounds: Amounts) -> Found | None:
        """Return the least weighted sum of costs within the bounds, and where it is; None: there is none."""
        caps: dict[str, float] = {}
        for field, limit in bounds.items():
            caps[_cost_of(field)] = min(limit * (1 + TOLERANCE), caps.get(_cost_of(field), np.inf))
        value, cost = self._costs(self.total, caps, list(self.at.T), lambda t, tier: self.trips[t][self.state[t], tier])
        keeps = np.all([np.ones(len(self.at), dtype=bool), *(cost[name] <= cap for name, cap in caps.items())], axis=0)
        best: Found | None = None
        for row in np.flatnonzero(keeps)[np.argsort(value[keeps], kind="stable")]:
            if best is not None and value[row] >= best.value:
                break  # nor are those after it any better
            best = self._choose(int(row), caps, best)
        return best

    def _choose(self, row: int, caps: Amounts, best: Found | None) -> Found | None:
        """Return the best choice of codecs at one placement, or the best so far if that is no worse."""
        at = self.at[row].tolist()
        states = [int(state[row]) for state in self.state]
        hops = [hop for of_tensor, state in zip(self.hops, states, strict=True) for hop in of_tensor[state]]
        end = self.prices.trips.start
        picked: list[tuple[Hop, int]] = []

        def extend(total: Floats, trips: list[Floats], best: Found | None) -> Found | None:
            self.steps += 1
            if self.steps > LIMIT:
                raise PartitionerError(
                    f"{len(self.at):,} placements need more than {LIMIT:,} steps to choose codecs, the limit of"
                    " 'exhaustive'.\n  Take another strategy."
                )
            value, cost = self._costs(total, caps, at, lambda t, tier: trips[t][tier])
            if any(cost[name] > cap for name, cap in caps.items()) or (best is not None and value >= best.value):
                return best
            if len(picked) == len(hops):
                return Found(float(value), row, list(picked))
            hop = hops[len(picked)]
            more = hop.prices - hop.prices.min(axis=0)  # the cheapest are in the total already
            for pick in np.argsort(more[:, 0], kind="stable"):
                picked.append((hop, int(pick)))
                longer = [trip + more[pick, end:] if t == hop.tensor else trip for t, trip in enumerate(trips)]
                best = extend(total + more[pick], longer, best)
                picked.pop()
            return best

        return extend(self.total[row], [self.trips[t][state] for t, state in enumerate(states)], best)

    def _costs(self, total: Floats, names: Iterable[str], at: Sequence[Any], trip: Callable[[int, Any], Any]) -> tuple[Any, dict[str, Any]]:
        """Return the objective and the costs named: of one placement, or of all at once, every number being an array."""
        value, costs = total[..., 0], {}
        for name in {*names, *self.weights}:
            if name in self.prices.sums:
                costs[name] = total[..., 1 + self.prices.sums.index(name)]
                continue
            path = name == "critical_path_s"
            costs[name] = self._critical_path(at, trip, total.ndim > 1) if path else total[..., self.prices.loads].max(axis=-1)
            value = value + self.weights.get(name, 0.0) * costs[name]
        return value, costs

    def _critical_path(self, at: Sequence[Any], trip: Callable[[int, Any], Any], all_at_once: bool) -> Any:
        """Walk op by op; `trip` gives the seconds of a tensor to a tier."""
        latest: Callable[[Any, Any], Any] = np.maximum if all_at_once else max
        ready: list[Any] = [0.0 for _ in at]
        last: Any = 0.0
        for column, made in enumerate(self.made_by):
            finish = ready[column] + self.seconds[column][at[column]]
            last = latest(last, finish)
            for t in made:
                last = latest(last, finish + self.back_s[t][at[column]])
                for user in map(self.column.__getitem__, self.problem.tensors[t].consumers):
                    ready[user] = latest(ready[user], finish + trip(t, at[user]))
        return last

    def _placements(self) -> Integers:
        """Grow them op by op."""
        at = np.zeros((1, 0), dtype=np.int64)
        for op in self.ops:
            before = [self.column[name] for name in self.problem.predecessors[op.name]]
            lowest = at[:, before].max(axis=1, initial=0) * (not self.problem.two_way)
            tiers = range(len(self.problem.tiers)) if op.pinned is None else [self.problem.tier_index[op.pinned]]
            at = np.concatenate([np.insert(at[lowest <= i], at.shape[1], i, axis=1) for i in tiers])
        return at

    def _state(self, tensor: Tensor) -> Integers:
        """Put the producer's tier above a bit for each tier."""
        used = np.zeros(len(self.at), dtype=np.int64)
        for name in tensor.consumers:
            used |= 1 << self.at[:, self.column[name]]
        return self.at[:, self.column[tensor.producer]] << len(self.problem.tiers) | used

    def _price_all(self) -> Floats:
        """Look up every placement's price, column by column; keep what `_choose` needs of the tensors."""
        problem, prices = self.problem, self.prices
        tiers, links = range(len(problem.tiers)), len(problem.links)
        total = np.zeros((len(self.at), prices.trips.stop))
        reach = np.zeros((len(self.at), 2 * links))  # of each link, up and down: the largest of the tensors there
        for column, op in enumerate(self.ops):
            total += prices.op(op)[self.at[:, column]]
        for t, tensor in enumerate(problem.tensors):
            back = [prices.back(tensor, home) for home in tiers]
            self.back_s[t] = [row[prices.trips.start] for row in back]
            table = np.zeros((self.trips.shape[1], prices.trips.stop))
            used = np.zeros((self.trips.shape[1], 2 * links))
            for state in map(int, np.flatnonzero(np.bincount(self.state[t]))):
                home, bits = divmod(state, 1 << len(tiers))
                self.hops[t][state] = prices.hops(t, home, frozenset(i for i in tiers if bits >> i & 1 and i != home))
                for hop in self.hops[t][state]:
                    table[state] += hop.prices.min(axis=0)
                    for direction, j in hop.way:
                        used[state, j if direction == "up" else links + j] = tensor.reach
                if tensor.returned:
                    used[state, links : links + home] = tensor.reach
                self.trips[t, state] = table[state, prices.trips]
                table[state] += back[home]
            total += table[self.state[t]]
            reach = np.maximum(reach, used[self.state[t]])
        latency = reach @ np.array([link.latency_s for link in problem.links] * 2)
        total[:, 1] += latency
        total[:, 0] += self.weights.get("latency_s", 0.0) * latency
        return total
