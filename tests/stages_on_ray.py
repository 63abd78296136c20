"""The stages of bad_packets.py on a real cluster with token and TLS on this machine, and a second cluster without TLS beside it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bad_packets
import psutil
import ray
import torch
from bad_clients import Port, Site
from ray.exceptions import RayTaskError
from torch import Tensor

from cluster import certs, lifecycle, raynode
from cluster.security import environment
from cluster.state import Record
from cluster.topology import Topology
from splitinfer.codecs.packet import Limits
from splitinfer.runtime.deploy import RayPipeline, deploy

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the nodes do not have this module
ALONE = Topology.loads("version: 1\ntiers: [{name: alone, compute: measured}]\n")
_DAEMONS = ("raylet", "gcs_server", "StageActor", "WorkerActor", "Agent")


class Impostor:
    """Stands for a stage and answers as it was told; None: never."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    async def feed(self, data: bytes) -> None:
        """Takes a piece."""

    async def handle(self, data: bytes) -> object:
        """Answers a request."""
        if self.answer is None:
            await asyncio.sleep(3600)
        return self.answer


class StagesOnRay:
    """What bad_packets.Stages wants, by way of a pipeline."""

    def __init__(self, pipeline: RayPipeline, limits: Limits) -> None:
        assert pipeline.deployment is not None
        self.front = self.pipeline = pipeline
        self.limits = limits
        self.cargo = pipeline.deployment.shipment.stages[0].cargo
        stages, ((worker,),) = pipeline.deployment.actors, [list(each.values()) for each in pipeline.deployment.workers if each]
        self.actors = {f"stage{place}": actor for place, actor in enumerate(stages)} | {"worker": worker}
        self.processes = [psutil.Process(self.call(name, "info")["pid"]) for name in self.actors]

    def call(self, actor: str, method: str, *args: object, timeout_s: float = 20.0) -> Any:
        """As the protocol; what the actor raised, without Ray's wrapping."""
        try:
            return ray.get(getattr(self.actors[actor], method).remote(*args), timeout=timeout_s)
        except RayTaskError as error:
            raise getattr(error, "cause", error) from None

    def calls(self, actor: str, method: str, many: list[tuple[object, ...]], timeout_s: float = 20.0) -> list[Any]:
        """As the protocol."""
        return list(ray.get([getattr(self.actors[actor], method).remote(*args) for args in many], timeout=timeout_s))

    def ask(self, left_s: float) -> Tensor:
        """As the protocol."""
        self.pipeline.timeout_s = left_s
        answer: Tensor = self.pipeline(*self.front.graph.example[0])
        return answer

    @contextlib.contextmanager
    def impostor(self, answer: object) -> Iterator[None]:
        """As the protocol."""
        impostor = ray.remote(Impostor).options(num_cpus=0).remote(answer)
        self.call("stage0", "connect", impostor)
        try:
            yield
        finally:
            self.call("stage0", "connect", self.actors["stage1"])
            ray.kill(impostor)

    def private_nbytes(self) -> int:
        """Memory that the processes of the stages and the worker share with nobody."""
        return sum(process.memory_full_info().uss for process in self.processes)


@dataclass(frozen=True)
class Ground:
    """Everything that bad input is thrown at."""

    stages: StagesOnRay
    site: Site
    answer: Tensor
    """To a good request."""
    daemons: dict[psutil.Process, str]
    """The processes that must stay, and what they are: Ray's own, the stages and the worker."""

    def gone(self) -> list[str]:
        """Those of them that have ended."""
        return [name for process, name in self.daemons.items() if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE]

    def ask(self, left_s: float = 10.0) -> float:
        """Seconds that a good request took. Raises AssertionError for a wrong answer, and what the pipeline raises."""
        start = time.perf_counter()
        assert torch.equal(self.stages.ask(left_s), self.answer)
        return time.perf_counter() - start

    def serves_again(self, within_s: float = 10.0) -> float:
        """Seconds until a good request is answered. Raises what the last one raised where none is."""
        start = time.perf_counter()
        while True:
            try:
                self.ask()
                return time.perf_counter() - start
            except Exception:
                if time.perf_counter() - start > within_s:
                    raise
                time.sleep(0.05)


@contextlib.contextmanager
def ground() -> Iterator[Ground]:
    """Both clusters, brought up and taken down again; records, caches and secrets in a directory of their own."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        scratch = Path(folder)
        stack.enter_context(environment({"XDG_STATE_HOME": folder, "SPLITINFER_CACHE": folder}))
        certs.make(scratch / "tls")
        record = lifecycle.up_local(bad_packets.TOPOLOGY, name="refused", tls=scratch / "tls")
        stack.callback(lifecycle.down, "refused")
        plain = lifecycle.up_local(ALONE, name="plain")
        stack.callback(lifecycle.down, "plain")
        graph, plan, _, answer = bad_packets.digits()
        stack.enter_context(lifecycle.connected(record))
        pipeline = stack.enter_context(deploy(graph, plan, bad_packets.TOPOLOGY, limits=bad_packets.LIMITS, timeout_s=10.0, paced=False))
        stages = StagesOnRay(pipeline, bad_packets.LIMITS)
        made = Ground(
            stages,
            Site(
                record.address, Path(record.token), scratch / "tls", plain.address, Path(plain.token), scratch, listening(record),
                lambda: made.ask(),
            ),
            answer, _daemons(record),
        )  # fmt: skip
        yield made


def _daemons(record: Record) -> dict[psutil.Process, str]:
    named = {process: " ".join([process.name(), *process.cmdline()])[:100] for process in raynode.processes(record.mark)}
    return {process: name for process, name in named.items() if any(daemon in name for daemon in _DAEMONS)}


def listening(record: Record) -> list[Port]:
    """The ports of a cluster's processes."""
    found = set()
    for process in raynode.processes(record.mark):
        with contextlib.suppress(psutil.Error):
            for each in process.net_connections("inet"):
                if each.status == psutil.CONN_LISTEN:
                    found.add((each.laddr.ip if each.laddr.ip not in ("::", "0.0.0.0") else "127.0.0.2", each.laddr.port))
    return sorted(found)
