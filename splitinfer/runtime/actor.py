"""One stage as a Ray actor: takes a packet, calls the next stage directly, and hands the answer back.

::

    caller -> stage 0 --link--> stage 1 --link--> stage 2
    caller <- stage 0 <--link-- stage 1 <--link-- stage 2

One thread computes, in the order of arrival, as a tier would; sending, waiting for links and for the next stage happen
on the actor's event loop, so the transfer of one request overlaps the computation of another. Large tensors travel in
pieces ahead of their request (streaming.py), so that encoding, wire and decoding of one tensor overlap too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import ray
import torch
from ray.exceptions import RayError

from cluster.clock import RealClock
from cluster.link import Link, PacedPath
from splitinfer import __version__
from splitinfer.codecs.packet import Kind, Packet
from splitinfer.errors import Overloaded, PacketError, RequestTimeout, StageLost
from splitinfer.groups import HOST, Mailbox, Worker
from splitinfer.memory import keep_freed_memory, private_nbytes
from splitinfer.parts import load_parts
from splitinfer.runner import Accepted, StageRunner, Step
from splitinfer.runtime.calls import awaited, call_stage, first_line, in_time, reply
from splitinfer.runtime.errors import error_packet
from splitinfer.runtime.shipment import Rate, StageConfig
from splitinfer.runtime.worker import Courier, gathered, receives
from splitinfer.store import FileStore
from splitinfer.tracing import Span, pack_spans


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
        self.empty_nbytes = private_nbytes()

        self.up = Sender(config.up, config.name, config.tier, "wire")
        self.down = Sender(config.down, config.name, config.tier, "return")
        self.mailbox = Mailbox(config.limits)
        self.courier = Courier(config.group, self.mailbox) if config.group else None
        self.runner: StageRunner | None = None
        self.passed: dict[tuple[str, int], Span] = {}
        self.store = FileStore()
        self.waiting, self.waiting_nbytes = 0, 0

    async def missing(self, digests: Sequence[str]) -> list[str]:
        """Which of these files its machine does not have."""
        return self.store.missing(digests)

    async def load(self, parts: bytes, digests: Sequence[str], sent: Sequence[str], *files: npt.NDArray[np.uint8]) -> dict[str, Any] | None:
        """Build the stage, once the request at hand is done, from its parts and their files; says what this process is.

        `files` are those named by `sent`; the others must lie on this machine. None where one does not.
        """
        loop = asyncio.get_running_loop()
        build = partial(self._runner, parts, digests, dict(zip(sent, (file.data for file in files), strict=True)))
        runner = await loop.run_in_executor(self.worker, build)
        if runner is None:
            return None
        self.runner = runner
        return self.info()

    def _runner(self, parts: bytes, digests: Sequence[str], sent: Mapping[str, memoryview]) -> StageRunner | None:
        files = gathered(self.store, digests, sent)
        if files is None:
            return None
        config, host = self.config, None
        if self.courier is not None and config.group is not None:
            host = Worker(HOST, config.group.codec, self.courier.send, self.mailbox, config.slowdown)
        return StageRunner(
            load_parts(parts, files, config.device), config.route, name=config.name, tier=config.tier, last=config.last,
            device=config.device, slowdown=config.slowdown, limits=config.limits, threads=config.threads, host=host,
        )  # fmt: skip

    async def connect_group(self, handles: Mapping[int, Any]) -> None:
        """Name the actors of the machines that share layers with this one."""
        assert self.courier is not None
        self.courier.connect(handles, asyncio.get_running_loop())

    async def receive(self, data: bytes) -> bytes:
        """A message of a machine that shares layers with this one: an error packet, or nothing."""
        return receives(self.mailbox, data, self.config.group)

    def connect(self, following: Any) -> None:
        """Name the actor that runs the next stage."""
        self.next = following

    async def is_loaded(self) -> bool:
        """Whether it has its layers and knows who follows; False right after a start."""
        return self._can_work

    @property
    def _can_work(self) -> bool:
        return self.runner is not None and (self.config.last or self.next is not None)

    async def ping(self, timeout_s: float) -> tuple[int, str]:
        """How many stages from this one on can work, by way of each other, and why the one behind them cannot."""
        try:
            if not self._can_work:
                return 0, RESTARTED
            if self.courier is not None:
                await in_time(asyncio.gather(*(awaited(peer.is_loaded.remote()) for peer in self.courier.handles.values())), timeout_s)
        except (RayError, TimeoutError) as error:
            return 0, first_line(error)
        if self.next is None:
            return 1, ""
        try:
            reached, why = await in_time(self.next.ping.remote(0.8 * timeout_s), 0.8 * timeout_s)
        except (RayError, TimeoutError) as error:
            return 1, first_line(error)
        return 1 + reached, why

    def info(self) -> dict[str, Any]:
        """Process, threads and memory; `links` says whether the paced links kept their rate."""
        return {
            "pid": os.getpid(),
            "node_id": ray.get_runtime_context().get_node_id(),
            "tier": self.config.tier,
            "threads": torch.get_num_threads(),
            "stage": self.config.name,
            "weight_nbytes": self.runner.weight_nbytes if self.runner else 0,
            "empty_nbytes": self.empty_nbytes,
            "private_nbytes": private_nbytes(),
            "links": [s.path.report() for s in (self.up, self.down) if s.path.links],
            "versions": {
                "Python": ".".join(platform.python_version_tuple()[:2]),
                "torch": torch.__version__.partition("+")[0],
                "splitinfer": __version__,
            },
        }

    @property
    def _ready(self) -> StageRunner:
        if self.runner is None or not self._can_work:
            raise StageLost(self.config.name, "process", RESTARTED)
        return self.runner

    async def feed(self, data: bytes) -> None:
        """One piece of a tensor whose request follows. What is wrong with it shows when the request misses the tensor."""
        with contextlib.suppress(PacketError):
            if self._ready.feed(data):
                self._pass_on(Packet.unpack(data, self.config.limits), len(data))
                await self._send_piece(data)

    def _pass_on(self, piece: Packet, nbytes: int) -> None:
        """Book the bytes of a piece that goes on to the next stage; its time shows as that of the packet behind it."""
        key = piece.request_id, piece.attempt
        if len(self.passed) > _MOST_PASSED:  # requests that never came
            self.passed.clear()
        held = self.passed.get(key) or Span(self.config.name, self.config.tier, "transfer", time.perf_counter(), 0.0)
        self.passed[key] = replace(held, nbytes=held.nbytes + nbytes * len(self.up.path.links))

    async def _send_piece(self, data: bytes) -> tuple[Span, ...]:
        """Over the links to the next stage, and there into its streams."""
        spans = await self.up.send(len(data))
        self.next.feed.remote(data)
        return spans

    async def handle(self, data: bytes) -> tuple[bytes, bytes]:
        """One request: the answer's packet, and the spans of this stage and all behind it."""
        limits = self.config.limits
        try:
            if self.waiting >= limits.held or self.waiting_nbytes + len(data) > limits.held_nbytes:
                raise Overloaded(
                    f"stage '{self.config.name}' holds {self.waiting} requests of {self.waiting_nbytes:,} bytes; the limits are "
                    f"{limits.held} and {limits.held_nbytes:,}. Send more slowly"
                )
            self.waiting, self.waiting_nbytes = self.waiting + 1, self.waiting_nbytes + len(data)
            try:
                answer, spans = await self._handle(data)
            finally:
                self.waiting, self.waiting_nbytes = self.waiting - 1, self.waiting_nbytes - len(data)
        except Exception as error:  # whatever fails goes back as an error packet: nothing is pickled, nothing hangs
            answer, spans = error_packet(error, self.config.tier).pack(), []
        return answer, msgpack.packb(spans)

    async def _handle(self, data: bytes) -> tuple[bytes, list[list[Any]]]:
        loop = asyncio.get_running_loop()
        pieces: list[asyncio.Task[tuple[Span, ...]]] = []

        def emit(piece: bytes) -> None:  # on the computing thread
            loop.call_soon_threadsafe(lambda: pieces.append(loop.create_task(self._send_piece(piece))))

        runner = self._ready
        accepted = runner.accept(data)
        arrival = await self._arrival(runner, accepted)
        step: Step = await loop.run_in_executor(self.worker, partial(runner.work, accepted, emit=emit))
        results, spans = list(step.results), pack_spans(arrival + step.spans)
        meta: Mapping[str, Any] = {"exit": step.exit} if step.exit else {}
        if step.onward is not None:
            sending = asyncio.ensure_future(self.up.send(len(step.onward)))  # it takes the links right behind the pieces
            transfer = self._transfer(step, [span for spans in await asyncio.gather(*pieces) for span in spans])
            spans += pack_spans(transfer + _behind(await sending, transfer))
            if passed := self.passed.pop((step.request.request_id, step.request.attempt), None):
                spans += pack_spans([passed])
            answer, later = await call_stage(self.next, step.onward, accepted.rest_s, self.config.name)
            packet = reply(answer, step.request, self.config.limits)
            spans += pack_spans(later)
            if packet.kind is Kind.ERROR:
                return answer, spans
            results += packet.frames
            meta = packet.meta
        response = Packet(Kind.RESPONSE, step.request.request_id, tuple(results), step.request.attempt, meta=meta).pack()
        spans += pack_spans(await self.down.send(len(response)))
        return response, spans

    async def _arrival(self, runner: StageRunner, accepted: Accepted) -> tuple[Span, ...]:
        """Wait here for what comes in pieces: a request whose pieces are lost must not hold up the thread that computes."""
        start, arriving = time.perf_counter(), runner.arriving(accepted)
        if not arriving:
            return ()
        there, late = await asyncio.wait([asyncio.wrap_future(tensor) for tensor in arriving], timeout=max(0.0, accepted.rest_s))
        for tensor in there:
            tensor.exception()  # raised where it is taken
        if late:
            names = ", ".join(name for name, tensor in zip(runner.route.streamed, arriving, strict=True) if not tensor.done())
            raise RequestTimeout(f"the pieces of {names} did not arrive within {accepted.left_s:g} s")
        return (Span(self.config.name, self.config.tier, "transfer", start, time.perf_counter() - start),)

    def _transfer(self, step: Step, pieces: Sequence[Span]) -> tuple[Span, ...]:
        """Encoding and sending in pieces, which overlap, as one span."""
        if step.streaming_since_s is None:
            return ()
        start, end = step.streaming_since_s, max((span.end_s for span in pieces), default=time.perf_counter())
        slept = min(sum(span.slept_s for span in pieces), end - start)  # they wait for each other, too
        return (Span(self.config.name, self.config.tier, "transfer", start, end - start, slept, sum(span.nbytes for span in pieces)),)


_MOST_PASSED = 1000
RESTARTED = "it was started again and has no layers yet"


def _behind(sent: tuple[Span, ...], transfer: tuple[Span, ...]) -> tuple[Span, ...]:
    """The packet's time on the wire without the wait for its own pieces, which the transfer has."""
    free = max((span.end_s for span in transfer), default=0.0)
    waited = [max(0.0, free - span.start_s) for span in sent]
    return tuple(
        replace(span, start_s=span.start_s + wait, seconds=max(0.0, span.seconds - wait), slept_s=max(0.0, span.slept_s - wait))
        for span, wait in zip(sent, waited, strict=True)
    )
