"""What one placement costs, by the plainest walk: op by op, tensor by tensor, link by link.

Written apart from `cost`, which solvers use, so that their agreement means something. The walk knows one motion, `send`:
encode on one tier, pass links, decode where somebody listens. A forwarded tensor is sent once, to all its consumers'
tiers; a transcoded one is sent anew from tier to tier.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Literal, NamedTuple, Protocol

from partitioners.placement import Block, Direction
from partitioners.problem import Codec, Problem, Tensor
from partitioners.walk_blocks import teams

TOLERANCE = 1e-9  # relative; sums of floats in another order differ by far less, measured seconds by far more
PARTS = ("compute", "exchange", "encode", "wire", "transfer", "decode", "return", "link_latency")
Place = tuple[Literal["tier"] | Direction, int]
"""What is busy: a tier, or a link in one direction."""
Key = tuple[str, int, str]
"""Of a crossing: tensor, link, direction."""


class Step(NamedTuple):
    """One piece of work on the way of a tensor."""

    part: str
    """Of the latency; "": contained in a measured transfer, so it loads its place without counting again."""
    place: Place | None
    """None: a measured transfer, which is no load of its own."""
    seconds: float
    nbytes: float = 0.0


class CrossingLike(Protocol):
    """What `recompute` reads of a `Crossing`."""

    tensor: str
    link: int
    codec: str
    direction: Any


def recompute(
    problem: Problem, placement: Mapping[str, str], codecs: Iterable[CrossingLike] = (), blocks: Sequence[Block] = ()
) -> dict[str, Any]:
    """Return every field of `Cost.to_dict` for one placement, one choice of codecs and the blocks that workers share.

    The placement must name a tier for every op, the codecs one entry for every crossing; whether limits are kept is not
    asked. O(ops + tensors x (consumers + tiers^2)).
    """
    at = {op.name: problem.tier_index[placement[op.name]] for op in problem.ops}
    known = {(t.name, c.name): c for t in problem.tensors for c in t.ways}
    return walk(problem, at, {(c.tensor, c.link, c.direction): known[c.tensor, c.codec] for c in codecs}, blocks)


def crossings(home: int, stops: Set[int]) -> list[tuple[Direction, int]]:
    """Return (direction, link) of each crossing on the way from tier `home` to the tiers `stops`, in the order of the way."""
    top, bottom = max(stops, default=home), min(stops, default=home)
    return [*(("up", j) for j in range(home, top)), *(("down", j) for j in reversed(range(bottom, home)))]


def send(problem: Problem, tensor: Tensor, codec: Codec, home: int, stops: Set[int]) -> Iterator[Step]:
    """Yield the steps of one encoding, sent from tier `home` to the tiers `stops`; `home` is none of them."""
    way = crossings(home, stops)
    overlap = bool(codec.transfer_s) and ("up", home) in way
    nbytes = tensor.reach * codec.nbytes
    # The raw codec that nobody listed has no seconds at all: its slices are empty.
    yield Step("" if overlap else "encode", ("tier", home), tensor.reach * sum(codec.encode_s[home : home + 1]))
    for direction, j in way:
        up, link = direction == "up", problem.links[j]
        seconds = nbytes / (link.bytes_per_s if up else link.back_bytes_per_s)
        yield Step("" if overlap and up else "wire", (direction, j), seconds, nbytes)
        if overlap and up:
            yield Step("transfer", None, tensor.reach * codec.transfer_s[j])
    for stop in stops:
        decode = "" if overlap and stop > home else "decode"
        yield Step(decode, ("tier", stop), tensor.reach * sum(codec.decode_s[stop : stop + 1]))


def sendings(problem: Problem, home: int, stops: Set[int]) -> list[tuple[int, Set[int], list[tuple[Direction, int]]]]:
    """Return (from, to, crossings) for each encoding of a tensor: one if it is forwarded, else one per crossing."""
    way = crossings(home, stops)
    if problem.relay == "forward":
        return [(home, stops, way)] if way else []
    return [(j, {j + 1}, [leg]) if leg[0] == "up" else (j + 1, {j}, [leg]) for leg in way for j in [leg[1]]]


def send_back(problem: Problem, tensor: Tensor, home: int) -> Iterator[Step]:
    """Yield the steps of a result from tier `home` to tier 0: raw, and none if it is not returned."""
    nbytes = tensor.reach * tensor.nbytes
    for j in reversed(range(home)) if tensor.returned else ():
        yield Step("return", ("down", j), nbytes / problem.links[j].back_bytes_per_s, nbytes)


def walk(problem: Problem, at: Mapping[str, int], chosen: Mapping[Key, Codec], blocks: Sequence[Block] = ()) -> dict[str, Any]:
    """Do what `recompute` does, with positions for the names of tiers and codecs for theirs."""
    book = _Book()
    memory = {tier.name: [0.0] * max(1, len(tier.workers)) for tier in problem.tiers}
    error = 0.0
    shared = {name for block in blocks for name in block.ops}
    lasts = {name: team.shares() for name, team in teams(problem, blocks).items()}
    for op in problem.ops:
        tier = at[op.name]
        if op.name not in shared:
            book.enter([Step("compute", ("tier", tier), op.reach * op.seconds[tier])])
            memory[problem.tiers[tier].name][0] += op.memory_bytes
    for name, work in lasts.items():
        slowest = max(work.values(), key=lambda share: share.compute_s + share.exchange_s)
        tier = at[name]
        book.enter([Step("compute", ("tier", tier), slowest.compute_s), Step("exchange", ("tier", tier), slowest.exchange_s)])
        for w, share in work.items():
            memory[problem.tiers[tier].name][w] += share.memory_bytes
    block_s = {name: max(share.compute_s + share.exchange_s for share in work.values()) for name, work in lasts.items()}
    inner_s = dict.fromkeys(shared, 0.0) | block_s  # a block ends with its last op
    for tensor in problem.tensors:
        home = at[tensor.producer]
        for start, ends, way in sendings(problem, home, stops_of(tensor, at)):
            codec = chosen[tensor.name, way[0][1], way[0][0]]
            book.enter(send(problem, tensor, codec, start, ends), tensor.reach)
            error += codec.error
        book.enter(send_back(problem, tensor, home), tensor.reach)
    book.part_s["link_latency"] = sum(problem.links[j].latency_s * share for (kind, j), share in book.reach.items() if kind != "tier")
    links = range(len(problem.links))
    return {
        "latency_s": sum(book.part_s.values()),
        **{f"{part}_s": seconds for part, seconds in book.part_s.items()},
        "interval_s": max(book.busy_s.values()),
        "critical_path_s": _critical_path(problem, at, chosen, inner_s),
        "energy_j": book.total([t.watts for t in problem.tiers], [link.joules_per_byte for link in problem.links]),
        "money": book.total([t.price_per_s for t in problem.tiers], [link.price_per_byte for link in problem.links]),
        "error": error,
        "tier_load_s": {tier.name: book.busy_s["tier", i] for i, tier in enumerate(problem.tiers)},
        "link_load_s": tuple(book.busy_s["up", j] for j in links),
        "return_load_s": tuple(book.busy_s["down", j] for j in links),
        "tier_memory_bytes": {name: sum(held) for name, held in memory.items()},
        "worker_memory_bytes": {tier.name: tuple(memory[tier.name]) for tier in problem.tiers if tier.workers},
        "link_nbytes": tuple(book.nbytes["up", j] for j in links),
        "return_nbytes": tuple(book.nbytes["down", j] for j in links),
    }


class _Book:
    """Adds up steps: by part of the latency, by place, and for each link the largest reach of what uses it."""

    def __init__(self) -> None:
        self.part_s = dict.fromkeys(PARTS, 0.0)
        self.busy_s: dict[Place, float] = defaultdict(float)
        self.nbytes: dict[Place, float] = defaultdict(float)
        self.reach: dict[Place, float] = defaultdict(float)

    def enter(self, steps: Iterable[Step], reach: float = 0.0) -> None:
        for part, place, seconds, nbytes in steps:
            if part:
                self.part_s[part] += seconds
            if place:
                self.busy_s[place] += seconds
                self.nbytes[place] += nbytes
                self.reach[place] = max(self.reach[place], reach)

    def total(self, per_second: Sequence[float], per_byte: Sequence[float]) -> float:
        """What busy tiers and bytes in both directions cost at these prices."""
        tiers = sum(price * self.busy_s["tier", i] for i, price in enumerate(per_second))
        return tiers + sum(price * (self.nbytes["up", j] + self.nbytes["down", j]) for j, price in enumerate(per_byte))


def stops_of(tensor: Tensor, at: Mapping[str, int]) -> set[int]:
    """Return the tiers, other than its producer's, on which a tensor is consumed."""
    return {at[name] for name in tensor.consumers} - {at[tensor.producer]}


