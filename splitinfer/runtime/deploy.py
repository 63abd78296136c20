"""A plan on Ray: one actor per stage on its tier's node, behind the call of the whole model."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any

import ray

from cluster.launch import LocalCluster
from cluster.topology import Topology
from splitinfer.codecs.packet import Kind, Limits, Packet
from splitinfer.errors import Closed, Overloaded, Regrouped, StageLost, WorkerLost
from splitinfer.front import DEFAULT_TIMEOUT_S, Request
from splitinfer.graph import Graph
from splitinfer.memory import keep_freed_memory
from splitinfer.pipeline import Pipeline
from splitinfer.plans import Plan
from splitinfer.runtime.calls import in_time
from splitinfer.runtime.errors import raised
from splitinfer.runtime.packing import Packer, first_slowdown
from splitinfer.runtime.placement import Deployment
from splitinfer.tracing import Trace

_log = logging.getLogger(__name__)
_RETRY_S = 0.25  # between looks for a process that Ray starts again, which takes some seconds
MOST_IN_FLIGHT = 1000


def deploy(
    graph: Graph,
    plan: Plan,
    topology: Topology,
    *,
    cluster: LocalCluster | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    paced: bool = True,
    most_in_flight: int = MOST_IN_FLIGHT,
) -> RayPipeline:
    """Start the stages of a plan; a context manager that gives a Pipeline and leaves no process behind.

    Tiers whose topology names no node are emulated on this machine: declared links are paced, slower tiers stretch
    their measured work. With no `cluster` and no connection to Ray, a LocalCluster is started and stopped with it.
    `timeout_s` is each request's deadline. `paced` False leaves the links alone where real ones have the declared rates, as in
    a testbed; slower tiers still stretch their work. A request above `most_in_flight` under way is refused with Overloaded.

    A stage whose process ends is started again and the requests under way are tried again, until their deadline; a machine
    that shares layers and ends is replaced by the others. Where whole machines come and go, use `resilient`.
    Raises PlanError or DeployError, before anything is started where possible.
    """
    return RayPipeline(
        graph, plan, topology, cluster=cluster, timeout_s=timeout_s, limits=limits, paced=paced, most_in_flight=most_in_flight
    )


class RayPipeline(Pipeline):
    """The stages as Ray actors. Enter it before calling it; leaving it waits for the requests under way."""

    def __init__(
        self, graph: Graph, plan: Plan, topology: Topology, *, cluster: LocalCluster | None, timeout_s: float, limits: Limits,
        paced: bool = True, most_in_flight: int = MOST_IN_FLIGHT,
    ) -> None:  # fmt: skip
        super().__init__(graph, plan, slowdown=first_slowdown(plan, topology), timeout_s=timeout_s)
        self.topology, self.limits, self.most_in_flight = topology, limits, most_in_flight
        self.packer = Packer(self, topology, limits, paced=paced)
        self.deployment: Deployment | None = None
        self._cluster = cluster
        self._exit = contextlib.ExitStack()
        self._one_at_a_time = asyncio.Lock()
        self._mending = threading.Lock()
        self._open: set[Future[tuple[Any, Trace]]] = set()

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
        """Stop the actors, and the cluster where it was started here; the requests under way are waited for unless something failed."""
        try:
            if kind is None:
                self.drain()
        finally:  # also for who loses patience
            self._exit.close()

    def drain(self, timeout_s: float | None = None) -> bool:
        """Take no more requests and wait for those under way; False where some are left after `timeout_s` (default: their own)."""
        end_s = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        deployment, self._draining = self.deployment, True
        for future in list(self._open):
            with contextlib.suppress(Exception):  # it belongs to who asked
                future.result(max(0.0, end_s - time.monotonic()))
        return deployment is None or all(future.done() for future in list(self._open))

    def _start(self) -> None:
        keep_freed_memory()  # this process encodes the inputs
        if self._cluster is None and not ray.is_initialized():
            self._cluster = self._exit.enter_context(LocalCluster([tier.name for tier in self.topology.tiers]))
        deployment = Deployment(self.packer.shipment())
        self._exit.callback(self._forget, deployment)
        self.started = deployment.start()
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="splitinfer-requests", daemon=True)
        thread.start()
        self._exit.callback(self._stop_loop, thread)
        self._draining, self.deployment = False, deployment

    def _forget(self, deployment: Deployment) -> None:
        self.deployment = None
        deployment.stop()

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

    @property
    def _running(self) -> Deployment:
        if self.deployment is None:
            raise Closed("the stages are not running; use the pipeline inside its 'with' block")
        return self.deployment

    def info(self) -> list[dict[str, Any]]:
        """Process, threads, memory and link report of each stage."""
        return self._running.info(self.timeout_s)

    # -- requests

    def _submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[tuple[Any, Trace]]:
        self._check_open()
        start = time.perf_counter()
        future: Future[tuple[Any, Trace]]
        try:
            request = self.request(args, kwargs)
        except Exception as error:  # a future carries whatever went wrong to its owner
            future = Future()
            future.set_exception(error)
            return future
        future = asyncio.run_coroutine_threadsafe(self._ordered(request, start), self._loop)
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future

    def _check_open(self) -> None:
        """Raise Closed or Overloaded where no request can be taken."""
        if self._running and self._draining:
            raise Closed("the pipeline is being drained and takes no more requests")
        if len(self._open) >= self.most_in_flight:
            raise Overloaded(
                f"{len(self._open)} requests are under way; the limit is {self.most_in_flight}. Wait for answers, or raise most_in_flight"
            )

    async def _ordered(self, request: Request, start: float) -> tuple[Any, Trace]:
        if not self.plan.stateful:
            return await self._exchange(request, start)
        async with self._one_at_a_time:  # the answer depends on the calls before
            return await self._exchange(request, start)

    async def _exchange(self, request: Request, start: float) -> tuple[Any, Trace]:
        """One request, tried again until its deadline where a process or machine was lost, which is mended meanwhile."""
        deadline_s = time.monotonic() + self.timeout_s - (time.perf_counter() - start)
        attempt = 0
        while True:
            try:
                return await self._attempt(request, start, deadline_s, attempt)
            except StageLost as lost:
                if self.plan.stateful:
                    raise
                await self._recover(lost, deadline_s)
            attempt += 1

    async def _recover(self, lost: StageLost, deadline_s: float) -> None:
        """Return when the stages run again. Raises StageLost at the deadline, and whatever makes it impossible."""
        while not isinstance(lost, Regrouped):  # then it is done already
            left_s = deadline_s - time.monotonic()
            try:
                await in_time(asyncio.get_running_loop().run_in_executor(None, self._mend, lost, left_s), left_s)
                return
            except TimeoutError:  # it may go on, for others; or it waits behind theirs
                raise lost from None
            except StageLost as another:
                if time.monotonic() + _RETRY_S > deadline_s:
                    raise
                lost = another
            await asyncio.sleep(_RETRY_S)

    def _mend(self, lost: StageLost, left_s: float) -> None:
        with self._mending:
            if not isinstance(lost, WorkerLost):
                self._running.mend(left_s)
                return
            place = next(place for place, group in self.packer.groups.items() if group.planned.name == lost.stage)
            if self.packer.groups[place].lose(lost.layer):
                _log.warning("'%s' is gone; its share of stage '%s' goes to the other machines", lost.layer, lost.stage)
                self._running.renew(place, self.packer.stage(place), left_s)

    async def _attempt(self, request: Request, start: float, deadline_s: float, attempt: int) -> tuple[Any, Trace]:
        data = request.data if attempt == 0 else again(request.data, attempt, deadline_s, self.limits)
        answer, spans = await self._running.exchange(data, deadline_s)
        packet = Packet.unpack(answer, self.limits)
        if packet.kind is Kind.ERROR:
            raise raised(packet)
        result = self.answer(packet.frames, request, self.limits)
        trace = Trace(packet.request_id, time.perf_counter() - start, request.spans + spans, str(packet.meta.get("exit", "")))
        return result, trace


def again(data: bytes, attempt: int, deadline_s: float, limits: Limits) -> bytes:
    """The packet of a request for another attempt."""
    packet = Packet.unpack(data, limits)
    return replace(packet, attempt=attempt, meta={**packet.meta, "left_s": max(0.0, deadline_s - time.monotonic())}).pack()
