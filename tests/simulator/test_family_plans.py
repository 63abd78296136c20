"""Plans for what is left of random topologies: as if the lost machines had never been declared, and as simulated."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from random_plans import CODECS, a_topology, random_profile, random_topology
from shared_plans import shared_case

from cluster.topology import LinkSpec
from splitinfer.family import losses, needs
from splitinfer.planner import plan
from splitinfer.simulator import ClosedLoop, simulate


def idle_s(made, profile, topology):
    return simulate(made, profile, topology, ClosedLoop(1), requests=1, expected=True).latency_s.mean


def joined(first, second):
    """Two links as one: bytes are stored and forwarded."""
    up, down = (
        1 / (1 / one + 1 / two) for one, two in zip(*((x.up_bytes_per_s, x.down_bytes_per_s) for x in (first, second)), strict=True)
    )
    return LinkSpec((first.between[0], second.between[1]), up, down, first.latency_s + second.latency_s)


def without(topology, lost):
    """The topology as if these machines had never been there, and their links were cables."""
    tiers, links = list(topology.tiers), list(topology.links)
    for place in reversed(range(1, len(tiers))):
        if tiers[place].name in lost:
            del tiers[place]
            links[place - 1 : place + 1] = [joined(*links[place - 1 : place + 1])] if place < len(links) else []
    living = [replace(t, peers=tuple(x for x in t.peers if (x.tier or x.machine.name) not in lost)) for t in tiers]
    return replace(topology, tiers=tuple(living), links=tuple(links), direct=None)


def check_losses(profile, topology, **wishes):
    """Each member against `plan` on the smaller topology, and against the simulator on the whole one."""
    found = losses(profile, topology, codecs=CODECS, **wishes)
    for loss in found:
        alone = plan(profile, without(topology, loss.machines), codecs=CODECS, **wishes)
        assert loss.plan.cost.latency_s == pytest.approx(alone.cost.latency_s, rel=1e-9)
        assert loss.plan.certificate["status"] == alone.certificate["status"]
        assert not needs(loss.plan) & set(loss.machines)
        assert [rival.name for rival in loss.plan.baselines] == [rival.name for rival in alone.baselines]
        for mine, other in zip(loss.plan.baselines, alone.baselines, strict=True):
            assert (mine.cost is None) == (other.cost is None)
            assert mine.cost is None or mine.cost.latency_s == pytest.approx(other.cost.latency_s, rel=1e-9)
        assert idle_s(loss.plan, profile, topology) == pytest.approx(loss.plan.cost.latency_s, rel=1e-9)
    return found


def test_losses_are_planned_as_if_the_machines_had_never_been_there():
    seen = Counter()
    for seed in range(60):
        chance = Random(seed)
        profile, exits = random_profile(chance)
        topology = replace(random_topology(chance), direct=None)
        found = check_losses(profile, topology, exits=exits)
        seen[len(found)] += 1
        seen["early"] += bool(exits)
        seen["over a dead tier"] += any(
            set(made.tiers[c.links[0] + 1 : c.links[-1] + 1]) & set(loss.machines)
            for loss in found for made in [loss.plan] for c in made.crossings
        )  # fmt: skip
    assert min(seen[1], seen[2], seen["early"], seen["over a dead tier"]) > 5
    assert sum(count for size, count in seen.items() if isinstance(size, int) and size > 2) > 5


def test_shared_layers_are_planned_as_if_the_machines_had_never_been_there():
    seen = Counter()
    for seed in range(25):
        profile, topology = shared_case(seed, ("rows",))  # what the simulator reads exactly
        found = check_losses(profile, topology)
        idle = [block for loss in found for stage in loss.plan.stages for block in stage.blocks if 0 in block.shares[1:]]
        seen["shared"] += any(stage.blocks for stage in found[0].plan.stages)
        seen["without peers"] += any(set(loss.machines) - set(loss.plan.tiers) for loss in found)
        seen["a tier's machine lost"] += any(set(block.workers) & set(loss.machines) for loss in found for block in idle)
    assert min(seen["shared"], seen["without peers"]) > 5
    assert seen["a tier's machine lost"] > 0


def test_a_stream_over_a_dead_tier():
    """Each link of a hop carries another request: the interval is the slowest link's, not that of all together."""
    faster = 0
    for seed in range(20):
        chance = Random(seed)
        profile, _ = random_profile(chance)
        rates = [10 ** chance.uniform(4.0, 5.0) for _ in range(3)]
        topology = a_topology([8, 4, 2, 1], [(rate, rate, 0.01) for rate in rates])
        found = losses(profile, topology, "interval", CODECS)
        for loss in found:
            cables = plan(profile, without(topology, loss.machines), "interval", CODECS)  # as slow as all links of a hop together
            assert loss.plan.certificate["status"] == "optimal"
            assert loss.plan.cost.interval_s <= cables.cost.interval_s * (1 + 1e-6)
            faster += loss.plan.cost.interval_s < cables.cost.interval_s * (1 - 1e-6)
    assert faster > 5
