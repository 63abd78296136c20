"""The workers of a divided block as Ray actors, and how they and the stage's own actor send each other messages."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import torch
from ray.exceptions import RayError

from cluster.clock import RealClock
from cluster.link import Link, PacedPath
from splitinfer.codecs.block import Buffer
from splitinfer.codecs.packet import Limits, Packet
from splitinfer.errors import PacketError, Regrouped, RequestTimeout, WorkerLost
from splitinfer.groups import HOST, SCATTER, GroupWorker, Job, Mailbox, Worker, label
from splitinfer.memory import keep_freed_memory, private_nbytes
from splitinfer.runtime.calls import first_line, in_time
from splitinfer.runtime.errors import error_packet, raised
from splitinfer.runtime.shipment import GroupConfig
from splitinfer.shards import load_program
from splitinfer.store import FileStore, StoreError, digest_of
from splitinfer.tracing import Recorder


class Courier:
    """Sends one worker's messages to its peers, over paced links where these are emulated."""

    def __init__(self, config: GroupConfig, mailbox: Mailbox) -> None:
        self.config, self.mailbox = config, mailbox
        self.handles: dict[int, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        own = config.members[config.index]
        # What leaves this worker shares one link; the host's packets to different workers take different ones.
        leaving = [Link(*own.back)] if config.index != HOST and own.back else []
        self.paths = {}
        for peer, member in enumerate(config.members):
            if peer != config.index:
                entering = [Link(*member.out)] if peer != HOST and member.out else []
                self.paths[peer] = PacedPath([*leaving, *entering], RealClock(), f"{own.name} to {member.name}")

    def connect(self, handles: Mapping[int, Any], loop: asyncio.AbstractEventLoop) -> None:
        """Name the actors of the peers."""
        self.handles, self.loop = dict(handles), loop

    def send(self, peer: int, data: bytes, job: Job) -> None:
        """Send without waiting; called on the computing thread. What goes wrong fails the job in the mailbox."""
        self.loop.call_soon_threadsafe(self._start, peer, data, job)

    def _start(self, peer: int, data: bytes, job: Job) -> None:
        task = self.loop.create_task(self._deliver(peer, data, job))
        self._tasks.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, peer: int, data: bytes, job: Job) -> None:
        await self.paths[peer].send(len(data))
        name = self.config.members[peer].name
        if peer not in self.handles:  # its share went to others while this request waited for its turn
            self._fail(job, Regrouped(self.config.stage, name, "it no longer takes part"), peer)
            return
        try:
            answer = await in_time(self.handles[peer].receive.remote(data), job.left_s)
        except TimeoutError:
            self._fail(job, RequestTimeout(f"'{name}' did not take a message of stage '{self.config.stage}' before the deadline"), peer)
            return
        except RayError as error:
            self._fail(job, WorkerLost(self.config.stage, name, first_line(error)), peer)
            return
        if answer:
            self._fail(job, raised(Packet.unpack(answer, self.mailbox.limits)), peer)

    def _fail(self, job: Job, error: Exception, peer: int) -> None:
        self.mailbox.fail(job.request_id, job.attempt, error)
        if self.config.index == HOST:  # those who wait for the others' messages need not wait until the deadline
            for other, handle in self.handles.items():
                if other != peer:
                    handle.abort.remote(job.request_id, job.attempt)


