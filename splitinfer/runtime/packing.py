"""Makes the shipment of a plan: what each machine is told and given. No Ray here."""

from __future__ import annotations

import itertools
from dataclasses import replace

from cluster.launch import TIER_LABEL
from cluster.tiers import TierSpec
from cluster.topology import Topology
from cluster.units import format_bytes
from splitinfer.codecs.packet import Limits
from splitinfer.errors import DeployError, PlanError
from splitinfer.front import Front
from splitinfer.groups import HOST
from splitinfer.parts import Carved, dump_parts, weight_nbytes
from splitinfer.plans import Plan
from splitinfer.runtime.group import Group
from splitinfer.runtime.shipment import Cargo, Rate, Shipment, StageConfig, StageShipment, WorkerShipment


class Packer:
    """Makes the shipment of a plan. Raises PlanError or DeployError for what the topology cannot run."""

    def __init__(self, front: Front, topology: Topology, limits: Limits, *, paced: bool) -> None:
        self.plan, self.topology = front.plan, topology
        # What a caller waits for so long, stages hold so long.
        self.limits = replace(limits, held_s=max(limits.held_s, front.timeout_s))
        self.routes, self.parts = front.routes, front.stages
        self.tiers = [tier_of(topology, stage.tier) for stage in self.plan.stages]
        self.paced = paced and topology.emulated
        for tier, parts, planned in zip(self.tiers, self.parts, self.plan.stages, strict=True):
            held = weight_nbytes(parts)
            if tier.memory_bytes is not None and held > tier.memory_bytes:
                raise DeployError(
                    f"stage '{planned.name}' holds {format_bytes(held)} of weights; '{tier.name}' allows "
                    f"{format_bytes(tier.memory_bytes)}. Plan again, or raise memory of tier '{tier.name}'."
                )
        self.groups = {
            place: Group(front.graph, planned, tier, topology.peers(tier.name), parts)
            for place, (planned, tier, parts) in enumerate(zip(self.plan.stages, self.tiers, self.parts, strict=True))
            if planned.blocks
        }
        names = [self.plan.tiers[0], *(stage.tier for stage in self.plan.stages)]
        self._hops = [self._rates(one, two) for one, two in itertools.pairwise(names)]
        self._configs = [self._config(place) for place in range(len(self.tiers))]  # what cannot be emulated is refused here

    def shipment(self) -> Shipment:
        """All stages, their layers dumped."""
        stages = tuple(self.stage(place) for place in range(len(self.tiers)))
        return Shipment(self.plan.model, stages, self.plan.tiers[0], self._hops[0][0], self.limits)

    def stage(self, place: int) -> StageShipment:
        """One stage, shared out as its group stands now."""
        config, labels = self._configs[place], self._labels(self.tiers[place].name)
        if place not in self.groups:
            return StageShipment(config, labels, _cargo(self.parts[place]))
        group = self.groups[place]
        cargo = group.cargo()
        workers = {worker: self._worker(group, worker, cargo[worker]) for worker in group.used}
        return StageShipment(config, labels, cargo[HOST], workers)

    def _config(self, place: int) -> StageConfig:
        tier, last = self.tiers[place], place == len(self.tiers) - 1
        return StageConfig(
            self.plan.stages[place].name, tier.name, self.routes[place], last, tier.device, tier.threads,
            slowdown_of(tier, self.topology.emulated),
            up=() if last else self._hops[place + 1][0], down=self._hops[place][1], limits=self.limits,
            group=self.groups[place].config(HOST, self.paced) if place in self.groups else None,
        )  # fmt: skip

    def _worker(self, group: Group, worker: int, cargo: Cargo) -> WorkerShipment:
        machine = group.peers[worker - 1].machine
        slowdown = slowdown_of(machine, self.topology.emulated)
        config = group.config(worker, self.paced)
        return WorkerShipment(config, machine.name, machine.device, machine.threads, slowdown, self._peer_labels(group, machine), cargo)

    def _peer_labels(self, group: Group, machine: TierSpec) -> dict[str, str]:
        """Where a peer runs: on its own node, on that of the tier whose machine it is, or emulated beside its host."""
        if machine.node:
            return dict(machine.node)
        tiers = [tier.name for tier in self.topology.tiers]
        return self._labels(machine.name if machine.name in tiers else group.tier.name)

    def _labels(self, tier: str) -> dict[str, str]:
        node = self.topology.tier(tier).node
        return dict(node) if node else {TIER_LABEL: tier}

    def _rates(self, one: str, two: str) -> tuple[tuple[Rate, ...], tuple[Rate, ...]]:
        """The emulated links between two tiers of the plan's line, up and down, in the order of travel."""
        if not self.paced or one == two:
            return (), ()
        line = list(self.plan.tiers)
        start, end = line.index(one), line.index(two)
        specs = [self.topology.link(a, b) for a, b in zip(line[start:end], line[start + 1 : end + 1], strict=True)]
        up = tuple((spec.up_bytes_per_s, spec.latency_s) for spec in specs)
        return up, tuple((spec.down_bytes_per_s, spec.latency_s) for spec in reversed(specs))


def tier_of(topology: Topology, name: str) -> TierSpec:
    """A tier that a plan names. Raises PlanError."""
    try:
        return topology.tier(name)
    except Exception as error:
        raise PlanError(f"the plan runs on tier '{name}'; the topology has {[tier.name for tier in topology.tiers]}") from error


def slowdown_of(tier: TierSpec, emulated: bool) -> float:
    """How much to stretch work that this machine does in the place of a slower tier. Raises DeployError."""
    if not emulated:
        return 1.0
    if tier.compute.preset is not None:
        raise DeployError(
            f"tier '{tier.name}' is declared by machine preset '{tier.compute.preset}', which cannot be emulated: its times are an "
            f"interval, not a factor. Declare 'compute: {{factor: F}}', or name the tier's node."
        )
    factor = tier.compute.factor or 1.0
    if factor < 1:
        raise DeployError(f"tier '{tier.name}' has factor {factor:g}: this machine cannot emulate a faster one; use 1 or more")
    return factor


def first_slowdown(plan: Plan, topology: Topology) -> float:
    """That of the caller's tier. Raises PlanError or DeployError."""
    return slowdown_of(tier_of(topology, plan.tiers[0]), topology.emulated)


def _cargo(parts: list[tuple[Carved, ...]]) -> Cargo:
    data, files = dump_parts(parts, {})
    return Cargo(data, tuple(files))
