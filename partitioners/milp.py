"""Every objective and every limit, exact, as a mixed-integer program for HiGHS (Huangfu and Hall, 2018).

    y[v,i] = 1 iff op v is on tier i
    s[h,c] = 1 iff a tensor takes hop h with its codec c; a hop says where it is encoded and where decoded

Relay "transcode": a hop is one link, one way. Relay "forward": a hop is a tier and the set of other tiers served from
it, so that a codec's fixed encode cost, which breaks the minimum cut, is an ordinary number here; with one consumer per
tensor the relaxation is the local polytope of the line, which is what makes it tight.

Where no codec matters but through the sum to minimise, the best codec is folded into the price of the hop and s stays
continuous. Where it matters otherwise (a limit, a load), s[h,c] is binary. Loads and paths are rows:

    B >= work on each tier, each link up, each link down                        interval
    f[v] >= f[p] + delay of the tensor from p to v + seconds of v,  T >= f      critical path

Variables: O(ops k + hops x codecs), hops being 2 (k-1) for "transcode" and k 2^(k-1) for "forward". Worst case
exponential in the ops, as any exact method.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from partitioners.arrays import Arrays, Floats, Ints
from partitioners.cost import ROUNDING, evaluate, solution
from partitioners.errors import Infeasible, PartitionerError
from partitioners.hops import hops
from partitioners.objective import ADDITIVE, FIELDS, LATENCY, Objective
from partitioners.placement import Crossing, Solution
from partitioners.prices import Prices
from partitioners.problem import Problem
from partitioners.program import SMALLEST, Program, Term

GAP = 1e-9  # HiGHS stops at 1e-4 by default, which is not what "optimal" says
TIGHT = 1e4  # limits are rows of this size, so that HiGHS' tolerance of 1e-6 is 1e-10 of a limit
SIZE = 1e4  # of the cost of a known plan: 1e-6, HiGHS' tolerance, is 1e-10 of it
WIDE = 1e4  # largest over mean cost, above which a plan is looked for first
TIGHTENED = 4  # times; once is usual
GAP_OF_MAXIMA = 5e-7  # the last digits of a bottleneck take as long as all before them


def by_milp(problem: Problem, objective: Objective = LATENCY, time_limit_s: float | None = None) -> Solution:
    """Place by integer programming; stopped by the limit, the best so far comes back with the bound proved so far.

    Raises `Infeasible` where nothing keeps the limits, with the least that the broken one could be.
    """
    a = Arrays.of(problem)
    known = _known(a, objective)
    if known is None and _Model(a, objective).spread > WIDE:  # any plan at all gives the numbers their scale
        with suppress(PartitionerError):
            known = _solved(a, objective, np.inf, 1.0, time_limit_s)
    if known is not None and known.value == 0:  # nothing costs less than nothing
        return solution(problem, known.placement, "milp", 0.0, objective, known.codecs)
    gap = GAP if objective.additive else GAP_OF_MAXIMA
    return _solved(a, objective, np.inf if known is None else known.value, gap, time_limit_s)


def _known(a: Arrays, objective: Objective) -> Solution | None:
    """The best single tier, as far as the pins allow, that keeps the limits."""
    found = []
    for i in range(a.tiers):
        with suppress(Infeasible):
            found.append(solution(a.problem, a.names(np.clip(i, a.low, a.high)), "milp", None, objective))
    return min(found, key=lambda s: s.value, default=None)


def _solved(a: Arrays, objective: Objective, known: float, gap: float, time_limit_s: float | None) -> Solution:
    """Solve; where rounding lets a limit be broken, tighten it by as much and solve again."""
    bound, margins = -np.inf, dict[str, float]()
    for _ in range(TIGHTENED):
        model = _Model(a, objective, known, margins)
        found = model.p.solve(gap, time_limit_s, known)
        if found.status == 2:
            raise Infeasible(why_infeasible(a.problem))
        if found.x is None:
            raise PartitionerError(f"HiGHS found no placement: {found.message}\n  Raise the time limit or take 'mincut'.")
        bound = model.p.bound(found) if not margins else bound  # tightened, a bound is none of the problem's
        tier, codecs = model.read(found.x)
        try:
            return solution(a.problem, a.names(tier), "milp", bound, objective, codecs)
        except Infeasible:
            cost, _ = evaluate(a.problem, a.names(tier), codecs, objective)
            for name, limit in a.problem.limits.items():
                over = getattr(cost, name) - limit
                margins[name] = margins.get(name, 0.0) + (2 * over if over > 0 else 0.0)
    raise PartitionerError("HiGHS breaks the limits by rounding again and again.\n  Take 'blocks', or round the limits.")


def why_infeasible(problem: Problem) -> str:
    """Which limits cannot be kept, found by minimising the amounts by which they are broken."""
    model = _Model(Arrays.of(problem), Objective({}), elastic=True)
    found = model.p.solve(GAP, 60.0)
    if found.x is None:
        return "no placement keeps the limits"
    broken = [
        f"{name} needs at least {limit + excess:,.6g}; the limit is {limit:,.6g}, short by {excess:,.6g}"
        for name, (limit, column, unit) in model.slack.items()
        if (excess := float(found.x[column]) * unit) > 1e-9 * max(limit, unit)
    ]
    return "no placement keeps all limits: " + "; ".join(broken) + ".\n  Raise the limit, or allow smaller codecs."


@dataclass(frozen=True)
class _Hop:
    """A way for a tensor: encoded on `start`, decoded on `stops`; a consumer on any of them is content."""

    start: int
    stops: tuple[int, ...]
    columns: Ints
    """(items,): one for each codec, or for each tensor where codecs are folded."""


class _Model:
    """The program of one problem and one objective."""

    def __init__(
        self, a: Arrays, objective: Objective, known: float = np.inf, margins: Mapping[str, float] | None = None, elastic: bool = False
    ) -> None:
        """Build it; `known`: what some plan costs; `margins`: by how much limits are tightened; `elastic`: limits may break."""
        self.a, self.objective = a, objective
        problem, k = a.problem, a.tiers
        limited = {name for name, field in FIELDS.items() if field in problem.limits}
        wanted = limited | set(objective.weights)
        self.folded = not limited and objective.additive
        self.p = Program()
        tier = np.arange(k)
        self.y = self.p.columns((len(a.low), k), 0, (a.low[:, None] <= tier) & (tier <= a.high[:, None]), integral=True)
        self.items = np.arange(len(a.producer)) if self.folded else a.codec_owner
        self.hops = [_Hop(start, stops, self._ways()) for start, stops in self._routes()]
        self.up, self.down = self.p.columns((k - 1,), 0, 1), self.p.columns((k - 1,), 0, 1)
        self.slack: dict[str, tuple[float, int, float]] = {}
        limits = {} if elastic else {name: problem.limits[FIELDS[name]] - (margins or {}).get(FIELDS[name], 0.0) for name in limited}
        # No plan wanted costs more than one known: what alone exceeds that may be counted for twice as much and no more,
        # which keeps one absurd number from drowning the others in HiGHS' tolerances.
        most = {name: known / weight for name, weight in objective.weights.items()}
        self.most = {name: min(most.get(name, np.inf), limits.get(name, np.inf)) for name in FIELDS}
        self._transport()
        self._usage()
        if self.folded:
            self.p.minimise(*self._sum(objective, known), 1.0)
        else:
            amounts = {
                name: self._sum(Objective({name: 1.0}), self.most[name]) if name in ADDITIVE else self._maximum(name)
                for name in sorted(wanted)
            }
            for name in sorted(limited):
                self._limit(FIELDS[name], amounts[name], limits.get(name, problem.limits[FIELDS[name]]), elastic)
            for name, weight in objective.weights.items():
                self.p.minimise(*amounts[name], weight)
        for i, place in enumerate(problem.tiers):
            if place.memory_bytes is not None:
                self._limit(f"memory_bytes of tier {place.name!r}", (self.y[:, i], a.memory_bytes), place.memory_bytes, elastic)

    @property
    def spread(self) -> float:
        """How far the largest cost is above the mean."""
        return self.p.spread

    def read(self, x: Floats) -> tuple[Ints, tuple[Crossing, ...] | None]:
        """Return the tier of each op, and the codec of each hop where it was free to choose."""
        tier = x[self.y].argmax(axis=1)
        if self.folded:
            return tier, None
        problem, crossings = self.a.problem, []
        for t, tensor in enumerate(problem.tensors):
            first, ways = int(self.a.first_codec[t]), tensor.ways
            users = [int(tier[problem.op_index[name]]) for name in tensor.consumers]
            for start, stops in hops(problem, int(tier[self.a.producer[t]]), users):
                # Where it costs nothing, more tiers may be served than needed.
                taken = [hop.columns[first : first + len(ways)] for hop in self.hops if hop.start == start and {*stops} <= {*hop.stops}]
                codec = ways[int(x[np.stack(taken)].sum(axis=0).argmax())]
                links = [(j, "up") for j in range(start, max(stops))] + [(j, "down") for j in range(min(stops), start)]
                crossings += [Crossing(tensor.name, j, codec.name, codec.nbytes, way) for j, way in links]  # type: ignore[arg-type]
        return tier, tuple(crossings)

    # -- columns

    def _ways(self) -> Ints:
        return self.p.columns((len(self.items),), 0, 1, integral=not self.folded)

    def _routes(self) -> list[tuple[int, tuple[int, ...]]]:
        k, two_way = self.a.tiers, self.a.problem.two_way
        if self.a.problem.relay == "transcode":
            up: list[tuple[int, tuple[int, ...]]] = [(j, (j + 1,)) for j in range(k - 1)]
            return up + [(j + 1, (j,)) for j in range(k - 1)] if two_way else up
        most = int(self.a.fan_out.max(initial=0))
        found = []
        for start in range(k):
            others = [i for i in range(k) if i > start or (two_way and i < start)]
            found += [(start, some) for size in range(1, min(most, len(others)) + 1) for some in combinations(others, size)]
        return found

    # -- rows

    def _transport(self) -> None:
        """Every op has one tier, every consumer its data."""
        a, p, y = self.a, self.p, self.y
        p.rows([(y, 1.0)], 1, 1)
        source = a.producer[a.owner]
        if not a.problem.two_way:
            for j in range(a.tiers - 1):  # a producer beyond link j has its consumers beyond it
                p.rows([(y[a.consumer, j + 1 :], 1.0), (y[source, j + 1 :], -1.0)], 0)
        if a.problem.relay == "transcode":
            for hop in self.hops:
                j, sign = min(hop.start, *hop.stops), 1.0 if hop.start < hop.stops[0] else -1.0
                # Beyond link j, less the producer beyond it, is 1 iff the tensor must cross for this consumer.
                p.rows([self._of(hop, a.owner), (y[a.consumer, j + 1 :], -sign), (y[source, j + 1 :], sign)], 0)
            return
        if a.problem.two_way and not np.isnan(a.transfer_s).all():
            self._only_where_wanted()
        for i in range(a.tiers):
            leaving = [hop for hop in self.hops if hop.start == i]
            serving = [hop for hop in self.hops if i in hop.stops]
            # A tensor takes one hop at most, and from the tier of its producer.
            p.rows([(y[a.producer, i], 1.0), *(self._of(hop, None, -1.0) for hop in leaving)], 0)
            # A consumer on tier i sits beside its producer or is served there.
            p.rows([(y[source, i], 1.0), (y[a.consumer, i], -1.0), *(self._of(hop, a.owner) for hop in serving)], 0)

    def _only_where_wanted(self) -> None:
        """Serve no tier without a consumer: a measured overlap on the way up may cost less than encoding for the way down."""
        tiers = [tensor for tensor in range(len(self.a.producer)) if self.a.fan_out[tensor]]
        users = np.split(self.a.consumer, np.cumsum(self.a.fan_out)[:-1])
        for hop in self.hops:
            columns = self._of(hop, np.array(tiers, dtype=np.int64))[0]
            for i in hop.stops:
                self.p.rows([([self.y[users[t], i] for t in tiers], 1.0), (columns, -1.0)], 0)

    def _usage(self) -> None:
        """A link is used as often as the tensor of the largest reach on it."""
        a, p = self.a, self.p
        returning = np.flatnonzero(a.return_reach)
        for j in range(a.tiers - 1):
            for used, over in (
                (self.up, [h for h in self.hops if h.start <= j < max(h.stops)]),
                (self.down, [h for h in self.hops if min(h.stops) <= j < h.start]),
            ):
                if over:
                    each = np.full(len(a.producer), used[j])
                    p.rows([(each, 1.0), *(self._of(hop, None, -a.reach) for hop in over)], 0)
            p.rows([(np.full(len(returning), self.down[j]), 1.0), (self.y[returning, j + 1 :], -a.return_reach[returning])], 0)

    def _of(self, hop: _Hop, tensors: Ints | None, weight: float | Floats = 1.0) -> Term:
        """A term for `rows`: for each tensor (None: all), the columns of its ways of taking a hop."""
        if self.folded:
            return (hop.columns if tensors is None else hop.columns[tensors]), weight
        split = np.split(hop.columns, self.a.first_codec[1:])
        return [split[t] for t in (range(len(split)) if tensors is None else tensors.tolist())], weight

    def _sum(self, objective: Objective, most: float) -> tuple[Ints, Floats]:
        """A cost that is a sum over ops, hops and links, as columns and coefficients; none over twice `most`."""
        prices = Prices(self.a, objective)
        each = [prices.hop(hop.start, hop.stops) for hop in self.hops]
        each = [self.a.cheapest(price) for price in each] if self.folded else each
        columns = [self.y.ravel(), *(hop.columns for hop in self.hops), self.up, self.down]
        cap = 2 * most if most > 0 else np.inf
        sent = self.a.fan_out[self.items] > 0  # what nobody takes costs nothing
        parts = [np.minimum(part, cap) for part in (prices.stay.ravel(), *(price * sent for price in each))]
        # A link is used with the reach of its tensors, so its latency may exceed what a plan costs.
        latency = np.minimum(prices.latency, cap / min([1.0, *self.a.reach[self.a.reach > 0]]))
        return np.concatenate(columns), np.concatenate([*parts, latency, latency])

    def _maximum(self, name: str) -> tuple[Ints, Floats]:
        """A cost that is a maximum: one column that is at least everything it is the maximum of."""
        most, mean = self.most[name], float(self.a.seconds.mean())
        # In seconds, and far below what matters, as tolerances are absolute.
        self.unit = max(most / SIZE if 0 < most < np.inf else mean / TIGHT, SMALLEST)
        self.cap = 2 * most if most > 0 else np.inf
        top = self.p.columns((1,), 0, np.inf)
        if name == "interval":
            for columns, values in self.loads():
                self.p.forbid(columns[values > most * (1 + ROUNDING)])
                self.p.row(np.concatenate([top, columns]), np.concatenate([[1.0], -np.minimum(values, self.cap) / self.unit]), 0)
        else:
            self._paths(int(top[0]))
        return top, np.array([self.unit])

    def loads(self) -> list[tuple[Ints, Floats]]:
        """Work on each tier, each link up and each link down, as columns and coefficients."""
        a, found = self.a, []
        for i in range(a.tiers):
            parts = [(self.y[:, i], a.seconds[:, i])]
            parts += [(hop.columns, a.encode_s[:, i]) for hop in self.hops if hop.start == i]
            parts += [(hop.columns, a.decode_s[:, i]) for hop in self.hops if i in hop.stops]
            found.append(parts)
        for j, link in enumerate(a.problem.links):
            found.append([(h.columns, a.nbytes / link.bytes_per_s) for h in self.hops if h.start <= j < max(h.stops)])
            parts = [(h.columns, a.nbytes / link.back_bytes_per_s) for h in self.hops if min(h.stops) <= j < h.start]
            home = a.returned_bytes[:, None] / link.back_bytes_per_s * np.ones(a.tiers - 1 - j)
            found.append([*parts, (self.y[:, j + 1 :].ravel(), home.ravel())])
        return [tuple(np.concatenate(side) for side in zip(*parts, strict=True)) for parts in found if parts]  # type: ignore[misc]

    def _limit(self, name: str, amount: tuple[Ints, Floats], limit: float, elastic: bool) -> None:
        columns, values = amount
        """Keep a cost within a limit, or, elastic, pay for what is over it."""
        limit = max(limit, 0.0)
        if not elastic:  # what breaks the limit alone is left out; a link may be used rarely, so its latency stays
            alone = (values > limit * (1 + ROUNDING)) & ~np.isin(columns, [*self.up, *self.down])
            self.p.forbid(columns[alone])
            values = np.where(alone, 0.0, values)
        unit = max(limit, float(np.abs(values).max(initial=0.0)), SMALLEST) / TIGHT
        if elastic:
            over = self.p.columns((1,), 0, np.inf)
            self.slack[name] = (limit, int(over[0]), unit)
            self.p.minimise(over, np.ones(1), 1.0)
            columns, values = np.concatenate([columns, over]), np.concatenate([values, [-unit]])
        self.p.row(columns, values / unit, -np.inf, limit * (1 + ROUNDING / 2) / unit)

    def _paths(self, top: int) -> None:
        """`top` is at least the time of every op's end, and of every result's return."""
        a, p = self.a, self.p
        seconds = np.minimum(a.seconds, self.cap) / self.unit
        p.forbid(self.y[a.seconds > self.most["critical_path"] * (1 + ROUNDING)])
        end = p.columns((len(a.low),), 0, np.inf)
        p.rows([(end, 1.0), (self.y, -seconds)], 0)
        p.rows([(np.full(len(end), top), 1.0), (end, -1.0)], 0)
        latency = np.array([link.latency_s for link in a.problem.links])
        back = np.array([1 / link.back_bytes_per_s for link in a.problem.links])
        tensors = [t for t, tensor in enumerate(a.problem.tensors) if tensor.returned]
        for t in tensors:
            home = np.cumsum([0.0, *(a.problem.tensors[t].nbytes * back + latency)]) * a.reach[t]
            home = np.minimum(home, self.cap) / self.unit
            p.row(np.concatenate([[top, end[a.producer[t]]], self.y[a.producer[t]]]), np.concatenate([[1.0, -1.0], -home]), 0)
        source = a.producer[a.owner]
        arrive: list[Term] = [(end[a.consumer], 1.0), (end[source], -1.0), (self.y[a.consumer], -seconds[a.consumer])]
        prices = Prices(a, LATENCY)
        if a.problem.relay == "transcode":
            p.rows([*arrive, *(self._delay(hop, prices) for hop in self.hops)], 0)
            return
        p.rows(arrive, 0)
        for i in range(a.tiers):
            serving = [(hop, self._seconds(prices, hop.start, i)) for hop in self.hops if i in hop.stops]
            if serving:
                most = np.maximum.reduceat(np.max([delay for _, delay in serving], axis=0), a.first_codec)[a.owner]
                each = [self._of_values(hop, -delay) for hop, delay in serving]
                p.rows([*arrive, *each, (self.y[a.consumer, i], -most)], -most)

    def _delay(self, hop: _Hop, prices: Prices) -> tuple[Ints, Floats]:
        """(E,) columns: what a link adds on the way to each consumer; at least the price of the codec if it crosses."""
        a, p, y = self.a, self.p, self.y
        stop = hop.stops[0]
        j, sign = min(hop.start, stop), 1.0 if hop.start < stop else -1.0
        each = self._seconds(prices, hop.start, stop)
        delay = p.columns((len(a.owner),), 0, np.inf)
        source = a.producer[a.owner]
        beyond = [(y[a.consumer, j + 1 :], sign), (y[source, j + 1 :], -sign)]
        # A tensor with one codec: exactly its price. With several: the price of the one chosen, where it crosses.
        least, most = a.cheapest(each)[a.owner], np.maximum.reduceat(each, a.first_codec)[a.owner] if len(each) else each
        p.rows([(delay, 1.0), *((columns, -weight * least) for columns, weight in beyond)], 0)
        several = np.flatnonzero(most > least)
        if len(several):
            pick = self._of_values(hop, -each, a.owner[several])
            rest = [(columns[several], -weight * most[several]) for columns, weight in beyond]
            p.rows([(delay[several], 1.0), pick, *rest], -most[several])
        return delay, -1.0 * np.ones(len(a.owner))

    def _seconds(self, prices: Prices, start: int, stop: int) -> Floats:
        """(C,) in units: a tensor on its way from one tier to another, latency of links included."""
        between = prices.latency[min(start, stop) : max(start, stop)].sum()
        each = prices.hop(start, (stop,)) + between * self.a.reach[self.a.codec_owner]
        return np.asarray(np.minimum(each, self.cap) / self.unit)

    def _of_values(self, hop: _Hop, values: Floats, tensors: Ints | None = None) -> Term:
        """As `_of`, with a coefficient for each codec."""
        cut = self.a.first_codec[1:]
        columns, weights = np.split(hop.columns, cut), np.split(values, cut)
        chosen = (self.a.owner if tensors is None else tensors).tolist()
        return [columns[t] for t in chosen], [weights[t] for t in chosen]


