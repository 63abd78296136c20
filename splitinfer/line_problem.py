"""Lines of tiers: which tiers a plan may use, and one Problem for each such choice.

Tensors are encoded once and forwarded. A line is a choice of the tiers in use; a tier that is skipped is only a longer
link, and what using a tier costs by itself (a call, waking up) is paid in no other line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import partitioners as p
from cluster.tiers import Peer
from cluster.topology import LinkSpec, TierSpec, Topology
from splitinfer.calibrations import Calibration
from splitinfer.errors import PlanError
from splitinfer.learn.reach import Passing
from splitinfer.overlap import overlapped_s
from splitinfer.plans import INPUT, PlannedExit
from splitinfer.profiles import Profile, TensorProfile, TierTimes
from splitinfer.vertical import Machines

_ENTRY = "<entry>"
IN_PIECES = " in pieces"  # ends the name of a codec whose encoding, wire and decoding overlap
_WORTHWHILE = 0.98  # of the time taken in turns: calls for each piece, which no profile shows, cost something too
MOST_TIERS = 7
"""Of a longer line only choices of up to three tiers, and the whole, are tried: all would be 2 to the number of tiers."""


@dataclass(frozen=True)
class Line:
    """Tiers in use, and what joins each to the next: one link, or several behind each other where a tier is skipped."""

    physical: tuple[str, ...]
    """All tiers of the line, the skipped ones too."""
    used: tuple[int, ...]
    """Places in `physical`."""
    specs: tuple[TierSpec, ...]
    """Of the tiers in use."""
    hops: tuple[tuple[LinkSpec, ...], ...]
    """Links between one used tier and the next, in the order of travel."""
    peers: tuple[tuple[Peer, ...], ...] = ()
    """Of the tiers in use: machines that can share their layers."""

    @property
    def tiers(self) -> tuple[str, ...]:
        """Names of the tiers in use."""
        return tuple(spec.name for spec in self.specs)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the tiers that a hop passes by."""
        return tuple(name for place, name in enumerate(self.physical[: self.used[-1]]) if place not in self.used)


def lines_of(topology: Topology) -> Iterator[Line]:
    """Every line of tiers that starts where the data is born, the direct link's among them."""
    for whole in topology.lines():
        names = tuple(tier.name for tier in whole.tiers)
        rest = range(1, len(names))
        counts = range(len(names)) if len(names) <= MOST_TIERS else (0, 1, 2, len(rest))
        for chosen in (chosen for count in counts for chosen in combinations(rest, count)):
            used = (0, *chosen)
            specs = tuple(whole.tiers[i] for i in used)
            peers = tuple(topology.peers(spec.name) for spec in specs)
            yield Line(names, used, specs, tuple(whole.path(a, b) for a, b in pairwise(used)), peers)


@dataclass(frozen=True)
class Wishes:
    """What a plan must keep, whatever it minimises."""

    codecs: tuple[str, ...] = ("raw", "zstd")
    """Those that a cut may use."""
    within: Mapping[str, float] | None = None
    """Limits by field of a cost, such as {"latency_s": 0.2}."""
    calibration: Calibration | None = None
    """What each codec loses on each tensor; where it is given, a codec that was not tried on a tensor may not be used on it."""
    max_accuracy_drop: float | None = None
    """Limit on the sum of the losses of the codecs used."""
    kept: int = 0
    """Layers, from the first, that stay on the device, with all that the tensors before the last of them lead to."""
    exits: tuple[PlannedExit, ...] = ()
    """Early exits, in the order in which a request meets them."""
    vertical: bool = True
    """Whether a tier may share layers with its peers."""


