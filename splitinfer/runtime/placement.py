"""The actors of one plan on the nodes of a Ray cluster: started, loaded, asked, mended, ended. No model is needed here."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError

from splitinfer.errors import DeployError, StageLost, WorkerLost
from splitinfer.groups import HOST
from splitinfer.runtime.actor import Sender, StageActor
from splitinfer.runtime.calls import call_stage, first_line, in_time
from splitinfer.runtime.shipment import Cargo, Shipment, StageShipment
from splitinfer.runtime.worker import WorkerActor
from splitinfer.store import digest_of
from splitinfer.tracing import Span

_START_TIMEOUT_S = 120.0  # a worker that imports torch needs 3 to 10 s on a busy machine
_CONCURRENT = 1000  # calls beside the requests that a stage may hold: Ray lets in no ping, no message of a peer behind more than that
PREFIX = "splitinfer"


class Deployment:
    """One actor for each stage, and for each machine that shares its layers.

    Ray starts an actor again whose process ended, as soon as a node with its labels is there; `mend` then gives it its
    layers back, which its machine has on disk. What blocks must not run on the event loop that requests use.
    """

    def __init__(self, shipment: Shipment) -> None:
        self.shipment = shipment
        self.stages: list[StageShipment] = list(shipment.stages)
        self.actors: list[Any] = []
        self.workers: list[dict[int, Any]] = [{} for _ in shipment.stages]
        self._stale: set[int] = set()
        self._up = Sender(shipment.up, "source", shipment.source, "wire")

    # -- life

    def start(self) -> list[dict[str, Any]]:
        """Start and load all; what each stage says of itself. Raises DeployError; `stop` ends what was started even then."""
        _check_nodes([labels for stage in self.stages for labels in (stage.labels, *(each.labels for each in stage.workers.values()))])
        mark, most = secrets.token_hex(3), self.shipment.limits.held + _CONCURRENT
        try:
            for place, stage in enumerate(self.stages):
                name = self._name(stage.config.name, mark)
                self.actors.append(_started(StageActor, name, stage.labels, [stage.config], restarts=-1, most=most))
                for index, worker in stage.workers.items():
                    name = self._name(f"{stage.config.name}/{worker.config.members[index].name}", mark)
                    given = [worker.config, worker.tier, worker.device, worker.threads, worker.slowdown, self.shipment.limits]
                    self.workers[place][index] = _started(WorkerActor, name, worker.labels, given, restarts=0, most=most)
            self._join()
            found = [self._load(place) for place in range(len(self.stages))]
            _check_versions(found)
        except RayError as error:
            raise DeployError(f"a stage did not start: {first_line(error, last=True)}") from error
        return found

    def stop(self) -> None:
        """End all actors; a second time nothing happens."""
        for actor in [*self.actors, *(worker for workers in self.workers for worker in workers.values())]:
            with contextlib.suppress(RayError, ValueError):
                ray.kill(actor)
        self.actors.clear()
        for workers in self.workers:
            workers.clear()

    def mend(self, timeout_s: float = _START_TIMEOUT_S) -> int:
        """Load again the stages whose process was started again; how many.

        Raises StageLost while one is not there, WorkerLost where a machine that shares its layers is gone for good.
        """
        end_s = time.monotonic() + timeout_s
        stale = [place for place in range(len(self.stages)) if self._is_stale(place, end_s)]
        for place in stale:
            try:
                self._join()
                self._load(place)
            except (RayError, GetTimeoutError) as error:
                raise StageLost(self.stages[place].config.name, "process", first_line(error)) from error
            self._stale.discard(place)
        return len(stale)

    def renew(self, place: int, stage: StageShipment, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Share the layers of a stage out anew, among those of its machines that are left. Raises what `mend` does."""
        self.stages[place] = stage
        self.workers[place] = {index: actor for index, actor in self.workers[place].items() if index in stage.workers}
        self._stale.add(place)
        self.mend(timeout_s)

    def _is_stale(self, place: int, end_s: float) -> bool:
        config = self.stages[place].config
        for index, worker in self.workers[place].items():
            try:
                ray.get(worker.is_loaded.remote(), timeout=max(0.0, end_s - time.monotonic()))
            except (RayError, GetTimeoutError) as error:
                assert config.group is not None
                raise WorkerLost(config.name, config.group.members[index].name, first_line(error)) from error
        try:
            loaded: bool = ray.get(self.actors[place].is_loaded.remote(), timeout=max(0.0, end_s - time.monotonic()))
        except (RayError, GetTimeoutError) as error:
            raise StageLost(config.name, "process", first_line(error)) from error
        return not loaded or place in self._stale

    def info(self, timeout_s: float = _START_TIMEOUT_S) -> list[dict[str, Any]]:
        """Process, threads, memory and link report of each stage."""
        found: list[dict[str, Any]] = ray.get([actor.info.remote() for actor in self.actors], timeout=timeout_s)
        return found

    # -- requests

    async def exchange(self, data: bytes, deadline_s: float) -> tuple[bytes, tuple[Span, ...]]:
        """The answer's packet to a request's, and the spans on the way; `deadline_s` on the monotonic clock.

        Raises RequestTimeout, StageLost where a process is gone; other errors come as a packet.
        """
        spans = await self._up.send(len(data))
        answer, later = await call_stage(self.actors[0], data, deadline_s - time.monotonic(), "the caller")
        return answer, spans + later

    async def ping(self, timeout_s: float) -> None:
        """Ask each stage, by way of those before it, whether it can work. Raises StageLost that names the first that cannot."""
        try:
            reached, why = await in_time(self.actors[0].ping.remote(timeout_s), timeout_s)
        except (RayError, TimeoutError) as error:
            reached, why = 0, first_line(error)
        if reached < len(self.stages):
            raise StageLost(self.stages[reached].config.name, "process", why)

    # -- inside

    def _name(self, stage: str, mark: str) -> str:
        return f"{PREFIX}:{self.shipment.model}/{stage}#{mark}"

    def _join(self) -> None:
        """Name to each actor those that it talks to."""
        waiting = [actor.connect.remote(following) for actor, following in zip(self.actors, self.actors[1:], strict=False)]
        for actor, workers in zip(self.actors, self.workers, strict=True):
            if workers:
                members = {HOST: actor, **workers}
                for index, member in members.items():
                    others = {other: handle for other, handle in members.items() if other != index}
                    waiting.append(member.connect_group.remote(others))
        ray.get(waiting, timeout=_START_TIMEOUT_S)

    def _load(self, place: int) -> dict[str, Any]:
        """Give a stage its layers, the machines that share them first: it asks them."""
        stage = self.stages[place]
        for index, actor in self.workers[place].items():
            _ship(actor, stage.workers[index].cargo)
        return _ship(self.actors[place], stage.cargo)


