"""Run requests through a family of plans and say who answered them."""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm

from cluster.topology import Topology
from splitinfer.errors import InputError, SplitinferError
from splitinfer.graph import Graph
from splitinfer.plans import Plan
from splitinfer.runtime.driver import Switch
from splitinfer.runtime.resilient import ResilientPipeline, resilient
from splitinfer.supervisor import Settings
from splitinfer.tracing import Trace


@dataclass(frozen=True)
class Answers:
    """What one plan, or the device alone, answered."""

    by: str
    requests: int
    degraded: int
    p50_s: float
    p95_s: float


@dataclass(frozen=True)
class FamilyReport:
    """Who answered, and what went wrong."""

    requests: int
    answers: tuple[Answers, ...]
    """Best plan first."""
    errors: dict[str, int]
    """Kind of error -> requests that ended with it."""
    switches: tuple[Switch, ...]
    """Their times count from the first request."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def __str__(self) -> str:
        head = ["answered by", "requests", "degraded", "p50 ms", "p95 ms"]
        rows = [[row.by, row.requests, row.degraded or "", f"{row.p50_s * 1e3:.2f}", f"{row.p95_s * 1e3:.2f}"] for row in self.answers]
        table = tabulate(rows, head, disable_numparse=True, colalign=("left", "right", "right", "right", "right"))
        failed = "".join(f"\n{count} ended with {kind}" for kind, count in self.errors.items()) or "\nnone was lost"
        return f"{self.requests} requests in {self.seconds:.1f} s, the plan changed {len(self.switches)} times\n\n{table}\n{failed}"


def run_family(
    graph: Graph, plans: Sequence[Plan], topology: Topology, requests: int, in_flight: int = 1, *, cluster: str | None = None,
    settings: Settings = Settings(), wait_s: float = 120.0, progress: bool = False,  # noqa: B008 - frozen
) -> FamilyReport:  # fmt: skip
    """Send the sample `requests` times with `in_flight` under way at once, from when the best plan is in place, or `wait_s` later."""
    torch.set_num_threads(topology.tier(plans[0].tiers[0]).threads)  # this process stands for the first tier
    args, kwargs = graph.example
    traces: list[Trace] = []
    errors: dict[str, int] = {}
    with resilient(graph, plans, topology, cluster=cluster, settings=settings) as pipeline:
        pipeline.wait_for(timeout_s=wait_s)
        told, start_s = len(pipeline.switches), time.monotonic()
        pending: deque[Future[tuple[Any, Trace]]] = deque()
        for number in tqdm(range(requests + in_flight), desc="requests", disable=not progress, leave=False):
            if progress:
                told = _tell(pipeline, told, start_s)
            if pending and (len(pending) == in_flight or number >= requests):
                _collect(pending.popleft(), traces, errors)
            if number < requests:
                pending.append(pipeline.start(*args, **kwargs))
        seconds, switches = (
            time.monotonic() - start_s,
            tuple(replace(switch, at_s=switch.at_s - start_s) for switch in pipeline.switches if switch.at_s >= start_s),
        )
        order = [*pipeline.fronts]
    return FamilyReport(requests, _answers(traces, order), errors, switches, seconds)


def _collect(future: Future[tuple[Any, Trace]], traces: list[Trace], errors: dict[str, int]) -> None:
    try:
        traces.append(future.result()[1])
    except InputError:
        raise
    except SplitinferError as error:
        kind = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        errors[kind] = errors.get(kind, 0) + 1


def _tell(pipeline: ResilientPipeline, told: int, start_s: float) -> int:
    switches = pipeline.switches
    for switch in switches[told:]:
        plan = f"plan {switch.plan}" if switch.plan else "the device alone"
        tqdm.write(f"{switch.at_s - start_s:7.1f} s  {plan}: {switch.why}", file=sys.stderr)
    return len(switches)


def _answers(traces: Sequence[Trace], order: Sequence[str]) -> tuple[Answers, ...]:
    found: dict[str, list[Trace]] = {name: [] for name in order}
    for trace in traces:
        found.setdefault(trace.answered_by, []).append(trace)
    return tuple(_row(by, own) for by, own in found.items() if own)


def _row(by: str, own: Sequence[Trace]) -> Answers:
    totals = sorted(trace.total_s for trace in own)
    p95_s = totals[min(len(own) - 1, int(0.95 * len(own)))]
    return Answers(by, len(own), sum(trace.degraded for trace in own), statistics.median(totals), p95_s)
