"""Problems for the tests of this folder: any small one by hypothesis, a larger layered one, and a shorthand."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import strategies as st

from partitioners import Codec, Link, Op, Problem, Tensor, Tier

seconds = st.integers(0, 40).map(lambda n: n / 8)  # multiples of 1/8: ties and zeros are frequent, sums are exact
sizes = st.integers(0, 30)
MOST_OPS = {1: 5, 2: 10, 3: 8, 4: 6}


@st.composite
def codecs(draw: st.DrawFn, tiers: int) -> Codec:
    """A codec without its name."""
    per_tier = st.lists(seconds.map(lambda s: s / 4), min_size=tiers, max_size=tiers).map(tuple)
    return Codec("?", draw(sizes), draw(per_tier), draw(per_tier))


@st.composite
def problems(
    draw: st.DrawFn, relays: tuple[str, ...] = ("transcode", "forward"), source_on_device: bool | None = None
) -> Problem:
    """Any small problem: fan-out, returns, codecs, pins (also contradictory ones), latency, isolated ops."""
    tiers = draw(st.integers(1, 4))
    names = [f"t{i}" for i in range(tiers)]
    n = draw(st.integers(1, MOST_OPS[tiers]))
    rooted = draw(st.booleans()) if source_on_device is None else source_on_device
    pins = st.none() | st.none() | st.none() | st.sampled_from(names)
    ops = [
        Op(f"o{i}", tuple(draw(st.lists(seconds, min_size=tiers, max_size=tiers))),
           names[0] if rooted and i == 0 else None if rooted else draw(pins))
        for i in range(n)
    ]  # fmt: skip
    tensors = []
    for i in range(n):
        for _ in range(draw(st.integers(0, 2))):
            later = st.lists(st.sampled_from(range(i + 1, n)), unique=True, max_size=4) if i + 1 < n else st.just([])
            users = sorted(draw(later))
            ways = draw(st.none() | st.lists(codecs(tiers), min_size=1, max_size=3))
            tensors.append(
                Tensor(f"o{i}", tuple(f"o{u}" for u in users), draw(sizes), draw(st.booleans()) and draw(st.booleans()),
                       None if ways is None else tuple(Codec(f"c{j}", c.nbytes, c.encode_s, c.decode_s)
                                                       for j, c in enumerate(ways)))
            )  # fmt: skip
    if rooted:  # every op descends from the first one
        fed = {u for t in tensors for u in t.consumers}
        orphans = tuple(f"o{i}" for i in range(1, n) if f"o{i}" not in fed)
        tensors.append(Tensor("o0", orphans, draw(sizes)))
    rate = st.sampled_from([0.5, 1.0, 4.0, 16.0])
    links = tuple(Link(draw(rate), draw(st.just(0.0) | seconds), draw(st.none() | rate)) for _ in names[1:])
    return Problem(tuple(map(Tier, names)), links, tuple(ops), tuple(tensors), draw(st.sampled_from(relays)))


def chain(seconds: list[tuple[float, ...]], nbytes: list[float], links: tuple[Link, ...], **problem: str) -> Problem:
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
    links = (Link(20.0, 0.5), Link(30.0, 0.2, 60.0), Link(40.0, 0.1))[: tiers - 1]
    return Problem(tuple(Tier(f"t{i}") for i in range(tiers)), links, tuple(ops), tuple(tensors), relay)


def scaled(problem: Problem, factor: float) -> Problem:
    """Return the problem with every duration multiplied by the factor."""

    def times(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(v * factor for v in values)

    def codec(c: Codec) -> Codec:
        return replace(c, encode_s=times(c.encode_s), decode_s=times(c.decode_s))

    return replace(
        problem,
        ops=tuple(replace(op, seconds=times(op.seconds)) for op in problem.ops),
        links=tuple(Link(j.bytes_per_s / factor, j.latency_s * factor, j.back_bytes_per_s / factor)
                    for j in problem.links),
        tensors=tuple(replace(t, codecs=t.codecs and tuple(map(codec, t.codecs))) for t in problem.tensors),
    )  # fmt: skip