def _started(kind: type, name: str, labels: Mapping[str, str], given: Sequence[Any], *, restarts: int, most: int) -> Any:
    factory = cast("Any", ray.remote(kind))
    settings = {"num_cpus": 0, "label_selector": dict(labels), "max_concurrency": most, "max_restarts": restarts}
    return factory.options(name=name, **settings).remote(*given)


def _ship(actor: Any, cargo: Cargo) -> dict[str, Any]:
    """Load an actor; only those files travel that its machine does not have. It may have lost one meanwhile: then all do."""
    digests = [digest_of(file) for file in cargo.files]
    missing = set(ray.get(actor.missing.remote(digests), timeout=_START_TIMEOUT_S))
    for wanted in (missing, set(digests)):
        sent = {digest: file for digest, file in zip(digests, cargo.files, strict=True) if digest in wanted}
        # An array is read where it lies in the object store; bytes would leave copies on the heap.
        arrays = [ray.put(np.frombuffer(file, np.uint8)) for file in sent.values()]
        found: dict[str, Any] | None = ray.get(actor.load.remote(cargo.data, digests, list(sent), *arrays), timeout=_START_TIMEOUT_S)
        if found is not None:
            return found
    raise DeployError("a stage did not take the files that it was sent")


def _check_nodes(labels: Sequence[Mapping[str, str]]) -> None:
    """Fail before the first actor starts: Ray would wait for a missing node forever."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    for wanted in labels:
        if not any(wanted.items() <= node.get("Labels", {}).items() for node in nodes):
            have = [{k: v for k, v in node.get("Labels", {}).items() if not k.startswith("ray.io")} for node in nodes]
            raise DeployError(f"no live Ray node has the labels {dict(wanted)}; the {len(nodes)} nodes have {have}")


def _check_versions(stages: Sequence[Mapping[str, Any]]) -> None:
    """Stages and packets go between these processes: raise DeployError where they are not of the same versions."""
    for package in sorted({name for stage in stages for name in stage["versions"]}):
        found = {stage["tier"]: stage["versions"].get(package, "none") for stage in stages}
        if len(set(found.values())) > 1:
            most = Counter(found.values()).most_common(1)[0][0]
            told = ", ".join(f"{version} on '{tier}'" for tier, version in found.items())
            raise DeployError(f"the nodes have different versions of {package}: {told}; install {most} on all")
