"""The only cost function: everything that a placement costs, and the best codec for each tensor that crosses a link."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from partitioners.division import Priced
from partitioners.errors import Infeasible
from partitioners.hops import Price, hops, price
from partitioners.objective import LATENCY, Objective
from partitioners.placement import Block, Certificate, Cost, Crossing, Direction, Solution, certify
from partitioners.problem import Codec, Problem, Tensor
from partitioners.sharing import share

ROUNDING = 1e-9
"""Relative: limits are kept up to this, because sums of floats depend on their order."""


def evaluate(
    problem: Problem,
    placement: Mapping[str, str],
    codecs: Iterable[Crossing] | None = None,
    objective: Objective | str = LATENCY,
    blocks: Iterable[Block] = (),
) -> tuple[Cost, tuple[Crossing, ...]]:
    """Price a placement; O(ops + consumers + crossings x codecs).

    `codecs` are the choices to price; None: the best for the additive part of `objective`, tensor by tensor (for latency
    where it has none). `blocks` are shared by the workers of their tier; all other ops run whole. Limits on costs and
    memory are not looked at, see `violations`. Raises `Infeasible` naming the op and its tier, the crossing or the block
    that breaks a rule.
    """
    tier = _tiers(problem, placement)
    shared = share(problem, placement, blocks)
    chosen = None if codecs is None else {(c.tensor, c.link, c.direction): c.codec for c in codecs}
    made = _Bill(problem, Objective.of(objective))
    finish = dict.fromkeys(problem.op_index, 0.0)  # for the critical path: when an op's inputs are there, then when it is done
    produced: dict[str, list[Tensor]] = {name: [] for name in problem.op_index}
    for tensor in problem.tensors:
        produced[tensor.producer].append(tensor)
    for name in problem.predecessors:
        op, home = problem.ops[problem.op_index[name]], tier[name]
        if name in shared.price:  # its block ends
            finish[name] += made.block(shared.price[name], home)
        elif name not in shared.member:
            finish[name] += made.compute(op.seconds[home] * op.reach, home)
            made.hold(home, (op.memory_bytes,))
        for tensor in produced[name]:
            arrival = made.send(tensor, home, {tier[user] for user in tensor.consumers}, chosen)
            for user in tensor.consumers:
                finish[user] = max(finish[user], finish[name] + arrival[tier[user]])
            if tensor.returned:
                made.finish = max(made.finish, finish[name] + made.give_back(tensor, home))
    if chosen:
        (name, link, direction), codec = next(iter(chosen.items()))
        raise Infeasible(f"{codec!r} is chosen for tensor {name!r} {direction} link {link}, which it does not cross")
    return made.total(max([made.finish, *finish.values()])), tuple(made.crossings)


def solution(
    problem: Problem,
    placement: Mapping[str, str],
    strategy: str,
    bound: float | None = None,
    objective: Objective | str = LATENCY,
    codecs: Iterable[Crossing] | None = None,
    blocks: Iterable[Block] = (),
) -> Solution:
    """Price a placement and put its proof beside it; without a bound it is only "feasible".

    Raises `Infeasible` where the placement breaks a rule or a limit, the latter with both numbers.
    """
    objective = Objective.of(objective)
    blocks = tuple(blocks)
    cost, crossings = evaluate(problem, placement, codecs, objective, blocks)
    if broken := violations(problem, cost):
        raise Infeasible("; ".join(broken))
    certificate = Certificate("feasible") if bound is None else certify(objective.value(cost), bound)
    given = {op.name: placement[op.name] for op in problem.ops}
    return Solution(given, crossings, cost, strategy, certificate, objective, blocks=blocks)


def violations(problem: Problem, cost: Cost) -> list[str]:
    """Every limit that this cost breaks, with both numbers; empty if none."""
    held = [
        (f"tier {tier.name!r} holds {cost.tier_memory_bytes[tier.name]:,.0f} bytes", cost.tier_memory_bytes[tier.name],
         tier.memory_bytes, f"{tier.memory_bytes:,.0f}")
        for tier in problem.tiers if tier.memory_bytes is not None
    ]  # fmt: skip
    held += [
        (f"worker {worker.name!r} of {tier.name!r} holds {nbytes:,.0f} bytes", nbytes, worker.memory_bytes, f"{worker.memory_bytes:,.0f}")
        for tier in problem.tiers
        for worker, nbytes in zip(tier.workers, cost.worker_memory_bytes.get(tier.name, ()), strict=False)
        if worker.memory_bytes is not None
    ]
    held += [(f"{name} is {getattr(cost, name):.6g}", getattr(cost, name), limit, f"{limit:.6g}") for name, limit in problem.limits.items()]
    return [f"{what}, {value - limit:.6g} over the limit of {shown}" for what, value, limit, shown in held if exceeds(value, limit)]


def exceeds(value: float, limit: float) -> bool:
    """Whether a limit is broken by more than rounding."""
    return value > limit * (1 + ROUNDING) + 1e-12


class _Bill:
    """Adds up what a placement costs."""

    def __init__(self, problem: Problem, objective: Objective) -> None:
        self.problem = problem
        weights = [objective.weight(name) for name in ("latency", "energy", "money", "error")]
        self.weights = weights if any(weights) else [1.0, 0.0, 0.0, 0.0]
        tiers, links = len(problem.tiers), len(problem.links)
        self.load = [0.0] * tiers
        self.memory = [[0.0] * max(1, len(tier.workers)) for tier in problem.tiers]
        self.wire: dict[Direction, list[float]] = {"up": [0.0] * links, "down": [0.0] * links}
        self.nbytes: dict[Direction, list[float]] = {"up": [0.0] * links, "down": [0.0] * links}
        self.used: dict[Direction, list[float]] = {"up": [0.0] * links, "down": [0.0] * links}  # the reach of what uses it
        self.parts = dict.fromkeys(("compute", "exchange", "encode", "wire", "transfer", "decode", "return"), 0.0)
        self.energy_j = self.money = self.error = self.finish = 0.0
        self.crossings: list[Crossing] = []

    def compute(self, seconds: float, tier: int) -> float:
        self.parts["compute"] += seconds
        self._busy(tier, seconds)
        return seconds

    def block(self, price: Priced, tier: int) -> float:
        """Run a block on the workers of a tier; returns its seconds."""
        self.parts["compute"] += price.compute_s
        self.parts["exchange"] += price.exchange_s
        self._busy(tier, price.compute_s + price.exchange_s)
        self.hold(tier, price.memory_bytes.tolist())
        return price.compute_s + price.exchange_s

    def hold(self, tier: int, nbytes: Iterable[float]) -> None:
        """Hold weights: on each worker of a tier, the host first."""
        for w, more in enumerate(nbytes):
            self.memory[tier][w] += more

    def send(self, tensor: Tensor, home: int, users: set[int], chosen: dict[tuple[str, int, Direction], str] | None) -> dict[int, float]:
        """Send a tensor to its users; returns tier -> seconds until it is there, nothing else in the way."""
        links = self.problem.links
        arrival = {home: 0.0}
        for start, stops in hops(self.problem, home, users):
            ways: list[tuple[int, Direction]] = [(j, "up") for j in range(start, max(stops))]
            ways += [(j, "down") for j in reversed(range(min(stops), start))]
            codec = self._cheapest(tensor, start, stops) if chosen is None else _given(tensor, ways, chosen)
            cost = price(self.problem, codec, start, stops)
            self._pay(tensor, codec, cost, start, stops)
            for j, direction in ways:
                rate = links[j].bytes_per_s if direction == "up" else links[j].back_bytes_per_s
                self._carry(j, direction, codec.nbytes * tensor.reach, rate, tensor.reach)
                self.crossings.append(Crossing(tensor.name, j, codec.name, codec.nbytes, direction))
            for stop in stops:
                alone = price(self.problem, codec, start, (stop,)).latency_s
                latency = sum(link.latency_s for link in links[min(start, stop) : max(start, stop)])
                arrival[stop] = arrival[start] + (alone + latency) * tensor.reach
        return arrival

    def give_back(self, tensor: Tensor, home: int) -> float:
        """Return a result, raw, to tier 0; returns the seconds, nothing else in the way."""
        seconds, nbytes = 0.0, tensor.nbytes * tensor.reach
        for j, link in enumerate(self.problem.links[:home]):
            self._carry(j, "down", nbytes, link.back_bytes_per_s, tensor.reach)
            self.energy_j += nbytes * link.joules_per_byte
            self.money += nbytes * link.price_per_byte
            self.parts["return"] += nbytes / link.back_bytes_per_s
            seconds += nbytes / link.back_bytes_per_s + link.latency_s * tensor.reach
        return seconds

    def total(self, critical_path_s: float) -> Cost:
        links, tiers = self.problem.links, [tier.name for tier in self.problem.tiers]
        by_worker = {tier.name: tuple(held) for tier, held in zip(self.problem.tiers, self.memory, strict=True) if tier.workers}
        return Cost(
            **{f"{part}_s": seconds for part, seconds in self.parts.items()},
            link_latency_s=sum(link.latency_s * used for side in self.used.values() for link, used in zip(links, side, strict=True)),
            interval_s=max([*self.load, *self.wire["up"], *self.wire["down"]]),
            critical_path_s=critical_path_s,
            energy_j=self.energy_j,
            money=self.money,
            error=self.error,
            tier_load_s=dict(zip(tiers, self.load, strict=True)),
            link_load_s=tuple(self.wire["up"]),
            return_load_s=tuple(self.wire["down"]),
            tier_memory_bytes={name: sum(held) for name, held in zip(tiers, self.memory, strict=True)},
            worker_memory_bytes=by_worker,
            link_nbytes=tuple(self.nbytes["up"]),
            return_nbytes=tuple(self.nbytes["down"]),
        )

    def _busy(self, tier: int, seconds: float) -> None:
        self.load[tier] += seconds
        self.energy_j += seconds * self.problem.tiers[tier].watts
        self.money += seconds * self.problem.tiers[tier].price_per_s

    def _carry(self, link: int, direction: Direction, nbytes: float, rate: float, reach: float) -> None:
        self.wire[direction][link] += nbytes / rate
        self.nbytes[direction][link] += nbytes
        self.used[direction][link] = max(self.used[direction][link], reach)

    def _pay(self, tensor: Tensor, codec: Codec, cost: Price, start: int, stops: Sequence[int]) -> None:
        reach = tensor.reach
        if cost.transfer_s is None:
            parts = {"encode": cost.encode_s, "wire": cost.up_s + cost.down_s, "decode": cost.decode_s}
        else:
            parts = {"transfer": cost.transfer_s, "wire": cost.down_s, "decode": cost.decode_down_s}
        for part, seconds in parts.items():
            self.parts[part] += seconds * reach
        self.load[start] += cost.encode_s * reach
        for stop in stops:
            self.load[stop] += (codec.decode_s[stop] if codec.decode_s else 0.0) * reach
        self.energy_j += cost.energy_j * reach
        self.money += cost.money * reach
        self.error += codec.error

    def _cheapest(self, tensor: Tensor, start: int, stops: Sequence[int]) -> Codec:
        if len(tensor.ways) == 1:
            return tensor.ways[0]
        latency, energy, money, error = self.weights

        def weigh(codec: Codec) -> float:
            cost = price(self.problem, codec, start, stops)
            seconds = latency * cost.latency_s + energy * cost.energy_j + money * cost.money
            return seconds * tensor.reach + error * codec.error

        return min(tensor.ways, key=weigh)


def _given(tensor: Tensor, ways: Sequence[tuple[int, Direction]], chosen: dict[tuple[str, int, Direction], str]) -> Codec:
    """Take the choice for one hop out of `chosen`; a forwarded tensor has one codec on all its links."""
    names = {chosen.pop((tensor.name, j, direction), None) for j, direction in ways}
    codec = next((codec for codec in tensor.ways if {codec.name} == names), None)
    if codec is None:
        known = ", ".join(codec.name for codec in tensor.ways)
        where = ", ".join(f"{direction} link {j}" for j, direction in ways)
        raise Infeasible(
            f"tensor {tensor.name!r} crosses {where} with {', '.join(map(repr, names))}; one of its codecs is needed: {known}"
        )
    return codec


def _tiers(problem: Problem, placement: Mapping[str, str]) -> dict[str, int]:
    """Return op -> position of its tier, after checking every rule a placement must keep."""
    for name in placement:
        if name not in problem.op_index:
            raise Infeasible(f"the placement names {name!r}, which is no op of the problem")
    tier: dict[str, int] = {}
    for op in problem.ops:
        where = placement.get(op.name)
        if where is None:
            raise Infeasible(f"{op.name!r} has no tier; a placement must name every one of {len(problem.ops)} ops")
        if where not in problem.tier_index:
            raise Infeasible(f"{op.name!r} is on {where!r}; the tiers are {', '.join(problem.tier_index)}")
        if op.pinned not in (None, where):
            raise Infeasible(f"{op.name!r} is on {where!r} but pinned to {op.pinned!r}")
        tier[op.name] = problem.tier_index[where]
    if not problem.two_way:
        _downwards(problem, placement, tier)
    return tier


def _downwards(problem: Problem, placement: Mapping[str, str], tier: Mapping[str, int]) -> None:
    for tensor in problem.tensors:
        for name in tensor.consumers:
            if tier[name] < tier[tensor.producer]:
                raise Infeasible(
                    f"{name!r} on {placement[name]!r} takes data from {tensor.producer!r} on"
                    f" {placement[tensor.producer]!r}; data flows down the line only."
                    f"\n  Put {name!r} on {placement[tensor.producer]!r} or later, or {tensor.producer!r} earlier."
                )