def _critical_path(problem: Problem, at: Mapping[str, int], chosen: Mapping[Key, Codec], shared_s: Mapping[str, float]) -> float:
    """Every op starts when its inputs have arrived; nothing waits for a busy machine or link."""
    ready = {op.name: 0.0 for op in problem.ops}
    produced: dict[str, list[Tensor]] = {op.name: [] for op in problem.ops}
    for tensor in problem.tensors:
        produced[tensor.producer].append(tensor)
    last = 0.0
    for name in problem.predecessors:  # in topological order
        op, home = problem.ops[problem.op_index[name]], at[name]
        finish = ready[name] + (shared_s[name] if name in shared_s else op.reach * op.seconds[home])
        last = max(last, finish)
        for tensor in produced[name]:
            trips = {stop: _trip(problem, tensor, home, stop, chosen) for stop in stops_of(tensor, at)}
            for user in tensor.consumers:
                ready[user] = max(ready[user], finish + trips.get(at[user], 0.0))
            if tensor.returned:
                back = sum(step.seconds for step in send_back(problem, tensor, home))
                last = max(last, finish + back + tensor.reach * sum(link.latency_s for link in problem.links[:home]))
    return last


def _trip(problem: Problem, tensor: Tensor, home: int, stop: int, chosen: Mapping[Key, Codec]) -> float:
    """Return the seconds from tier `home` to one tier that consumes the tensor, as if it went nowhere else."""
    seconds = 0.0
    for start, ends, way in sendings(problem, home, {stop}):
        codec = chosen[tensor.name, way[0][1], way[0][0]]
        seconds += sum(step.seconds for step in send(problem, tensor, codec, start, ends) if step.part)
        seconds += tensor.reach * sum(problem.links[j].latency_s for _, j in way)
    return seconds
