"""A testbed: one namespace for each tier, the topology's links between them, a Ray node in each."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from cluster import raynode
from cluster.client import connect
from cluster.errors import ClusterError
from cluster.launch import node_environment
from cluster.security import private_directory, write_token
from cluster.testbed import namespaces, nodes
from cluster.testbed.links import End, Wire, has_netem, shaping_of
from cluster.testbed.namespaces import tool
from cluster.topology import LinkSpec, Topology

ROOT = Path("/run/splitinfer")
"""Where testbeds keep their state: a directory that only root can use."""

_PREFIX = "splitinfer"
_NAME = re.compile(r"[a-z0-9]{1,16}")  # no hyphen: it ends the name inside a namespace's name
_OPEN = (1.25e9, 1.25e9, 0.0)
Between = tuple[str, str]
"""Two tiers that a link joins, in either order."""


class Testbed:
    """Namespaces, links and Ray nodes under one name; as a context manager it is taken down at the end.

    What belongs to it can be told from its name alone: the namespaces ``splitinfer-NAME-TIER``, every process inside
    them, and the directory ``/run/splitinfer/NAME``. So `down` needs no record that a crash could have left half written.
    """

    def __init__(self, name: str, topology: Topology, shapings: Sequence[str], cpus: int) -> None:
        # Tiers are found by the label of their name here, whatever nodes they have elsewhere.
        self.topology = replace(topology, tiers=tuple(replace(tier, node={}) for tier in topology.tiers))
        self.name, self.cpus = name, cpus
        self.home = ROOT / name
        self._tiers = [tier.name for tier in topology.tiers]
        self.nodes = nodes.made(f"{_PREFIX}-{name}", self._tiers, self.home, cpus)
        specs = _links(topology)
        self.wires = [self._wire(index, spec, shaping) for index, (spec, shaping) in enumerate(zip(specs, shapings, strict=True))]
        self._relays: list[subprocess.Popen[str]] = []

    # -- life

    @classmethod
    def up(
        cls, topology: Topology, name: str | None = None, *, ray: bool = True, shaping: str | None = None, cpus: int | None = None
    ) -> Testbed:
        """Build a testbed; `name` is drawn by lot where none is given.

        `ray` False leaves the Ray nodes out, `shaping` forces one way for all links (links.SHAPINGS), `cpus` is what each
        node offers. Raises ClusterError, and leaves nothing behind then.
        """
        namespaces.check()
        if len(topology.tiers) > 250:
            raise ClusterError(f"a testbed has at most 250 tiers; this topology has {len(topology.tiers)}")
        name = _checked(name or secrets.token_hex(3))
        home = _new_home(name)
        try:
            netem = shaping is None and _kernel_has_netem(name)
            shapings = [shaping or shaping_of(spec, netem) for spec in _links(topology)]
            testbed = cls(name, topology, shapings, cpus or os.cpu_count() or 1)
            _write(home / "state.json", json.dumps({"topology": topology.to_dict(), "shapings": shapings, "cpus": testbed.cpus}))
            testbed._build(ray)
        except BaseException:
            down(name)
            raise
        return testbed

    @classmethod
    def attach(cls, name: str | None = None) -> Testbed:
        """A testbed that is up; without a name the only one there is. Raises ClusterError."""
        namespaces.check()
        name = name or _only()
        try:
            state = json.loads((ROOT / _checked(name) / "state.json").read_text(encoding="utf-8"))
            return cls(name, Topology.from_dict(state["topology"]), state["shapings"], state["cpus"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            there = ", ".join(names()) or "none is up"
            raise ClusterError(f"no testbed {name!r} can be used; up: {there}. 'splitinfer testbed down {name}' cleans up") from error

    def __enter__(self) -> Testbed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Take it down."""
        self.down()

    def down(self) -> None:
        """End all that belongs to it; a second time nothing happens."""
        down(self.name)
        for relay in self._relays:
            relay.communicate()

    # -- links

    def wire(self, link: Between) -> Wire:
        """The link that joins two tiers; raises TopologyError where none does."""
        spec = self.topology.link(*link)
        return next(wire for wire in self.wires if wire.between == spec.between)

    def counters(self) -> dict[Between, int]:
        """Bytes that the interfaces have sent so far, by (from tier, to tier), the headers of IP and TCP included."""
        found = {}
        for wire in self.wires:
            low, high = wire.between
            found[low, high], found[high, low] = wire.lower.sent_nbytes(), wire.upper.sent_nbytes()
        return found

    def set_rate(self, link: Between, up_bytes_per_s: float, down_bytes_per_s: float | None = None) -> None:
        """Change a link's rates (down: the same as up); packets that wait in a relay keep their schedule."""
        wire = self.wire(link)
        wire.set_rates((up_bytes_per_s, down_bytes_per_s or up_bytes_per_s, wire.rates[2]))

    def set_latency(self, link: Between, latency_s: float) -> None:
        """Change a link's one-way latency. Raises ClusterError where a token bucket shapes it, which cannot delay."""
        wire = self.wire(link)
        if wire.shaping == "tbf" and latency_s:
            raise ClusterError(
                f"link {' - '.join(wire.between)} is shaped by a token bucket, which cannot delay; declare a latency at first"
            )
        wire.set_rates((*wire.rates[:2], latency_s))

    def cut(self, link: Between) -> None:
        """Lose every packet of a link from now on, without a sign to the senders."""
        self.wire(link).cut()

    def restore(self, link: Between) -> None:
        """End a cut."""
        self.wire(link).restore()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """All links without limits for a while: a deployment sends weights, which no request does."""
        before = [wire.rates for wire in self.wires]
        try:
            for wire in self.wires:
                wire.set_rates(_OPEN)
            yield
        finally:
            for wire, rates in zip(self.wires, before, strict=True):
                wire.set_rates(rates)

    def follow(self, line: Sequence[str]) -> None:
        """Send what goes between first and last tier over the direct link where `line` skips all tiers between them."""
        direct = self.topology.direct is not None and list(line) == [self._tiers[0], self._tiers[-1]]
        for place in range(len(self.nodes)):
            for other in range(len(self.nodes)):
                if other != place:
                    self._route(place, other, direct)

    # -- processes inside

    def command(self, tier: str, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` on a tier's host."""
        return namespaces.within(self._node(tier).namespace, command)

    @contextlib.contextmanager
    def driver(self) -> Iterator[None]:
        """This process as the application on the first tier: in its namespace, connected to its Ray node.

        The calling thread moves, and the threads that it starts from then on, so Ray must not have run in this process
        before. Raises ClusterError.
        """
        with namespaces.entered(self.nodes[0].namespace), connect(self.address, token=self.token):
            yield

    @property
    def address(self) -> str:
        """Where Ray's head listens, "host:port", for whoever is inside (`cluster.connect`)."""
        return self.nodes[-1].head

    @property
    def token(self) -> Path:
        """The file of the cluster's token."""
        return self.home / "token"

    # -- faults

    def kill(self, tier: str, *, keeper: bool = False) -> int:
        """Kill a tier's Ray node (raynode.kill); an application inside lives on."""
        return raynode.kill(self._node(tier), keeper=keeper)

    def revive(self, tier: str) -> None:
        """Start a tier's Ray node anew (raynode.revive). Raises ClusterError."""
        raynode.revive(self._node(tier), node_environment(self.token))

    # -- construction

    def _wire(self, index: int, spec: LinkSpec, shaping: str) -> Wire:
        low, high = (self._node(tier).namespace for tier in spec.between)
        direct = spec is self.topology.direct
        ends = End(low, "direct" if direct else "upward"), End(high, "direct" if direct else "downward")
        return Wire(spec.between, *ends, shaping, self.home / f"link{index}")

    def _node(self, tier: str) -> nodes.Node:
        return self.nodes[self._tiers.index(self.topology.tier(tier).name)]

    def _build(self, ray: bool) -> None:
        for node in self.nodes:
            namespaces.create(node.namespace)
            tool("ip", "-n", node.namespace, "address", "add", f"{node.address}/32", "dev", "lo")
        for wire, spec in zip(self.wires, _links(self.topology), strict=True):
            relay = wire.lay(spec)
            self._relays += [relay] if relay else []
        self.follow(self._tiers)
        if ray:
            write_token(self.token)
            with self.opened():  # a node's start moves more than a request does
                raynode.start_all(self.nodes, node_environment(self.token))

    def _route(self, place: int, other: int, direct: bool) -> None:
        """How packets for `other` leave the host at `place`: to its neighbour on the way."""
        here, there = self.nodes[place], self.nodes[other]
        if direct and {place, other} == {0, len(self.nodes) - 1}:
            device, hop = "direct", there
        else:
            step = 1 if other > place else -1
            device, hop = ("upward" if step > 0 else "downward"), self.nodes[place + step]
        via = ["via", hop.address] if hop is not there else []
        # 'onlink': the neighbour's address lies on its loopback, so no subnet leads there.
        flags = ["onlink"] if via else ["scope", "link"]
        tool("ip", "-n", here.namespace, "route", "replace", f"{there.address}/32", *via, "dev", device, "src", here.address, *flags)


def names() -> list[str]:
    """All testbeds of this machine, the broken ones included."""
    kept = {path.name for path in ROOT.iterdir() if _NAME.fullmatch(path.name)} if ROOT.is_dir() else set()
    inside = {name.split("-")[1] for name in namespaces.listed() if name.startswith(f"{_PREFIX}-") and name.count("-") >= 2}
    return sorted(kept | inside)


def down(name: str | None = None) -> str:
    """End all that belongs to a testbed, whatever is left of it; without a name the only one there is. Returns its name."""
    namespaces.check()
    name = _checked(name or _only())
    for namespace in namespaces.listed():
        if namespace.startswith(f"{_PREFIX}-{name}-"):
            namespaces.delete(namespace)
    shutil.rmtree(ROOT / name, ignore_errors=True)
    with contextlib.suppress(OSError):  # others are up
        ROOT.rmdir()
    return name


def _only() -> str:
    found = names()
    if len(found) != 1:
        raise ClusterError(f"name one testbed of those that are up: {', '.join(found)}" if found else "no testbed is up")
    return found[0]


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ClusterError(f"{name!r:.80} is no name for a testbed; use 1 to 16 lower-case letters and digits")
    return name


def _links(topology: Topology) -> list[LinkSpec]:
    return [*topology.links, *filter(None, [topology.direct])]


def _new_home(name: str) -> Path:
    """A directory of its own, under one that nobody else can use."""
    home = private_directory(ROOT) / name
    try:
        home.mkdir(mode=0o700)
    except FileExistsError:
        raise ClusterError(f"a testbed {name!r} exists; take another name, or end it with 'splitinfer testbed down {name}'") from None
    return home


def _kernel_has_netem(name: str) -> bool:
    trial = f"{_PREFIX}-{name}-netem-trial"
    namespaces.create(trial)
    try:
        return has_netem(trial)
    finally:
        namespaces.delete(trial)


def _write(path: Path, text: str) -> None:
    """All or nothing: a reader never sees half a file."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
