"""Small problems by hand and by seed, and all their placements: for the tests of what needs no more than that."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from partitioners import LATENCY, Codec, Infeasible, Link, Objective, Op, Problem, Solution, Tensor, Tier, solution

ENERGY = Objective.of("latency + 0.2*energy")
FREE = (Link(1.0, 0.0),)  # bytes are seconds


def problem(ops: Mapping[str, tuple[float, ...]], tensors: list[tuple[str, str, float]], links: tuple[Link, ...] = FREE) -> Problem:
    """Ops by name, the first pinned to the first tier; tensors as (producer, consumers, bytes)."""
    tiers = tuple(Tier(f"t{i}") for i in range(len(links) + 1))
    made = tuple(Op(name, seconds, None if i else "t0") for i, (name, seconds) in enumerate(ops.items()))
    return Problem(tiers, links, made, tuple(Tensor(p, tuple(c.split()), nbytes) for p, c, nbytes in tensors))


def anything(seed: int, tiers: int, n: int, **changes: Any) -> Problem:
    """A small graph with fan-out, latency, two codecs and a pin somewhere."""
    rng = random.Random(seed)
    names = [f"t{i}" for i in range(tiers)]
    slower = [4.0**-i for i in range(tiers)]
    ops = [Op("o0", (0.0,) * tiers, "t0")]
    ops += [Op(f"o{i}", tuple(rng.uniform(0.1, 4) * s for s in slower), memory_bytes=rng.random()) for i in range(1, n)]
    pinned = rng.randrange(n)
    ops[pinned] = replace(ops[pinned], pinned=ops[pinned].pinned or rng.choice([None, *names]))
    users: dict[int, set[int]] = {i: set() for i in range(n)}
    for i in range(1, n):
        for before in {rng.randrange(i), rng.randrange(i)}:
            users[before].add(i)
    tensors = []
    for i, to in users.items():
        nbytes, cost = rng.uniform(0, 4), tuple(rng.uniform(0, 0.3) for _ in names)
        ways = (Codec("raw", nbytes), Codec("half", nbytes / 2, cost, cost, 0.1))
        tensors.append(Tensor(f"o{i}", tuple(f"o{u}" for u in sorted(to)), nbytes, i == n - 1, ways))
    links = tuple(Link(rng.choice([0.5, 1.0, 4.0]), rng.choice([0.0, 0.3]), joules_per_byte=0.5) for _ in names[1:])
    made = Problem(tuple(Tier(name, watts=3.0 - i) for i, name in enumerate(names)), links, tuple(ops), tuple(tensors))
    return replace(made, **changes)


def without_latency(p: Problem) -> Problem:
    """Link latency left out."""
    return replace(p, links=tuple(replace(link, latency_s=0.0) for link in p.links))


def chain(seed: int, tiers: int) -> Problem:
    p = anything(seed, tiers, 6)
    return replace(p, tensors=tuple(replace(t, consumers=(f"o{i + 1}",) if i < 5 else ()) for i, t in enumerate(p.tensors)))


def every_plan(p: Problem, objective: Objective = LATENCY) -> Iterator[Solution]:
    """Brute force: each placement that keeps the rules."""
    for tiers in product([tier.name for tier in p.tiers], repeat=len(p.ops)):
        try:
            yield solution(p, {op.name: tier for op, tier in zip(p.ops, tiers, strict=True)}, "any", None, objective)
        except Infeasible:
            continue
