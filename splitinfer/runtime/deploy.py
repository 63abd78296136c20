"""A plan on Ray: one actor per stage on its tier's node, behind the call of the whole model."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any, cast

import msgpack
import numpy as np
import ray
from ray.exceptions import RayError

from cluster.launch import TIER_LABEL, LocalCluster
from cluster.topology import TierSpec, Topology
from cluster.units import format_bytes
from splitinfer.codecs.packet import Kind, Limits, Packet
from splitinfer.errors import DeployError, PlanError, Regrouped, WorkerLost
from splitinfer.graph import Graph
from splitinfer.groups import HOST
from splitinfer.memory import keep_freed_memory
from splitinfer.parts import dump_parts, weight_nbytes
from splitinfer.pipeline import DEFAULT_TIMEOUT_S, Pipeline, Request
from splitinfer.plans import Plan
from splitinfer.runtime.actor import Sender, StageActor, StageConfig, call_stage
from splitinfer.runtime.errors import raised
from splitinfer.runtime.group import Group
from splitinfer.runtime.worker import Rate
from splitinfer.tracing import Trace, unpack_spans

_START_TIMEOUT_S = 120.0  # a worker that imports torch needs 3 to 10 s on a busy machine


def deploy(
    graph: Graph,
    plan: Plan,
    topology: Topology,
    *,
    cluster: LocalCluster | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    paced: bool = True,
) -> RayPipeline:
    """Start the stages of a plan; a context manager that gives a Pipeline and leaves no process behind.

    Tiers whose topology names no node are emulated on this machine: declared links are paced, slower tiers stretch
    their measured work. With no `cluster` and no connection to Ray, a LocalCluster is started and stopped with it.
    `timeout_s` is each request's deadline. `paced` False leaves the links alone where real ones have the declared rates, as in
    a testbed; slower tiers still stretch their work. Raises PlanError or DeployError, before anything is started where possible.
    """
    return RayPipeline(graph, plan, topology, cluster=cluster, timeout_s=timeout_s, limits=limits, paced=paced)


class RayPipeline(Pipeline):
    """The stages as Ray actors. Enter it before calling it."""

    def __init__(
        self, graph: Graph, plan: Plan, topology: Topology, *, cluster: LocalCluster | None, timeout_s: float, limits: Limits,
        paced: bool = True,
    ) -> None:  # fmt: skip
        self.topology, self.limits = topology, limits
        tiers = [_tier(topology, stage.tier) for stage in plan.stages]
        self.emulated = topology.emulated
        self.paced = paced and self.emulated
        super().__init__(graph, plan, slowdown=_slowdown(_tier(topology, plan.tiers[0]), self.emulated), timeout_s=timeout_s)
        for tier, parts, planned in zip(tiers, self.stages, plan.stages, strict=True):
            held = weight_nbytes(parts)
            if tier.memory_bytes is not None and held > tier.memory_bytes:
                raise DeployError(
                    f"stage '{planned.name}' holds {format_bytes(held)} of weights; '{tier.name}' allows "
                    f"{format_bytes(tier.memory_bytes)}. Plan again, or raise memory of tier '{tier.name}'."
                )
        self.groups = {
            place: Group(graph, planned, tier, topology.peers(tier.name), parts)
            for place, (planned, tier, parts) in enumerate(zip(plan.stages, tiers, self.stages, strict=True))
            if planned.blocks
        }
        self.configs = self._configs(tiers)
        self.actors: list[Any] = []
        self._cluster = cluster
        self._exit = contextlib.ExitStack()
        self._one_at_a_time = asyncio.Lock()
        self._sharing = threading.Lock()

    # -- what each actor is told

    def _configs(self, tiers: Sequence[TierSpec]) -> list[StageConfig]:
        names = [self.plan.tiers[0], *(stage.tier for stage in self.plan.stages)]
        hops = [self._rates(one, two) for one, two in itertools.pairwise(names)]
        last = len(tiers) - 1
        return [
            StageConfig(
                self.plan.stages[index].name, tier.name, self.routes[index], index == last, tier.device, tier.threads,
                _slowdown(tier, self.emulated),
                up=hops[index + 1][0] if index < last else (), down=hops[index][1], limits=self.limits,
                group=self.groups[index].config(HOST, self.paced) if index in self.groups else None,
            )
            for index, tier in enumerate(tiers)
        ]

    def _rates(self, one: str, two: str) -> tuple[tuple[Rate, ...], tuple[Rate, ...]]:
        """The emulated links between two tiers of the plan's line, up and down, in the order of travel."""
        if not self.paced or one == two:
            return (), ()
        line = list(self.plan.tiers)
        start, end = line.index(one), line.index(two)
        specs = [self.topology.link(a, b) for a, b in zip(line[start:end], line[start + 1 : end + 1], strict=True)]
        up = tuple((spec.up_bytes_per_s, spec.latency_s) for spec in specs)
        return up, tuple((spec.down_bytes_per_s, spec.latency_s) for spec in reversed(specs))

    # -- life

    def __enter__(self) -> RayPipeline:
        """Start the actors. Raises DeployError where one cannot be placed or started."""
        try:
            self._start()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the actors, and the cluster where it was started here."""
        self._exit.close()

    def _start(self) -> None:
        keep_freed_memory()  # this process encodes the inputs
        if self._cluster is None and not ray.is_initialized():
            self._cluster = self._exit.enter_context(LocalCluster([tier.name for tier in self.topology.tiers]))
        self._place()
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="splitinfer-requests", daemon=True)
        thread.start()
        self._exit.callback(self._stop_loop, thread)
        first = self.plan.stages[0].tier
        rates = self._rates(self.plan.tiers[0], first)[0]
        self._up = Sender(rates, "source", self.plan.tiers[0], "wire")

    def _place(self) -> None:
        factory = cast("Any", ray.remote(StageActor))
        self._exit.callback(self._kill)
        labels = [self._labels(config.tier) for config in self.configs]
        _check_nodes(labels)
        for config, label in zip(self.configs, labels, strict=True):
            self.actors.append(factory.options(num_cpus=0, label_selector=label, max_concurrency=1000).remote(config))
        try:
            self.started = self._load()
            for actor, following in zip(self.actors, self.actors[1:], strict=False):
                ray.get(actor.connect.remote(following), timeout=_START_TIMEOUT_S)
        except RayError as error:
            raise DeployError(f"a stage did not start: {str(error).strip().splitlines()[-1]}") from error

    def _load(self) -> list[dict[str, Any]]:
        """Give every actor its stage. An array is read where it lies in the object store; bytes would leave copies on the heap."""
        waiting = {}
        for place, (actor, parts) in enumerate(zip(self.actors, self.stages, strict=True)):
            if place not in self.groups:
                data, files = dump_parts(parts, {})
                waiting[place] = actor.load.remote(data, *(ray.put(np.frombuffer(file, np.uint8)) for file in files))
        for place, group in self.groups.items():
            slowdowns = {worker: _slowdown(group.peers[worker - 1].machine, self.emulated) for worker in group.used}
            group.start({worker: self._peer_labels(group, worker) for worker in group.used}, slowdowns, self.limits, self.paced)
            group.join(self.actors[place])
            waiting[place] = ray.put(group.load(self.actors[place]))
        started: list[dict[str, Any]] = ray.get([waiting[place] for place in sorted(waiting)], timeout=_START_TIMEOUT_S)
        return started

    def _peer_labels(self, group: Group, worker: int) -> dict[str, str]:
        """Where a peer runs: on its own node, on that of the tier whose machine it is, or emulated beside its host."""
        machine = group.peers[worker - 1].machine
        if machine.node:
            return dict(machine.node)
        tiers = [tier.name for tier in self.topology.tiers]
        return self._labels(machine.name if machine.name in tiers else group.tier.name)

    def _labels(self, tier: str) -> dict[str, str]:
        node = self.topology.tier(tier).node
        return dict(node) if node else {TIER_LABEL: tier}

    def _kill(self) -> None:
        for actor in [*self.actors, *(worker for group in self.groups.values() for worker in group.workers.values())]:
            with contextlib.suppress(RayError, ValueError):
                ray.kill(actor)
        self.actors.clear()

    def _stop_loop(self, thread: threading.Thread) -> None:
        async def cancel() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(cancel(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        thread.join(timeout=10)
        self._loop.close()

    def info(self) -> list[dict[str, Any]]:
        """Process, threads, memory and link report of each stage."""
        found: list[dict[str, Any]] = ray.get([actor.info.remote() for actor in self.actors], timeout=self.timeout_s)
        return found

    # -- requests

    def _submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[tuple[Any, Trace]]:
        if not self.actors:
            raise DeployError("the stages are not running; use the pipeline inside its 'with' block")
        start = time.perf_counter()
        future: Future[tuple[Any, Trace]]
        try:
            request = self._request(args, kwargs)
        except Exception as error:  # a future carries whatever went wrong to its owner
            future = Future()
            future.set_exception(error)
            return future
        return asyncio.run_coroutine_threadsafe(self._ordered(request, start), self._loop)

    async def _ordered(self, request: Request, start: float) -> tuple[Any, Trace]:
        if not self.plan.stateful:
            return await self._exchange(request, start)
        async with self._one_at_a_time:  # the answer depends on the calls before
            return await self._exchange(request, start)

    async def _exchange(self, request: Request, start: float) -> tuple[Any, Trace]:
        """One request, tried again where a machine that shares a stage's layers was lost: what it held is shared out."""
        attempts = 1 + 2 * sum(len(group.peers) for group in self.groups.values())  # lost, or late for the news of it
        for attempt in range(attempts):
            try:
                return await self._attempt(request, start, attempt)
            except WorkerLost as lost:
                if self.plan.stateful or attempt + 1 == attempts:
                    raise
                if not isinstance(lost, Regrouped):
                    await asyncio.get_running_loop().run_in_executor(None, self._share_out, lost)
        raise AssertionError("the last attempt returned or raised")

    def _share_out(self, lost: WorkerLost) -> None:
        with self._sharing:
            place = next(place for place, group in self.groups.items() if group.planned.name == lost.stage)
            self.groups[place].lose(lost.layer, self.actors[place])

    async def _attempt(self, request: Request, start: float, attempt: int) -> tuple[Any, Trace]:
        data = request.data if attempt == 0 else replace(Packet.unpack(request.data, self.limits), attempt=attempt).pack()
        spans = request.spans + await self._up.send(len(data))
        left = self.timeout_s - (time.perf_counter() - start)
        answer, later = await call_stage(self.actors[0], data, left, "the caller")
        packet = Packet.unpack(answer, self.limits)
        if packet.kind is Kind.ERROR:
            raise raised(packet)
        spans += unpack_spans(msgpack.unpackb(later))
        result = self._answer(packet.frames, request, self.limits)
        return result, Trace(packet.request_id, time.perf_counter() - start, spans, str(packet.meta.get("exit", "")))


