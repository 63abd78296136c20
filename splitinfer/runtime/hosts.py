"""A plan on a testbed of real hosts: its latency beside the prediction, the bytes on the interfaces beside the plan's.

The links are real there, so no span covers the wire: what a request spends between its stages is one figure, and is laid
beside the predicted wire, return and calls together.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm

from cluster.testbed import Testbed
from splitinfer.graph import Graph
from splitinfer.pipeline import Pipeline
from splitinfer.plans import Cost, Plan
from splitinfer.runtime.deploy import RayPipeline, deploy
from splitinfer.tracing import Trace

WARM_UP = 3
"""Requests before those that count."""
_GAP_S = 0.1  # between an answer and the next request: each meets idle machines, which is what a latency is of
_BETWEEN = "wire, return, calls"
_WORK = ("compute", "encode", "decode")
Direction = tuple[str, str]


@dataclass(frozen=True)
class Crossed:
    """What crossed one link in one direction."""

    source: str
    target: str
    counted_nbytes: float
    """Per request, on the sending interface, idle traffic subtracted."""
    idle_bytes_per_s: float
    """What Ray's nodes say to each other while nobody asks anything."""
    packet_nbytes: float | None
    """Per request in the packets of the plan, as the in-process pipeline weighs them; None on the way back."""
    shaping: str
    late_s: float
    """How late the relay delivered at worst."""


@dataclass(frozen=True)
class HostsReport:
    """Requests on a testbed, beside the plan."""

    requests: int
    latency_s: dict[str, float]
    """mean, p50, p95."""
    measured_s: dict[str, float]
    """Medians: compute, encode, decode, and all that lies between the stages."""
    predicted_s: dict[str, float]
    """The same by the plan, and the latency; empty for a plan made by hand."""
    links: tuple[Crossed, ...]
    up_nbytes: float
    """Counted towards the cloud, per request."""
    predicted_up_nbytes: float | None
    down_nbytes: float
    predicted_down_nbytes: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [[kind, _ms(self.measured_s[kind]), _ms(self.predicted_s.get(kind))] for kind in self.measured_s]
        rows.append(["latency", _ms(self.latency_s["p50"]), _ms(self.predicted_s.get("latency"))])
        times = tabulate(rows, ["", "measured ms", "predicted ms"], disable_numparse=True, colalign=("left", "right", "right"))
        head = ["link", "packets", "on the interface", "idle bytes/s", "shaped by", "late at worst"]
        aligned = ("left", "right", "right", "right", "left", "right")
        links = tabulate([_row(link) for link in self.links], head, disable_numparse=True, colalign=aligned)
        return "\n".join([
            f"{self.requests} requests, p95 {self.latency_s['p95'] * 1e3:.2f} ms; bytes up each: plan {_bytes(self.predicted_up_nbytes)}, "
            f"interfaces {self.up_nbytes:,.0f}; down: plan {_bytes(self.predicted_down_nbytes)}, interfaces {self.down_nbytes:,.0f}",
            "", times, "", links,
        ])  # fmt: skip


def run_on_testbed(
    graph: Graph, plan: Plan, testbed: Testbed, requests: int, *, progress: bool = False, idle_s: float = 3.0
) -> HostsReport:
    """Deploy a plan on a testbed whose driver this process is, send the sample `requests` times, one after the other."""
    torch.set_num_threads(testbed.topology.tier(plan.tiers[0]).threads)  # this process stands for the first tier
    testbed.follow(plan.tiers)
    with contextlib.ExitStack() as stack:
        with testbed.opened():
            pipeline = stack.enter_context(deploy(graph, plan, testbed.topology, paced=False))
        one_by_one(pipeline, WARM_UP)
        idle = _rates(testbed, idle_s)
        for wire in testbed.wires:
            wire.reset_lateness()
        before, start_s = testbed.counters(), time.monotonic()
        traces = one_by_one(pipeline, requests, progress=progress)
        elapsed_s, after = time.monotonic() - start_s, testbed.counters()
    counted = {way: max(0.0, after[way] - before[way] - idle[way] * elapsed_s) / requests for way in after}
    return _report(plan, traces, _crossed(testbed, counted, idle, packet_nbytes(graph, plan)))


