"""Problems for the planning benchmark: four families of graphs with made-up costs, each fixed by its size and a seed.

    random      each op takes data from one to three of the 64 ops before it
    layered     layers of 8 ops, each of which takes data from two of the layer before
    residual    ResNet-like blocks: conv norm act conv norm add act, with a skip from the block's input to its add
    inception   blocks of four branches of 1, 2, 3 and 2 ops between one input and one concatenation

Op 0 is the input, pinned to the device; the last op returns its result. A device takes about a second for the whole
graph, each tier further on is about four times faster, each link twice as wide, and activations shrink towards the end,
so that the answer is neither "all here" nor "all there". Every op and tensor has a random factor of its own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from partitioners import Link, Op, Problem, Tensor, Tier

Edges = list[tuple[int, int]]
"""(producer, consumer), the former smaller."""

TIERS = ("device", "edge", "cloud", "region")
FASTER = 4.0
"""From each tier to the next."""
WIDER = 2.0
"""From each link to the next."""
SHRINK = 3.0
"""Activations at the end are e^-SHRINK of those at the beginning."""
RATE = 1e6  # bytes per second of the first link; only ratios matter
ROOM = (0.2, 0.4)
"""Share of all weights that the device and the edge can hold, where memory is limited."""


def random_edges(n: int, rng: random.Random) -> Edges:
    return [(u, v) for v in range(1, n) for u in {max(0, v - rng.randint(1, 64)) for _ in range(rng.randint(1, 3))}]


def layered_edges(n: int, rng: random.Random) -> Edges:
    layers = [[0], *(list(range(at, min(at + 8, n))) for at in range(1, n, 8))]
    edges: Edges = []
    for before, layer in pairwise(layers):
        edges += [(u, v) for v in layer for u in rng.sample(before, min(2, len(before)))]
    return edges


def residual_edges(n: int, rng: random.Random) -> Edges:  # noqa: ARG001 - the family has one shape
    edges = [(v - 1, v) for v in range(1, n)]
    return edges + [(at, at + 6) for at in range(0, n - 6, 7)]


def inception_edges(n: int, rng: random.Random) -> Edges:
    edges, start = [], 0
    while start + 9 < n:
        at, ends = start, []
        for length in rng.sample((1, 2, 3, 2), 4):
            names = [start, *range(at + 1, at + 1 + length)]
            edges += list(pairwise(names))
            at += length
            ends.append(at)
        edges += [(end, at + 1) for end in ends]
        start = at + 1
    return edges + [(v - 1, v) for v in range(start + 1, n)]


FAMILIES: dict[str, Callable[[int, random.Random], Edges]] = {
    "random": random_edges,
    "layered": layered_edges,
    "residual": residual_edges,
    "inception": inception_edges,
}


def problem(
    family: str, n: int, tiers: int, seed: int, *, latency_s: float = 0.005, limited: bool = False, spread: float = 0.4
) -> Problem:
    """Build the problem; `limited`: with memory limits on all tiers but the last; `spread` of each op's speed on each tier."""
    rng = random.Random(f"{family} {n} {seed}")
    users: list[list[int]] = [[] for _ in range(n)]
    for u, v in FAMILIES[family](n, rng):
        users[u].append(v)
    # Tensors alive at once, on average: what a cut through the graph crosses.
    width = sum(to[-1] - u for u, to in enumerate(map(sorted, users)) if to) / n
    names = [f"op{v}" for v in range(n)]
    work = [0.0, *(math.exp(rng.gauss(0, 0.7)) / n for _ in range(n - 1))]
    ops = tuple(
        Op(name, tuple(w * math.exp(rng.gauss(0, spread)) / FASTER**i for i in range(tiers)), None if v else TIERS[0],
           memory_bytes=1e6 * rng.random())
        for v, (name, w) in enumerate(zip(names, work, strict=True))
    )  # fmt: skip
    tensors = tuple(
        Tensor(name, tuple(names[v] for v in sorted(to)), RATE / (width if u else 1) * math.exp(rng.gauss(0, 0.5) - SHRINK * u / n),
               returned=u == n - 1)
        for u, (name, to) in enumerate(zip(names, users, strict=True))
        if to or u == n - 1
    )  # fmt: skip
    links = tuple(Link(RATE * WIDER**j, latency_s) for j in range(tiers - 1))
    found = Problem(tuple(map(Tier, TIERS[:tiers])), links, ops, tensors)
    if not limited:
        return found
    total = sum(op.memory_bytes for op in ops)
    room = [*ROOM[: tiers - 1], *[None] * tiers]
    limits = tuple(replace(tier, memory_bytes=share and share * total) for tier, share in zip(found.tiers, room, strict=False))
    return replace(found, tiers=limits)
