"""What a segment of shared layers takes on each machine: messages and layers, as the branches of one group.

::

    host    CCCCCC~~~~~~|         |         C layers, ~ what the machines tell each other
    peer    >>CCCCC~~~~~~<<       |         > scatter, < gather
    peer    >>>>CCCCCCCCC~~~~~~<<<|         the group ends with the slowest

Each machine's branch is its own sum; the machines wait for each other only at the end. Every message takes its bytes on the
link of the peer, what the framework takes for them, the link's latency, and half of what a call takes. A message between two
peers passes both their links. The rules are those of docs/problem-format.md, version 2.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from cluster.tiers import Peer
from cluster.topology import Topology
from splitinfer.plans import INPUT
from splitinfer.profiles import LayerLayout, Profile, TensorProfile
from splitinfer.simulator.peers import peer_links
from splitinfer.simulator.replanning import idle_s
from splitinfer.simulator.segments import Segment
from splitinfer.simulator.steps import HELD, Compute, Parallel, Program, Step, Transfer

HOST = 0
_Range = tuple[int, int]
"""Rows, from and up to."""


@dataclass(frozen=True)
class _Spans:
    """Rows, one range for each machine."""

    made: dict[str, list[_Range]]
    """That it computes of each layer."""
    taken: dict[str, list[_Range]]
    """That it needs of each tensor."""


@dataclass(frozen=True)
class Held:
    """Who has what the segments before have made."""

    whole: frozenset[int] = frozenset({HOST})
    """The machines that have all of it."""
    edges: tuple[int, ...] = ()
    """Where each machine's rows begin and the last one's end; then nobody has all."""


@dataclass(frozen=True)
class _Wire:
    """Of a machine: what it takes to reach it from the host, and back; nothing for the host itself."""

    names: tuple[str, str] = ("", "")
    rates: tuple[float, float] = (math.inf, math.inf)
    """Bytes per second, as declared."""
    s_per_byte: tuple[float, float] = (0.0, 0.0)
    """The framework's share included."""
    link_s: float = 0.0
    latency_s: float = 0.0
    """Half a call included."""


@dataclass(frozen=True)
class _Move:
    """Messages of one machine behind each other: down from the host and up to it at the same time, then latency."""

    nbytes: tuple[float, float] = (0.0, 0.0)
    seconds: tuple[float, float] = (0.0, 0.0)
    latency_s: float = 0.0
    used: bool = False

    def then(self, other: _Move) -> _Move:
        """Both, one behind the other."""
        nbytes = self.nbytes[0] + other.nbytes[0], self.nbytes[1] + other.nbytes[1]
        seconds = self.seconds[0] + other.seconds[0], self.seconds[1] + other.seconds[1]
        return _Move(nbytes, seconds, self.latency_s + other.latency_s, self.used or other.used)


