"""Minimum latency, energy, money or a weighted sum on an operator graph, k tiers in a line, as one minimum s-t cut.

Two tiers: Hu et al., "Dynamic adaptive DNN surgery" (DADS, INFOCOM 2019); levels for a line of k labels: Ishikawa,
"Exact optimization for Markov random fields with convex priors" (TPAMI 2003). Added here: reverse arcs that keep data
flowing one way (without them a cut runs ops on the device after the cloud for nothing), a tensor paid once per link,
link latency paid once per direction, and data that may flow both ways.

    x[v,j] = 1 iff tier(v) > j, j = 0..k-2; the source's side means 0. An arc a -> b is paid iff a = 0 and b = 1.

            S --c_v(k-1)--> (v,k-2) --c_v(k-2)--> ... --c_v(1)--> (v,0) --c_v(0)--> T

O(max-flow) on k (ops + tensors) nodes. Exact under relay "transcode" (and "forward", where that is the same) if each
link's latency is, too: see `exact_for`. Otherwise the cut has arcs that never exceed the truth: a lower bound. Limits
on memory, error and other costs are not in the cut: `by_mincut` refuses where its plan breaks one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

import numpy as np

from partitioners.arrays import Arrays, Floats, Ints
from partitioners.cost import solution
from partitioners.errors import Infeasible, PartitionerError
from partitioners.flow import minimum_cut
from partitioners.objective import LATENCY, Objective
from partitioners.placement import OPTIMAL_GAP, Solution
from partitioners.prices import Prices
from partitioners.problem import Problem

RELAX_ROUNDS = 8  # of choosing arcs for "forward"; the bound hardly moves after the third
SUBSETS = 64  # of tiers tried as candidates for "forward": all of them up to 6 tiers

Weights = tuple[Floats, Floats]
"""(T, m) twice: the price of each tensor on each link up, and down."""


def by_mincut(problem: Problem, objective: Objective = LATENCY) -> Solution:
    """Place by minimum cut: optimal where `exact_for` holds, else a good placement with a proved bound.

    Raises `PartitionerError` for an objective that is not a sum, and where its plan breaks a limit.
    """
    if not objective.additive:
        raise PartitionerError(f"'mincut' minimises sums over ops and tensors; '{objective}' is none.\n  Take 'auto' or 'milp'.")
    a = Arrays.of(problem)
    tier, bound = place(a, Prices(a, objective))
    try:
        return solution(problem, a.names(tier), "mincut", bound, objective)
    except Infeasible as broken:
        raise PartitionerError(f"'mincut' knows no limits, and its plan breaks one: {broken}.\n  Take 'auto' or 'milp'.") from None


def place(a: Arrays, prices: Prices) -> tuple[Ints, float]:
    """Return the tier of each op and a lower bound of every placement's price, limits left aside."""
    # Candidates that always exist: everything on one tier, as far as the pins allow.
    best = _Best(prices, [np.clip(i, a.low, a.high) for i in range(a.tiers)])
    if a.tiers == 1:
        return best.tier, best.value
    everywhere = range(a.tiers)
    if _relay_is_additive(prices):
        bound = _offer(best, everywhere)
        return best.tier, bound
    # Relay "forward": price skipped tiers as one longer link, for every set of tiers that may be used at all ...
    sets = (s for size in range(a.tiers, 1, -1) for s in combinations(everywhere, size) if _reachable(a, s))
    for tiers, _ in zip(sets, range(SUBSETS), strict=False):
        _offer(best, tiers)
    # ... and bound by arcs that never add up to more than the truth, tight on the links the last plan crossed.
    bound, tier = -np.inf, best.tier
    for _ in range(RELAX_ROUNDS):
        lower, relaxed = _cut(prices, everywhere, _relaxed_weights(prices, tier), best.value)
        bound = max(bound, lower)
        if relaxed is None or np.array_equal(relaxed, tier) or bound >= best.value * (1 - OPTIMAL_GAP):
            break
        best.offer(relaxed)
        tier = relaxed
    return best.tier, bound


