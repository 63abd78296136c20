"""Random profiles, with codecs, skips and early exits, random topologies, and random plans by the planner; each of a seed."""

from random import Random

import partitioners as p
from cluster.topology import Compute, LinkSpec, TierSpec, Topology
from splitinfer.errors import PlanError
from splitinfer.planner import plan
from splitinfer.plans import INPUT, PlannedExit
from splitinfer.profiles import Framework, LayerProfile, Measurement, Profile, TensorProfile

CODECS = ("raw", "int8", "zstd")


def a_profile(seconds, tensors, *, codec_s=None, wake_s=0.0, packet_nbytes=0, framework=None, together=(), exits=(), pieces=None):
    """`tensors`: (name, producer, consumers, nbytes, returned)."""
    layers = tuple(LayerProfile(name, 10, 100, 0, 0) for name in seconds)
    specs = tuple(
        TensorProfile(name, producer, tuple(consumers), (1,), "float32", nbytes, returned,
                      {"raw": nbytes, "int8": max(1, nbytes // 4), "zstd": max(1, nbytes // 2)})
        for name, producer, consumers, nbytes, returned in tensors
    )  # fmt: skip
    coding = codec_s or {t.name: dict.fromkeys(CODECS, (0.0, 0.0)) for t in specs}
    spread = dict.fromkeys(seconds, 0.0)
    measured = Measurement(None, "test machine", "cpu", 1, sum(seconds.values()), wake_s, seconds, spread, coding, pieces or {})
    return Profile(
        "test", "f" * 16, False, layers, specs, tuple(together), (measured,), packet_nbytes, framework or Framework(), tuple(exits)
    )


def a_topology(factors, links, direct=None, **figures):
    """`links`: (up, down, latency)."""
    tiers = tuple(TierSpec(f"t{i}", Compute(factor=f), **figures) for i, f in enumerate(factors))
    specs = tuple(LinkSpec((f"t{i}", f"t{i + 1}"), up, down, latency) for i, (up, down, latency) in enumerate(links))
    return Topology(tiers, specs, direct and LinkSpec(("t0", f"t{len(factors) - 1}"), *direct))


def some_pieces(chance, nbytes, encode_s, decode_s):
    """What a tensor takes, divided at random over two to five pieces."""
    count = chance.randint(2, 5)
    shares = [[chance.uniform(0.2, 1) for _ in range(count)] for _ in range(2)]
    made, read = ([share / sum(side) for share in side] for side in shares)
    sizes = [nbytes // count + 8 for _ in range(count)]
    return tuple((encode_s * a, size, decode_s * b) for a, b, size in zip(made, read, sizes, strict=True))


def random_profile(chance, blocks=3, in_pieces=False):
    """Blocks of layers behind each other, each reached through one tensor, where an exit may hang; skips inside a block.

    Returns the profile and its exits.
    """
    sizes = [chance.randint(1, 3) for _ in range(chance.randint(1, blocks))]
    producers = {"in": INPUT}
    users, heads, names, waist = {}, {}, [], "in"
    for block, size in enumerate(sizes):
        inside = [f"l{block}.{i}" for i in range(size)]
        for i, name in enumerate(inside[:-1]):
            users[f"x{name}"] = [other for other in inside[i + 1 :] if chance.random() < 0.5] or [inside[i + 1]]
            producers[f"x{name}"] = name
        fed = {user for name in inside[:-1] for user in users[f"x{name}"]}
        users[waist] = [name for name in inside if name not in fed or chance.random() < 0.5] + heads.get(waist, [])
        waist = f"x{inside[-1]}"
        producers[waist] = inside[-1]
        names += inside
        if block < len(sizes) - 1 and chance.random() < 0.6:
            heads[waist] = [f"exit{block}"]
            names.append(f"exit{block}")
    # A model with exits has a single result.
    more = {name for name in producers if name != "in" and not heads and chance.random() < 0.3}
    returned = {waist, *more}
    tensors = [(name, producer, users.get(name, ()), chance.randint(0, 10_000), name in returned) for name, producer in producers.items()]
    exits, together, reach = [], [], 1.0
    for tensor, (head,) in heads.items():
        tensors += [(f"{head}.answer", head, (), chance.randint(0, 100), True), (f"{head}.sure", head, (), 4, True)]
        together.append(((producers[tensor], head), "an exit"))
        reach *= chance.random()
        exits.append(PlannedExit(head, f"{head}.answer", f"{head}.sure", waist, 0.5, reach))
    coding = {name: {codec: (chance.uniform(0, 0.02), chance.uniform(0, 0.02)) for codec in CODECS} for name, *_ in tensors}
    sent = {"raw": 1, "int8": 4, "zstd": 2}
    pieces = {
        name: {codec: some_pieces(chance, nbytes // sent[codec], *coding[name][codec]) for codec in CODECS}
        for name, producer, _, nbytes, _ in tensors if in_pieces and producer != INPUT
    }  # fmt: skip
    profile = a_profile(
        {name: chance.uniform(0, 0.1) for name in names}, tensors, codec_s=coding, wake_s=chance.uniform(0, 0.01),
        packet_nbytes=chance.randint(1, 1000),
        framework=Framework(chance.uniform(0, 0.01), chance.uniform(0, 1e-7), True),
        pieces=pieces, together=together, exits=[each.layer for each in exits],
    )  # fmt: skip
    return profile, exits


def random_topology(chance):
    def link():
        up = 10 ** chance.uniform(4, 7)
        return up, 10 ** chance.uniform(4, 7), chance.uniform(0, 0.05)

    count = chance.choice([1, 2, 2, 3, 3, 4])
    direct = link() if count > 2 and chance.random() < 0.5 else None
    return a_topology([chance.uniform(1, 20) for _ in range(count)], [link() for _ in range(count - 1)], direct)


def a_random_strategy(chance, topology):
    """Any placement over a random choice of tiers, each of which is used but perhaps the first."""
    names = [tier.name for tier in topology.tiers]
    chosen = [names[0], *(name for name in names[1:] if chance.random() < 0.7)]

    def strategy(problem):
        layers = [op.name for op in problem.ops if not op.name.startswith("<")]
        above = len(problem.tiers) - 1
        if [tier.name for tier in problem.tiers] != chosen or len(layers) < above:
            raise p.Infeasible("not these tiers")
        edges = sorted(chance.sample(range(len(layers)), above))
        place = {name: sum(i >= edge for edge in edges) for i, name in enumerate(layers)}
        place |= {"<input>": 0, "<entry>": min(place.values())}
        return {name: problem.tiers[tier].name for name, tier in place.items()}

    return strategy


def random_case(seed, in_pieces=False):
    """Profile, topology and plan: the best one, or any."""
    chance = Random(seed)
    profile, exits = random_profile(chance, in_pieces=in_pieces)
    topology = random_topology(chance)
    exits = exits[: chance.randint(0, len(exits))]
    if chance.random() < 0.7:
        try:
            return profile, topology, plan(profile, topology, codecs=CODECS, strategy=a_random_strategy(chance, topology), exits=exits)
        except PlanError:  # more tiers than layers
            pass
    return profile, topology, plan(profile, topology, codecs=CODECS, exits=exits)
