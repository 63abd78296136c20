"""Problems for the tests of this folder: any small one by hypothesis, a larger layered one, and a shorthand."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from partitioners import Codec, Crossing, Link, Op, Problem, Tensor, Tier
from partitioners.exhaustive import optimum
from partitioners.objective import FIELDS
from partitioners.walk import crossings, recompute, stops_of

MOST_OPS = {1: 5, 2: 10, 3: 8, 4: 6}
FEATURES = ("rooted", "codecs", "pins", "returned", "latency", "asymmetric", "parallel", "chain", "wide")
MORE_FEATURES = ("power", "reach", "overlap", "two_way", "memory", "budget", "within")
UNLIMITED = {"memory": False, "budget": False, "within": False}


@st.composite
def problems(
    draw: st.DrawFn, relays: tuple[str, ...] = ("transcode", "forward"), plain: bool = False, most_ops: int = 10, **fixed: bool
) -> Problem:
    """Any small problem: fan-out, returns, codecs, pins (also contradictory ones), latency, isolated ops.

    Unless `plain`, also two-way ones with energy, money, reach, measured transfers, and limits. `fixed` switches single
    features on or off. Hypothesis draws the shape and the features, so a failure shrinks to few ops and to the features
    that matter; the numbers come from a seed.
    """
    tiers = draw(st.sampled_from([2, 3, 4, 1]))
    n = draw(st.sampled_from(range(1, min(most_ops, MOST_OPS[tiers]) + 1)))
    drawn = {name: draw(st.booleans()) for name in (*FEATURES, *(() if plain else MORE_FEATURES))}
    return generate(random.Random(draw(st.integers(0, 2**32))), tiers, n, draw(st.sampled_from(relays)), **drawn | fixed)


def numbered(
    seed: int, objective: str = "latency", tiers: int | None = None, relay: str | None = None, most_ops: int = 10, **fixed: bool
) -> Problem:
    """The problem of this number: as `problems`, but evenly spread, where Hypothesis keeps to the corners."""
    rng = random.Random(seed)
    tiers = tiers or rng.choice([2, 2, 2, 3, 3, 3, 3, 4, 4, 1])
    n = rng.randint(2, min(most_ops, MOST_OPS[tiers]))
    drawn = {name: rng.random() < 0.5 for name in FEATURES} | {name: rng.random() < 0.35 for name in MORE_FEATURES}
    drawn |= {"chain": rng.random() < 0.2, "wide": rng.random() < 0.25}
    wants = {"energy": "power", "money": "power", "error": "codecs"}  # without these the objective is zero anywhere
    drawn |= {feature: True for name, feature in wants.items() if name in objective}
    return generate(rng, tiers, n, relay or rng.choice(["transcode", "forward"]), objective, **drawn | fixed)


class Numbers:
    """Draws the numbers of a problem that has some features.

    All are multiples of a power of 1/2: ties, zeros and limits met exactly are frequent, and sums are exact. Where they
    are "wide", they span the orders of magnitude between an activation's and a photograph's bytes on slow and fast links.
    """

    def __init__(self, rng: random.Random, tiers: int, features: Mapping[str, bool]) -> None:
        self.rng, self.tiers = rng, tiers
        self.has = {name: features.get(name, False) for name in (*FEATURES, *MORE_FEATURES)}

    def spread(self, lowest: int, highest: int) -> float:
        return 2.0 ** self.rng.randint(lowest, highest) if self.has["wide"] else 1.0

    def seconds(self, count: int, unit: float = 1 / 32) -> tuple[float, ...]:
        return tuple(self.rng.randint(0, 40) * unit * self.spread(-10, 1) for _ in range(count))

    def work(self) -> tuple[float, ...]:
        return tuple(s * self.rng.choice([0.125, 0.5, 1, 2]) for s in self.seconds(self.tiers, 1 / 8))

    def price(self) -> float:
        return self.rng.choice([0.0, 0.25, 1.0, 4.0]) * self.spread(-8, 8) if self.has["power"] else 0.0

    def reach(self) -> float:
        return self.rng.choice([1.0, 1.0, 1.0, 0.5, 0.25, 0.0]) if self.has["reach"] else 1.0

    def size(self) -> float:
        return self.rng.randint(0, 32) / 4 * self.spread(0, 20)

    def rate(self) -> float:
        return self.rng.choice([2.0, 8.0, 32.0, 128.0]) * self.spread(10, 20)

    def link(self) -> Link:
        (latency,) = self.seconds(1, 1 / 64)
        back = self.rate() if self.has["asymmetric"] else None
        return Link(self.rate(), latency * self.has["latency"], back, self.price() / 16, self.price() / 16)

    def tier(self, name: str) -> Tier:
        return Tier(name, None, self.price(), self.price())

    def op(self, i: int) -> Op:
        pin = "t0" if self.has["rooted"] and i == 0 else None
        if self.has["pins"] and not self.has["rooted"] and self.rng.random() < 0.3:
            pin = f"t{self.rng.randrange(self.tiers)}"
        return Op(f"o{i}", self.work(), pin, self.rng.randint(0, 8), self.reach())

    def codec(self, i: int) -> Codec:
        overlap = self.seconds(self.tiers - 1, 1 / 8) if self.has["overlap"] and self.rng.random() < 0.5 else ()
        return Codec(f"c{i}", self.size(), self.seconds(self.tiers), self.seconds(self.tiers), self.rng.randint(0, 8) / 64, overlap)

    def tensor(self, i: int, users: Iterable[int]) -> Tensor:
        codecs = None
        if self.has["codecs"] and self.rng.random() < 0.7:
            codecs = tuple(self.codec(j) for j in range(self.rng.randint(1, 3)))
        returned = self.has["returned"] and self.rng.random() < 0.3
        return Tensor(f"o{i}", tuple(f"o{u}" for u in sorted(users)), self.size(), returned, codecs, reach=self.reach())

    def users(self, i: int, n: int) -> list[int]:
        """Consumers of a tensor of op i: the next, some of the next few, or any."""
        fan = min(n - 1 - i, 1 if self.has["chain"] else self.rng.choice([0, 1, 1, 2, 2, 4]))
        far = fan if self.has["chain"] else n if self.has["parallel"] else fan + 1
        return self.rng.sample(range(i + 1, min(n, i + 1 + far)), fan)


def generate(rng: random.Random, tiers: int, n: int, relay: str, objective: str = "latency", **features: bool) -> Problem:
    """A problem of n ops with the features named, limits chosen so as to matter for one objective."""
    draw = Numbers(rng, tiers, features)
    ops = [draw.op(i) for i in range(n)]
    counts = [rng.choice([1, 1, 1, 2, 0]) if draw.has["parallel"] and not draw.has["chain"] else 1 for _ in ops]
    tensors = [draw.tensor(i, draw.users(i, n)) for i, count in enumerate(counts) for _ in range(count)]
    if draw.has["rooted"]:  # every op descends from the first one
        fed = {user for tensor in tensors for user in tensor.consumers}
        tensors.append(draw.tensor(0, [i for i in range(1, n) if f"o{i}" not in fed]))
    line = tuple(draw.tier(f"t{i}") for i in range(tiers))
    problem = Problem(line, tuple(draw.link() for _ in line[1:]), tuple(ops), tuple(tensors), relay, draw.has["two_way"])
    if not (draw.has["memory"] or draw.has["budget"] or draw.has["within"]):
        return problem
    return limit(problem, rng, objective, draw.has["memory"], draw.has["budget"], rng.choice([1, 1, 2]) if draw.has["within"] else 0)


def limit(problem: Problem, rng: random.Random, objective: str, memory: bool, budget: bool, within: int) -> Problem:
    """Return the problem with limits between the best for them and the best for the objective: most of them bind."""
    best = optimum(problem, objective)
    if best is None:
        return problem
    cost = recompute(problem, best.placement, best.codecs)

    def between(name: str) -> float:
        least, share = optimum(problem, name), rng.choice([-0.125, 0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 1, 2])
        assert least is not None, "what can be solved for one objective can be for another"
        return max(0.0, least.value + (cost[FIELDS[name]] - least.value) * share)

    tiers = list(problem.tiers)
    if memory:
        held = [cost["tier_memory_bytes"][tier.name] for tier in tiers]
        for i in {held.index(max(held)), rng.randrange(len(tiers))}:
            tiers[i] = replace(tiers[i], memory_bytes=rng.choice([held[i] / 2, held[i] * 0.75, held[i], held[i] + 8]))
    paid = [name for name in FIELDS if cost[FIELDS[name]] and name != objective]
    return replace(
        problem,
        tiers=tuple(tiers),
        error_budget=between("error") if budget else None,
        within={FIELDS[name]: between(name) for name in rng.sample(paid, min(within, len(paid)))},
    )


def anywhere(problem: Problem, rng: random.Random) -> dict[str, str] | None:
    """A placement that keeps the pins and the direction of the data, or None if this one came to a dead end."""
    names = [tier.name for tier in problem.tiers]
    at: dict[str, int] = {}
    for name, before in problem.predecessors.items():
        lowest = 0 if problem.two_way else max((at[b] for b in before), default=0)
        pin = problem.ops[problem.op_index[name]].pinned
        allowed = [i for i in range(lowest, len(names)) if pin in (None, names[i])]
        if not allowed:
            return None
        at[name] = rng.choice(allowed)
    return {name: names[i] for name, i in at.items()}


def some_codecs(problem: Problem, placement: Mapping[str, str], rng: random.Random) -> list[Crossing]:
    """A codec for each crossing, by chance; one for all crossings of a forwarded tensor."""
    at = {name: problem.tier_index[tier] for name, tier in placement.items()}
    chosen = []
    for tensor in problem.tensors:
        codec = rng.choice(tensor.ways)
        for direction, link in crossings(at[tensor.producer], stops_of(tensor, at)):
            if problem.relay == "transcode":
                codec = rng.choice(tensor.ways)
            chosen.append(Crossing(tensor.name, link, codec.name, codec.nbytes, direction))
    return chosen


def chain(seconds: list[tuple[float, ...]], nbytes: list[float], links: tuple[Link, ...], **problem: Any) -> Problem:
    """op0 -> op1 -> ..., op0 pinned to the first tier."""
    ops = tuple(Op(f"op{i}", s, "t0" if i == 0 else None) for i, s in enumerate(seconds))
    tensors = tuple(Tensor(f"op{i}", (f"op{i + 1}",), b) for i, b in enumerate(nbytes))
    return Problem(tuple(Tier(f"t{i}") for i in range(len(links) + 1)), links, ops, tensors, **problem)


def layered(n: int, tiers: int, relay: str, seed: int) -> Problem:
    """A graph of n ops that all descend from an input on tier 0; skips, fan-out, three codecs, a returned result."""
    rng = random.Random(seed)
    ops, users = [Op("in", (0.0,) * tiers, "t0")], {"in": set()}
    for i in range(1, n):
        work = rng.uniform(0.2, 2.0)
        ops.append(Op(f"op{i}", tuple(work * rng.uniform(0.5, 1.5) / 4**j for j in range(tiers))))
        users[f"op{i}"] = set()
        for before in {i - 1, max(0, i - rng.randint(1, 6))}:
            users[ops[before].name].add(f"op{i}")
    tensors = []
    for i, (name, to) in enumerate(users.items()):
        nbytes = rng.uniform(50, 150) * (1 - 0.9 * i / n)
        ways = [(1.0, 0.0), (0.3, 2e-3), (0.1, 2e-2)]
        codecs = tuple(Codec(f"c{share}", nbytes * share, *[(nbytes * cost, nbytes * cost / 4, 0.0, 0.0)[:tiers]] * 2)
                       for share, cost in ways)  # fmt: skip
        tensors.append(Tensor(name, tuple(sorted(to)), nbytes, returned=i == n - 1, codecs=codecs))
    links = (Link(20.0, 0.5, None, 0.01, 0.005), Link(30.0, 0.2, 60.0, 0.02, 0.01), Link(40.0, 0.1, None, 0.01, 0.005))[: tiers - 1]
    line = (Tier("t0", None, 4.0, 1.0), Tier("t1", None, 8.0, 2.0), Tier("t2", None, 20.0, 5.0), Tier("t3", None, 60.0, 15.0))[:tiers]
    return Problem(line, links, tuple(ops), tuple(tensors), relay)


def scaled(problem: Problem, factor: float) -> Problem:
    """Return the problem with every duration multiplied by the factor."""

    def times(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(v * factor for v in values)

    def codec(c: Codec) -> Codec:
        return replace(c, encode_s=times(c.encode_s), decode_s=times(c.decode_s), transfer_s=times(c.transfer_s))

    return replace(
        problem,
        ops=tuple(replace(op, seconds=times(op.seconds)) for op in problem.ops),
        links=tuple(Link(j.bytes_per_s / factor, j.latency_s * factor, j.back_bytes_per_s / factor)
                    for j in problem.links),
        tensors=tuple(replace(t, codecs=t.codecs and tuple(map(codec, t.codecs))) for t in problem.tensors),
    )  # fmt: skip
