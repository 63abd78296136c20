"""Vertical splits in planning: the machines of a tier and the ways to share its layers as parts of a Problem, and back.

Peers take part with the times of their own kind of machine; a layer's seconds are taken to go with its units, as FLOPs do.
Each message between two machines costs half of what a call between stages does, beside its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import partitioners as p
from cluster.tiers import Peer
from splitinfer.plans import PlannedBlock
from splitinfer.profiles import Framework, LayerLayout, Profile, TierTimes


@dataclass(frozen=True)
class Machines:
    """A tier's own machine and its peers."""

    tier: str
    memory_bytes: int | None
    """Of the tier's own machine."""
    own: TierTimes
    peers: tuple[Peer, ...]
    peer_times: tuple[TierTimes, ...]

    @staticmethod
    def of(tier: str, memory_bytes: int | None, own: TierTimes, peers: Sequence[Peer], profile: Profile) -> Machines:
        """With the times of the peers."""
        return Machines(tier, memory_bytes, own, tuple(peers), tuple(profile.times(peer.machine) for peer in peers))

    @property
    def names(self) -> tuple[str, ...]:
        """The tier, then its peers."""
        return (self.tier, *(peer.name for peer in self.peers))

    def workers(self, framework: Framework) -> tuple[p.Worker, ...]:
        """For the Problem; none where there are no peers."""
        if not self.peers:
            return ()
        made = [p.Worker(self.tier, memory_bytes=self.memory_bytes)]
        for peer in self.peers:
            out, back = (1 / (1 / rate + framework.s_per_byte) for rate in (peer.up_bytes_per_s, peer.down_bytes_per_s))
            made.append(p.Worker(peer.name, out, back, peer.latency_s + framework.call_s / 2, peer.machine.memory_bytes))
        return tuple(made)

    def layouts(self, layer: str, ways: Sequence[LayerLayout], host_s: float) -> Iterator[p.Layout]:
        """The ways of one layer on these machines; `host_s`: what its results cost the host beside."""
        seconds = [times.seconds[layer] for times in (self.own, *self.peer_times)] if self.peers else []
        fixed = (host_s, *(0.0 for _ in self.peers))
        for way in ways if self.peers else ():
            yield p.Layout(
                self.tier, way.axis, way.units, tuple(each / way.units for each in seconds), fixed, way.granularity,  # type: ignore[arg-type]
                way.weight_nbytes, way.weight_nbytes_per_unit, way.takes, way.gives,  # type: ignore[arg-type]
                way.kernel, way.stride, 1, way.padding, way.input_units,
            )  # fmt: skip

    def entry(self, rows: int | None, host_s: float) -> Iterator[p.Layout]:
        """Of the op that stands for the request's arrival: every machine has it, the host pays for it."""
        fixed, none = (host_s, *(0.0 for _ in self.peers)), (0.0,) * (len(self.peers) + 1)
        if self.peers:
            for axis in ("channels", "heads"):
                yield p.Layout(self.tier, axis, 1, none, fixed, takes="whole", gives="whole")
            if rows is not None:
                yield p.Layout(self.tier, "rows", rows, none, fixed)


def planned_blocks(
    blocks: Sequence[p.Block], layers_of: Mapping[str, Sequence[str]], machines: Machines, ways: Mapping[str, Sequence[LayerLayout]]
) -> tuple[PlannedBlock, ...]:
    """The blocks of one tier. What passes from one to the next without a gather is one block to the machines."""
    opening = {layer for layer, each in ways.items() if any((way.takes, way.gives) == ("whole", "split") for way in each)}
    runs: list[list[p.Block]] = []
    for block in blocks:
        if block.tier != machines.tier:
            continue
        if runs and runs[-1][-1].leaves != "whole":
            runs[-1].append(block)
        else:
            runs.append([block])
    made = []
    for run in runs:
        names = [[layer for op in block.ops for layer in layers_of.get(op, ())] for block in run]
        alone = not any(any(block.shares[1:]) for block in run)  # as good as whole
        if alone or not any(names):
            continue
        axis = "heads" if any(block.axis == "heads" for block in run) else run[-1].axis
        shares = next(block.shares for block in reversed(run) if block.axis == axis)
        inner = zip(names[:-1], run[:-1], strict=True) if axis == "rows" else ()
        halos = {layers[-1]: tuple(block.shares) for layers, block in inner if layers}
        own = (
            {}
            if axis == "rows"
            else {layer: tuple(block.shares) for layers, block in zip(names, run, strict=True) for layer in layers if layer in opening}
        )
        every = tuple(name for layers in names for name in layers)
        made.append(PlannedBlock(every, axis, tuple(shares), machines.names, halos, own))
    return tuple(made)
