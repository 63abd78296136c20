"""Validates what version 2 of the format adds: the workers of a tier, and the layouts in which they may divide an op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from partitioners.errors import ProblemError
from partitioners.fields import known, number, one_of, per, positive, unique, whole

if TYPE_CHECKING:
    from partitioners.problem import Layout, Problem, Worker

AXES = ("rows", "channels", "heads")
FORMS = {"rows": (("split", "split"),), "channels": (("whole", "split"), ("split", "split"), ("split", "partial"), ("whole", "whole"))}
"""What `takes` and `gives` may be; heads as channels."""
TAPS = {"kernel": 1, "stride": 1, "dilation": 1, "padding": 0, "input_units": None}
"""Fields of rows alone, and their defaults."""


def validate_workers(path: str, workers: Sequence[Worker]) -> None:
    """Raise `ProblemError` at the first malformed field of the workers of one tier."""
    unique(path, (worker.name for worker in workers))
    for i, worker in enumerate(workers):
        at = f"{path}[{i}]"
        number(f"{at}.latency_s", worker.latency_s)
        if worker.memory_bytes is not None:
            number(f"{at}.memory_bytes", worker.memory_bytes)
        for name in ("bytes_per_s", "return_bytes_per_s"):
            rate = getattr(worker, name)
            if rate is not None and not i:
                raise ProblemError(f"{at}.{name}", f"is {rate!r}; the first worker is the host, to which the others are linked")
            if rate is not None:
                positive(f"{at}.{name}", rate)
        if i and worker.bytes_per_s is None:
            raise ProblemError(f"{at}.bytes_per_s", "is missing; it joins this worker to the host, the first of the list")
        if not i and worker.latency_s:
            raise ProblemError(f"{at}.latency_s", f"is {worker.latency_s!r}; the first worker is the host, to which the others are linked")


def validate_layouts(path: str, layouts: Sequence[Layout], problem: Problem) -> None:
    """Raise `ProblemError` at the first malformed field of the layouts of one op."""
    seen: dict[tuple[str, str, str], int] = {}
    for i, layout in enumerate(layouts):
        _layout(f"{path}[{i}]", layout, problem)
        first = seen.setdefault((layout.tier, layout.axis, layout.takes), i)
        if first != i:
            raise ProblemError(f"{path}[{i}]", f"has the tier, axis and takes of {path}[{first}]; one of them is enough")


def _layout(path: str, layout: Layout, problem: Problem) -> None:
    known(f"{path}.tier", layout.tier, problem.tier_index, "tier")
    workers = len(problem.tiers[problem.tier_index[layout.tier]].workers)
    if not workers:
        raise ProblemError(f"{path}.tier", f"{layout.tier!r} has no workers to divide an op over")
    one_of(f"{path}.axis", layout.axis, AXES)
    per(f"{path}.seconds_per_unit", layout.seconds_per_unit, workers, "worker")
    per(f"{path}.fixed_s", layout.fixed_s, workers, "worker")
    for name in ("units", "granularity", "kernel", "stride", "dilation"):
        whole(f"{path}.{name}", getattr(layout, name))
    whole(f"{path}.padding", layout.padding, 0)
    if layout.input_units is not None:
        whole(f"{path}.input_units", layout.input_units)
    number(f"{path}.weight_bytes", layout.weight_bytes)
    number(f"{path}.weight_bytes_per_unit", layout.weight_bytes_per_unit)
    one_of(f"{path}.takes", layout.takes, ("whole", "split"))
    one_of(f"{path}.gives", layout.gives, ("split", "whole", "partial"))
    rows = layout.axis == "rows"
    if (layout.takes, layout.gives) not in FORMS["rows" if rows else "channels"]:
        raise ProblemError(f"{path}.gives", f"is {layout.gives!r}; {layout.axis} that take {layout.takes!r} cannot")
    if rows and layout.weight_bytes_per_unit:
        raise ProblemError(f"{path}.weight_bytes_per_unit", "is above 0; for rows each worker holds all weights: give weight_bytes")
    for name, plain in TAPS.items():
        if not rows and getattr(layout, name) != plain:
            raise ProblemError(f"{path}.{name}", f"is for rows; the axis is {layout.axis!r}")


def validate_rows(problem: Problem) -> None:
    """Raise `ProblemError` where ops divided by rows disagree on the rows of a tensor between them."""
    if not problem.divisible:
        return
    rows = {(layout.tier, op.name): layout for op in problem.ops for layout in op.layouts if layout.axis == "rows"}
    place = {(layout.tier, op.name): f"ops[{i}].layouts[{j}]" for i, op in enumerate(problem.ops) for j, layout in enumerate(op.layouts)
             if layout.axis == "rows"}  # fmt: skip
    for tensor in problem.tensors:
        for tier in problem.tiers if tensor.consumers else ():
            key = (tier.name, tensor.producer)
            height = rows[key].units if key in rows else None
            for user in tensor.consumers:
                taken = rows[tier.name, user].input_rows if (tier.name, user) in rows else None
                height = taken if height is None else height
                if taken is not None and taken != height:
                    path = f"{place[tier.name, user]}.input_units"
                    raise ProblemError(path, f"is {taken}; tensor {tensor.name!r}, which it takes, has {height} rows elsewhere")