class Sharing:
    """A tier's own machine and its peers."""

    def __init__(self, profile: Profile, topology: Topology, tier: str, layers: Collection[str]) -> None:
        """`layers`: all that the plan runs."""
        peers = topology.peers(tier)
        self.names = (tier, *(peer.name for peer in peers))
        self.seconds = [profile.times(machine).seconds for machine in (topology.tier(tier), *(peer.machine for peer in peers))]
        framework = profile.framework
        self.wires = [_Wire(), *(_wire(topology, tier, peer, framework.s_per_byte, framework.call_s / 2) for peer in peers)]
        self.taken = [_among(tensor, layers) for tensor in profile.tensors if tensor.producer == INPUT or tensor.producer in layers]

    def seconds_of(self, segments: Sequence[Segment]) -> float:
        """Of segments behind each other, where nothing else is on the links."""
        return sum(idle_s(Program((group,)), self._carrier) for group in self.groups(segments, {}))

    def groups(self, segments: Sequence[Segment], host_s: Mapping[str, float]) -> tuple[Parallel, ...]:
        """One group for each segment; `host_s`: what some layers make the host do besides, in its own branch."""
        held, made = Held(), []
        for segment in segments:
            made.append(self.group(segment, held, sum(host_s.get(layer, 0.0) for layer in segment.layers)))
            held = self.left(segment)
        return tuple(made)

    def _carrier(self, link: str, _: float) -> tuple[float, float]:
        return next((wire.rates[wire.names.index(link)], wire.link_s) for wire in self.wires if link in wire.names)

    def group(self, segment: Segment, held: Held, host_s: float = 0.0) -> Parallel:
        """The segment, one branch for each machine with a share; `host_s`: what the host does besides, in its own branch."""
        spans = self._spans(segment) if segment.by_rows else _Spans({}, {})
        return Parallel(tuple(self._branch(worker, segment, held, spans, host_s) for worker in segment.group))

    def left(self, segment: Segment) -> Held:
        """Who has what a segment makes."""
        if segment.leaves == "divided":
            return Held(frozenset(), (0, *accumulate(segment.shares)))
        return Held(frozenset({HOST, *segment.group}) if segment.leaves == "replicated" else frozenset({HOST}))

    def _branch(self, worker: int, segment: Segment, held: Held, spans: _Spans, host_s: float) -> tuple[Step, ...]:
        work_s = sum(
            self.seconds[worker][layer] / way.units * _count(layer, way, segment, spans, worker)
            for layer, way in zip(segment.layers, segment.ways, strict=True)
        )
        enter = self._receive(worker, segment, held, spans)
        between, leave = self._exchange(worker, segment), self._leave(worker, segment)
        if worker == HOST:
            told_s = sum(max(move.seconds) + move.latency_s for move in (enter, between, leave))
            return (Compute(HELD, "", work_s + host_s, after_s=told_s),)
        wire = self.wires[worker]
        return (*_sent(wire, enter), Compute(self.names[worker], "", work_s), *_sent(wire, between), *_sent(wire, leave))

    # -- what enters

    def _receive(self, worker: int, segment: Segment, held: Held, spans: _Spans) -> _Move:
        inside = set(segment.layers)
        entering = [tensor for tensor in self.taken if inside & set(tensor.consumers) and tensor.producer not in inside]
        if held.edges:
            return self._fetch(worker, segment, entering, held.edges, spans)
        if worker in held.whole:
            return _Move()
        nbytes = 0.0
        for tensor in entering:
            if segment.by_rows:
                low, high = spans.taken[tensor.name][worker]
                nbytes += (high - low) * _nbytes(tensor) / _height(tensor, segment)
            else:
                nbytes += _nbytes(tensor) * (1.0 if _wanted_whole(tensor, segment) else segment.shares[worker] / segment.units)
        wire = self.wires[worker]
        return _Move((nbytes, 0.0), (nbytes * wire.s_per_byte[0], 0.0), wire.latency_s, used=True)

    def _fetch(self, worker: int, segment: Segment, entering: Sequence[TensorProfile], edges: Sequence[int], spans: _Spans) -> _Move:
        """Rows that others have: all arrive over the worker's own link, and leave over the others'."""
        own, total, sending_s, latency_s = self.wires[worker], 0.0, 0.0, 0.0
        for other, wire in enumerate(self.wires):
            nbytes, rows = 0.0, 0
            for tensor in entering if other != worker else ():
                low, high = spans.taken[tensor.name][worker]
                common = max(0, min(high, edges[other + 1]) - max(low, edges[other]))
                nbytes += common * _nbytes(tensor) / _height(tensor, segment)
                rows += common
            if rows:
                total += nbytes
                sending_s = max(sending_s, nbytes * wire.s_per_byte[1])
                latency_s = max(latency_s, own.latency_s + wire.latency_s)
        return _Move((total, 0.0), (max(total * own.s_per_byte[0], sending_s), 0.0), latency_s, used=latency_s > 0 or total > 0)

    def _spans(self, segment: Segment) -> _Spans:
        """Backwards from each machine's own part of the end."""
        spans = _Spans({segment.layers[-1]: list(pairwise([0, *accumulate(segment.shares)]))}, {})
        for layer, way in reversed(list(zip(segment.layers, segment.ways, strict=True))):
            if layer not in spans.made:
                wanted = [spans.taken[tensor.name] for tensor in self.taken if tensor.producer == layer and tensor.name in spans.taken]
                spans.made[layer] = [_hull(each) for each in zip(*wanted, strict=True)]
            needed = [_input_rows(way, *rows) for rows in spans.made[layer]]
            for tensor in self.taken:
                if layer in tensor.consumers:
                    known = spans.taken.get(tensor.name, needed)
                    spans.taken[tensor.name] = [_hull(pair) for pair in zip(known, needed, strict=True)]
        return spans

    # -- what is told between, and what leaves

    def _exchange(self, worker: int, segment: Segment) -> _Move:
        move = _Move()
        way_of = dict(zip(segment.layers, segment.ways, strict=True))
        inner = [tensor for tensor in self.taken if tensor.producer in way_of and way_of.keys() & set(tensor.consumers)]
        for tensor in inner if not segment.by_rows else ():
            gives = way_of[tensor.producer].gives
            if gives == "partial" or (gives == "split" and _wanted_whole(tensor, segment)):
                move = move.then(self._collective(gives, worker, segment, _nbytes(tensor), segment.group))
        return move

    def _leave(self, worker: int, segment: Segment) -> _Move:
        leaving = [tensor for tensor in self.taken if tensor.producer == segment.layers[-1] and (tensor.consumers or tensor.returned)]
        gives, nbytes, wire = segment.ways[-1].gives, sum(map(_nbytes, leaving)), self.wires[worker]
        if not leaving or segment.leaves == "divided":
            return _Move()
        if segment.leaves == "replicated" and gives != "whole":
            return self._collective(gives, worker, segment, nbytes, sorted({HOST, *segment.group}))
        if worker == HOST or (gives == "whole" and worker != segment.group[0]):
            return _Move()
        part = nbytes * (segment.shares[worker] / segment.units if gives == "split" else 1.0)
        return _Move((0.0, part), (0.0, part * wire.s_per_byte[1]), wire.latency_s, used=True)

    def _collective(self, gives: str, worker: int, segment: Segment, nbytes: float, group: Sequence[int]) -> _Move:
        """Until each of a group has all of a sum (an all-reduce), or of what each has a part of (an all-gather)."""
        count = len(group)
        if count < 2:
            return _Move()
        if gives == "partial":
            slowest = max(s for other in group for s in self.wires[other].s_per_byte)
            amount = nbytes if count == 2 else 2 * (count - 1) / count * nbytes
            furthest = sum(sorted(self.wires[other].latency_s for other in group)[-2:])
            return _Move((amount, amount), (amount * slowest, amount * slowest), furthest * (1 if count == 2 else 2), used=True)
        wire, part = self.wires[worker], segment.shares[worker] / segment.units
        sent, received = (count - 1) * part * nbytes, (1 - part) * nbytes
        latency_s = wire.latency_s + max(self.wires[other].latency_s for other in group if other != worker)
        return _Move((received, sent), (received * wire.s_per_byte[0], sent * wire.s_per_byte[1]), latency_s, used=True)


