"""Tiers in a line and the links between them, as ``cluster.yaml`` describes them.

The text is read in three steps, so that every error has a line and every rule one place: YAML to plain values with the
line of each key; people's keys and units to fields and SI numbers; `from_dict`, which builds the checked dataclasses.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from cluster import units
from cluster.checks import check_number, check_text
from cluster.errors import TopologyError, not_one_of, under
from cluster.presets import link_preset
from cluster.reader import LARGEST_FILE, WRITTEN, known, listed, mapping, place, plain_yaml, with_si_units
from cluster.tiers import Compute as Compute
from cluster.tiers import Peer
from cluster.tiers import PeerSpec as PeerSpec
from cluster.tiers import TierSpec as TierSpec

VERSION = 2
"""1 knows no peers."""


@dataclass(frozen=True)
class LinkSpec:
    """What joins two tiers, `up` from the first to the second; raises TopologyError when built wrong."""

    between: tuple[str, str]
    """Names of the lower and the higher tier."""
    up_bytes_per_s: float
    down_bytes_per_s: float
    latency_s: float
    """One way."""
    joules_per_byte: float | None = None
    """Spent by sending and receiving; None: unknown."""
    price_per_byte: float | None = None
    """Dollars; None: unknown."""
    preset: str | None = None
    """The link of `cluster.presets.LINKS` that gave the figures not overridden."""
    source: str | None = None
    """Where the figures come from."""

    def __post_init__(self) -> None:
        """Check."""
        if not isinstance(self.between, list | tuple) or [type(name) for name in self.between] != [str, str]:
            raise TopologyError(f"{self.between!r:.80} are not two tiers; write [lower, higher]", key="between")
        object.__setattr__(self, "between", tuple(self.between))
        check_number(self.up_bytes_per_s, "up_bytes_per_s", positive=True)
        check_number(self.down_bytes_per_s, "down_bytes_per_s", positive=True)
        check_number(self.latency_s, "latency_s")
        for name, amount in (("joules_per_byte", self.joules_per_byte), ("price_per_byte", self.price_per_byte)):
            if amount is not None:
                check_number(amount, name)
        for name, text in (("preset", self.preset), ("source", self.source)):
            with under(name):
                if text is not None and check_text(text) and name == "preset":
                    link_preset(text)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LinkSpec":
        """Inverse of `dataclasses.asdict` that also fills what the preset gives; raises TopologyError.

        `down_bytes_per_s` defaults to `up_bytes_per_s`, `latency_s` must be given where there is no preset.
        """
        given = known(data, [each.name for each in fields(cls)], required=("between",))
        if given.get("preset") is not None:
            with under("preset"):
                preset = link_preset(check_text(given["preset"]))
            filled = {"up_bytes_per_s": preset.up_bytes_per_s, "latency_s": preset.latency_s}
            if preset.down_bytes_per_s is not None:
                filled["down_bytes_per_s"] = preset.down_bytes_per_s
            changed = [WRITTEN[name] for name in ("up_bytes_per_s", "down_bytes_per_s", "latency_s") if name in given]
            source = preset.source + ("; overridden: " + ", ".join(changed) if changed else "")
            given = {"source": source} | filled | given
        for name, example in (("up_bytes_per_s", "5.85 Mbps, or a preset"), ("latency_s", "20 ms (one way)")):
            if name not in given:
                raise TopologyError(f"is missing and no preset gives it; write for example {example}", key=name)
        return cls(**{"down_bytes_per_s": given["up_bytes_per_s"]} | given)


@dataclass(frozen=True)
class Topology:
    """Tiers in a line, lowest first, where the data is born; raises TopologyError when built wrong."""

    tiers: tuple[TierSpec, ...]
    links: tuple[LinkSpec, ...] = ()
    """One per pair of neighbours; given in any order, kept in the order of the tiers."""
    direct: LinkSpec | None = None
    """From the first tier to the last, past those between."""

    def __post_init__(self) -> None:
        """Check, and sort the links."""
        object.__setattr__(self, "tiers", tuple(self.tiers))
        if not self.tiers:
            raise TopologyError("is empty; describe at least one tier", key="tiers")
        names = [tier.name for tier in self.tiers]
        for i, name in enumerate(names):
            if name in names[:i]:
                first = f"tiers[{names.index(name)}]"
                raise TopologyError(f"{name!r} names {first} too; rename one", key=f"tiers[{i}].name")
        _check_peers(self.tiers, names)
        object.__setattr__(self, "links", _sorted_links(names, tuple(self.links)))
        if self.direct is not None and len(names) < 3:
            raise TopologyError(f"needs a tier to pass by, and there are {len(names)} tiers; use links", key="direct")
        if self.direct is not None and self.direct.between != (names[0], names[-1]):
            raise TopologyError(f"joins {self.direct.between}, not first and last tier", key="direct.between")

    @classmethod
    def load(cls, path: str | Path) -> "Topology":
        """Topology of a YAML file; raises TopologyError, with file and line, for all that is wrong with it."""
        try:
            with Path(path).open("rb") as stream:
                text = stream.read(LARGEST_FILE + 1).decode()
        except OSError as error:
            raise TopologyError(f"cannot be read: {error.strerror}", file=str(path)) from error
        except UnicodeDecodeError as error:
            raise TopologyError("is not UTF-8 text", file=str(path)) from error
        return cls.loads(text, name=str(path))

    @classmethod
    def loads(cls, text: str, name: str = "cluster.yaml") -> "Topology":
        """Topology of a YAML text; `name` stands for the file in a TopologyError."""
        lines: dict[str, int] = {}
        try:
            return cls.from_dict(with_si_units(plain_yaml(text, lines)))
        except TopologyError as error:
            key, line = place(error.key, lines)
            raise TopologyError(error.problem, key=key, file=name, line=error.line or line) from None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, numbers in SI units under the names of the fields."""
        tiers = [tier.to_dict() for tier in self.tiers]
        links = [asdict(link) | {"between": list(link.between)} for link in self.links]
        direct = None if self.direct is None else asdict(self.direct) | {"between": list(self.direct.between)}
        version = VERSION if any(tier.peers for tier in self.tiers) else 1  # which older releases read, too
        return {"version": version, "tiers": tiers, "links": links, "direct": direct}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Topology":
        """Inverse of `to_dict`; raises TopologyError."""
        given = known(data, ("version", "tiers", "links", "direct"), required=("version", "tiers"))
        if type(given["version"]) is not int or given["version"] not in (1, VERSION):
            raise TopologyError(f"{given['version']!r:.80} is not known; this release reads 1 and {VERSION}", key="version")
        tiers, links = [], []
        for i, tier in enumerate(listed(given, "tiers")):
            with under(f"tiers[{i}]"):
                tiers.append(TierSpec.from_dict(tier))
        for i, link in enumerate(listed(given, "links")):
            with under(f"links[{i}]"):
                links.append(LinkSpec.from_dict(link))
        direct = None
        if given.get("direct") is not None and tiers:
            with under("direct"):
                ends = [tiers[0].name, tiers[-1].name]
                direct = LinkSpec.from_dict({"between": ends} | mapping(given["direct"]))
        return cls(tuple(tiers), tuple(links), direct)

    def __str__(self) -> str:
        """A table of the tiers and one of the links."""
        from tabulate import tabulate  # here, because only printing needs it

        head = ["tier", "compute", "device", "threads", "memory", "power", "price", "node"]
        tiers = [
            [t.name, t.compute, t.device, t.threads, _shown(units.SIZE, t.memory_bytes), _shown(units.POWER, t.watts),
             _shown(units.PRICE, t.price_per_s), " ".join(f"{k}={v}" for k, v in t.node.items()) or "emulated"]
            for t in self.tiers
        ]  # fmt: skip
        shown = (*self.links, *filter(None, [self.direct]))
        links = [
            [" -> ".join(link.between) + (" (direct)" if link is self.direct else ""),
             units.format_bandwidth(link.up_bytes_per_s), units.format_bandwidth(link.down_bytes_per_s),
             units.format_seconds(link.latency_s), link.preset or "-"]
            for link in shown
        ]  # fmt: skip
        parts = [tabulate(tiers, head, disable_numparse=True)]
        if links:
            parts.append(tabulate(links, ["link", "up", "down", "latency", "preset"], disable_numparse=True))
        parts.extend(f"{row[0]}: {link.source}" for row, link in zip(links, shown, strict=True) if link.source)
        return "\n\n".join(parts)

    def peers(self, name: str) -> tuple[Peer, ...]:
        """The machines that can share a tier's layers, and how its own machine reaches each; raises TopologyError."""
        tier = self.tier(name)
        return tuple(self._peer(tier, spec) for spec in tier.peers)

    def _peer(self, tier: TierSpec, spec: PeerSpec) -> Peer:
        if spec.machine is not None:
            assert spec.up_bytes_per_s is not None and spec.down_bytes_per_s is not None and spec.latency_s is not None
            return Peer(spec.machine.name, spec.machine, spec.up_bytes_per_s, spec.down_bytes_per_s, spec.latency_s)
        names = [each.name for each in self.tiers]
        here, there = names.index(tier.name), names.index(str(spec.tier))
        links = self.path(here, there)
        # Store and forward: the times of the links add up.
        up = 1 / sum(1 / link.up_bytes_per_s for link in links)
        down = 1 / sum(1 / link.down_bytes_per_s for link in links)
        out, back = (up, down) if here < there else (down, up)
        return Peer(names[there], self.tiers[there], out, back, sum(link.latency_s for link in links))

    @property
    def emulated(self) -> bool:
        """Whether no tier names a Ray node, so that all of them are emulated on this machine."""
        return not any(tier.node for tier in self.tiers)

    def tier(self, name: str) -> TierSpec:
        """The tier `name`; raises TopologyError, which proposes the nearest names."""
        for tier in self.tiers:
            if tier.name == name:
                return tier
        raise TopologyError(not_one_of(name, [tier.name for tier in self.tiers], "tier"))

    def link(self, a: str, b: str) -> LinkSpec:
        """The link that joins two tiers, in either order, the direct one included; raises TopologyError."""
        for link in (*self.links, *filter(None, [self.direct])):
            if link.between in ((a, b), (b, a)):
                return link
        raise TopologyError(f"no link joins {self.tier(a).name!r} and {self.tier(b).name!r}; ask for path()")

    def path(self, src_index: int, dst_index: int) -> tuple[LinkSpec, ...]:
        """Links in the order crossed from one tier to another along the line: upwards if src < dst, else downwards."""
        for index in (src_index, dst_index):
            if not 0 <= index < len(self.tiers):
                raise IndexError(f"tier {index} of {len(self.tiers)}; they are counted from 0")
        if src_index <= dst_index:
            return self.links[src_index:dst_index]
        return self.links[dst_index:src_index][::-1]

    def lines(self) -> list["Topology"]:
        """Every line of tiers on offer: the whole one and, over a direct link, that of the first and last tier."""
        whole = [replace(self, direct=None)]
        return whole if self.direct is None else [*whole, Topology((self.tiers[0], self.tiers[-1]), (self.direct,))]