class WorkerActor:
    """Wrapped by ``ray.remote`` in group.py."""

    def __init__(self, config: GroupConfig, tier: str, device: str, threads: int, slowdown: float, limits: Limits) -> None:
        keep_freed_memory()
        self.config, self.tier, self.device, self.limits = config, tier, device, limits
        self.compute = ThreadPoolExecutor(1, "compute", initializer=torch.set_num_threads, initargs=(threads,))
        self.mailbox = Mailbox(limits)
        self.courier = Courier(config, self.mailbox)
        self.empty_nbytes = private_nbytes()
        self.store = FileStore()
        self.is_filled = False
        self.waiting, self.waiting_nbytes = 0, 0
        self.worker = GroupWorker(Worker(config.index, config.codec, self.courier.send, self.mailbox, slowdown))

    async def is_loaded(self) -> bool:
        """Whether it has its layers."""
        return self.is_filled

    async def connect_group(self, handles: Mapping[int, Any]) -> None:
        """Name the actors of the peers."""
        self.courier.connect(handles, asyncio.get_running_loop())

    async def info(self) -> dict[str, Any]:
        """Process and memory."""
        return {
            "pid": os.getpid(), "tier": self.tier, "weight_nbytes": self.worker.weight_nbytes, "empty_nbytes": self.empty_nbytes,
            "private_nbytes": private_nbytes(),
        }  # fmt: skip

    async def missing(self, digests: Sequence[str]) -> list[str]:
        """Which of these files its machine does not have."""
        return self.store.missing(digests)

    async def load(
        self, blocks: bytes, digests: Sequence[str], sent: Sequence[str], *files: npt.NDArray[np.uint8]
    ) -> dict[str, Any] | None:
        """Take these programs in the place of others, once the request at hand is done; as `StageActor.load`."""
        loop = asyncio.get_running_loop()
        given = dict(zip(sent, (file.data for file in files), strict=True))
        self.is_filled = await loop.run_in_executor(self.compute, self._load, blocks, digests, given)
        return await self.info() if self.is_filled else None

    def _load(self, blocks: bytes, digests: Sequence[str], sent: Mapping[str, memoryview]) -> bool:
        left = gathered(self.store, digests, sent)
        if left is None:
            return False
        programs = {}
        for name, meta, count, is_root in msgpack.unpackb(blocks):
            programs[name] = load_program(meta, [left.pop(0) for _ in range(count)], self.device), is_root
        self.worker.load(programs)
        return True

    async def receive(self, data: bytes) -> bytes:
        """A message: the inputs of a block, which this then computes, or what a peer sends. An error packet, or nothing."""
        received_s = time.monotonic()
        try:
            packet = Packet.unpack(data, self.limits)
            if label(packet)[1] != SCATTER:
                deliver(self.mailbox, packet, self.config)
                return b""
            if label(packet)[2] != HOST:
                raise PacketError(f"the inputs of a block come from worker {HOST}; these come from worker {label(packet)[2]}")
            self.limits.admit("blocks' inputs", self.waiting + 1, self.waiting_nbytes + packet.held_nbytes)
            self.waiting, self.waiting_nbytes = self.waiting + 1, self.waiting_nbytes + packet.held_nbytes
            try:
                recorder = Recorder(self.config.stage, self.tier)
                await asyncio.get_running_loop().run_in_executor(self.compute, self.worker.work, packet, received_s, recorder)
            finally:
                self.waiting, self.waiting_nbytes = self.waiting - 1, self.waiting_nbytes - packet.held_nbytes
        except Exception as error:  # whatever fails goes back as an error packet: nothing is pickled, nothing hangs
            return error_packet(error, self.tier).pack()
        return b""

    async def abort(self, request_id: str, attempt: int) -> None:
        """Stop waiting for messages of this attempt."""
        self.mailbox.fail(request_id, attempt, PacketError("another machine of the group failed"))


def gathered(store: FileStore, digests: Sequence[str], sent: Mapping[str, memoryview]) -> list[Buffer] | None:
    """Files by their hashes: those just sent, which are kept, and those kept before; None where one is neither.

    Raises PacketError for a file with another hash.
    """
    for digest, content in sent.items():
        if digest_of(content) != digest:
            raise PacketError(f"a stage file of {len(content):,} bytes has not the hash {digest[:12]}... that it was sent under")
        with contextlib.suppress(StoreError):  # the machine has no room for it; what was sent is here all the same
            store.put(content)
    found: list[Buffer] = []
    for digest in digests:
        kept = sent[digest] if digest in sent else store.get(digest)
        if kept is None:
            return None
        found.append(kept)
    return found


def receives(mailbox: Mailbox, data: bytes, group: GroupConfig | None) -> bytes:
    """What the host does with a message of a worker: an error packet, or nothing."""
    try:
        packet = Packet.unpack(data, mailbox.limits)
        if group is None:
            raise PacketError("a message between workers for a stage that shares its layers with nobody")
        deliver(mailbox, packet, group)
    except Exception as error:  # as in `WorkerActor.receive`
        return error_packet(error, "host").pack()
    return b""


def deliver(mailbox: Mailbox, packet: Packet, group: GroupConfig) -> None:
    """Into the mailbox. Raises PacketError for what nobody of the group sends, and for what has no room."""
    sender = label(packet)[2]
    if sender == group.index or not 0 <= sender < len(group.members):
        raise PacketError(f"a message from worker {sender} to worker {group.index} of {len(group.members)} of stage '{group.stage}'")
    try:
        mailbox.put(packet)
    except PacketError as error:
        mailbox.fail(packet.request_id, packet.attempt, error)  # who waits for it need not wait until the deadline
        raise
