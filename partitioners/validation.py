"""Validates a problem when it is built; every complaint carries the path of the field in the JSON form."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from numbers import Real
from typing import TYPE_CHECKING

from partitioners.errors import ProblemError

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
    _boolean("two_way", problem.two_way)
    _unique("tiers", (tier.name for tier in problem.tiers))
    for i, tier in enumerate(problem.tiers):
        _numbers(f"tiers[{i}]", watts=tier.watts, price_per_s=tier.price_per_s)
        if tier.memory_bytes is not None:
            _number(f"tiers[{i}].memory_bytes", tier.memory_bytes)
    for j, link in enumerate(problem.links):
        _positive(f"links[{j}].bytes_per_s", link.bytes_per_s)
        _positive(f"links[{j}].return_bytes_per_s", link.back_bytes_per_s)
        _numbers(f"links[{j}]", latency_s=link.latency_s, joules_per_byte=link.joules_per_byte,
                 price_per_byte=link.price_per_byte)  # fmt: skip
    _unique("ops", (op.name for op in problem.ops))
    for i, op in enumerate(problem.ops):
        _per(f"ops[{i}].seconds", op.seconds, tiers, "tier")
        _number(f"ops[{i}].memory_bytes", op.memory_bytes)
        _reach(f"ops[{i}].reach", op.reach)
        if op.pinned is not None:
            _known(f"ops[{i}].pinned", op.pinned, problem.tier_index, "tier")
    for i, tensor in enumerate(problem.tensors):
        _tensor(f"tensors[{i}]", tensor, problem)
    _unique("tensors", (tensor.name for tensor in problem.tensors))
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
    _known(f"{path}.producer", tensor.producer, problem.op_index, "op")
    for i, consumer in enumerate(tensor.consumers):
        _known(f"{path}.consumers[{i}]", consumer, problem.op_index, "op")
        if consumer == tensor.producer:
            raise ProblemError(f"{path}.consumers[{i}]", f"{consumer!r} consumes what it produces itself")
        if consumer in tensor.consumers[:i]:
            raise ProblemError(f"{path}.consumers[{i}]", f"{consumer!r} is listed twice; once is enough")
    _number(f"{path}.nbytes", tensor.nbytes)
    _reach(f"{path}.reach", tensor.reach)
    _boolean(f"{path}.returned", tensor.returned)
    if tensor.codecs is not None:
        _codecs(f"{path}.codecs", tensor.codecs, len(problem.tiers))


def _codecs(path: str, codecs: Sequence[Codec], tiers: int) -> None:
    if not codecs:
        raise ProblemError(path, "is empty, so the tensor could not travel; leave it out to send it raw")
    _unique(path, (codec.name for codec in codecs))
    for i, codec in enumerate(codecs):
        _number(f"{path}[{i}].nbytes", codec.nbytes)
        _per(f"{path}[{i}].encode_s", codec.encode_s, tiers, "tier")
        _per(f"{path}[{i}].decode_s", codec.decode_s, tiers, "tier")
        _number(f"{path}[{i}].error", codec.error)
        if codec.transfer_s:
            _per(f"{path}[{i}].transfer_s", codec.transfer_s, tiers - 1, "link")


def _limits(problem: Problem) -> None:
    if problem.error_budget is not None:
        _number("error_budget", problem.error_budget)
    if not isinstance(problem.within, Mapping):
        raise ProblemError("within", f"is {problem.within!r:.60}; must be an object such as {{\"latency_s\": 0.2}}")
    for name, limit in problem.within.items():
        if name not in LIMITED:
            raise ProblemError(f"within.{name}", f"there is no such cost; choose from {', '.join(LIMITED)}")
        _number(f"within.{name}", limit)


def _number(path: str, value: object) -> float:
    try:
        # The exact types first: asking the abstract class takes most of the time on a large problem.
        real = type(value) in (float, int) or (isinstance(value, Real) and not isinstance(value, bool))
        good = real and 0 <= float(value) < math.inf  # type: ignore[arg-type]
    except OverflowError:  # an integer beyond the range of a float
        good = False
    if not good:
        raise ProblemError(path, f"is {value!r}; must be a finite number, zero or more")
    return value  # type: ignore[return-value]


def _positive(path: str, value: object) -> None:
    if _number(path, value) == 0:
        raise ProblemError(path, "is 0; a link needs a rate above zero (a very small one keeps everything off it)")


def _numbers(path: str, **values: object) -> None:
    for name, value in values.items():
        _number(f"{path}.{name}", value)


def _reach(path: str, value: object) -> None:
    if _number(path, value) > 1:
        raise ProblemError(path, f"is {value!r}; a probability is at most 1")


def _boolean(path: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ProblemError(path, f"is {value!r}; must be true or false")


def _per(path: str, values: Sequence[object], count: int, kind: str) -> None:
    if len(values) != count:
        raise ProblemError(path, f"has {len(values)} numbers; one for each of the {count} {kind}s is needed")
    for i, value in enumerate(values):
        _number(f"{path}[{i}]", value)


def _known(path: str, name: object, names: Collection[str], kind: str) -> None:
    if not isinstance(name, str) or name not in names:
        raise ProblemError(path, f"there is no {kind} {name!r}")


def _unique(path: str, names: Iterable[object]) -> None:
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise ProblemError(f"{path}[{i}].name", f"is {name!r}; must be a non-empty text")
        if name in seen:
            raise ProblemError(f"{path}[{i}].name", f"{name!r} is also the name of {path}[{seen[name]}]")
        seen[name] = i