def _tier(topology: Topology, name: str) -> TierSpec:
    try:
        return topology.tier(name)
    except Exception as error:
        raise PlanError(f"the plan runs on tier '{name}'; the topology has {[tier.name for tier in topology.tiers]}") from error


def _slowdown(tier: TierSpec, emulated: bool) -> float:
    """How much to stretch work that this machine does in the place of a slower tier."""
    if not emulated:
        return 1.0
    if tier.compute.preset is not None:
        raise DeployError(
            f"tier '{tier.name}' is declared by machine preset '{tier.compute.preset}', which cannot be emulated: its times are an "
            f"interval, not a factor. Declare 'compute: {{factor: F}}', or name the tier's node."
        )
    factor = tier.compute.factor or 1.0
    if factor < 1:
        raise DeployError(f"tier '{tier.name}' has factor {factor:g}: this machine cannot emulate a faster one; use 1 or more")
    return factor


def _check_nodes(labels: Sequence[dict[str, str]]) -> None:
    """Fail before the first actor starts: Ray would wait for a missing node forever."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    for wanted in labels:
        if not any(wanted.items() <= node.get("Labels", {}).items() for node in nodes):
            have = [{k: v for k, v in node.get("Labels", {}).items() if not k.startswith("ray.io")} for node in nodes]
            raise DeployError(f"no live Ray node has the labels {wanted}; the {len(nodes)} nodes have {have}")
