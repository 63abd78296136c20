"""Minimum latency on an operator graph, k tiers in a line, as one minimum s-t cut.

Two tiers: Hu et al., "Dynamic adaptive DNN surgery" (DADS, INFOCOM 2019); levels for a line of k labels: Ishikawa,
"Exact optimization for Markov random fields with convex priors" (TPAMI 2003). Added here: reverse arcs that keep data
flowing one way (without them a cut runs ops on the device after the cloud for nothing), a tensor paid once per link,
link latency paid once per direction.

    x[v,j] = 1 iff tier(v) > j, j = 0..k-2; the source's side means 0. An arc a -> b is paid iff a = 0 and b = 1.

            S --c_v(k-1)--> (v,k-2) --c_v(k-2)--> ... --c_v(1)--> (v,0) --c_v(0)--> T

O(max-flow) on k (ops + tensors) nodes. Exact under relay "transcode" (and "forward", where that is the same) if each
link's latency is, too: see `exact_for`. Otherwise the cut has arcs that never exceed the truth: a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np

from partitioners.arrays import Arrays, Bools, Floats, Ints
from partitioners.cost import evaluate, solution
from partitioners.flow import minimum_cut
from partitioners.placement import OPTIMAL_GAP, Solution
from partitioners.problem import Problem

RELAX_ROUNDS = 8  # of choosing arcs for "forward"; the bound hardly moves after the third
SUBSETS = 64  # of tiers tried as candidates for "forward": all of them up to 6 tiers


def by_mincut(problem: Problem) -> Solution:
    """Place by minimum cut: optimal where `exact_for` holds, else a good placement with a proved bound."""
    a = Arrays.of(problem)
    # Candidates that always exist: everything on one tier, as far as the pins allow.
    best = _Best(a, [np.clip(i, a.low, a.high) for i in range(a.tiers)])
    if a.tiers == 1:
        return solution(problem, a.names(best.tier), "mincut", best.seconds)
    everywhere = range(a.tiers)
    if _relay_is_additive(a):
        bound = _offer(best, everywhere, _link_weights(a, everywhere))
        return solution(problem, a.names(best.tier), "mincut", bound)
    # Relay "forward": price skipped tiers as one longer link, for every set of tiers that may be used at all ...
    sets = (s for size in range(a.tiers, 1, -1) for s in combinations(everywhere, size) if _reachable(a, s))
    for tiers, _ in zip(sets, range(SUBSETS), strict=False):
        _offer(best, tiers, _link_weights(a, tiers))
    # ... and bound by arcs that never add up to more than the truth, tight on the links the last plan crossed.
    bound, tier = -np.inf, best.tier
    for _ in range(RELAX_ROUNDS):
        lower, relaxed = _cut(a, everywhere, _relaxed_weights(a, a.crosses(tier)), best.seconds)
        bound = max(bound, lower)
        if relaxed is None or np.array_equal(relaxed, tier) or bound >= best.seconds * (1 - OPTIMAL_GAP):
            break
        best.offer(relaxed)
        tier = relaxed
    return solution(problem, a.names(best.tier), "mincut", bound)


def exact_for(problem: Problem) -> bool:
    """Whether the cut is exact for this problem.

    Two conditions. (1) The price of a tensor is the sum of prices per link: relay "transcode", or at most two tiers,
    or each tensor's smallest codec costs no time. (2) For every link j with latency and every op v that may lie beyond
    it: some ancestor must lie at or before j (so v beyond j proves the link used, and the cut charges it), or no
    predecessor can (so v itself never makes the link used). A problem whose sources are all pinned to tier 0 meets (2).
    """
    a = Arrays.of(problem)
    if not _relay_is_additive(a):
        return False
    sure, never = a.uses_link
    beyond = a.high[:, None] > np.arange(a.tiers - 1)
    return not bool((beyond & ~sure & ~never & (a.latency_s > 0)).any())


class _Best:
    """The cheapest placement seen, by the one cost function."""

    def __init__(self, a: Arrays, tiers: Sequence[Ints]) -> None:
        self.a, self.seconds, self.tier = a, np.inf, tiers[0]
        for tier in tiers:
            self.offer(tier)

    def offer(self, tier: Ints) -> None:
        seconds = evaluate(self.a.problem, self.a.names(tier))[0].latency_s
        if seconds < self.seconds:
            self.seconds, self.tier = seconds, tier


def _offer(best: _Best, tiers: Sequence[int], weights: Floats) -> float:
    """Cut with these weights, keep the plan if it is the best yet, return the cut's bound."""
    bound, tier = _cut(best.a, tiers, weights, np.inf)
    if tier is not None:
        best.offer(tier)
    return bound


def _relay_is_additive(a: Arrays) -> bool:
    if a.problem.relay == "transcode" or a.tiers <= 2:
        return True
    smallest = np.minimum.reduceat(a.codec_nbytes, a.first_codec) if len(a.first_codec) else a.codec_nbytes
    costly = (a.encode_s.sum(axis=1) + a.decode_s.sum(axis=1)) > 0
    free = np.where(costly, np.inf, a.codec_nbytes)
    return not len(free) or bool((np.minimum.reduceat(free, a.first_codec) <= smallest).all())


