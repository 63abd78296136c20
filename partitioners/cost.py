"""The only cost function: what a placement costs, with the best codec for each tensor that crosses a link."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from partitioners.errors import Infeasible
from partitioners.placement import Certificate, Cost, Crossing, Solution, certify
from partitioners.problem import Codec, Problem

Price = tuple[float, float, float]  # encode, wire, decode seconds


def evaluate(problem: Problem, placement: Mapping[str, str]) -> tuple[Cost, tuple[Crossing, ...]]:
    """Price a placement; O(ops + consumers + crossings x codecs). Raises `Infeasible` naming the op and its tier."""
    tier = _tiers(problem, placement)
    compute = [0.0] * len(problem.tiers)
    for op in problem.ops:
        compute[tier[op.name]] += op.seconds[tier[op.name]]
    crossings: list[Crossing] = []
    prices: list[Price] = []
    sent = [0.0] * len(problem.links)
    returned_s, returning = 0.0, 0
    for tensor in problem.tensors:
        home = tier[tensor.producer]
        users = sorted({tier[name] for name in tensor.consumers} - {home})
        # A hop begins with an encode and ends with a decode: one per link, or one for the whole way.
        hops: list[tuple[int, list[int]]] = [(home, users)] if users else []
        if users and problem.relay == "transcode":
            hops = [(j, [j + 1]) for j in range(home, users[-1])]
        for start, stops in hops:
            price, codec = min(((_price(problem, c, start, stops), c) for c in tensor.ways), key=lambda pc: sum(pc[0]))
            links = tuple(range(start, stops[-1]))
            prices.append(price)
            crossings.append(Crossing(tensor.name, codec.name, links, codec.nbytes))
            for j in links:
                sent[j] += codec.nbytes
        if tensor.returned:
            returned_s += sum(tensor.nbytes / link.back_bytes_per_s for link in problem.links[:home])
            returning = max(returning, home)
    used = {j for crossing in crossings for j in crossing.links}
    encode_s, wire_s, decode_s = (sum(column) for column in zip((0.0, 0.0, 0.0), *prices, strict=True))
    cost = Cost(
        compute_s=sum(compute),
        encode_s=encode_s,
        wire_s=wire_s,
        link_latency_s=sum(problem.links[j].latency_s for j in sorted(used)),
        decode_s=decode_s,
        return_s=returned_s + sum(link.latency_s for link in problem.links[:returning]),
        tier_compute_s={t.name: seconds for t, seconds in zip(problem.tiers, compute, strict=True)},
        link_nbytes=tuple(sent),
    )
    return cost, tuple(crossings)


def solution(
    problem: Problem, placement: Mapping[str, str], strategy: str, bound_s: float | None = None
) -> Solution:
    """Price a placement and put its proof beside it; without a bound it is only "feasible"."""
    cost, crossings = evaluate(problem, placement)
    certificate = Certificate("feasible") if bound_s is None else certify(cost.latency_s, bound_s)
    return Solution({op.name: placement[op.name] for op in problem.ops}, crossings, cost, strategy, certificate)


def _price(problem: Problem, codec: Codec, start: int, stops: Sequence[int]) -> Price:
    """Seconds of one hop: encoded at `start`, carried to the last stop, decoded at each stop."""
    wire_s = sum(codec.nbytes / link.bytes_per_s for link in problem.links[start : stops[-1]])
    if not codec.encode_s:  # raw
        return 0.0, wire_s, 0.0
    return codec.encode_s[start], wire_s, sum(codec.decode_s[i] for i in stops)


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
    for tensor in problem.tensors:
        for name in tensor.consumers:
            if tier[name] < tier[tensor.producer]:
                raise Infeasible(
                    f"{name!r} on {placement[name]!r} takes data from {tensor.producer!r} on"
                    f" {placement[tensor.producer]!r}; data flows down the line only."
                    f"\n  Put {name!r} on {placement[tensor.producer]!r} or later, or {tensor.producer!r} earlier."
                )
    return tier
