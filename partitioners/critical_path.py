"""Latency on two tiers where branches overlap and nothing waits for a busy machine: the longest path, minimised exactly.

Data flows one way, so a path crosses at most once: all before the crossing is on the device, all after it in the cloud.
How long an op takes to finish on the device, and how long the rest takes from an op in the cloud, are therefore known
without the placement:

    F(v)  longest path from a source up to and with v, all on the device
    G(v)  longest path from v, all in the cloud, to an end or back on the device with a result

            F(p)                w                     G(v)
    o----->o----->(p) =====================> (v)----->o----->o

A placement costs the largest of F(p) over its device ops, G(s) over its sources in the cloud, and F(p) + w + G(v) over
its crossings; so its cost is one of n + e such numbers. Whether all of them can be kept at or below T is a closure:
a source with G > T must be on the device, with an op on the device are its producers, and with the producer of an edge
of F + w + G > T is its consumer; the least set closed under these rules is feasible or none is.

O((n + e) log(n + e)): a binary search over the numbers, one walk of the graph each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from partitioners.arrays import Arrays
from partitioners.cost import solution
from partitioners.errors import PartitionerError
from partitioners.objective import LATENCY, Objective
from partitioners.placement import Solution
from partitioners.prices import Prices
from partitioners.problem import Problem


def by_critical_path(problem: Problem, objective: Objective) -> Solution:
    """Place for the shortest critical path; two tiers, one way, without limits."""
    _refuse(problem, objective)
    paths = _Paths.of(Arrays.of(problem))
    # Step 1: every value that a placement can have, in order.
    values = np.unique([*paths.device, *(paths.cloud[s] for s in paths.sources), *(through for _, _, through in paths.edges)])
    # Step 2: the smallest T that some placement keeps. Every T is kept from the largest on, as the pins do not contradict.
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        if paths.closure(values[middle]) is None:
            low = middle + 1
        else:
            high = middle
    shortest = float(values[high])
    device = paths.closure(shortest)
    assert device is not None
    # Step 3: all smaller values are proved impossible, so T itself is the bound.
    tiers = [tier.name for tier in problem.tiers]
    placement = {op.name: tiers[0] if here else tiers[1] for op, here in zip(problem.ops, device, strict=True)}
    return solution(problem, placement, "critical_path", objective.weight("critical_path") * shortest, objective)


def _refuse(problem: Problem, objective: Objective) -> None:
    if set(objective.weights) != {"critical_path"}:
        raise PartitionerError(f"'critical_path' minimises critical_path alone, not '{objective}'.\n  Take 'milp'.")
    if len(problem.tiers) != 2:
        raise PartitionerError(f"'critical_path' is exact on two tiers; the problem has {len(problem.tiers)}.\n  Take 'milp'.")
    if problem.two_way:
        raise PartitionerError("'critical_path' needs paths that cross once; the problem is two_way.\n  Take 'milp'.")
    limits = [f"{name} {limit:.6g}" for name, limit in problem.limits.items()]
    limits += [f"{tier.memory_bytes:,.0f} bytes on {tier.name!r}" for tier in problem.tiers if tier.memory_bytes is not None]
    if limits:
        raise PartitionerError(f"'critical_path' keeps no limits; the problem has {', '.join(limits)}.\n  Take 'milp'.")


@dataclass(frozen=True)
class _Paths:
    """Longest paths of a problem of two tiers."""

    device: list[float]
    """F of each op."""
    cloud: list[float]
    """G of each op."""
    sources: list[int]
    edges: list[tuple[int, int, float]]
    """(producer, consumer, the longest path that crosses between them)."""
    pinned: tuple[list[int], list[int]]
    """Ops that must be on the device, and in the cloud."""
    producers: list[list[int]]

    @classmethod
    def of(cls, a: Arrays) -> _Paths:
        """Walk the graph once each way; O(n + e)."""
        problem, link = a.problem, a.problem.links[0]
        wire = a.cheapest(Prices(a, LATENCY).hop(0, [1])) + link.latency_s * a.reach
        # What follows an op in the cloud itself: nothing, or the slowest of its results on the way back.
        cloud = [0.0] * len(problem.ops)
        for tensor, producer in zip(problem.tensors, a.producer.tolist(), strict=True):
            if tensor.returned:
                back = (tensor.nbytes / link.back_bytes_per_s + link.latency_s) * tensor.reach
                cloud[producer] = max(cloud[producer], back)
        device, order, seconds = [0.0] * len(problem.ops), a.topological, a.seconds.tolist()
        for v in order:
            device[v] = max((device[u] for u, _ in a.producers_of[v]), default=0.0) + seconds[v][0]
        for v in reversed(order):
            cloud[v] = max([cloud[v], *(cloud[u] for u, _ in a.consumers_of[v])]) + seconds[v][1]
        ends = zip(a.producer[a.owner].tolist(), a.consumer.tolist(), wire[a.owner].tolist(), strict=True)
        pins = [None if op.pinned is None else problem.tier_index[op.pinned] for op in problem.ops]
        return cls(
            device=device,
            cloud=cloud,
            sources=[v for v in order if not a.producers_of[v]],
            edges=[(u, v, device[u] + seconds_ + cloud[v]) for u, v, seconds_ in ends],
            pinned=([v for v, pin in enumerate(pins) if pin == 0], [v for v, pin in enumerate(pins) if pin == 1]),
            producers=[[u for u, _ in each] for each in a.producers_of],
        )

    def closure(self, limit: float) -> list[bool] | None:
        """Return the fewest ops that must be on the device for paths of at most `limit`; None: no placement does it."""
        tied: dict[int, list[int]] = {}
        for u, v, through in self.edges:
            if through > limit:
                tied.setdefault(u, []).append(v)
        device = [False] * len(self.device)
        todo = self.pinned[0] + [s for s in self.sources if self.cloud[s] > limit]
        while todo:
            v = todo.pop()
            if not device[v]:
                device[v] = True
                todo += self.producers[v]
                todo += tied.get(v, ())
        too_long = any(here and finish > limit for here, finish in zip(device, self.device, strict=True))
        return None if too_long or any(device[v] for v in self.pinned[1]) else device
