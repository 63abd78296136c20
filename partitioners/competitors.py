"""Published competitors, to compare with: each plans by the cost model of its paper and is priced by the true one.

    neurosurgeon        one cut of the flattened graph, first and last tier            Kang et al., ASPLOS 2017
    neurosurgeon_tiers  the same scan with a cut for every link                        its plain extension
    dads                minimum cut, first and last tier, data kept flowing one way    Hu et al., INFOCOM 2019, corrected
    dads_no_reverse     the same as published: its cut may run ops on the device after the cloud
    greedy              one op after the other, each on the tier that is cheapest then

Alike in all of them, and in their favour where the papers say nothing: a transfer takes the cheapest codec and the
latency of the links on its way; the way back of a result is priced with its op; an op goes to the nearest tier that the
pins up and downstream leave open. They know data flowing one way and sums: under any other objective they plan for
its additive part (for latency where it has none). They know no limits; a plan that breaks one raises `Infeasible`. No
certificate says more than "feasible".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from partitioners.arrays import Arrays, Bools, Floats, Ints
from partitioners.cost import solution
from partitioners.flow import minimum_cut
from partitioners.objective import ADDITIVE, LATENCY, Objective
from partitioners.placement import Solution
from partitioners.prices import Prices
from partitioners.problem import Problem


def by_neurosurgeon(problem: Problem, objective: Objective = LATENCY) -> Solution:
    """Try every cut of the layers in topological order between the first tier and the last.

    Kang et al., "Neurosurgeon: collaborative intelligence between the cloud and mobile edge", ASPLOS 2017, section 5.2
    and algorithm 1. TM, TC: seconds of a layer on the device and in the cloud; D / B: its output on the link.

        L1 .. Lj | Lj+1 .. LN        argmin over j of  TM_1 + .. + TM_j  +  D_j / B  +  TC_j+1 + .. + TC_N

    Exact on chains over two tiers. On other graphs it has two holes: tensors that cross from layers before j are not
    priced, and a cut through parallel branches is a candidate only where the order happens to put their first halves
    side by side. O(n + e).
    """
    return _scan(problem, objective, "neurosurgeon", (0, len(problem.tiers) - 1))


def by_neurosurgeon_tiers(problem: Problem, objective: Objective = LATENCY) -> Solution:
    """Neurosurgeon's scan with one cut for each link of the line, all lists of cuts at once; O(n k + e).

    Not in the paper, but what follows from it: exact on chains with relay "transcode", the same holes elsewhere.
    """
    return _scan(problem, objective, "neurosurgeon_tiers", range(len(problem.tiers)))


def by_dads(problem: Problem, objective: Objective = LATENCY) -> Solution:
    """DADS with the arcs it lacks, so that a consumer on the device has its producers there; see `dads_cut`.

    With two tiers and links without latency it is optimal.
    """
    seen = _Seen(problem, objective)
    return seen.answer("dads", seen.clip(_surgery(seen, True)))


def by_dads_no_reverse(problem: Problem, objective: Objective = LATENCY) -> Solution:
    """DADS as published, then repaired: what takes data from the cloud runs in the cloud, and so does all behind it.

    Its results are there, and it is the faster machine; what is pinned to the device has its producers pulled there.
    What the cut itself promised, before the repair, is in `dads_cut`.
    """
    seen = _Seen(problem, objective)
    tier = seen.clip(_surgery(seen, False)).tolist()
    for v in seen.a.topological:
        tier[v] = max([tier[v], *(tier[u] for u, _ in seen.a.producers_of[v])])
    return seen.answer("dads_no_reverse", np.array(tier))


def by_greedy(problem: Problem, objective: Objective = LATENCY) -> Solution:
    """Each op, in topological order, on the tier where it and the transfers it causes cost least; O((n + e) k).

    A tensor that is on a tier already is there for nothing, and a link in use costs no latency again. Nothing is known
    of what comes later. Of equal tiers the lowest is taken.
    """
    seen = _Seen(problem, objective)
    a, tiers = seen.a, range(seen.a.tiers)
    stay, latency = seen.stay.tolist(), seen.prices.latency.tolist()
    way = {(i, j): seen.wire(i, j).tolist() for i in tiers for j in tiers[i:]}
    inputs: list[list[int]] = [[] for _ in a.low]
    for t, v in zip(a.owner.tolist(), a.consumer.tolist(), strict=True):
        inputs[v].append(t)
    producer = a.producer.tolist()
    reached = [-1] * len(producer)  # the furthest tier that a tensor is on
    tier, used = [0] * len(a.low), [False] * len(latency)

    def price(v: int, i: int) -> float:
        """Of op v on tier i and of all that this sends further than it is."""
        sent = [way[tier[producer[t]], i][t] - way[tier[producer[t]], reached[t]][t] for t in inputs[v] if i > reached[t]]
        lowest = min((reached[t] for t in inputs[v]), default=i)
        return float(stay[v][i] + sum(sent) + sum(latency[j] for j in range(lowest, i) if not used[j]))

    for v in a.topological:
        for t in inputs[v]:
            reached[t] = max(reached[t], tier[producer[t]])
        least = max([int(a.low[v]), *(tier[producer[t]] for t in inputs[v])])
        tier[v] = min(range(least, int(a.high[v]) + 1), key=partial(price, v))
        for t in inputs[v]:
            for j in range(reached[t], tier[v]):
                used[j] = True
            reached[t] = max(reached[t], tier[v])
    return seen.answer("greedy", np.array(tier))


COMPETITORS: dict[str, Callable[[Problem, Objective], Solution]] = {
    "neurosurgeon": by_neurosurgeon,
    "neurosurgeon_tiers": by_neurosurgeon_tiers,
    "dads": by_dads,
    "dads_no_reverse": by_dads_no_reverse,
    "greedy": by_greedy,
}


class Surgery(NamedTuple):
    """What the cut of DADS says, before anything is repaired."""

    claimed: float
    """The cut: what the plan is said to cost. Without reverse arcs it can be below every placement there is."""
    device: frozenset[str]
    """Ops on the device's side."""
    backwards: tuple[str, ...]
    """Those of them that take data from the cloud, which nothing sends them."""


