"""The oracle: every placement, priced by a walk that shares nothing with `cost`, `arrays` or the solvers.

O(tiers^ops) placements; the walk is the plainest reading of docs/problem-format.md. For tests, and for the doubtful.
"""

from __future__ import annotations

from collections.abc import Iterator

from partitioners.cost import solution
from partitioners.errors import Infeasible, PartitionerError
from partitioners.placement import Solution
from partitioners.problem import Codec, Problem

LIMIT = 1_000_000  # placements; about a minute


def by_exhaustion(problem: Problem) -> Solution:
    """Try every placement. Raises `PartitionerError` above `LIMIT` of them, pins taken into account."""
    free = sum(op.pinned is None for op in problem.ops)
    if len(problem.tiers) ** free > LIMIT:
        raise PartitionerError(
            f"{free} free ops on {len(problem.tiers)} tiers are {len(problem.tiers)}^{free} placements;"
            f" the limit of 'exhaustive' is {LIMIT:,}.\n  Take 'mincut' or 'milp'."
        )
    best_s, best = min(((walk(problem, p), p) for p in placements(problem)), key=lambda sp: sp[0], default=(0.0, None))
    if best is None:
        raise Infeasible("none of all placements keeps the pins and the direction of the data")
    return solution(problem, {name: problem.tiers[i].name for name, i in best.items()}, "exhaustive", best_s)


def placements(problem: Problem) -> Iterator[dict[str, int]]:
    """Yield every placement (op -> position of its tier) that keeps the pins and the direction of the data."""
    order = list(problem.predecessors.items())
    tiers = [tier.name for tier in problem.tiers]
    pinned = {op.name: tiers.index(op.pinned) for op in problem.ops if op.pinned is not None}

    def extend(done: dict[str, int]) -> Iterator[dict[str, int]]:
        if len(done) == len(order):
            yield done
            return
        name, before = order[len(done)]
        for i in range(max((done[p] for p in before), default=0), len(tiers)):
            if pinned.get(name, i) == i:
                yield from extend({**done, name: i})

    return extend({})


def walk(problem: Problem, placement: dict[str, int]) -> float:
    """Latency in seconds: op by op, tensor by tensor, link by link."""
    seconds = 0.0
    up: set[int] = set()
    down: set[int] = set()
    for op in problem.ops:
        seconds += op.seconds[placement[op.name]]
    for tensor in problem.tensors:
        home = placement[tensor.producer]
        users = {placement[name] for name in tensor.consumers}
        crossed = [j for j in range(len(problem.links)) if home <= j and any(user > j for user in users)]
        codecs = list(tensor.codecs or [])
        if tensor.codecs is None:
            nothing = tuple(0.0 for _ in problem.tiers)
            codecs = [Codec("raw", tensor.nbytes, nothing, nothing)]
        if problem.relay == "transcode":
            for j in crossed:
                rate = problem.links[j].bytes_per_s
                seconds += min(c.encode_s[j] + c.nbytes / rate + c.decode_s[j + 1] for c in codecs)
        elif crossed:
            totals = []
            for c in codecs:
                total = c.encode_s[home]
                for j in crossed:
                    total += c.nbytes / problem.links[j].bytes_per_s
                for user in users:
                    if user != home:
                        total += c.decode_s[user]
                totals.append(total)
            seconds += min(totals)
        up.update(crossed)
        if tensor.returned:
            for j in range(home):
                link = problem.links[j]
                seconds += tensor.nbytes / (link.return_bytes_per_s or link.bytes_per_s)
                down.add(j)
    for direction in (up, down):
        for j in direction:
            seconds += problem.links[j].latency_s
    return seconds