def _check_peers(tiers: tuple[TierSpec, ...], names: list[str]) -> None:
    seen = {name: f"tiers[{i}]" for i, name in enumerate(names)}
    for i, tier in enumerate(tiers):
        for j, peer in enumerate(tier.peers):
            key = f"tiers[{i}].peers[{j}]"
            if peer.machine is None:
                if peer.tier not in names or peer.tier == tier.name:
                    others = [name for name in names if name != tier.name]
                    raise TopologyError(not_one_of(str(peer.tier), others, "other tier"), key=f"{key}.tier")
            elif peer.machine.name in seen:
                raise TopologyError(f"{peer.machine.name!r} names {seen[peer.machine.name]} too; rename one", key=f"{key}.name")
            else:
                seen[peer.machine.name] = key


def _sorted_links(names: list[str], links: tuple[LinkSpec, ...]) -> tuple[LinkSpec, ...]:
    pairs = list(pairwise(names))
    found: dict[tuple[str, str], int] = {}
    for i, link in enumerate(links):
        a, b = link.between
        key = f"links[{i}].between"
        for name in link.between:
            if name not in names:
                raise TopologyError(not_one_of(name, names, "tier"), key=key)
        if (b, a) in pairs:
            raise TopologyError(f"[{a}, {b}] is reversed; write [{b}, {a}], in the order of the tiers", key=key)
        if (a, b) not in pairs:
            neighbours = " or ".join(f"[{lower}, {higher}]" for lower, higher in pairs)
            hint = "use direct" if (a, b) == (names[0], names[-1]) else f"write {neighbours}"
            raise TopologyError(f"[{a}, {b}] are no neighbours; {hint}", key=key)
        if (a, b) in found:
            raise TopologyError(f"[{a}, {b}] are joined by links[{found[a, b]}] already; keep one", key=key)
        found[a, b] = i
    for a, b in pairs:
        if (a, b) not in found:
            raise TopologyError(f"no link joins {a!r} and {b!r}; add one with between: [{a}, {b}]", key="links")
    return tuple(links[found[pair]] for pair in pairs)


def _shown(quantity: units.Quantity, value: float | None) -> str:
    return "-" if value is None else quantity.format(value)
