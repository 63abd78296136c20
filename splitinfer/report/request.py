"""One request, step by step: of the simulator's, which meets no other, or of a measured one; and what its parts add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from cluster.topology import Topology
from splitinfer.plans import Plan
from splitinfer.profiles import Profile
from splitinfer.simulator.steps import HELD, Compute, Parallel, Program, Transfer
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

    @property
    def end_s(self) -> float:
        """When it was over."""
        return self.start_s + self.seconds


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
    return laid_out(Work(plan, profile, topology).expected(), topology, plan.tiers[0])


def laid_out(program: Program, topology: Topology, first: str) -> Request:
    """A program's steps in time; it begins on the tier `first`."""
    return _Walk(topology, first).request(program)


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
        self.first, self.ways, self.shared = first, _ways(topology), _shared_ways(topology)
        # Slower tiers stretch their work only where the machines are emulated.
        self.stretch = {tier.name: tier.compute.factor or 1.0 for tier in topology.tiers if topology.emulated}
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.overlaps = False
        self._free_s: dict[str, float] = {}

    def request(self, program: Program) -> Request:
        """All of it."""
        bars = [Bar(self.first, "framework", 0.0, program.delay_s)]
        self._book(_sums(bars))
        for step in program.steps:
            bars += self._step(step, bars[-1].end_s) if not isinstance(step, Parallel) else self._group(step, bars[-1].end_s, self.first)
        rest_s = None if self.overlaps else sum(self._worked_s(bar) for bar in bars)
        up = sum(bar.nbytes for bar in bars if bar.kind == "wire")
        return Request(tuple(bar for bar in bars if bar.seconds > 0), bars[-1].end_s, self.parts, up, rest_s)

    def _step(self, step: Compute | Transfer, now_s: float) -> list[Bar]:
        """Its bars, booked; the last one ends when the step does."""
        bars = [self._transfer(step, now_s)] if isinstance(step, Transfer) else self._compute(step, now_s, step.resource)
        self._book(_sums(bars))
        for group in step.groups if isinstance(step, Compute) else ():
            bars += self._group(group, bars[-1].end_s, step.resource)
        after = Bar(bars[-1].lane, "framework", bars[-1].end_s, step.after_s)
        self._book(_sums([after]))
        return [*bars, after]

    def _group(self, group: Parallel, now_s: float, host: str) -> list[Bar]:
        """Several at once, booked as a whole; a bar of no length ends them."""
        self.overlaps = True
        bars, end_s = self._branches(group, now_s, host)
        self._book(_group_parts(bars, end_s - now_s))
        return [*bars, Bar(host, "framework", end_s, 0.0)]

    def _branches(self, group: Parallel, now_s: float, host: str) -> tuple[list[Bar], float]:
        bars: list[Bar] = []
        end_s = now_s
        for branch in group.branches:
            at_s = now_s
            for step in branch:
                if isinstance(step, Parallel):
                    found, at_s = self._branches(step, at_s, host)
                else:
                    found = [self._transfer(step, at_s)] if isinstance(step, Transfer) else self._compute(step, at_s, host)
                    at_s = found[-1].end_s + step.after_s
                bars += found
            end_s = max(end_s, at_s)
        return bars, end_s

    def _compute(self, step: Compute, now_s: float, host: str) -> list[Bar]:
        """`host`: whose machine it is that the stage holds already."""
        lane = host if step.resource == HELD else step.resource
        bars: list[Bar] = []
        start_s = now_s if step.resource == HELD else max(now_s, self._free_s.get(lane, 0.0))
        for kind, seconds in (("waking", step.wake_s), ("coding", step.coding_s), ("compute", step.layers_s)):
            bars.append(Bar(lane, kind, bars[-1].end_s if bars else start_s, seconds))
        self._free_s[lane] = bars[-1].end_s
        return bars

    def _transfer(self, step: Transfer, now_s: float) -> Bar:
        """Its bar, latency included. Pieces of one tensor follow each other over the same wires, in their order."""
        between, own, _ = step.resource.partition("/")  # "/layers": not the link that packets take
        kind, rate, latency_s = self.shared[between] if own or between not in self.ways else self.ways[between]
        start_s = max(now_s, self._free_s.get(step.resource, 0.0))
        held_s = step.nbytes / rate + step.held_s
        self._free_s[step.resource] = start_s + held_s
        return Bar(between.replace(":", " → "), kind, start_s, held_s + step.share * latency_s, step.nbytes)

    def _book(self, parts: Mapping[str, float]) -> None:
        for part, seconds in parts.items():
            self.parts[part] += seconds

    def _worked_s(self, bar: Bar) -> float:
        return 0.0 if bar.kind in _SENDS else bar.seconds / (1.0 if bar.kind == "framework" else self.stretch.get(bar.lane, 1.0))


def _ways(topology: Topology) -> dict[str, tuple[str, float, float]]:
    """``from:to`` -> what packets on it are, bytes per second, and latency."""
    specs = [(*spec.between, spec) for spec in (*topology.links, *filter(None, [topology.direct]))]
    up = {f"{low}:{high}": ("wire", spec.up_bytes_per_s, spec.latency_s) for low, high, spec in specs}
    return up | {f"{high}:{low}": ("return", spec.down_bytes_per_s, spec.latency_s) for low, high, spec in specs}


def _shared_ways(topology: Topology) -> dict[str, tuple[str, float, float]]:
    """The same between a tier and the machines that share its layers."""
    found = [(tier.name, peer) for tier in topology.tiers for peer in topology.peers(tier.name)]
    out = {f"{tier}:{peer.name}": ("exchange", peer.up_bytes_per_s, peer.latency_s) for tier, peer in found}
    return out | {f"{peer.name}:{tier}": ("exchange", peer.down_bytes_per_s, peer.latency_s) for tier, peer in found}


def _group_parts(bars: Sequence[Bar], elapsed_s: float) -> dict[str, float]:
    """Machines that share layers compute at the same time, the rest is exchange; pieces of a tensor are one transfer."""
    computing: dict[str, float] = {}
    for bar in bars:
        if bar.kind == "compute" and bar.seconds:
            computing[bar.lane] = computing.get(bar.lane, 0.0) + bar.seconds
    if not computing:
        return {"transfer": elapsed_s}
    longest = max(computing.values())
    return {"compute": longest, "exchange": elapsed_s - longest}