def exact_for(problem: Problem, objective: Objective = LATENCY) -> bool:
    """Whether the cut is exact for this problem, limits left aside.

    Two conditions. (1) The price of a tensor is the sum of prices per link: relay "transcode", or at most two tiers,
    or for each tensor some codec that costs no time is the cheapest on every link. (2) For every link j with latency
    and every op v that may lie beyond it: what v proves about the use of the link (`Arrays.sure`) is all that v can
    cause (`Arrays.possible`). A one-way problem whose sources are all pinned to tier 0, without `reach`, meets (2).
    """
    if not objective.additive:
        return False
    a = Arrays.of(problem)
    prices = Prices(a, objective)
    if not _relay_is_additive(prices):
        return False
    beyond = (a.high[:, None] > np.arange(a.tiers - 1)) & (prices.latency > 0)
    return all(bool((sure >= possible)[beyond].all()) for sure, possible in zip(a.sure, a.possible, strict=True))


class _Best:
    """The cheapest placement seen."""

    def __init__(self, prices: Prices, tiers: Sequence[Ints]) -> None:
        self.prices, self.value, self.tier = prices, np.inf, tiers[0]
        for tier in tiers:
            self.offer(tier)

    def offer(self, tier: Ints) -> None:
        value = self.prices.value(tier)
        if value < self.value:
            self.value, self.tier = value, tier


def _offer(best: _Best, tiers: Sequence[int]) -> float:
    """Cut over these tiers, keep the plan if it is the best yet, return the cut's bound."""
    bound, tier = _cut(best.prices, tiers, _link_weights(best.prices, tiers), np.inf)
    if tier is not None:
        best.offer(tier)
    return bound


def _relay_is_additive(prices: Prices) -> bool:
    a = prices.a
    if a.problem.relay == "transcode" or a.tiers <= 2 or not len(a.first_codec):
        return True
    fixed = sum(side.sum(axis=1) for side in (prices.encode_up, prices.encode_down, prices.decode_up, prices.decode_down))
    free = fixed == 0
    for link in (prices.up, prices.down):
        least = np.stack([a.cheapest(column) for column in link.T], axis=1)
        free &= (link <= least[a.codec_owner]).all(axis=1)
    return bool((np.bincount(a.codec_owner[free], minlength=len(a.first_codec)) > 0).all())


def _link_weights(prices: Prices, tiers: Sequence[int]) -> Weights:
    """The cheapest codec from each tier of `tiers` straight to the next, and back."""
    cheapest = prices.a.cheapest
    up = np.stack([cheapest(prices.hop(i, [j])) for i, j in pairwise(tiers)], axis=1)
    return up, np.stack([cheapest(prices.hop(j, [i])) for i, j in pairwise(tiers)], axis=1)


def _relaxed_weights(prices: Prices, tier: Ints) -> Weights:
    """Prices per link that over any stretch of links add up to no more than one forwarded hop along it.

    A hop that goes both ways is encoded once: the encoding is priced on the way up only.
    """
    a = prices.a
    up = _relaxed(a, prices.up, lambda i, j: prices.hop(i, [j]), a.crosses(tier)[0])
    if not a.problem.two_way:
        return up, np.zeros_like(up)
    return up, _relaxed(a, prices.down, lambda i, j: prices.hop(j, [i]) - prices.encode_down[:, j], a.crosses(tier)[1])


def _relaxed(a: Arrays, wire: Floats, hop: Callable[[int, int], Floats], crossed: np.ndarray) -> Floats:
    """Start from the wire alone; then raise each weight as far as every stretch through it allows.

    First on the links that the tensor crosses in the last plan, so that this plan, if it is optimal, is priced in full.
    """
    weights = np.stack([a.cheapest(np.minimum(column, hop(j, j + 1))) for j, column in enumerate(wire.T)], axis=1)
    stretches = {(i, j): a.cheapest(hop(i, j)) for i, j in combinations(range(a.tiers), 2)}
    for turn in (crossed, ~crossed):
        for link in range(a.tiers - 1):
            slack = [whole - weights[:, i:j].sum(axis=1) for (i, j), whole in stretches.items() if i <= link < j]
            weights[:, link] += np.where(turn[:, link], np.maximum(np.min(slack, axis=0), 0.0), 0.0)
    return weights


def _reachable(a: Arrays, tiers: Sequence[int]) -> bool:
    """Whether every op may be on one of these tiers."""
    return bool(np.logical_or.reduce([(a.low <= i) & (i <= a.high) for i in tiers]).all())


