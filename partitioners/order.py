"""An order of the ops in which few tensors are alive at once, and for each op what it finds, adds and ends."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from partitioners.arrays import Arrays
from partitioners.errors import PartitionerError

BITS = 62  # of an int64, for the sets of all tensors alive


@dataclass(frozen=True)
class Step:
    """One op of the order; "at" says where in the bits of a key a tensor's set begins."""

    op: int
    inputs: list[int]
    """At which the tensors are that it consumes."""
    last: list[tuple[int, int]]
    """(tensor, at) of those that no later op consumes."""
    born: list[int]
    """At which it puts the tensors that it produces."""
    alive: list[int]
    """At which tensors wait for later ops."""
    source: int
    """The lowest tier open to any source still to come; k: there is none."""
    is_cut: bool
    """Whether all tensors alive are its own."""


def _order(a: Arrays, consumes: list[list[int]], produces: list[list[int]]) -> list[int]:
    """Order the ops so that few tensors are alive at once: greedily, O((n + e) log n).

    Next is the op that adds the fewest tensors less those it is the last to consume; then the one that became ready
    last, to finish a branch before the next one is begun; then the one nearest to an end. Sources wait until nothing
    else is ready, and the one with the longest way to an end goes first.
    """
    users = np.split(a.consumer, np.cumsum(a.fan_out)[:-1])
    depth = [0] * len(consumes)
    for v in reversed(a.topological):
        depth[v] = max((depth[u] + 1 for u, _ in a.consumers_of[v]), default=0)
    # A tensor that is nailed to one tier and wanted once adds no states.
    adds = ((a.fan_out > 1) | (a.low < a.high)[a.producer]).tolist()
    wanted, missing = a.fan_out.tolist(), [len(tensors) for tensors in consumes]
    order: list[int] = []
    ready: list[tuple[int, int, int, int]] = []
    since, done = [0] * len(consumes), [False] * len(consumes)

    def offer(v: int) -> None:
        count = sum(adds[t] for t in produces[v] if wanted[t]) - sum(adds[t] for t in consumes[v] if wanted[t] == 1)
        heappush(ready, (count, -since[v] if consumes[v] else 1, depth[v] if consumes[v] else -depth[v], v))

    for v, tensors in enumerate(consumes):
        if not tensors:
            offer(v)
    while ready:
        v = heappop(ready)[-1]
        if done[v]:
            continue
        done[v] = True
        order.append(v)
        for t in produces[v]:
            for u in users[t].tolist():
                missing[u] -= 1
                if not missing[u]:
                    since[u] = len(order)
                    offer(u)
        for t in consumes[v]:
            wanted[t] -= 1
            if wanted[t] == 1:  # whoever is left would now end it: offered again, at a lower count
                for u in users[t].tolist():
                    if not done[u] and not missing[u]:
                        offer(u)
    return order


def steps(a: Arrays) -> list[Step]:
    """Order the ops, and find room for the set of each tensor while it is alive."""
    consumes: list[list[int]] = [[] for _ in a.low]
    produces: list[list[int]] = [[] for _ in a.low]
    for t, v in zip(a.owner.tolist(), a.consumer.tolist(), strict=True):
        consumes[v].append(t)
    for t in np.flatnonzero(a.fan_out).tolist():
        produces[a.producer[t]].append(t)
    order = _order(a, consumes, produces)
    source = a.tiers
    lowest_source = []  # still to come, from the end
    for v in reversed(order):
        lowest_source.append(source)
        source = source if consumes[v] else min(source, int(a.low[v]))
    found, at, wanted = [], dict[int, int](), a.fan_out.tolist()
    for v, lowest in zip(order, reversed(lowest_source), strict=True):
        inputs = [at[t] for t in consumes[v]]
        for t in produces[v]:
            if len(at) == BITS // a.tiers:
                raise PartitionerError(
                    f"'blocks' keeps every state of the tensors alive at once; {len(at) + 1} are at {a.problem.ops[v].name!r},"
                    f" the limit is {BITS // a.tiers} on {a.tiers} tiers.\n  Take 'mincut' or 'milp'."
                )
            at[t] = next(spot for spot in range(0, BITS, a.tiers) if spot not in at.values())
        born = [at[t] for t in produces[v]]
        last = []
        for t in consumes[v]:
            wanted[t] -= 1
            if not wanted[t]:
                last.append((t, at.pop(t)))
        found.append(Step(v, inputs, last, born, list(at.values()), lowest, all(a.producer[t] == v for t in at)))
    return found
