"""The links, and the peers, by the names under which a simulation knows them.

A link's two directions are ``from:to``. Each peer has a link of its own to the machine whose layers it shares; where the peer
is itself a tier, its machine is that tier's, and the link is named ``from:to/layers``, beside the one that packets take.
"""

from __future__ import annotations

from cluster.tiers import Peer, TierSpec
from cluster.topology import LinkSpec, Topology


def paths(topology: Topology) -> dict[str, tuple[LinkSpec, str]]:
    """``from:to`` -> the link, and "up" or "down"; each machine of the tier that a link's `between` names first has one."""
    found: dict[str, tuple[LinkSpec, str]] = {}
    for spec in (*topology.links, *filter(None, [topology.direct])):
        low, high = spec.between
        found |= {f"{low}:{high}": (spec, "up"), f"{high}:{low}": (spec, "down")}
    for tier in topology.tiers:
        for peer in topology.peers(tier.name):
            spec = LinkSpec((tier.name, peer.name), peer.up_bytes_per_s, peer.down_bytes_per_s, peer.latency_s)
            out, back = peer_links(topology, tier.name, peer)
            found |= {out: (spec, "up"), back: (spec, "down")}
    return found


def peer_links(topology: Topology, tier: str, peer: Peer) -> tuple[str, str]:
    """The names of a peer's link, from the tier and back."""
    end = "/layers" if peer.machine in topology.tiers else ""
    return f"{tier}:{peer.name}{end}", f"{peer.name}:{tier}{end}"


def peer_machines(topology: Topology) -> dict[str, tuple[str, TierSpec]]:
    """Peers that are no tiers themselves -> the tier that they help, and the machine."""
    return {
        peer.name: (tier.name, peer.machine)
        for tier in topology.tiers for peer in topology.peers(tier.name) if peer.machine not in topology.tiers
    }  # fmt: skip
