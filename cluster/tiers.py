"""The machines of a topology: tiers, how fast they compute, and peers that can share a tier's layers with it."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from cluster.checks import check_label, check_number, check_text
from cluster.errors import TopologyError, under
from cluster.presets import machine_preset
from cluster.reader import known, listed

_DEVICE = re.compile(r"cpu|cuda(:\d+)?|mps", re.ASCII)


@dataclass(frozen=True)
class Compute:
    """How fast a tier computes: by `factor`, by `preset`, or, with neither, as measured on the tier itself."""

    factor: float | None = None
    """Times slower than the machine where the profile was measured."""
    preset: str | None = None
    """A machine of `cluster.presets.MACHINES`: nominal peaks."""

    def __post_init__(self) -> None:
        """Check."""
        if self.factor is not None and self.preset is not None:
            raise TopologyError("has both factor and preset; keep one")
        if self.factor is not None:
            check_number(self.factor, "factor", positive=True)
        if self.preset is not None:
            with under("preset"):
                machine_preset(check_text(self.preset))

    def __str__(self) -> str:
        """As the table of a topology shows it."""
        return self.preset or ("measured" if self.factor is None else f"{self.factor:g} x slower")

    @property
    def measured(self) -> bool:
        """Whether the tier's own times come from a profile taken on it."""
        return self.factor is None and self.preset is None

    def to_dict(self) -> str | dict[str, Any]:
        """ "measured", {"factor": number} or {"preset": name}."""
        return {key: value for key, value in asdict(self).items() if value is not None} or "measured"

    @classmethod
    def from_dict(cls, data: object) -> "Compute":
        """Inverse of `to_dict`; raises TopologyError."""
        if data == "measured":
            return cls()
        if not isinstance(data, Mapping) or not data:
            raise TopologyError(f"{data!r:.80} is no way to compute; write measured, {{factor: 8}} or {{preset: name}}")
        return cls(**known(data, ("factor", "preset")))


@dataclass(frozen=True)
class TierSpec:
    """One tier: a machine, or several alike, and what it costs to use; raises TopologyError when built wrong."""

    name: str
    compute: Compute
    device: str = "cpu"
    """Where torch computes: cpu, cuda, cuda:N or mps."""
    threads: int = 1
    memory_bytes: int | None = None
    """What a model may take; None: no limit."""
    watts: float | None = None
    """Drawn while computing; None: unknown."""
    price_per_s: float | None = None
    """Dollars per second of computing; None: unknown."""
    node: dict[str, str] = field(default_factory=dict, hash=False)
    """Labels of the Ray node that is this tier; empty: emulated on this machine."""
    peers: tuple["PeerSpec", ...] = ()
    """Machines that can share its layers with it."""

    def __post_init__(self) -> None:
        """Check, and copy the labels."""
        with under("name"):
            check_label(self.name)
        if not isinstance(self.compute, Compute):
            raise TopologyError(f"{self.compute!r:.80} is not a Compute", key="compute")
        if not isinstance(self.device, str) or not _DEVICE.fullmatch(self.device):
            raise TopologyError(f"{self.device!r:.80} is no device; use cpu, cuda, cuda:0 or mps", key="device")
        for name, value in (("threads", self.threads), ("memory_bytes", self.memory_bytes)):
            if name == "threads" or value is not None:
                check_number(value, name, positive=True, whole=True)
        for name, amount in (("watts", self.watts), ("price_per_s", self.price_per_s)):
            if amount is not None:
                check_number(amount, name)
        if not isinstance(self.node, Mapping):
            raise TopologyError(f"{self.node!r:.80} are no labels; write for example {{tier: device}}", key="node")
        for label, text in self.node.items():
            with under(f"node.{label}"):
                check_label(label.rsplit("/", 1)[-1] if isinstance(label, str) else label)
                check_label(text)
        object.__setattr__(self, "node", dict(self.node))
        object.__setattr__(self, "peers", tuple(self.peers))
        for i, peer in enumerate(self.peers):
            if not isinstance(peer, PeerSpec):
                raise TopologyError(f"{peer!r:.80} is not a PeerSpec", key=f"peers[{i}]")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; a tier without peers does not mention them."""
        held = {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.name != "peers"}
        peers = {"peers": [peer.to_dict() for peer in self.peers]} if self.peers else {}
        return held | {"compute": self.compute.to_dict(), "node": dict(self.node)} | peers

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TierSpec":
        """Inverse of `to_dict`; raises TopologyError."""
        given = known(data, [each.name for each in fields(cls)], required=("name", "compute"))
        with under("compute"):
            compute = Compute.from_dict(given["compute"])
        peers = []
        for i, peer in enumerate(listed(given, "peers")):
            with under(f"peers[{i}]"):
                peers.append(PeerSpec.from_dict(peer))
        return cls(**given | {"compute": compute, "peers": tuple(peers)})


_JOINT = ("up_bytes_per_s", "down_bytes_per_s", "latency_s")


@dataclass(frozen=True)
class PeerSpec:
    """A machine beside a tier's own, with the link between the two: either of its own, or that of another tier."""

    machine: TierSpec | None = None
    up_bytes_per_s: float | None = None
    """From the tier's own machine to this one; None: as `tier` is reached."""
    down_bytes_per_s: float | None = None
    latency_s: float | None = None
    """One way."""
    tier: str | None = None
    """The name of another tier whose machine this is."""

    def __post_init__(self) -> None:
        """Check."""
        if (self.machine is None) == (self.tier is None):
            raise TopologyError("is either a machine with a name of its own or {tier: name}; give one of the two")
        if self.tier is not None:
            if given := [name for name in _JOINT if getattr(self, name) is not None]:
                raise TopologyError("is reached over the links between the tiers; leave it out", key=given[0])
            return
        assert self.machine is not None
        if self.machine.peers:
            raise TopologyError("a peer has no peers of its own; name them beside it", key="peers")
        for name, example in zip(_JOINT, ("100 Mbps", "100 Mbps", "1 ms"), strict=True):
            if getattr(self, name) is None:
                raise TopologyError(f"is missing; write for example {example}", key=name)
            check_number(getattr(self, name), name, positive=name != "latency_s")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the fields of the machine beside those of the link, or the other tier's name."""
        if self.machine is None:
            return {"tier": self.tier}
        return self.machine.to_dict() | {name: getattr(self, name) for name in _JOINT}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PeerSpec":
        """Inverse of `to_dict`; `down_bytes_per_s` defaults to `up_bytes_per_s`. Raises TopologyError."""
        given = known(data, ["tier", *_JOINT, *(each.name for each in fields(TierSpec))])
        joint = {name: given.pop(name) for name in _JOINT if name in given}
        if "tier" in given:
            if len(given) > 1:
                raise TopologyError("that is another tier's machine has no figures of its own; keep tier alone")
            return cls(tier=check_text(given["tier"]), **joint)
        if "up_bytes_per_s" in joint:
            joint = {"down_bytes_per_s": joint["up_bytes_per_s"]} | joint
        return cls(TierSpec.from_dict(given), **joint)


@dataclass(frozen=True)
class Peer:
    """A machine that can share a tier's layers, as the tier's own machine sees it."""

    name: str
    machine: TierSpec
    up_bytes_per_s: float
    down_bytes_per_s: float
    latency_s: float
    """One way."""
