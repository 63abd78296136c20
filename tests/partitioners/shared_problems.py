"""Small problems whose ops may be divided, and all of their plans: the oracle of the search over blocks.

Plans are enumerated and added up here, blocks are priced by `walk_blocks`, and cut vertices are found by what they are.
Nothing of `division`, `sizing`, `pieces`, `bills` or `hybrid` is used.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product

import networkx as nx

from partitioners import Block, Codec, Layout, Link, Objective, Op, Problem, Tensor, Tier, Worker
from partitioners.walk_blocks import Team

FORMS = (("whole", "split"), ("split", "split"), ("split", "partial"), ("whole", "whole"))


def shared_problem(seed: int, most_ops: int = 3) -> Problem:
    """A chain, or a chain with one residual connection, after an input; some tiers have workers."""
    rng = random.Random(seed)
    n, k = rng.randint(2, most_ops), rng.choice([1, 2, 2])
    tiers = tuple(_tier(rng, f"t{i}", rng.choice([2, 2, 3]) if not i or rng.random() < 0.3 else 0) for i in range(k))
    users = {i: [i + 1] for i in range(n)} | {n: []}
    if n > 2 and rng.random() < 0.4:
        first = rng.randrange(n - 2)
        users[first].append(first + rng.choice([2, 3]) if first + 3 <= n else first + 2)
    heights, taps = [rng.randint(2, 4)], [(1, 1, 1, 0)]
    for i in range(1, n + 1):
        joins = sum(i in to for to in users.values()) > 1
        kernel, stride, dilation, padding = (
            (1, 1, 1, 0) if joins else rng.choice([(1, 1, 1, 0), (3, 1, 1, 1), (2, 2, 1, 0), (2, 1, 2, 1), (3, 1, 1, 0)])
        )
        height = (heights[-1] + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        if height < 1:
            kernel, stride, dilation, padding, height = 1, 1, 1, 0, heights[-1]
        heights.append(height)
        taps.append((kernel, stride, dilation, padding))
    count = rng.choice([2, 3, 3, 4])
    ops = [Op("o0", (0.0,) * k, "t0")]
    for i in range(1, n + 1):
        layouts = [each for tier in tiers if tier.workers for each in _layouts(rng, tier, heights[i - 1], heights[i], taps[i], count)]
        same = len({heights[j] for j, to in users.items() if i in to}) == 1
        layouts = [each for each in layouts if same or each.axis != "rows"]
        ops.append(Op(f"o{i}", tuple(rng.uniform(0.5, 3) / 2**t for t in range(k)), memory_bytes=rng.randint(1, 9),
                      reach=rng.choice([1.0, 1.0, 0.5]), layouts=tuple(layouts)))  # fmt: skip
    tensors = []
    for i, to in users.items():
        nbytes, zeros = rng.uniform(0.5, 3), tuple(rng.uniform(0, 0.2) for _ in tiers)
        ways = (Codec("raw", nbytes), Codec("half", nbytes / 2, zeros, zeros, rng.uniform(0.01, 0.1)))[: rng.choice([1, 1, 2])]
        returned = i == n and rng.random() < 0.5
        tensors.append(Tensor(f"o{i}", tuple(f"o{v}" for v in to), nbytes, returned, ways, reach=rng.choice([1.0, 1.0, 0.7])))
    links = tuple(Link(rng.uniform(1, 8), rng.choice([0.0, 0.1])) for _ in tiers[1:])
    return Problem(tiers, links, tuple(ops), tuple(tensors), rng.choice(["transcode", "forward"]))


def limited(problem: Problem, seed: int) -> Problem:
    """The same with limits on the memory of some workers and tiers, and perhaps on errors."""
    rng = random.Random(seed)
    total = sum(op.memory_bytes for op in problem.ops)
    tiers = []
    for tier in problem.tiers:
        workers = tuple(replace(w, memory_bytes=rng.choice([None, rng.uniform(0.2, 1) * total])) for w in tier.workers)
        tiers.append(replace(tier, workers=workers, memory_bytes=rng.choice([None, None, rng.uniform(0.5, 1.5) * total])))
    return replace(problem, tiers=tuple(tiers), error_budget=rng.choice([None, 0.05]))


def _tier(rng: random.Random, name: str, workers: int) -> Tier:
    joined = [
        Worker(f"{name}w{w}", rng.uniform(4, 60), rng.choice([None, rng.uniform(4, 60)]), rng.choice([0.0, 0.02]))
        for w in range(1, workers)
    ]
    return Tier(name, watts=1.0, workers=(Worker(f"{name}w0"), *joined) if workers else ())


def _layouts(rng: random.Random, tier: Tier, before: int, after: int, taps: tuple[int, int, int, int], count: int) -> Iterator[Layout]:
    def seconds(part: float) -> tuple[float, ...]:
        return tuple(rng.uniform(0.3, 1.5) * part for _ in tier.workers)

    kernel, stride, dilation, padding = taps
    if rng.random() < 0.85:
        yield Layout(tier.name, "rows", after, seconds(1 / after), seconds(0.05), rng.choice([1, 1, 2]), rng.randint(1, 9),
                     kernel=kernel, stride=stride, dilation=dilation, padding=padding, input_units=before)  # fmt: skip
    axis = rng.choice(["channels", "channels", "heads"])
    forms = dict(rng.sample(FORMS, rng.randint(1, 3)))
    for takes, gives in forms.items() if rng.random() < 0.8 else ():
        yield Layout(
            tier.name,
            axis,
            count,
            seconds(1 / count),
            seconds(0.05),
            rng.choice([1, 1, 2]),
            rng.randint(0, 2),
            rng.randint(1, 3),
            takes,
            gives,
        )


# -- all plans


def cut_vertices(problem: Problem) -> list[list[str]]:
    """The ops in pieces, each ended by an op that every other op comes before or after, and that no edge jumps over."""
    graph = nx.DiGraph()
    graph.add_nodes_from(op.name for op in problem.ops)
    graph.add_edges_from((tensor.producer, user) for tensor in problem.tensors for user in tensor.consumers)
    pieces: list[list[str]] = [[]]
    for name in nx.lexicographical_topological_sort(graph, key=lambda name: int(name[1:])):
        pieces[-1].append(name)
        before, after = nx.ancestors(graph, name), nx.descendants(graph, name)
        if len(before) + len(after) == len(graph) - 1 and not any(u in before and v in after for u, v in graph.edges):
            pieces.append([])
    return [piece for piece in pieces if piece]


@dataclass(frozen=True)
class Bill:
    """What a part of a plan has cost so far."""

    additive: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    loads: dict[str, float] = field(default_factory=dict)
    memory: dict[tuple[str, int], float] = field(default_factory=dict)

    def plus(self, additive: tuple[float, ...], loads: dict[str, float], memory: dict[tuple[str, int], float] | None = None) -> Bill:
        total = tuple(a + b for a, b in zip(self.additive, additive, strict=True))
        merged = self.loads | {key: self.loads.get(key, 0.0) + more for key, more in loads.items()}
        held = self.memory | {key: self.memory.get(key, 0.0) + more for key, more in (memory or {}).items()}
        return Bill(total, merged, held)  # type: ignore[arg-type]


class EveryPlan:
    """Enumerates all plans: where pieces run, in which blocks, with which shares, and how tensors cross."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.pieces = problem, cut_vertices(problem)
        self.prices: dict[tuple[Block, Block | None], tuple[float, dict[tuple[str, int], float]]] = {}
        self.choices: dict[tuple[int, int], list[tuple[Block, int]]] = {}

    def least(self, objective: Objective) -> float | None:
        """Return the least value of all plans that keep the limits."""
        self.weights = [objective.weight(name) for name in ("latency", "energy", "money", "error")]
        self.interval = objective.weight("interval")
        self.best: float | None = None
        for tier in range(len(self.problem.tiers)):
            self._go(0, tier, None, Bill(), True)
        return self.best

    def _end(self, bill: Bill) -> None:
        p = self.problem
        for tier in p.tiers:
            held = [bill.memory.get((tier.name, w), 0.0) for w in range(max(1, len(tier.workers)))]
            limits = [(sum(held), tier.memory_bytes), *((held[w], worker.memory_bytes) for w, worker in enumerate(tier.workers))]
            if any(limit is not None and used > limit * (1 + 1e-9) for used, limit in limits):
                return
        latency, energy, _, error = bill.additive
        named = {"latency_s": latency, "energy_j": energy, "error": error, "interval_s": max(bill.loads.values(), default=0.0)}
        if any(named[name] > limit * (1 + 1e-9) for name, limit in p.limits.items()):
            return
        value = self._value(bill)
        self.best = value if self.best is None else min(self.best, value)

    def _value(self, bill: Bill) -> float:
        return sum(w * a for w, a in zip(self.weights, bill.additive, strict=True)) + self.interval * max(bill.loads.values(), default=0.0)

    def _go(self, at: int, tier: int, before: Block | None, bill: Bill, crossed: bool) -> None:
        if self.best is not None and self._value(bill) > self.best * (1 + 1e-9):
            return  # costs only add up
        if at == len(self.pieces):
            self._end(bill)
            return
        divided = before is not None and before.leaves == "divided"
        if not divided:
            self._whole(at, tier, bill)
            for stop in range(tier + 1, len(self.problem.tiers)) if at and not crossed else ():
                for added in self._crossings(at, tier, stop):
                    self._go(at, stop, None, bill.plus(*added), True)
        if (at, tier) not in self.choices:
            self.choices[at, tier] = list(self._blocks(at, tier))
        for block, end in self.choices[at, tier]:
            if not divided or block.axis == "rows":
                seconds, memory = self._price(block, before)
                self._go(end, tier, block, self._worked(bill, tier, seconds, memory, self.pieces[end - 1]), False)

    def _price(self, block: Block, before: Block | None) -> tuple[float, dict[tuple[str, int], float]]:
        if (block, before) not in self.prices:
            shares = Team(self.problem, block, before).shares()
            seconds = max(share.compute_s + share.exchange_s for share in shares.values())
            self.prices[block, before] = seconds, {(block.tier, w): share.memory_bytes for w, share in shares.items()}
        return self.prices[block, before]

    def _worked(self, bill: Bill, tier: int, seconds: float, memory: dict[tuple[str, int], float], ops: list[str]) -> Bill:
        place = self.problem.tiers[tier]
        bill = bill.plus((seconds, seconds * place.watts, seconds * place.price_per_s, 0.0), {f"tier{tier}": seconds}, memory)
        for tensor in self.problem.tensors:
            if tensor.returned and tensor.producer in ops:  # the last op alone, in these problems
                for j, link in enumerate(self.problem.links[:tier]):
                    wire = tensor.nbytes * tensor.reach / link.back_bytes_per_s
                    bill = bill.plus((wire + link.latency_s * tensor.reach, 0.0, 0.0, 0.0), {f"down{j}": wire})
        return bill

    def _whole(self, at: int, tier: int, bill: Bill) -> None:
        ops = [op for op in self.problem.ops if op.name in self.pieces[at]]
        if any(op.pinned not in (None, self.problem.tiers[tier].name) for op in ops):
            return
        seconds = sum(op.seconds[tier] * op.reach for op in ops)
        memory = {(self.problem.tiers[tier].name, 0): sum(op.memory_bytes for op in ops)}
        self._go(at + 1, tier, None, self._worked(bill, tier, seconds, memory, self.pieces[at]), False)

    def _crossings(self, at: int, tier: int, stop: int) -> Iterator[tuple[tuple[float, ...], dict[str, float]]]:
        """Each choice of codecs for the tensor of a cut vertex, of which these problems have one."""
        (tensor,) = [t for t in self.problem.tensors if t.producer == self.pieces[at - 1][-1]]
        legs = [(tier, stop)] if self.problem.relay == "forward" else [(j, j + 1) for j in range(tier, stop)]
        for codecs in product(tensor.ways, repeat=len(legs)):
            loads: dict[str, float] = {}
            error = 0.0
            for (a, b), codec in zip(legs, codecs, strict=True):
                error += codec.error
                spent = [
                    (f"tier{a}", codec.encode_s[a] if codec.encode_s else 0.0),
                    (f"tier{b}", codec.decode_s[b] if codec.decode_s else 0.0),
                ]
                spent += [(f"up{j}", codec.nbytes / self.problem.links[j].bytes_per_s) for j in range(a, b)]
                for place, seconds in spent:
                    loads[place] = loads.get(place, 0.0) + seconds * tensor.reach
            latency = sum(loads.values()) + tensor.reach * sum(link.latency_s for link in self.problem.links[tier:stop])
            energy = sum(seconds * self.problem.tiers[int(place[4:])].watts for place, seconds in loads.items() if place.startswith("tier"))
            yield (latency, energy, 0.0, error), loads

    def _blocks(self, at: int, tier: int) -> Iterator[tuple[Block, int]]:
        """Every block that begins with a piece, with every way to share it and to leave its tensors."""
        place = self.problem.tiers[tier]
        for axis in ("rows", "channels", "heads") if len(place.workers) > 1 else ():
            for end in range(at + 1, len(self.pieces) + 1):
                ops = [self.problem.ops[self.problem.op_index[name]] for piece in self.pieces[at:end] for name in piece]
                if any(op.pinned not in (None, place.name) for op in ops):
                    continue
                choices = [[each for each in op.layouts if (each.tier, each.axis) == (place.name, axis)] for op in ops]
                for forms in product(*choices):
                    form = dict(zip((op.name for op in ops), forms, strict=True))
                    if axis != "rows" and not self._one_run(at, end, form):
                        continue
                    yield from ((block, end) for block in self._shared(place, axis, form, end))

    def _one_run(self, at: int, end: int, form: dict[str, Layout]) -> bool:
        """Channels and heads: split at all cut vertices inside, and one number of units."""
        for piece in self.pieces[at : end - 1]:
            users = [name for t in self.problem.tensors if t.producer == piece[-1] for name in t.consumers]
            if form[piece[-1]].gives != "split" or any(form[name].takes != "split" for name in users):
                return False
        return len({each.units for each in form.values() if each.gives != "whole"}) == 1

    def _shared(self, place: Tier, axis: str, form: dict[str, Layout], end: int) -> Iterator[Block]:
        names, last = list(form), list(form)[-1]
        rows = axis == "rows"
        divided = [form[last]] if rows else [each for each in form.values() if each.gives != "whole"]
        units = divided[0].units
        returned = any(t.returned for t in self.problem.tensors if t.producer == last)
        leavings = ["whole"]
        if end < len(self.pieces):
            leavings += [] if rows and returned else ["divided" if rows else "replicated"]
        for shares in product(range(units + 1), repeat=len(place.workers)):
            some = [share for share in shares if share]
            if sum(shares) == units and not any(share % each.granularity for share in some[:-1] for each in divided):
                takes = () if rows else tuple(each.takes for each in form.values())
                for leaves in leavings:
                    yield Block(tuple(names), place.name, axis, shares, takes, leaves)  # type: ignore[arg-type]