def _cut(prices: Prices, tiers: Sequence[int], weights: Weights, upper: float) -> tuple[float, Ints | None]:
    """Build the network over the chosen tiers and cut it: a lower bound under these weights, and the plan."""
    a = prices.a
    n, m, line = len(a.low), len(tiers) - 1, np.asarray(tiers)
    op = np.arange(n * m).reshape(n, m)
    net = _Network(n * m)
    # Compute: the minimum goes into a constant, the rest onto the chain of levels. A tier that is not open is infinite.
    open_ = (a.low[:, None] <= line) & (line <= a.high[:, None])
    stay = np.where(open_, prices.stay[:, line], np.inf)
    base = stay.min(axis=1)
    stay -= base[:, None]
    net.add(op[:, 0], net.sink, stay[:, 0])
    net.add(op[:, 1:], op[:, :-1], stay[:, 1:-1])
    net.add(net.source, op[:, -1], stay[:, -1])
    # Levels: beyond link j+1 implies beyond link j.
    net.add(op[:, :-1], op[:, 1:], np.inf)
    # A tensor is paid once per link: a direct arc for one consumer, else through a node of its own.
    from_, to, alone = op[a.producer[a.owner]], op[a.consumer], a.fan_out[a.owner] == 1
    shared = np.flatnonzero(a.fan_out > 1)
    through = np.searchsorted(shared, a.owner[~alone])
    up, down = weights
    aux = net.nodes((len(shared), m))
    net.add(from_[alone], to[alone], up[a.owner[alone]])
    net.add(op[a.producer[shared]], aux, up[shared])
    net.add(aux[through], to[~alone], np.inf)
    if a.problem.two_way:
        aux = net.nodes((len(shared), m))
        net.add(to[alone], from_[alone], down[a.owner[alone]])
        net.add(aux, op[a.producer[shared]], down[shared])
        net.add(to[~alone], aux[through], np.inf)
    else:  # Direction: a producer beyond link j implies its consumers beyond it.
        net.add(to, from_, np.inf)
    # Link latency, once per direction, times the largest reach that an op beyond the link proves.
    latency = np.add.reduceat(prices.latency[line[0] : line[-1]], line[:-1] - line[0])
    for sure in a.sure:
        for j in np.flatnonzero(latency):
            levels, level = np.unique(sure[:, line[j]], return_inverse=True)
            used = net.nodes((len(levels),))
            net.add(net.source, used, latency[j] * np.diff(levels, prepend=0.0))
            net.add(used[:-1], used[1:], np.inf)
            net.add(used[level], op[:, j], np.inf)
    # Any plan's cost under these weights bounds the cut from above: clip, here, the lowest tier of each op upwards.
    first = line[np.searchsorted(line, a.low)]
    trivial = prices.stay[np.arange(n), first].sum() + 2 * latency.sum()
    trivial += sum(side[crossed[:, line[:-1]]].sum() for side, crossed in zip(weights, a.crosses(first), strict=True))
    top = min(trivial, upper) - base.sum()
    if top <= 0:  # every op is where it is cheapest, and nothing crosses
        return float(base.sum()), first if trivial <= upper else None
    bound, beyond = net.cut(top)
    plan = None if beyond is None else line[beyond[op].sum(axis=1)]
    return float(base.sum()) + bound, plan


class _Network:
    """Arcs of a network, added a block at a time; capacities may be infinite."""

    def __init__(self, ops: int) -> None:
        self.size = ops
        self.arcs: list[tuple[Ints, Ints, Floats]] = []
        self.source, self.sink = self.nodes((2,)).tolist()

    def nodes(self, shape: tuple[int, ...]) -> Ints:
        """Make new nodes."""
        count = int(np.prod(shape))
        self.size += count
        return np.arange(self.size - count, self.size).reshape(shape)

    def add(self, tail: object, head: object, capacity: object) -> None:
        """Add arcs; the three are broadcast against each other."""
        self.arcs.append(tuple(part.ravel() for part in np.broadcast_arrays(tail, head, capacity)))  # type: ignore[arg-type]

    def cut(self, upper: float) -> tuple[float, np.ndarray | None]:
        """Return a lower bound of the minimum cut and which nodes are on the sink's side; see `minimum_cut`."""
        tail, head, capacity = (np.concatenate(column) for column in zip(*self.arcs, strict=True))
        paid = capacity > 0
        return minimum_cut(tail[paid], head[paid], capacity[paid], self.source, self.sink, upper)
