"""Profiles from the tiers' own Ray nodes, and what a call between stages costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import psutil
import ray
import torch
from ray.exceptions import RayError
from torch import Tensor, nn
from tqdm import tqdm

from cluster.launch import TIER_LABEL, LocalCluster
from cluster.topology import Compute, LinkSpec, TierSpec, Topology
from splitinfer import codecs
from splitinfer.codecs.packet import Frame, Limits
from splitinfer.errors import DeployError
from splitinfer.graph import Graph
from splitinfer.importer import capture
from splitinfer.plans import Plan
from splitinfer.profiles import Framework, Measurement
from splitinfer.runtime.deploy import deploy
from splitinfer.stagefile import dump_stage, load_stage
from splitinfer.stages import Stage
from splitinfer.stopwatch import Sent, measure
from splitinfer.tracing import Trace

_LIMITS = Limits(packet_nbytes=1 << 40, tensor_nbytes=1 << 38, held_nbytes=1 << 40)  # our own samples
_TIMEOUT_S = 900.0
Measured = tuple[Measurement, Sent]


def _measure_here(data: bytes, inputs: Sequence[tuple[str, str, bytes]], sizes: Mapping[str, Any], settings: Mapping[str, Any]) -> Measured:
    """Runs in a process on the tier's node."""
    wait_for_calm()
    stage = load_stage(data, settings["device"])
    tensors = {name: Frame(name, codec, (blob,)).decode(_LIMITS, copy=True) for name, codec, blob in inputs}
    return measure(stage, tensors, sizes, **settings)


def measure_tiers(
    stage: Stage, tensors: Mapping[str, Tensor], sizes: Mapping[str, Any], topology: Topology, cluster: LocalCluster | None,
    settings: Mapping[str, Any], *, progress: bool,
) -> tuple[list[Measured], Framework]:  # fmt: skip
    """Measure a stage once for each node, device and number of threads that the topology names. Raises DeployError."""
    if cluster is None and not ray.is_initialized():
        with LocalCluster([tier.name for tier in topology.tiers]) as started:
            return measure_tiers(stage, tensors, sizes, topology, started, settings, progress=progress)
    raw = codecs.get("raw")
    inputs = [(name, raw.name, raw.encode(tensor)) for name, tensor in tensors.items()]
    data = ray.put(dump_stage(stage))
    measured: list[Measured] = []
    groups = _groups(topology)
    for key, tier in tqdm(groups.items(), desc="measuring machines", disable=not progress, leave=False):
        label = dict(tier.node) if tier.node else {TIER_LABEL: topology.tiers[-1].name}
        here = {**settings, "device": tier.device, "threads": tier.threads, "tier": key[0]}
        run = cast("Any", ray.remote(num_cpus=0, max_calls=1)(_measure_here)).options(label_selector=label)
        try:
            measured.append(ray.get(run.remote(data, inputs, sizes, here), timeout=_TIMEOUT_S))
        except RayError as error:
            raise DeployError(f"measuring for tier '{tier.name}' failed: {str(error).strip().splitlines()[-1]}") from error
    return measured, measure_framework(topology, cluster)


def wait_for_calm(limit_s: float = 10.0) -> None:
    """Wait until other processes leave most of one processor free: workers that Ray has just started still import."""
    end = time.monotonic() + limit_s
    while psutil.cpu_percent(_CALM_WINDOW_S) > _CALM_PERCENT and time.monotonic() < end:
        pass


_CALM_WINDOW_S, _CALM_PERCENT = 0.3, 25.0


def _groups(topology: Topology) -> dict[tuple[str | None, str, int], TierSpec]:
    """One tier to measure for each machine, device and number of threads; tiers without a node share this machine."""
    groups: dict[tuple[str | None, str, int], TierSpec] = {}
    for tier in topology.tiers:
        if tier.compute.preset is None or tier.node:
            groups.setdefault((tier.name if tier.node else None, tier.device, tier.threads), tier)
    if not groups:  # presets only: codec times still need one measurement
        tier = replace(topology.tiers[0], compute=Compute())
        groups[None, "cpu", tier.threads] = tier
    return groups


class _Add(nn.Module):
    """One addition per stage: as good as nothing beside the call."""

    def __init__(self, stages: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.LeakyReLU() for _ in range(stages))

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x.flatten()[:1]


_SMALL, _LARGE = 256, 1 << 18  # floats: 1 KB and 1 MB
_ROUNDS = 40


def measure_framework(topology: Topology, cluster: LocalCluster | None) -> Framework:
    """Deploy stages that do nothing, and see what a call costs: per stage, and per byte.

    The links have a latency and no limit of rate: between two hops a process waits, as it does over a real link, and
    is as slow to wake. How late the paced links wake counts as framework too.
    """
    names = [tier.name for tier in topology.tiers]
    bare = [replace(tier, compute=Compute()) for tier in topology.tiers]
    links = [replace(link, up_bytes_per_s=_UNLIMITED, down_bytes_per_s=_UNLIMITED, latency_s=_LATENCY_S) for link in topology.links]
    unpaced = Topology(tuple(bare), cast("tuple[LinkSpec, ...]", tuple(links)))
    graph = capture(_Add(len(names)).eval(), (torch.zeros(1, _SMALL),), dynamic_shapes={"x": {1: torch.export.Dim("n", min=2)}})
    plan = Plan.by_hand(graph, _split(graph, len(names)), names)
    with deploy(graph, plan, unpaced, cluster=cluster) as pipeline:
        wait_for_calm()
        small, large = (_typical(pipeline, torch.zeros(1, count)) for count in (_SMALL, _LARGE))
    nbytes = 4 * (_LARGE - _SMALL) * len(names)
    return Framework(call_s=small / len(names), s_per_byte=max(0.0, (large - small) / nbytes), measured=True)


_UNLIMITED = 1e15
_LATENCY_S = 0.01


def _split(graph: Graph, count: int) -> list[list[str]]:
    """One step per stage; what follows the last step stays with it."""
    layers = list(graph.layers)
    return [[layer] for layer in layers[: count - 1]] + [layers[count - 1 :]]


def _typical(pipeline: Any, x: Tensor) -> float:
    for _ in range(5):
        pipeline(x)
    return statistics.median(_beside_work(pipeline.traced(x)[1]) for _ in range(_ROUNDS))


def _beside_work(trace: Trace) -> float:
    return trace.framework_s + sum(span.seconds - span.slept_s for span in trace.spans if span.kind in ("wire", "return"))
