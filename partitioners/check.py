"""Checks a problem when it is built; every complaint carries the path of the field in the JSON form."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from numbers import Real
from typing import TYPE_CHECKING

from partitioners.errors import ProblemError

if TYPE_CHECKING:
    from partitioners.problem import Codec, Problem, Tensor

RELAYS = ("transcode", "forward")


def check(problem: Problem) -> None:
    """Raise `ProblemError` at the first malformed field; O(size of the problem)."""
    tiers = len(problem.tiers)
    if not problem.tiers or not problem.ops:
        raise ProblemError("ops" if problem.tiers else "tiers", "is empty; at least one is needed")
    if len(problem.links) != tiers - 1:
        raise ProblemError("links", f"has {len(problem.links)} entries; {tiers} tiers in a line need {tiers - 1}")
    if problem.relay not in RELAYS:
        raise ProblemError("relay", f"is {problem.relay!r}; choose {' or '.join(map(repr, RELAYS))}")
    _unique("tiers", (tier.name for tier in problem.tiers))
    for j, link in enumerate(problem.links):
        _positive(f"links[{j}].bytes_per_s", link.bytes_per_s)
        _number(f"links[{j}].latency_s", link.latency_s)
        _positive(f"links[{j}].return_bytes_per_s", link.back_bytes_per_s)
    _unique("ops", (op.name for op in problem.ops))
    for i, op in enumerate(problem.ops):
        _per_tier(f"ops[{i}].seconds", op.seconds, tiers)
        if op.pinned is not None:
            _known(f"ops[{i}].pinned", op.pinned, problem.tier_index, "tier")
    for i, tensor in enumerate(problem.tensors):
        _tensor(f"tensors[{i}]", tensor, problem)
    _unique("tensors", (tensor.name for tensor in problem.tensors))
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
    if not isinstance(tensor.returned, bool):
        raise ProblemError(f"{path}.returned", f"is {tensor.returned!r}; must be true or false")
    if tensor.codecs is not None:
        _codecs(f"{path}.codecs", tensor.codecs, len(problem.tiers))


def _codecs(path: str, codecs: Sequence[Codec], tiers: int) -> None:
    if not codecs:
        raise ProblemError(path, "is empty, so the tensor could not travel; leave it out to send it raw")
    _unique(path, (codec.name for codec in codecs))
    for i, codec in enumerate(codecs):
        _number(f"{path}[{i}].nbytes", codec.nbytes)
        _per_tier(f"{path}[{i}].encode_s", codec.encode_s, tiers)
        _per_tier(f"{path}[{i}].decode_s", codec.decode_s, tiers)
        _number(f"{path}[{i}].error", codec.error)


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


def _per_tier(path: str, values: Sequence[object], tiers: int) -> None:
    if len(values) != tiers:
        raise ProblemError(path, f"has {len(values)} numbers; one for each of the {tiers} tiers is needed")
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