class LineProblem:
    """One line as a Problem."""

    def __init__(self, profile: Profile, line: Line, times: Mapping[str, TierTimes], wishes: Wishes, steady: bool = False) -> None:
        """Build the problem; `steady`: requests follow each other closely, so that no tier has to wake up."""
        self.profile, self.line, self.wishes, self.steady = profile, line, wishes, steady
        self.times = [times[name] for name in line.tiers]
        self.op_of = grouped(profile)
        self.passing = Passing(profile, wishes.exits)
        self.specs = {tensor.name: tensor for tensor in profile.tensors}
        self._links = tuple(self._link(place, hop) for place, hop in enumerate(line.hops))
        self.machines = [
            Machines.of(spec.name, spec.memory_bytes, own, peers if wishes.vertical else (), profile)
            for spec, own, peers in zip(line.specs, self.times, line.peers or ((),) * len(line.specs), strict=True)
        ]
        self.problem = p.Problem(
            tiers=tuple(self._tier(place) for place in range(len(line.specs))), links=self._links,
            ops=tuple(self._ops()), tensors=tuple(self._tensors()), relay="forward",
            error_budget=wishes.max_accuracy_drop, within=dict(wishes.within or {}),
        )  # fmt: skip

    # -- the problem

    def _tier(self, place: int) -> p.Tier:
        """A tier with peers limits the memory of each machine by itself."""
        spec, workers = self.line.specs[place], self.machines[place].workers(self.profile.framework)
        return p.Tier(spec.name, None if workers else spec.memory_bytes, spec.watts or 0.0, spec.price_per_s or 0.0, workers)

    def _link(self, place: int, hop: Sequence[LinkSpec]) -> p.Link:
        """Store and forward over the links of a hop; what the stage behind it costs by itself is booked half on each way."""
        up, down = (seconds_per_byte(hop, direction) + self.profile.framework.s_per_byte for direction in ("up", "down"))
        latency = sum(link.latency_s for link in hop) + (self._stage_s(place + 1) + self.profile.packet_nbytes * (up + down)) / 2
        joules, price = sum(link.joules_per_byte or 0.0 for link in hop), sum(link.price_per_byte or 0.0 for link in hop)
        # A request pays for all links of a hop; a stream waits for the slowest, and the rest of its latency is added in the end.
        up, down = (seconds_per_byte(hop, way, self.steady) + self.profile.framework.s_per_byte for way in ("up", "down"))
        return p.Link(1 / up, latency, 1 / down, joules, price)

    def _stage_s(self, place: int) -> float:
        """What a stage costs on a tier before it computes anything: a call, and waking up."""
        return 0.0 if self.steady else self.profile.framework.call_s + self._wake_s(place)

    def _wake_s(self, place: int) -> float:
        return self.times[place].scale * self.times[place].base.wake_s

    @property
    def _inputs(self) -> list[TensorProfile]:
        return [tensor for tensor in self.profile.tensors if tensor.producer == INPUT]

    def _raw_s(self, tensor: str, place: int, decode: bool) -> float:
        pairs = self.times[place].base.codec_s[tensor]
        return self.times[place].scale * pairs["raw"][decode] if "raw" in pairs else 0.0

    def _received_s(self) -> float:
        """Decoding the raw inputs, where the first tier computes."""
        return sum(self._raw_s(tensor.name, 0, decode=True) for tensor in self._inputs)

    def _results_s(self, layer: str, place: int) -> float:
        """Encoding the results of a layer, which return raw; an exit's only where it is taken."""
        results = (t for t in self.profile.tensors if t.returned and t.producer == layer)
        return sum(self.passing.returned(t) * self._raw_s(t.name, place, decode=False) for t in results)

    def _ops(self) -> Iterator[p.Op]:
        first, zeros = self.line.tiers[0], (0.0,) * len(self.times)
        yield p.Op(INPUT, zeros, pinned=first)
        # Every layer descends from the entry: it is on the first tier, and its call is paid, iff some layer is there.
        entry = self._stage_s(0) + self._received_s() + self.profile.framework.s_per_byte * sum(t.nbytes for t in self._inputs)
        yield p.Op(_ENTRY, (entry, *zeros[1:]), layouts=tuple(self.machines[0].entry(self._entry_rows(), entry)))
        seconds: dict[str, list[float]] = {}
        weights: dict[str, int] = {}
        reach: dict[str, float] = {}
        for layer in self.profile.layers:
            op = self.op_of[layer.name]
            held = seconds.setdefault(op, [0.0] * len(self.times))
            weights[op] = weights.get(op, 0) + layer.weight_nbytes
            reach[op] = max(reach.get(op, 0.0), self.passing.layer(layer.name))
            for place, tier in enumerate(self.times):
                held[place] += tier.seconds[layer.name] + self._results_s(layer.name, place)
        kept = self._kept()
        for name, total in seconds.items():
            ways = () if name in kept else tuple(self._layouts(name))  # what must stay on the device is not for its peers either
            yield p.Op(name, tuple(total), first if name in kept else None, weights[name], reach[name], ways)

    def _layouts(self, op: str) -> Iterator[p.Layout]:
        """How an op of one layer can be shared out; several that must stay together are not."""
        if list(self.op_of.values()).count(op) == 1:
            for place, machines in enumerate(self.machines):
                yield from machines.layouts(op, self.profile.layouts.get(op, ()), self._results_s(op, place))

    def _entry_rows(self) -> int | None:
        """Rows of the inputs, where all layers that take them are divided by rows and agree."""
        users = {user for tensor in self._inputs for user in tensor.consumers}
        ways = [[way.input_units or way.units for way in self.profile.layouts.get(user, ()) if way.axis == "rows"] for user in users]
        found = {rows[0] if rows else None for rows in ways}
        return found.pop() if len(found) == 1 else None

    def _kept(self) -> set[str]:
        """Ops that must be on the device: the first layers, and whatever takes the input or what is made before the last of them."""
        first = [layer.name for layer in self.profile.layers[: self.wishes.kept]]
        if not first:
            return set()
        secret = {INPUT, *first[:-1]}
        users = {user for tensor in self.profile.tensors if tensor.producer in secret for user in tensor.consumers}
        return {self.op_of[name] for name in {*first, *users}}

    def _tensors(self) -> Iterator[p.Tensor]:
        roots: dict[str, None] = {}
        for tensor in self.profile.tensors:
            producer = self.op_of[tensor.producer]
            consumers = tuple(dict.fromkeys(self.op_of[name] for name in tensor.consumers if self.op_of[name] != producer))
            if tensor.producer == INPUT:  # what runs for some requests only descends from what runs for all
                roots |= {self.op_of[name]: None for name in tensor.consumers if self.passing.layer(name) == 1}
            share = self.passing.returned(tensor) if tensor.producer != INPUT else 0.0
            if consumers or share:
                raw = tensor.sent_nbytes.get("raw", tensor.nbytes) * (share or 1.0)
                users = [name for name in tensor.consumers if self.op_of[name] != producer]
                reach = self.passing.tensor(users, tensor.producer)
                allowed = [name for name in self.wishes.codecs if self._tried(tensor.name, name)] or ["raw"]
                options = tuple(self._codec(tensor, name) for name in allowed) + tuple(self._in_pieces(tensor, allowed))
                yield p.Tensor(producer, consumers, raw, share > 0, options, tensor.name, reach)
        yield p.Tensor(INPUT, (_ENTRY,), 0.0, name="<call>")
        yield p.Tensor(_ENTRY, tuple(roots), 0.0, name="<start>")

    def _tried(self, tensor: str, codec: str) -> bool:
        """Whether it is known what a codec loses on a tensor, or nobody asked."""
        calibration = self.wishes.calibration
        if calibration is None:
            return True
        measured = codec in calibration.rows.get(tensor, {}) or codec in self.specs[tensor].sent_nbytes
        return measured and calibration.drop(tensor, codec) is not None

    def _codec(self, tensor: TensorProfile, name: str) -> p.Codec:
        calibration = self.wishes.calibration
        row = calibration.rows.get(tensor.name, {}).get(name) if calibration else None
        own = (row.encode_s, row.decode_s) if row else None
        pairs = [(tier.scale, *(tier.base.codec_s[tensor.name].get(name) or own or (0.0, 0.0))) for tier in self.times]
        encode, decode = tuple(scale * enc for scale, enc, _ in pairs), tuple(scale * dec for scale, _, dec in pairs)
        nbytes = row.nbytes if row else tensor.sent_nbytes.get(name, tensor.nbytes)
        loss = (calibration.drop(tensor.name, name) or 0.0) if calibration else 0.0
        return p.Codec(name, nbytes, encode, decode, loss)

    def _in_pieces(self, tensor: TensorProfile, names: Sequence[str]) -> Iterator[p.Codec]:
        """The codecs whose encoding, wire and decoding would overlap by enough to be worth it, where the tensor is large."""
        for name in names if tensor.producer != INPUT else ():
            pieces = [self.profile.pieces(tier, tensor.name, name) for tier in self.times]
            if all(pieces):
                plain, hops = self._codec(tensor, name), []
                for links, made, read in zip(self.line.hops, pieces, pieces[1:], strict=False):
                    both = [(encode_s, nbytes, decode_s) for (encode_s, nbytes, _), (*_, decode_s) in zip(made, read, strict=True)]
                    rates = [1 / link.up_bytes_per_s for link in links]
                    rates[-1] += self.profile.framework.s_per_byte
                    hops.append(overlapped_s(both, rates))
                nbytes = sum(piece[1] for piece in pieces[0])
                apart = [plain.encode_s[i] + plain.nbytes / link.bytes_per_s + plain.decode_s[i + 1] for i, link in enumerate(self._links)]
                if any(together < _WORTHWHILE * turns for together, turns in zip(hops, apart, strict=True)):
                    yield replace(plain, name=name + IN_PIECES, nbytes=nbytes, transfer_s=tuple(hops))


