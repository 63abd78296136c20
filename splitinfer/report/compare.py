"""Three clocks on one plan: predicted by the cost function, simulated by events, measured on machines."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from cluster.topology import Topology
from splitinfer.errors import SplitinferError
from splitinfer.plans import Cost, Plan
from splitinfer.profiles import Profile
from splitinfer.report.request import Request, idle_request, measured_request
from splitinfer.report.traces import Traces
from splitinfer.simulator import simulate


@dataclass(frozen=True)
class Column:
    """What one clock shows."""

    name: str
    latency_s: float
    parts: Mapping[str, float]
    """Part of `request.PARTS` -> seconds."""
    up_nbytes: float
    rest_s: float | None = None
    """Without what is declared sleep where the tiers are emulated: wire, return and stretch."""


@dataclass(frozen=True)
class Comparison:
    """The columns that there are, and why others are not."""

    columns: tuple[Column, ...]
    notes: tuple[str, ...]
    simulated: Request | None = None
    measured: Request | None = None
    """The request in the middle: half of the others took no longer."""
    slept_share: float | None = None
    """Share of the measured latency that was declared sleep."""

    @property
    def differences(self) -> tuple[tuple[str, str, float], ...]:
        """Each pair of columns, and by what share the first is above the second."""
        return tuple((a.name, b.name, a.latency_s / b.latency_s - 1) for a, b in combinations(self.columns, 2) if b.latency_s)


def compare(plan: Plan, profile: Profile, topology: Topology, traces: Traces | None) -> Comparison:
    """Lay the three beside each other. A plan that the simulator does not take is left without that column."""
    columns, notes = [], []
    if plan.cost is not None:
        columns.append(Column("predicted", plan.cost.latency_s, parts_of(plan.cost), plan.cost.up_nbytes))
    else:
        notes.append("The plan was made by hand, so nothing was predicted.")
    idle = None
    try:
        idle = idle_request(plan, profile, topology)
        found = simulate(plan, profile, topology, requests=1, expected=True).latency_s
        assert found is not None  # nothing is dropped where there is no limit
        columns.append(Column("simulated", found.mean, idle.parts, idle.up_nbytes, idle.rest_s))
    except SplitinferError as error:
        notes.append(f"Not simulated: {error}")
    if idle and columns[0].name == "predicted":  # the same work on the same tiers
        columns[0] = replace(columns[0], rest_s=idle.rest_s)
    if traces is None:
        return Comparison(tuple(columns), (*notes, "Nothing was measured; give --run MODEL, or --traces."), idle)
    return _with_measured(columns, notes, idle, plan, traces)


def parts_of(cost: Cost) -> dict[str, float]:
    """A plan's cost in the parts that a request shows."""
    return {
        "compute": cost.compute_s, "exchange": cost.exchange_s, "coding": cost.encode_s + cost.decode_s, "wire": cost.wire_s,
        "transfer": cost.transfer_s, "return": cost.return_s, "framework": cost.framework_s,
    }  # fmt: skip


def _with_measured(columns: list[Column], notes: list[str], idle: Request | None, plan: Plan, traces: Traces) -> Comparison:
    total_s = statistics.median_low(trace.total_s for trace in traces.traces)
    middle = next(trace for trace in traces.traces if trace.total_s == total_s)
    request = measured_request(middle)
    columns.append(Column("measured", request.latency_s, request.parts, request.up_nbytes, request.rest_s))
    every = sorted(trace.total_s for trace in traces.traces)
    many = len(every)
    notes.append(
        f"Measured is the median of {many} requests; they took {every[0] * 1e3:.4g} to {every[-1] * 1e3:.4g} ms." if many > 1
        else "Measured is a single request."
    )  # fmt: skip
    if not traces.whole:
        notes.append("The traces do not say what came before their first and behind their last span; it is missing from what was measured.")
    if plan.exits:
        notes.append("Predicted and simulated are expectations over requests that may end early; the measured one is a single way to end.")
    return Comparison(tuple(columns), tuple(notes), idle, request, middle.slept_s / total_s if total_s else None)
