"""One request, step by step: of the simulator's, which meets no other, or of a measured one; and what its parts add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from cluster.topology import Topology
from splitinfer.plans import Plan
from splitinfer.profiles import Profile
from splitinfer.simulator.fleet import paths
from splitinfer.simulator.steps import Parallel, Program, Step, Transfer
from splitinfer.simulator.work import Work
from splitinfer.tracing import Trace

PARTS = ("compute", "exchange", "coding", "wire", "transfer", "return", "framework")
"""What a latency is made of; coding is encoding and decoding."""
_PART_OF = {"waking": "compute", "encode": "coding", "decode": "coding"}
_SENDS = ("wire", "transfer", "return")


@dataclass(frozen=True)
class Bar:
    """One piece of work."""

    lane: str
    """A tier, or who sends over which link."""
    kind: str
    """One of PARTS, or waking, encode or decode."""
    start_s: float
    """From the request's arrival."""
    seconds: float
    nbytes: float = 0.0
    """On the wire."""


@dataclass(frozen=True)
class Request:
    """The bars of one request, and the sums that tables compare."""

    bars: tuple[Bar, ...]
    latency_s: float
    parts: Mapping[str, float]
    """Part -> seconds; they add up to the latency."""
    up_nbytes: float
    rest_s: float | None
    """Without wire, return and stretch: the work that an emulation really does; None where they overlap."""

    @cached_property
    def lanes(self) -> tuple[str, ...]:
        """In the order in which the request meets them."""
        return tuple(dict.fromkeys(bar.lane for bar in self.bars))


def idle_request(plan: Plan, profile: Profile, topology: Topology) -> Request:
    """What the simulator's programs do where nothing waits. Raises PlanError or ProfileError for a plan that it does not take."""
    program = Work(plan, profile, topology).expected()
    return _Walk(topology, plan.tiers[0]).request(program)


def measured_request(trace: Trace) -> Request:
    """The same of a trace; what no span covers is the framework's."""
    start_s = min((span.start_s for span in trace.spans), default=0.0)
    bars = tuple(
        Bar(f"{span.tier} sends" if span.kind in _SENDS else span.tier, span.kind, span.start_s - start_s, span.seconds, span.nbytes)
        for span in sorted(trace.spans, key=lambda span: span.start_s)
    )
    parts = _sums(bars) | {"framework": trace.framework_s}
    return Request(bars, trace.total_s, parts, trace.nbytes(), trace.total_s - trace.slept_s)


def _sums(bars: Sequence[Bar]) -> dict[str, float]:
    sums = dict.fromkeys(PARTS, 0.0)
    for bar in bars:
        sums[_PART_OF.get(bar.kind, bar.kind)] += bar.seconds
    return sums


class _Walk:
    """Lays the steps of a program out in time, each after the one before."""

    def __init__(self, topology: Topology, first: str) -> None:
        self.links, self.first = paths(topology), first
        # Slower tiers stretch their work only where the machines are emulated.
        self.stretch = {tier.name: tier.compute.factor or 1.0 for tier in topology.tiers if topology.emulated}

    def request(self, program: Program) -> Request:
        """All of it."""
        bars = [Bar(self.first, "framework", 0.0, program.delay_s)] if program.delay_s else []
        parts, now_s = _sums(bars), program.delay_s
        for step in program.steps:
            found, end_s = self.step(step, now_s)
            for part, seconds in (_group(found, end_s - now_s) if isinstance(step, Parallel) else _sums(found)).items():
                parts[part] += seconds
            bars += found
            now_s = end_s
        apart = not any(isinstance(step, Parallel) for step in program.steps)
        rest_s = sum(self._worked_s(bar) for bar in bars) if apart else None
        up = sum(bar.nbytes for bar in bars if bar.kind == "wire")
        return Request(tuple(bar for bar in bars if bar.seconds > 0), now_s, parts, up, rest_s)

    def step(self, step: Step, now_s: float) -> tuple[list[Bar], float]:
        """Its bars, and when it ends."""
        if isinstance(step, Parallel):
            return self._parallel(step, now_s)
        if isinstance(step, Transfer):
            made = [self._transfer(step, now_s)]
        else:
            made = []
            for kind, seconds in (("waking", step.wake_s), ("coding", step.coding_s), ("compute", step.layers_s)):
                made.append(Bar(step.resource, kind, made[-1].start_s + made[-1].seconds if made else now_s, seconds))
        end_s = made[-1].start_s + made[-1].seconds
        return [*made, Bar(made[-1].lane, "framework", end_s, step.after_s)], end_s + step.after_s

    def _parallel(self, step: Parallel, now_s: float) -> tuple[list[Bar], float]:
        bars, ends_s = [], [now_s]
        for branch in step.branches:
            at_s = now_s
            for inner in branch:
                found, at_s = self.step(inner, at_s)
                bars += found
            ends_s.append(at_s)
        return bars, max(ends_s)

    def _transfer(self, step: Transfer, now_s: float) -> Bar:
        link, way = self.links[step.resource]
        rate = link.up_bytes_per_s if way == "up" else link.down_bytes_per_s
        seconds = step.nbytes / rate + step.held_s + step.share * link.latency_s
        one, two = link.between if way == "up" else link.between[::-1]
        return Bar(f"{one} → {two}", "wire" if way == "up" else "return", now_s, seconds, step.nbytes)

    def _worked_s(self, bar: Bar) -> float:
        return 0.0 if bar.kind in _SENDS else bar.seconds / (1.0 if bar.kind == "framework" else self.stretch.get(bar.lane, 1.0))


def _group(bars: Sequence[Bar], elapsed_s: float) -> dict[str, float]:
    """Machines that share layers compute at the same time, the rest is exchange; pieces of a tensor are one transfer."""
    computing: dict[str, float] = {}
    for bar in bars:
        if bar.kind == "compute" and bar.seconds:
            computing[bar.lane] = computing.get(bar.lane, 0.0) + bar.seconds
    if not computing:
        return {"transfer": elapsed_s}
    longest = max(computing.values())
    return {"compute": longest, "exchange": elapsed_s - longest}