def kept_layers(profile: Profile, wish: int | str) -> int:
    """How many layers, from the first, `--keep-on-device` names: a number, or all up to a layer. Raises PlanError."""
    names = [layer.name for layer in profile.layers]
    if isinstance(wish, str) and not wish.isdecimal():
        if wish not in names:
            raise PlanError(f"there is no layer '{wish}' to keep on the device; the layers are {names[0]} ... {names[-1]}")
        return names.index(wish) + 1
    if not isinstance(wish, int | str) or isinstance(wish, bool):
        raise PlanError(f"cannot keep {wish!r} layers on the device; give a whole number or a layer's name")
    count = int(wish)
    if not 0 <= count <= len(names):
        raise PlanError(f"cannot keep {count} layers on the device; the model has {len(names)}")
    return count


def grouped(profile: Profile) -> dict[str, str]:
    """Layer -> op: layers that must stay together are one op, named after the first of them."""
    op_of = {INPUT: INPUT} | {layer.name: layer.name for layer in profile.layers}
    for layers, _ in profile.together:
        merged = {op_of[name] for name in layers}
        first = next(layer.name for layer in profile.layers if op_of[layer.name] in merged)
        op_of |= {name: op_of[first] for name, op in op_of.items() if op in merged}
    return op_of


def seconds_per_byte(hop: Sequence[LinkSpec], direction: str, steady: bool = False) -> float:
    """Store and forward: the links of a hop one after the other, `up` or `down`; in a steady stream the slowest of them."""
    each = [1 / (link.up_bytes_per_s if direction == "up" else link.down_bytes_per_s) for link in hop]
    return max(each) if steady else sum(each)