def _link_weights(a: Arrays, tiers: Sequence[int]) -> Floats:
    """(T, m): the cheapest codec from each tier of `tiers` straight to the next."""
    return np.stack([a.hop_s(i, [j]) for i, j in pairwise(tiers)], axis=1)


def _relaxed_weights(a: Arrays, crossed: Bools) -> Floats:
    """(T, k-1) such that over any stretch of links they add up to no more than one forwarded hop along it.

    Start from the bytes alone; then raise each weight as far as every stretch through it allows: first on the links
    that the tensor crosses in the last plan, so that this plan, if it is optimal, is priced in full.
    """
    weights = np.stack([a.hop_s(j, [j + 1]) for j in range(a.tiers - 1)], axis=1)
    smallest = np.minimum.reduceat(a.codec_nbytes, a.first_codec)
    weights = np.minimum(weights, smallest[:, None] * a.seconds_per_byte)
    stretches = {(i, j): a.hop_s(i, [j]) for i, j in combinations(range(a.tiers), 2)}
    for turn in (crossed, ~crossed):
        for link in range(a.tiers - 1):
            slack = [
                whole - weights[:, i:j].sum(axis=1) for (i, j), whole in stretches.items() if i <= link < j
            ]
            weights[:, link] += np.where(turn[:, link], np.maximum(np.min(slack, axis=0), 0.0), 0.0)
    return weights


def _reachable(a: Arrays, tiers: Sequence[int]) -> bool:
    """Whether every op may be on one of these tiers."""
    return bool(np.logical_or.reduce([(a.low <= i) & (i <= a.high) for i in tiers]).all())


def _cut(a: Arrays, tiers: Sequence[int], weights: Floats, upper: float) -> tuple[float, Ints | None]:
    """Build the network over the chosen tiers and cut it: a lower bound under these weights, and the plan."""
    n, m, line = len(a.low), len(tiers) - 1, np.asarray(tiers)
    op = np.arange(n * m).reshape(n, m)
    shared = np.flatnonzero(a.fan_out > 1)
    aux = n * m + np.arange(len(shared) * m).reshape(-1, m)
    up, back = n * m + aux.size + np.arange(2 * m).reshape(2, m)
    source, sink = back[-1] + 1, back[-1] + 2
    arcs: list[tuple[Ints, Ints, Floats]] = []

    def add(tail: object, head: object, capacity: object) -> None:
        arcs.append(tuple(part.ravel() for part in np.broadcast_arrays(tail, head, capacity)))  # type: ignore[arg-type]

    # Compute: the minimum goes into a constant, the rest onto the chain of levels. A tier that is not open is infinite.
    open_ = (a.low[:, None] <= line) & (line <= a.high[:, None])
    stay_s = np.where(open_, a.stay_s[:, line], np.inf)
    base = stay_s.min(axis=1)
    stay_s -= base[:, None]
    add(op[:, 0], sink, stay_s[:, 0])
    add(op[:, 1:], op[:, :-1], stay_s[:, 1:-1])
    add(source, op[:, -1], stay_s[:, -1])
    # Levels: beyond link j+1 implies beyond link j.
    add(op[:, :-1], op[:, 1:], np.inf)
    # Direction: a producer beyond link j implies its consumers beyond it.
    from_, to = op[a.producer[a.owner]], op[a.consumer]
    add(to, from_, np.inf)
    # A tensor is paid once per link: a direct arc for one consumer, else through a node of its own.
    alone = a.fan_out[a.owner] == 1
    add(from_[alone], to[alone], weights[a.owner[alone]])
    add(op[a.producer[shared]], aux, weights[shared])
    add(aux[np.searchsorted(shared, a.owner[~alone])], to[~alone], np.inf)
    # Link latency, once per direction: charged when an op beyond the link proves it used, or a result returns over it.
    latency_s = np.add.reduceat(a.latency_s[line[0] : line[-1]], line[:-1] - line[0])
    v, j = np.nonzero(a.uses_link[0][:, line[:-1]])
    add(source, np.stack([up, back]), latency_s)
    add(up[j], op[v, j], np.inf)
    add(back, op[a.returning], np.inf)

    tail, head, capacity = (np.concatenate(column) for column in zip(*arcs, strict=True))
    paid = capacity > 0
    # Any plan's cost under these weights bounds the cut from above: clip, here, the lowest tier of each op upwards.
    first = line[np.searchsorted(line, a.low)]
    trivial = a.stay_s[np.arange(n), first].sum() + 2 * latency_s.sum()
    trivial += weights[a.crosses(first)[:, line[:-1]]].sum()
    top = min(trivial, upper) - base.sum()
    if top <= 0:  # every op is where it is cheapest, and nothing crosses
        return float(base.sum()), first if trivial <= upper else None
    bound, beyond = minimum_cut(tail[paid], head[paid], capacity[paid], source, sink, top)
    plan = None if beyond is None else line[beyond[op].sum(axis=1)]
    return float(base.sum()) + bound, plan