def dads_cut(problem: Problem, objective: Objective = LATENCY, reverse_arcs: bool = False) -> Surgery:
    """Cut between the first tier and the last, with or without the arcs that DADS lacks; O(max-flow).

    Hu et al., "Dynamic adaptive DNN surgery for inference acceleration on the edge", INFOCOM 2019, the algorithm for
    light workload (DSL). e, c: edge and cloud; a layer of several successors sends through a node v' of its own, so
    that its output is paid once:

        e --cloud seconds--> v --edge seconds--> c        v --transfer--> v' --infinite--> each successor

    An arc is paid from e's side to c's side. From c's side back to e's side nothing is: that is the hole.
    """
    seen = _Seen(problem, objective)
    cloud, names = _surgery(seen, reverse_arcs), [op.name for op in problem.ops]
    a = seen.a
    back = np.unique(a.consumer[cloud[a.producer[a.owner]] & ~cloud[a.consumer]])
    device = frozenset(names[v] for v in np.flatnonzero(~cloud))
    return Surgery(_claim(seen, cloud), device, tuple(names[v] for v in back))


class _Seen:
    """What a competitor sees of a problem: sums, and data that flows one way."""

    def __init__(self, problem: Problem, objective: Objective) -> None:
        self.problem, self.objective = problem, objective
        self.a = Arrays.of(replace(problem, two_way=False) if problem.two_way else problem)
        self.prices = Prices(self.a, objective if any(map(objective.weight, ADDITIVE)) else LATENCY)
        home = np.cumsum([0.0, *self.prices.latency])
        self.stay = self.prices.stay + self.a.return_reach[:, None] * home
        """(n, k) the op and the way back of its results."""

    def wire(self, i: int, j: int) -> Floats:
        """(T,) from tier i to tier j, latency of links left out."""
        hop, cheapest = self.prices.hop, self.a.cheapest
        if i == j:
            return np.zeros(len(self.a.producer))
        if self.problem.relay == "forward":
            return cheapest(hop(i, [j]))
        return np.asarray(sum(cheapest(hop(link, [link + 1])) for link in range(i, j)))

    def transfer(self, i: int, j: int) -> Floats:
        """(T,) from tier i to tier j, as if nothing else crossed."""
        return np.asarray(self.wire(i, j) + self.prices.latency[i:j].sum() * self.a.reach)

    def clip(self, cloud: Bools) -> Ints:
        """Op -> the first tier or the last, or the nearest that is open to it."""
        return np.where(cloud, self.a.high, self.a.low)

    def answer(self, name: str, tier: Ints) -> Solution:
        return solution(self.problem, self.a.names(tier), name, None, self.objective)


