"""Random models whose layers can be shared, random topologies with peers, and the planner's plans for them; each of a seed."""

from dataclasses import replace
from itertools import pairwise
from random import Random

from random_plans import CODECS, a_profile

from cluster.tiers import PeerSpec
from cluster.topology import Compute, LinkSpec, TierSpec, Topology
from splitinfer.plans import INPUT
from splitinfer.profiles import Framework, LayerLayout


def by_rows(chance, height):
    """A layer's way by rows, and the height of its output."""
    kernel, stride = chance.choice([(1, 1), (3, 1), (3, 2), (2, 2), (5, 1)])
    padding = kernel // 2 if kernel % 2 else 0
    out = (height + 2 * padding - kernel) // stride + 1
    if out < 2:
        return by_rows(chance, height) if height > 2 else (LayerLayout("rows", height), height)
    return LayerLayout("rows", out, kernel=kernel, stride=stride, padding=padding, input_units=height), out


def by_units(chance, axis, units):
    """Some of the four ways by channels or heads."""
    forms = [("whole", "split"), ("split", "split"), ("split", "partial"), ("whole", "whole")]
    chosen = {takes: (takes, gives) for takes, gives in chance.sample(forms, chance.choice([1, 1, 2]))}
    return [
        LayerLayout(axis, 1 if gives == "whole" else units, chance.choice([1, 1, 2]) if gives != "whole" else 1, takes, gives)
        for takes, gives in chosen.values()
    ]  # fmt: skip


def shared_profile(chance, axes):
    """A chain with skips over one layer, each of whose layers can be shared by some axes; few tensors stay whole."""
    names = [f"l{i}" for i in range(chance.randint(1, 7))]
    layouts, height = {}, chance.choice([5, 8, 16, 40])
    flat = set()
    for i, name in enumerate(names):
        ways = []
        if "rows" in axes and chance.random() < 0.9:
            way, out = by_rows(chance, height)
            ways.append(way)
            flat |= {i} if out == height else set()
            height = out
        units = {"channels": 8, "heads": 6}
        ways += [
            way for axis in ("channels", "heads") if axis in axes and chance.random() < 0.8 for way in by_units(chance, axis, units[axis])
        ]
        layouts[name] = tuple(ways)
    users = {name: [after] for name, after in pairwise(names)} | {names[-1]: []}
    for i, name in enumerate(names[:-2]):  # a skip over a layer that keeps the rows, into one that takes as many
        if i + 1 in flat and chance.random() < 0.3:
            users[name].append(names[i + 2])
    nbytes = {name: chance.randint(100, 200_000) for name in names}
    tensors = [("in", INPUT, names[:1], chance.randint(100, 200_000), False)]
    tensors += [(f"x{name}", name, users[name], nbytes[name], name == names[-1]) for name in names]
    coding = {name: {codec: (chance.uniform(0, 2e-3), chance.uniform(0, 2e-3)) for codec in CODECS} for name, *_ in tensors}
    made = a_profile(
        {name: chance.uniform(0, 0.1) for name in names}, tensors, codec_s=coding, wake_s=chance.uniform(0, 0.003),
        packet_nbytes=chance.randint(1, 1000), framework=Framework(chance.uniform(0, 0.003), chance.uniform(0, 1e-8), True),
    )  # fmt: skip
    return replace(made, layouts=layouts)


def topology_with_peers(chance):
    """One to three tiers, of which some have peers, with machines of their own, or of another tier."""
    count = chance.choice([1, 2, 2, 3])
    names = [f"t{i}" for i in range(count)]
    tiers = []
    for i, name in enumerate(names):
        peers = [
            PeerSpec(TierSpec(f"{name}p{j}", Compute(factor=chance.uniform(1, 4))), 10 ** chance.uniform(6, 9),
                     10 ** chance.uniform(6, 9), chance.choice([0.0, 1e-4, 1e-3]))
            for j in range(chance.choice([1, 1, 2, 3]) if i == 0 or chance.random() < 0.5 else 0)
        ]  # fmt: skip
        if count > 1 and chance.random() < 0.2:
            peers.append(PeerSpec(tier=names[i - 1 if i else 1]))
        tiers.append(TierSpec(name, Compute(factor=chance.uniform(1, 4)), peers=tuple(peers)))
    links = [LinkSpec(pair, 10 ** chance.uniform(4, 6.5), 10 ** chance.uniform(4, 6.5), 0.01) for pair in pairwise(names)]
    return Topology(tuple(tiers), tuple(links))


def shared_case(seed, axes=("rows", "channels", "heads")):
    """Profile and topology."""
    chance = Random(seed)
    return shared_profile(chance, axes), topology_with_peers(chance)
