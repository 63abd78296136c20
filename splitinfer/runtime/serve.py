"""Run requests through a plan on Ray and lay the measurement beside the prediction."""

from __future__ import annotations

import statistics
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
from splitinfer.graph import Graph
from splitinfer.plans import Plan
from splitinfer.runtime.deploy import RayPipeline, deploy
from splitinfer.tracing import KINDS, Trace


@dataclass(frozen=True)
class RunReport:
    """What some requests took, beside what the plan predicted."""

    requests: int
    latency_s: dict[str, float]
    """mean, p50, p95."""
    throughput_per_s: float
    breakdown_s: dict[str, float]
    """Median seconds by kind of work."""
    predicted_s: dict[str, float]
    """The same by the plan; empty for a plan made by hand."""
    up_nbytes: float
    predicted_up_nbytes: float | None
    slept_share: float
    """Share of the latency that was declared sleep: paced links and stretched work."""
    links: tuple[str, ...]
    """What each paced link says of its rate."""
    traces: tuple[Trace, ...] = ()
    """The requests themselves."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; without the traces."""
        return {key: value for key, value in asdict(replace(self, traces=())).items() if key != "traces"}

    def __str__(self) -> str:
        rows = [
            [kind, f"{seconds * 1e3:.2f}", f"{self.predicted_s[kind] * 1e3:.2f}" if self.predicted_s else "-"]
            for kind, seconds in (self.breakdown_s | {"latency": self.latency_s["p50"]}).items()
        ]
        table = tabulate(rows, ["", "measured ms", "predicted ms"], disable_numparse=True, colalign=("left", "right", "right"))
        predicted = f" (predicted {self.predicted_up_nbytes:,.0f})" if self.predicted_up_nbytes is not None else ""
        return "\n".join([
            f"{self.requests} requests, {self.throughput_per_s:.2f} per second, p95 {self.latency_s['p95'] * 1e3:.2f} ms; "
            f"{self.up_nbytes:,.0f} bytes up each{predicted}; {self.slept_share:.0%} of the latency is declared sleep",
            "", table, *(["", *self.links] if self.links else []),
        ])  # fmt: skip


def run_requests(
    graph: Graph, plan: Plan, topology: Topology, requests: int, in_flight: int = 1, *, progress: bool = False, warm_up: int = 2
) -> RunReport:
    """Deploy a plan, send the sample `requests` times with `in_flight` under way at once, and stop."""
    torch.set_num_threads(topology.tier(plan.tiers[0]).threads)  # this process stands for the first tier
    with deploy(graph, plan, topology) as pipeline:
        args, kwargs = graph.example
        for _ in range(warm_up):
            pipeline(*args, **kwargs)
        start = time.perf_counter()
        traces = _send(pipeline, requests, in_flight, progress)
        elapsed = time.perf_counter() - start
        links = tuple(line for stage in pipeline.info() for line in stage["links"])
    return report(plan, traces, elapsed, links)


def _send(pipeline: RayPipeline, requests: int, in_flight: int, progress: bool) -> list[Trace]:
    args, kwargs = pipeline.graph.example
    pending: deque[Future[tuple[Any, Trace]]] = deque()
    traces = []
    for _ in tqdm(range(requests), desc="requests", disable=not progress, leave=False):
        if len(pending) == in_flight:
            traces.append(pending.popleft().result()[1])
        pending.append(pipeline.start(*args, **kwargs))
    return traces + [future.result()[1] for future in pending]


def report(plan: Plan, traces: Sequence[Trace], elapsed_s: float, links: tuple[str, ...] = ()) -> RunReport:
    """Medians over the traces, beside the plan's prediction."""
    totals = sorted(trace.total_s for trace in traces)
    parts = [trace.breakdown() for trace in traces]
    predicted = {}
    if plan.cost is not None:
        predicted = {kind: getattr(plan.cost, f"{kind}_s") for kind in (*KINDS, "framework", "latency")}
    return RunReport(
        len(traces),
        {"mean": statistics.fmean(totals), "p50": statistics.median(totals), "p95": totals[min(len(totals) - 1, int(0.95 * len(totals)))]},
        len(traces) / elapsed_s,
        {kind: statistics.median(part[kind] for part in parts) for kind in parts[0]},
        predicted,
        statistics.fmean(trace.nbytes() for trace in traces),
        plan.cost.up_nbytes if plan.cost else None,
        statistics.median(trace.slept_s / trace.total_s for trace in traces),
        links,
        tuple(traces),
    )
