"""Validates a problem when it is built; every complaint carries the path of the field in the JSON form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from partitioners.errors import ProblemError
from partitioners.fields import boolean, known, number, numbers, per, positive, reach, unique
from partitioners.layouts import validate_layouts, validate_rows, validate_workers

if TYPE_CHECKING:
    from partitioners.problem import Codec, Problem, Tensor

RELAYS = ("transcode", "forward")
LIMITED = ("latency_s", "interval_s", "critical_path_s", "energy_j", "money", "error")
"""Costs that `within` may limit."""


def validate(problem: Problem) -> None:
    """Raise `ProblemError` at the first malformed field; O(size of the problem)."""
    tiers = len(problem.tiers)
    if not problem.tiers or not problem.ops:
        raise ProblemError("ops" if problem.tiers else "tiers", "is empty; at least one is needed")
    if len(problem.links) != tiers - 1:
        raise ProblemError("links", f"has {len(problem.links)} entries; {tiers} tiers in a line need {tiers - 1}")
    if problem.relay not in RELAYS:
        raise ProblemError("relay", f"is {problem.relay!r}; choose {' or '.join(map(repr, RELAYS))}")
    boolean("two_way", problem.two_way)
    unique("tiers", (tier.name for tier in problem.tiers))
    for i, tier in enumerate(problem.tiers):
        numbers(f"tiers[{i}]", watts=tier.watts, price_per_s=tier.price_per_s)
        if tier.memory_bytes is not None:
            number(f"tiers[{i}].memory_bytes", tier.memory_bytes)
        if tier.workers:
            validate_workers(f"tiers[{i}].workers", tier.workers)
    for j, link in enumerate(problem.links):
        positive(f"links[{j}].bytes_per_s", link.bytes_per_s)
        positive(f"links[{j}].return_bytes_per_s", link.back_bytes_per_s)
        numbers(f"links[{j}]", latency_s=link.latency_s, joules_per_byte=link.joules_per_byte,
                 price_per_byte=link.price_per_byte)  # fmt: skip
    unique("ops", (op.name for op in problem.ops))
    for i, op in enumerate(problem.ops):
        per(f"ops[{i}].seconds", op.seconds, tiers, "tier")
        number(f"ops[{i}].memory_bytes", op.memory_bytes)
        reach(f"ops[{i}].reach", op.reach)
        if op.pinned is not None:
            known(f"ops[{i}].pinned", op.pinned, problem.tier_index, "tier")
        if op.layouts:
            validate_layouts(f"ops[{i}].layouts", op.layouts, problem)
    for i, tensor in enumerate(problem.tensors):
        _tensor(f"tensors[{i}]", tensor, problem)
    unique("tensors", (tensor.name for tensor in problem.tensors))
    validate_rows(problem)
    _limits(problem)
    _ = problem.predecessors  # refuses a cycle


def topological(problem: Problem) -> dict[str, list[str]]:
    """Return each op with the ops it takes data from, the former in topological order; a cycle is named."""
    before: dict[str, list[str]] = {op.name: [] for op in problem.ops}
    for tensor in problem.tensors:
        for consumer in tensor.consumers:
            before[consumer].append(tensor.producer)
    try:
        return {name: before[name] for name in TopologicalSorter(before).static_order()}
    except CycleError as error:
        raise ProblemError("tensors", f"the data runs in a cycle: {' -> '.join(error.args[1])}") from None


def _tensor(path: str, tensor: Tensor, problem: Problem) -> None:
    known(f"{path}.producer", tensor.producer, problem.op_index, "op")
    for i, consumer in enumerate(tensor.consumers):
        known(f"{path}.consumers[{i}]", consumer, problem.op_index, "op")
        if consumer == tensor.producer:
            raise ProblemError(f"{path}.consumers[{i}]", f"{consumer!r} consumes what it produces itself")
        if consumer in tensor.consumers[:i]:
            raise ProblemError(f"{path}.consumers[{i}]", f"{consumer!r} is listed twice; once is enough")
    number(f"{path}.nbytes", tensor.nbytes)
    reach(f"{path}.reach", tensor.reach)
    boolean(f"{path}.returned", tensor.returned)
    if tensor.codecs is not None:
        _codecs(f"{path}.codecs", tensor.codecs, len(problem.tiers))


def _codecs(path: str, codecs: Sequence[Codec], tiers: int) -> None:
    if not codecs:
        raise ProblemError(path, "is empty, so the tensor could not travel; leave it out to send it raw")
    unique(path, (codec.name for codec in codecs))
    for i, codec in enumerate(codecs):
        number(f"{path}[{i}].nbytes", codec.nbytes)
        per(f"{path}[{i}].encode_s", codec.encode_s, tiers, "tier")
        per(f"{path}[{i}].decode_s", codec.decode_s, tiers, "tier")
        number(f"{path}[{i}].error", codec.error)
        if codec.transfer_s:
            per(f"{path}[{i}].transfer_s", codec.transfer_s, tiers - 1, "link")


def _limits(problem: Problem) -> None:
    if problem.error_budget is not None:
        number("error_budget", problem.error_budget)
    if not isinstance(problem.within, Mapping):
        raise ProblemError("within", f"is {problem.within!r:.60}; must be an object such as {{\"latency_s\": 0.2}}")
    for name, limit in problem.within.items():
        if name not in LIMITED:
            raise ProblemError(f"within.{name}", f"there is no such cost; choose from {', '.join(LIMITED)}")
        number(f"within.{name}", limit)