def _wire(topology: Topology, tier: str, peer: Peer, s_per_byte: float, call_s: float) -> _Wire:
    rates = peer.up_bytes_per_s, peer.down_bytes_per_s
    each = 1 / rates[0] + s_per_byte, 1 / rates[1] + s_per_byte
    return _Wire(peer_links(topology, tier, peer), rates, each, peer.latency_s, peer.latency_s + call_s)


def _sent(wire: _Wire, move: _Move) -> tuple[Step, ...]:
    """On the wires; where another machine's link is slower, the own is held as long."""
    after_s = move.latency_s - wire.link_s
    ways = [
        (Transfer(name, nbytes, after_s=after_s, held_s=max(0.0, seconds - nbytes / rate)),)
        for name, rate, nbytes, seconds in zip(wire.names, wire.rates, move.nbytes, move.seconds, strict=True) if nbytes or seconds
    ] or [(Transfer(wire.names[0], 0.0, after_s=after_s),)]  # fmt: skip
    return () if not move.used else ways[0] if len(ways) == 1 else (Parallel(tuple(ways)),)


def _count(layer: str, way: LayerLayout, segment: Segment, spans: _Spans, worker: int) -> int:
    """Units of a layer that a machine computes."""
    if segment.by_rows:
        low, high = spans.made[layer][worker]
        return high - low
    return way.units if way.gives == "whole" else segment.shares[worker]


def _input_rows(way: LayerLayout, begin: int, end: int) -> _Range:
    """Rows that the rows from `begin` up to `end` are made of; padding is no row."""
    height = way.input_units or way.units
    low, high = begin * way.stride - way.padding, (end - 1) * way.stride - way.padding + way.kernel
    return min(max(low, 0), height), min(max(high, 0), height)


def _hull(ranges: Sequence[_Range]) -> _Range:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _height(tensor: TensorProfile, segment: Segment) -> int:
    return next(way.input_units or way.units for layer, way in zip(segment.layers, segment.ways, strict=True) if layer in tensor.consumers)


def _wanted_whole(tensor: TensorProfile, segment: Segment) -> bool:
    return any(way.takes == "whole" for layer, way in zip(segment.layers, segment.ways, strict=True) if layer in tensor.consumers)


def _nbytes(tensor: TensorProfile) -> float:
    return tensor.sent_nbytes.get("raw", tensor.nbytes)


def _among(tensor: TensorProfile, layers: Collection[str]) -> TensorProfile:
    return replace(tensor, consumers=tuple(name for name in tensor.consumers if name in layers))
