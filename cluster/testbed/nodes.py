"""A testbed's Ray nodes: like any other (raynode.py), each in a namespace of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import raynode
from cluster.testbed.namespaces import within

_PORT = 6379


@dataclass(frozen=True)
class Node(raynode.Node):
    """The Ray node of one tier; its address is that in the testbed."""

    @property
    def namespace(self) -> str:
        """Where it lives."""
        return self.prefix[-1]


def made(name: str, tiers: Sequence[str], home: Path, cpus: int) -> list[Node]:
    """The nodes of a testbed, of which the last is the head; `name` begins the names of its namespaces."""
    addresses = [f"10.77.0.{place + 1}" for place in range(len(tiers))]
    head = f"{addresses[-1]}:{_PORT}"
    # Marks come from the name, as all that belongs to a testbed does: `down` and a second process need no record of them.
    return [
        Node(tier, address, home / str(place), f"{name}/{tier}", cpus, head, prefix=tuple(within(f"{name}-{tier}", [])))
        for place, (tier, address) in enumerate(zip(tiers, addresses, strict=True))
    ]
