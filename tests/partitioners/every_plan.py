"""Small problems for which all plans can be tried, and all of those plans."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product

from partitioners import Codec, Crossing, Link, Op, Problem, Tensor, Tier
from partitioners.walk import crossings, recompute, stops_of


@cache
def small(seed: int, ops: int = 0) -> Problem:
    """A few ops: slow and frugal tiers before fast and thirsty ones, codecs with errors, returns, one- and two-way."""
    rng = random.Random(seed)
    u = rng.uniform
    tiers = rng.choice([2, 3])
    n = ops or rng.randint(4, 11 - 2 * tiers)
    places = range(tiers)
    names = ["in", *(f"op{i}" for i in range(1, n))]
    made = [Op(name, tuple(u(0.1, 2) * u(0.5, 2) / 3**i for i in places), memory_bytes=rng.randint(1, 9)) for name in names]
    made[0] = Op("in", (0.0,) * tiers, "t0")
    tensors = []
    for i in range(n - 1):
        users = tuple(names[v] for v in sorted({i + 1, rng.randint(i + 1, n - 1)}))
        nbytes = u(1, 20)
        ways = [Codec("whole", nbytes, tuple(u(0, 0.2) for _ in places), tuple(u(0, 0.1) for _ in places)),
                Codec("short", nbytes * 0.3, tuple(u(0, 0.2) for _ in places), tuple(u(0, 0.1) for _ in places), u(0.01, 0.1))]  # fmt: skip
        tensors.append(Tensor(names[i], users, nbytes, codecs=tuple(ways[: rng.randint(1, 2)])))
    tensors.append(Tensor(names[-1], (), u(0.1, 2), returned=rng.random() < 0.5))
    links = tuple(Link(u(5, 50), u(0, 0.2), rng.choice([None, u(5, 50)]), u(0, 0.05), u(0, 0.05)) for _ in names[1:tiers])
    line = tuple(Tier(f"t{i}", watts=u(0.5, 2) * 4**i, price_per_s=u(0.5, 2) * (4**i - 1)) for i in places)
    return Problem(line, links, tuple(made), tuple(tensors), rng.choice(["transcode", "forward"]), rng.random() < 0.25)


Plan = tuple[dict[str, str], list[Crossing]]


def plans(problem: Problem) -> Iterator[Plan]:
    """Every placement with every choice of codecs."""
    tiers = [tier.name for tier in problem.tiers]
    open_ = [tiers if op.pinned is None else [op.pinned] for op in problem.ops]
    for placement in product(*open_):
        at = dict(zip(problem.op_index, map(tiers.index, placement), strict=True))
        if not problem.two_way and any(at[user] < at[t.producer] for t in problem.tensors for user in t.consumers):
            continue
        hops = []
        for tensor in problem.tensors:
            way = crossings(at[tensor.producer], stops_of(tensor, at))
            hops += [(tensor, way)] * bool(way) if problem.relay == "forward" else [(tensor, [leg]) for leg in way]
        for chosen in product(*(tensor.ways for tensor, _ in hops)):
            codecs = [Crossing(t.name, j, c.name, c.nbytes, d) for (t, way), c in zip(hops, chosen, strict=True) for d, j in way]
            yield dict(zip(problem.op_index, placement, strict=True)), codecs


@cache
def every_cost(seed: int) -> list[Mapping[str, float]]:
    """What each plan of `small(seed)` costs, by a walk that shares nothing with the solvers."""
    problem = small(seed)
    return [recompute(problem, *plan) for plan in plans(problem)]
