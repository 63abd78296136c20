"""Machines and the links between them: what they are, how they are described, how a link behaves.

    from cluster import Topology

    topology = Topology.load("cluster.yaml")
    print(topology)

Names are loaded when first used, so that importing the package costs next to nothing and pulls in nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.client import connect
    from cluster.clock import Clock, RealClock, VirtualClock
    from cluster.errors import ClusterError, TopologyError, TraceError, UnitError, UnknownPresetError
    from cluster.launch import LocalCluster
    from cluster.link import Delivery, Link, PacedLink, PacedPath
    from cluster.topology import Compute, LinkSpec, TierSpec, Topology
    from cluster.traces import Trace

__all__ = [
    "Clock",
    "ClusterError",
    "Compute",
    "Delivery",
    "Link",
    "LinkSpec",
    "LocalCluster",
    "PacedLink",
    "PacedPath",
    "RealClock",
    "TierSpec",
    "Topology",
    "TopologyError",
    "Trace",
    "TraceError",
    "UnitError",
    "UnknownPresetError",
    "VirtualClock",
    "connect",
]

_ROOMS = {
    "client": ("connect",),
    "clock": ("Clock", "RealClock", "VirtualClock"),
    "errors": ("ClusterError", "TopologyError", "TraceError", "UnitError", "UnknownPresetError"),
    "launch": ("LocalCluster",),
    "link": ("Delivery", "Link", "PacedLink", "PacedPath"),
    "topology": ("Compute", "LinkSpec", "TierSpec", "Topology"),
    "traces": ("Trace",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