# -- chains for fused blocks, and by hand


def conv_chain(seed: int) -> Problem:
    """Two to five ops by rows alone, on one tier of two or three workers."""
    rng = random.Random(seed)
    n, tier = rng.randint(2, 5), _tier(rng, "t0", rng.choice([2, 2, 3]))
    height, ops, tensors = rng.randint(3, 5), [Op("o0", (0.0,), "t0")], []
    for i in range(1, n + 1):
        kernel, stride, padding = rng.choice([(1, 1, 0), (3, 1, 1), (3, 1, 1), (2, 1, 0), (3, 2, 1)])
        after = (height + 2 * padding - kernel) // stride + 1
        if after < 2:
            kernel, stride, padding, after = 3, 1, 1, height
        seconds = tuple(rng.uniform(0.1, 1) for _ in tier.workers)
        form = Layout("t0", "rows", after, seconds, tuple(rng.choice([0.0, 0.1]) for _ in tier.workers), rng.choice([1, 1, 2]),
                      kernel=kernel, stride=stride, padding=padding, input_units=height)  # fmt: skip
        tensors.append(Tensor(f"o{i - 1}", (f"o{i}",), rng.uniform(1, 9)))
        ops.append(Op(f"o{i}", (rng.uniform(0.5, 5),), layouts=(form,)))
        height = after
    return Problem((tier,), (), tuple(ops), (*tensors, Tensor(f"o{n}", (), rng.uniform(1, 9), True)))


def phones(workers: int, kernels: list[int], height: int, bytes_per_s: float = 1e12, nbytes: float = 1.0) -> Problem:
    """Equal workers, a second a row, and convolutions that keep the height; a cloud far away that takes no time."""
    device = Tier("device", workers=(Worker("w0"), *(Worker(f"w{w}", bytes_per_s) for w in range(1, workers))))
    ops, tensors = [Op("o0", (0.0, 0.0), "device")], []
    for i, kernel in enumerate(kernels, 1):
        form = Layout("device", "rows", height, (1.0,) * workers, kernel=kernel, padding=kernel // 2)
        ops.append(Op(f"o{i}", (float(height), 0.0), layouts=(form,)))
        tensors.append(Tensor(f"o{i - 1}", (f"o{i}",), nbytes))
    last = Tensor(f"o{len(kernels)}", (), nbytes, True)
    return Problem((device, Tier("cloud")), (Link(1e-3, 0.0),), tuple(ops), (*tensors, last))
