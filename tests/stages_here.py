"""The actors of a plan in this process, on an event loop of their own: what Ray would call is called directly."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from cluster.topology import Topology
from splitinfer.codecs.packet import Kind, Limits, Packet
from splitinfer.front import Front
from splitinfer.graph import Graph
from splitinfer.groups import HOST
from splitinfer.plans import Plan
from splitinfer.runtime.actor import StageActor
from splitinfer.runtime.errors import raised
from splitinfer.runtime.packing import Packer
from splitinfer.runtime.shipment import Cargo
from splitinfer.runtime.worker import WorkerActor
from splitinfer.store import digest_of


class _Stage(StageActor):
    def info(self) -> dict[str, Any]:
        return {}  # on which node it is, which Ray alone knows


class Handle:
    """Stands for Ray's handle of an actor: ``handle.method.remote(...)`` on the loop gives something to await."""

    def __init__(self, actor: object) -> None:
        self._actor = actor

    def __getattr__(self, method: str) -> Any:
        async def call(*args: Any) -> Any:
            found = getattr(self._actor, method)(*args)
            return await found if asyncio.iscoroutine(found) else found

        class Method:
            remote = staticmethod(lambda *args: asyncio.ensure_future(call(*args)))

        return Method


class StagesHere:
    """Started, connected and loaded as `Deployment` does it."""

    def __init__(self, graph: Graph, plan: Plan, topology: Topology, limits: Limits) -> None:
        self.front, self.limits = Front(graph, plan, timeout_s=limits.held_s), limits
        shipment = Packer(self.front, topology, limits, paced=False).shipment()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.actors: dict[str, Any] = {}
        for place, stage in enumerate(shipment.stages):
            self.actors[f"stage{place}"] = _Stage(stage.config)
            for worker in stage.workers.values():
                given = (worker.config, worker.tier, worker.device, worker.threads, worker.slowdown, limits)
                self.actors["worker"] = WorkerActor(*given)
                self.load("worker", worker.cargo)
                self.call("worker", "connect_group", {HOST: Handle(self.actors[f"stage{place}"])})
                self.call(f"stage{place}", "connect_group", {worker.config.index: Handle(self.actors["worker"])})
            self.load(f"stage{place}", stage.cargo)
        self.cargo = shipment.stages[0].cargo
        for place in range(len(shipment.stages) - 1):
            self.connect(f"stage{place}", self.actors[f"stage{place + 1}"])

    def call(self, actor: str, method: str, *args: Any, timeout_s: float = 20.0) -> Any:
        """What an actor's method returns, or raises."""
        return asyncio.run_coroutine_threadsafe(self._call(actor, method, args), self._loop).result(timeout_s)

    def calls(self, actor: str, method: str, many: list[tuple[Any, ...]], timeout_s: float = 20.0) -> list[Any]:
        """What many calls at once return."""

        async def gathered() -> list[Any]:
            return list(await asyncio.gather(*(self._call(actor, method, args) for args in many)))

        return asyncio.run_coroutine_threadsafe(gathered(), self._loop).result(timeout_s)

    async def _call(self, actor: str, method: str, args: tuple[Any, ...]) -> Any:
        return await getattr(Handle(self.actors[actor]), method).remote(*args)

    def load(self, actor: str, cargo: Cargo) -> object:
        """Give an actor its layers."""
        digests = [digest_of(file) for file in cargo.files]
        arrays = [np.frombuffer(file, np.uint8) for file in cargo.files]
        return self.call(actor, "load", cargo.data, digests, digests, *arrays)

    def connect(self, actor: str, following: object) -> None:
        self.call(actor, "connect", Handle(following))

    def ask(self, left_s: float) -> Tensor:
        """As a pipeline does it."""
        request = self.front.request(*self.front.graph.example, left_s=left_s)
        packet = Packet.unpack(self.call("stage0", "handle", request.data)[0], self.limits)
        if packet.kind is Kind.ERROR:
            raise raised(packet)
        answer: Tensor = self.front.answer(packet.frames, request, self.limits)
        return answer

    @contextlib.contextmanager
    def impostor(self, answer: object) -> Iterator[None]:
        """Somebody else behind stage 0."""
        self.connect("stage0", Impostor(answer))
        try:
            yield
        finally:
            self.connect("stage0", self.actors["stage1"])


class Impostor:
    """Stands for a stage and answers as it was told; None: never."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    async def feed(self, data: bytes) -> None:
        pass

    async def handle(self, data: bytes) -> object:
        if self.answer is None:
            await asyncio.sleep(3600)
        return self.answer