def _scan(problem: Problem, objective: Objective, name: str, tiers: Sequence[int]) -> Solution:
    """Cut the ops, in topological order, into one stretch for each of these tiers; by dynamic programming.

    best[c] is the least cost of all before cut c with the stretches so far; each tier appends a stretch from cut b <= c.
    """
    seen = _Seen(problem, objective)
    a, order = seen.a, np.array(seen.a.topological)
    n, cuts = len(order), np.arange(len(order) + 1)
    # A stretch across a pin costs more than all else together, so it is taken only where no cut keeps every pin.
    sent = {(i, j): seen.transfer(i, j) for i, j in pairwise(tiers)}
    forbidden = 1 + seen.stay.max(axis=1).sum() + sum(each.sum() for each in sent.values())
    open_ = np.stack([np.clip(i, a.low, a.high) for i in range(a.tiers)], axis=1)
    stay = seen.stay[np.arange(n)[:, None], open_] + forbidden * (open_ != np.arange(a.tiers))
    work = np.concatenate([np.zeros((1, a.tiers)), stay[order].cumsum(axis=0)])
    best, begins = work[:, tiers[0]], list[Ints]()
    for i, j in pairwise(tiers):
        # At a cut the output of the one op before it crosses; before the first op and after the last there is none.
        output = np.bincount(a.producer, np.where(a.fan_out > 0, sent[i, j], 0.0), n)[order]
        through = best + np.concatenate([[0.0], output[:-1], [0.0]]) - work[:, j]
        least = np.minimum.accumulate(through)
        begins.append(np.maximum.accumulate(np.where(through == least, cuts, 0)))
        best = least + work[:, j]
    tier, stop = np.full(n, tiers[0]), n
    for j, begin in zip(reversed(tiers[1:]), reversed(begins), strict=True):
        tier[order[begin[stop] : stop]] = j
        stop = begin[stop]
    return seen.answer(name, np.clip(tier, a.low, a.high))


def _surgery(seen: _Seen, reverse_arcs: bool) -> Bools:
    """Cut; return which ops are on the cloud's side."""
    a, n = seen.a, len(seen.a.low)
    # An op may be in the cloud if the last tier is open to it, and on the device if the first is; in between it counts
    # as the cloud's, as what follows cannot come back from there.
    must, may = a.low > 0, (a.low > 0) | (a.high == a.tiers - 1)
    upper = _claim(seen, must)  # everything on the device
    if upper == 0 or a.tiers == 1:
        return must
    op, every = np.arange(n), np.arange(n)
    edge_s, cloud_s = seen.stay[every, a.low], seen.stay[every, a.high]
    source, sink, transfer = n, n + 1, seen.transfer(0, a.tiers - 1)
    shared = np.flatnonzero(a.fan_out > 1)
    node = n + 2 + np.arange(len(shared))
    alone = a.fan_out[a.owner] == 1
    through = node[np.searchsorted(shared, a.owner[~alone])]
    from_, to = a.producer[a.owner], a.consumer
    arcs: list[tuple[Ints, Ints, Floats]] = [
        (np.full(n, source), op, np.where(may, cloud_s, np.inf)),
        (op, np.full(n, sink), np.where(must, np.inf, edge_s)),
        (from_[alone], to[alone], transfer[a.owner[alone]]),
        (a.producer[shared], node, transfer[shared]),
        (through, to[~alone], np.full(len(through), np.inf)),
    ]
    if reverse_arcs:
        arcs.append((to, from_, np.full(len(to), np.inf)))
    tail, head, capacity = (np.concatenate(column) for column in zip(*arcs, strict=True))
    _, beyond = minimum_cut(tail[capacity > 0], head[capacity > 0], capacity[capacity > 0], source, sink, upper)
    return must if beyond is None else beyond[:n]


def _claim(seen: _Seen, cloud: Bools) -> float:
    """What the cut charges for this side of the cloud: both kinds of compute, and tensors from the device to the cloud."""
    a, every = seen.a, np.arange(len(seen.a.low))
    wanted = np.bincount(a.owner, cloud[a.consumer], len(a.producer)) > 0
    crosses = wanted & ~cloud[a.producer]
    return float(seen.stay[every, seen.clip(cloud)].sum() + seen.transfer(0, a.tiers - 1)[crosses].sum())
