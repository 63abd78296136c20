"""One stage as a Ray actor: takes a packet, calls the next stage directly, and hands the answer back.

::

    caller -> stage 0 --link--> stage 1 --link--> stage 2
    caller <- stage 0 <--link-- stage 1 <--link-- stage 2

One thread computes, in the order of arrival, as a tier would; sending, waiting for links and for the next stage happen
on the actor's event loop, so the transfer of one request overlaps the computation of another.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import psutil
import ray
import torch
from ray.exceptions import RayError

from cluster.clock import RealClock
from cluster.link import Link, PacedPath
from splitinfer.codecs.packet import Kind, Limits, Packet
from splitinfer.errors import PacketError, RequestTimeout, StageError
from splitinfer.memory import keep_freed_memory
from splitinfer.routing import Route
from splitinfer.runner import StageRunner, Step
from splitinfer.stagefile import load_stage
from splitinfer.tracing import Span, pack_spans

Rate = tuple[float, float]
"""Bytes per second and one-way latency in seconds of an emulated link."""


@dataclass(frozen=True)
class StageConfig:
    """What an actor needs beside its stage."""

    tier: str
    route: Route
    last: bool
    device: str
    threads: int
    slowdown: float
    up: tuple[Rate, ...]
    """Emulated links to the next stage; empty where the link is real or the tier the same."""
    down: tuple[Rate, ...]
    """Emulated links back to the previous stage or the caller."""
    limits: Limits


class Sender:
    """A paced path that books the time of each packet as a span."""

    def __init__(self, rates: Sequence[Rate], stage: str, tier: str, kind: str) -> None:
        self.path = PacedPath([Link(rate, latency) for rate, latency in rates], RealClock(), f"{kind} from {tier}")
        self.stage, self.tier, self.kind = stage, tier, kind

    async def send(self, nbytes: int) -> tuple[Span, ...]:
        """Wait as long as the declared links take."""
        if not self.path.links:
            return ()
        start = time.perf_counter()
        delivery = await self.path.send(nbytes)
        slept_s = delivery.queued_s + delivery.wire_s
        return (Span(self.stage, self.tier, self.kind, start, slept_s + delivery.late_s, slept_s, nbytes * len(self.path.links)),)


class StageActor:
    """Wrapped by ``ray.remote`` in deploy.py."""

    def __init__(self, config: StageConfig) -> None:
        keep_freed_memory()
        torch.set_num_threads(config.threads)
        self.config = config
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")
        self.worker.submit(torch.set_num_threads, config.threads).result()
        self.next: Any = None
        self.empty_nbytes = _private_nbytes()

    def load(self, *files: npt.NDArray[np.uint8]) -> dict[str, Any]:
        """Build the stage from its files, one for each part between early exits; says what this process is."""
        config = self.config
        parts = [load_stage(data.data, config.device) for data in files]
        self.runner = StageRunner(
            parts, config.route, tier=config.tier, last=config.last, device=config.device, slowdown=config.slowdown, limits=config.limits
        )
        self.up = Sender(config.up, self.runner.name, config.tier, "wire")
        self.down = Sender(config.down, self.runner.name, config.tier, "return")
        return self.info()

    def connect(self, following: Any) -> None:
        """Name the actor that runs the next stage."""
        self.next = following

    def info(self) -> dict[str, Any]:
        """Process, threads and memory; `links` says whether the paced links kept their rate."""
        return {
            "pid": os.getpid(), "node_id": ray.get_runtime_context().get_node_id(), "tier": self.config.tier,
            "threads": torch.get_num_threads(), "stage": self.runner.name,
            "weight_nbytes": sum(part.weight_nbytes for part in self.runner.parts), "empty_nbytes": self.empty_nbytes,
            "private_nbytes": _private_nbytes(), "links": [s.path.report() for s in (self.up, self.down) if s.path.links],
        }

    async def handle(self, data: bytes) -> tuple[bytes, bytes]:
        """One request: the answer's packet, and the spans of this stage and all behind it."""
        try:
            answer, spans = await self._handle(data, time.monotonic())
        except Exception as error:  # whatever fails goes back as an error packet: nothing is pickled, nothing hangs
            answer, spans = error_packet(error, self.config.tier).pack(), []
        return answer, msgpack.packb(spans)

    async def _handle(self, data: bytes, received_s: float) -> tuple[bytes, list[list[Any]]]:
        loop = asyncio.get_running_loop()
        step: Step = await loop.run_in_executor(self.worker, self.runner.run, data, received_s)
        results, spans = list(step.results), pack_spans(step.spans)
        meta: Mapping[str, Any] = {"exit": step.exit} if step.exit else {}
        if step.onward is not None:
            spans += pack_spans(await self.up.send(len(step.onward)))
            left = step.left_s - (time.monotonic() - received_s)
            answer, later = await call_stage(self.next, step.onward, left, self.runner.name)
            spans += msgpack.unpackb(later)
            packet = Packet.unpack(answer, self.config.limits)
            if packet.kind is Kind.ERROR:
                return answer, spans
            results += packet.frames
            meta = packet.meta
        response = Packet(Kind.RESPONSE, step.request.request_id, tuple(results), step.request.attempt, meta=meta).pack()
        spans += pack_spans(await self.down.send(len(response)))
        return response, spans


def _private_nbytes() -> int:
    """Memory that this process shares with no other: the object store's pages do not count."""
    return int(psutil.Process().memory_full_info().uss)


async def call_stage(actor: Any, data: bytes, left_s: float, caller: str) -> tuple[bytes, bytes]:
    """Call a stage with a deadline. Raises RequestTimeout, or StageError where the stage's process is gone."""
    try:
        answer, spans = await asyncio.wait_for(_awaited(actor.handle.remote(data)), max(left_s, 0.0))
    except TimeoutError:
        raise RequestTimeout(f"no answer from behind {caller} before the deadline ({max(left_s, 0.0):.3f} s were left there)") from None
    except RayError as error:
        first = str(error).strip().splitlines()[0]
        raise StageError(f"behind {caller}", "process", f"{type(error).__name__}: {first}") from error
    return answer, spans


async def _awaited(reference: Any) -> Any:
    """An object reference is awaitable, but no coroutine, which wait_for wants."""
    return await reference


def error_packet(error: Exception, tier: str) -> Packet:
    """An error as plain values."""
    meta = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, StageError):
        meta |= {"stage": error.stage, "layer": error.layer, "cause": error.cause, "traceback": error.remote_traceback}
    return Packet(Kind.ERROR, "", meta=meta | {"tier": tier})


def raised(packet: Packet) -> Exception:
    """The error that an error packet describes."""
    meta = packet.meta
    match meta.get("type"):
        case "StageError":
            return StageError(str(meta["stage"]), str(meta["layer"]), str(meta["cause"]), str(meta["traceback"]))
        case "RequestTimeout":
            return RequestTimeout(str(meta["message"]))
        case "PacketError":
            return PacketError(str(meta["message"]))
    return StageError(f"on tier '{meta.get('tier')}'", "framework", f"{meta.get('type')}: {meta.get('message')}")
