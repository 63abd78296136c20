"""The machines that share a stage's layers, as the deployer sees them: who holds what, also after one is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgpack

from cluster.tiers import Peer, TierSpec
from cluster.units import format_bytes
from splitinfer.errors import DeployError, PlanError
from splitinfer.graph import Graph
from splitinfer.groups import HOST
from splitinfer.parts import Carved, divided, dump_parts, weight_nbytes
from splitinfer.plans import PlannedBlock, PlannedStage
from splitinfer.runtime.shipment import Cargo, GroupConfig, Member
from splitinfer.shards import ShardedBlock, apportion, dump_program, units


class Group:
    """One stage with blocks: its own machine and the peers that have a share."""

    def __init__(self, graph: Graph, planned: PlannedStage, tier: TierSpec, peers: Sequence[Peer], parts: list[tuple[Carved, ...]]) -> None:
        self.graph, self.planned, self.tier, self.peers, self.parts = graph, planned, tier, tuple(peers), parts
        self.names = (tier.name, *(peer.name for peer in peers))
        for block in planned.blocks:
            if block.workers != self.names[: len(block.workers)] or len(block.shares) != len(block.workers):
                raise PlanError(
                    f"a block of stage '{planned.name}' is shared by {list(block.workers)} in {len(block.shares)} shares; "
                    f"the topology gives '{tier.name}' the machines {list(self.names)}"
                )
        self.lost: set[str] = set()
        self._check_memory()

    @property
    def used(self) -> list[int]:
        """The peers that have a share of some block."""
        return sorted({worker for block in self._blocks() for worker in block.programs} - {HOST})

    def config(self, index: int, paced: bool) -> GroupConfig:
        """What one member must know of the others."""
        members = [Member(self.tier.name, None, None)]
        for peer in self.peers:
            out, back = (peer.up_bytes_per_s, peer.latency_s), (peer.down_bytes_per_s, peer.latency_s)
            members.append(Member(peer.name, out if paced else None, back if paced else None))
        codec = self.planned.blocks[0].codec
        return GroupConfig(self.planned.name, index, tuple(members), codec)

    def cargo(self) -> dict[int, Cargo]:
        """What each member holds, as shared out now."""
        # A message of a request that started before a machine was lost finds no block of its name.
        names = {id(block): f"{self.planned.name}/{len(self.lost)}/{place}" for place, block in enumerate(self._blocks())}
        data, files = dump_parts(self.parts, names)
        found = {HOST: Cargo(data, tuple(files))}
        for worker in self.used:
            plain, files = [], []
            for block in self._blocks():
                if worker in block.programs:
                    meta, own = dump_program(block.programs[worker])
                    plain.append([names[id(block)], meta, len(own), worker == block.root])
                    files += own
            found[worker] = Cargo(msgpack.packb(plain), tuple(files))
        return found

    def lose(self, name: str) -> bool:
        """Share out what a peer held among those that are left; False where that was done before.

        Raises ShardError where the rest cannot divide the block, DeployError where they have no memory for it.
        """
        if name in self.lost:
            return False
        gone = self.names.index(name)
        blocks = tuple(self._without(block, gone) for block in self.planned.blocks)
        self.planned = replace(self.planned, blocks=blocks)
        renewed = iter(divided(self.graph, block) for block in blocks)
        self.parts = [tuple(next(renewed) if isinstance(part, ShardedBlock) else part for part in within) for within in self.parts]
        self._check_memory()
        self.lost.add(name)
        return True

    def _blocks(self) -> list[ShardedBlock]:
        return [part for within in self.parts for part in within if isinstance(part, ShardedBlock)]

    def _check_memory(self) -> None:
        """Raise DeployError where a peer would hold more than it may; the deployer checks the host."""
        for worker in self.used:
            peer, held = self.peers[worker - 1], weight_nbytes(self.parts, worker)
            if peer.machine.memory_bytes is not None and held > peer.machine.memory_bytes:
                raise DeployError(
                    f"'{peer.name}' would hold {format_bytes(held)} of the weights of stage '{self.planned.name}' and allows "
                    f"{format_bytes(peer.machine.memory_bytes)}. Plan again, or raise its memory."
                )

    def _without(self, block: PlannedBlock, gone: int) -> PlannedBlock:
        every = (block.shares, *block.exchange_after.values(), *block.inner_shares.values())
        if gone >= len(block.shares) or not any(shares[gone] for shares in every):
            return block
        halos, inner = (
            {layer: _among_others(shares, gone) for layer, shares in each.items()} for each in (block.exchange_after, block.inner_shares)
        )
        granularity = units(self.graph, block.layers, block.axis).granularity
        return replace(block, shares=_among_others(block.shares, gone, granularity), exchange_after=halos, inner_shares=inner)


def _among_others(shares: Sequence[int], gone: int, granularity: int = 1) -> tuple[int, ...]:
    """The share of one shared out among the others, in proportion to theirs; to the host where they have none."""
    weights = [0 if worker == gone else share for worker, share in enumerate(shares)]
    if not any(weights):
        weights[HOST] = 1
    return apportion((sum(shares), granularity), weights)