def packet_nbytes(graph: Graph, plan: Plan) -> dict[Direction, float]:
    """Bytes of the packets that a request sends over each link upwards."""
    args, kwargs = graph.example
    _, trace = Pipeline.local(graph, plan).traced(*args, **kwargs)
    sent: dict[str, int] = {}
    for span in trace.spans:
        if span.nbytes:
            sent[span.stage] = sent.get(span.stage, 0) + span.nbytes
    line = list(plan.tiers)
    places = [0, *(line.index(stage.tier) for stage in plan.stages)]
    hops = [(one, two) for one, two in itertools.pairwise(places) if one != two]
    found: dict[Direction, float] = {}
    for (one, two), nbytes in zip(hops, sent.values(), strict=False):  # an early exit may have spared the last hops
        for place in range(one, two):
            found[line[place], line[place + 1]] = nbytes / (two - one)
    return found


def one_by_one(pipeline: RayPipeline, requests: int, *, progress: bool = False) -> list[Trace]:
    """Traces of the sample sent again and again, each after the answer to the one before and a pause."""
    args, kwargs = pipeline.graph.example
    traces = []
    for _ in tqdm(range(requests), desc="requests", disable=not progress, leave=False):
        time.sleep(_GAP_S)
        traces.append(pipeline.traced(*args, **kwargs)[1])
    return traces


def _rates(testbed: Testbed, seconds: float) -> dict[Direction, float]:
    before, start_s = testbed.counters(), time.monotonic()
    time.sleep(seconds)
    after, elapsed_s = testbed.counters(), time.monotonic() - start_s
    return {way: (after[way] - before[way]) / elapsed_s for way in after}


def _crossed(
    testbed: Testbed, counted: Mapping[Direction, float], idle: Mapping[Direction, float], packets: Mapping[Direction, float]
) -> tuple[Crossed, ...]:
    rows = []
    for wire in testbed.wires:
        low, high = wire.between
        for way, expected in (((low, high), packets.get((low, high), 0.0)), ((high, low), None)):
            rows.append(Crossed(*way, counted[way], idle[way], expected, wire.shaping, wire.worst_late_s))
    return tuple(rows)


def _report(plan: Plan, traces: Sequence[Trace], links: tuple[Crossed, ...]) -> HostsReport:
    totals = sorted(trace.total_s for trace in traces)
    measured = {kind: statistics.median(trace.seconds(kind) for trace in traces) for kind in _WORK}
    measured[_BETWEEN] = statistics.median(trace.total_s - sum(trace.seconds(kind) for kind in _WORK) for trace in traces)
    return HostsReport(
        len(traces),
        {"mean": statistics.fmean(totals), "p50": statistics.median(totals), "p95": totals[min(len(totals) - 1, int(0.95 * len(totals)))]},
        measured, _predicted(plan.cost), links,
        sum(link.counted_nbytes for link in links if link.packet_nbytes is not None), plan.cost.up_nbytes if plan.cost else None,
        sum(link.counted_nbytes for link in links if link.packet_nbytes is None), plan.cost.return_nbytes if plan.cost else None,
    )  # fmt: skip


def _predicted(cost: Cost | None) -> dict[str, float]:
    if cost is None:
        return {}
    work = {kind: float(getattr(cost, f"{kind}_s")) for kind in _WORK}
    return work | {_BETWEEN: cost.latency_s - sum(work.values()), "latency": cost.latency_s}


def _row(link: Crossed) -> list[str]:
    late = _ms(link.late_s) + " ms" if link.shaping == "relay" else "-"
    return [f"{link.source} -> {link.target}", _bytes(link.packet_nbytes), f"{link.counted_nbytes:,.0f}", f"{link.idle_bytes_per_s:,.0f}",
            link.shaping, late]  # fmt: skip


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f}"


def _bytes(nbytes: float | None) -> str:
    return "-" if nbytes is None else f"{nbytes:,.0f}"
