"""Vertical splits at run time: the workers of one block, their messages, and the block as one part of a stage.

The tier's own machine, worker 0, holds what enters and leaves the block and takes part itself::

    worker 0   scatter --> compute --> exchange --> compute --> outputs
    worker 1     `-------> compute --> exchange --> compute --'

Each message is a packet (:data:`Kind.SHARD`), labelled with request, block, step and sender. Nothing here knows Ray: a
worker is given a way to send bytes to a peer, and a :class:`Mailbox` where the answers arrive.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from splitinfer import codecs
from splitinfer.codecs.block import Buffer
from splitinfer.codecs.packet import Frame, Kind, Limits, Packet
from splitinfer.errors import CodecError, PacketError, PlanError, Regrouped, RequestTimeout
from splitinfer.shards.exchange import Piece
from splitinfer.shards.program import Messages, ShardedBlock, ShardProgram, Sizes, dump_program, load_program, run_local
from splitinfer.tracing import Recorder

HOST = 0
"""The tier's own machine among the workers of a block."""
SCATTER, RESULT = -1, -2
"""Steps of a block beside its exchanges: the inputs go out, and come back where the host computes nothing itself."""
_MOST_FAILED = 256  # attempts whose failure is remembered: more are not under way at once

Send = Callable[[int, bytes, "Job"], None]
"""Sends bytes of a job to a worker without waiting; called on the computing thread."""


@dataclass(frozen=True)
class Job:
    """The request that a stage is working on."""

    request_id: str
    attempt: int
    until_s: float
    """The deadline on the monotonic clock."""
    recorder: Recorder

    @property
    def left_s(self) -> float:
        """Seconds until the deadline, 0 behind it."""
        return max(0.0, self.until_s - time.monotonic())


@dataclass(frozen=True)
class _Letter:
    packet: Packet
    nbytes: int
    """Memory that it takes, once its tensors are decoded too."""
    until_s: float


class Mailbox:
    """Messages for one worker, which may come before it asks for them. `put` and `fail` may be called on any thread.

    What waits is bounded by `limits.held` and `limits.held_nbytes`; a message goes when its deadline is over, or its attempt failed.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._letters: dict[tuple[str, int, str, int, int], _Letter] = {}
        self._failed: dict[tuple[str, int], tuple[Exception, float]] = {}
        self._changed = threading.Condition()

    def put(self, packet: Packet) -> None:
        """A message; nothing where it came before, or its attempt failed. Raises PacketError where it is malformed or too much waits."""
        block, step, sender, left_s = label(packet)
        key = packet.request_id, packet.attempt, block, step, sender
        letter = _Letter(packet, _decoded_nbytes(packet, self.limits), time.monotonic() + min(left_s, self.limits.held_s))
        with self._changed:
            now = time.monotonic()
            self._letters = {one: kept for one, kept in self._letters.items() if kept.until_s > now}
            if key in self._letters or key[:2] in self._failed:
                return
            total = sum(kept.nbytes for kept in self._letters.values())
            self.limits.admit("messages between workers", len(self._letters) + 1, total + letter.nbytes)
            self._letters[key] = letter
            self._changed.notify_all()

    def fail(self, request_id: str, attempt: int, error: Exception) -> None:
        """Whoever waits for a message of this attempt, or will, gets the error."""
        with self._changed:
            now = time.monotonic()
            self._failed = {key: kept for key, kept in list(self._failed.items())[1 - _MOST_FAILED :] if kept[1] > now}
            self._failed.setdefault((request_id, attempt), (copy.copy(error), now + self.limits.held_s))
            self._letters = {key: kept for key, kept in self._letters.items() if key[:2] != (request_id, attempt)}
            self._changed.notify_all()

    def take(self, job: Job, block: str, step: int, senders: Sequence[int]) -> list[Packet]:
        """One message from each of these workers. Raises RequestTimeout at the job's deadline, and what `fail` was given."""
        keys = [(job.request_id, job.attempt, block, step, sender) for sender in senders]
        with self._changed:
            there = self._changed.wait_for(lambda: self._failure(job) or all(key in self._letters for key in keys), timeout=job.left_s)
            if (error := self._failure(job)) is not None:
                raise copy.copy(error)  # what was raised refers to a stack, and so to the tensors of a request
            if not there:
                late = [sender for sender, key in zip(senders, keys, strict=True) if key not in self._letters]
                raise RequestTimeout(f"worker {late[0]} of block '{block}' sent nothing for step {step} before the deadline")
            return [self._letters.pop(key).packet for key in keys]

    def _failure(self, job: Job) -> Exception | None:
        found = self._failed.get((job.request_id, job.attempt))
        return found[0] if found else None


def label(packet: Packet) -> tuple[str, int, int, float]:
    """Block, step, sender and seconds left of a message between workers. Raises PacketError."""
    block, step, sender, left_s = (packet.meta.get(key) for key in ("block", "step", "from", "left_s"))
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in (step, sender))
    if packet.kind is not Kind.SHARD or not isinstance(block, str) or not whole or not isinstance(left_s, int | float) or not left_s >= 0:
        raise PacketError(f"malformed message between workers: kind {packet.kind.name}, {dict(packet.meta)!s:.200}")
    return block, step, sender, float(left_s)  # type: ignore[return-value] # checked above


@dataclass(frozen=True)
class Worker:
    """One worker's means: who it is, how it sends, where it receives, and how much slower than this machine it is."""

    index: int
    codec: str
    send: Send
    mailbox: Mailbox
    slowdown: float = 1.0

    def post(self, job: Job, block: str, step: int, messages: Messages, sizes: Sizes | None = None) -> None:
        """Encode and send one message to each peer."""
        meta = {"block": block, "step": step, "from": self.index, "left_s": job.left_s}
        for peer, tensors in messages.items():
            frames = tuple(Frame.encode(name, tensor, codecs.get(self.codec)) for name, tensor in tensors.items())
            self.send(peer, Packet(Kind.SHARD, job.request_id, frames, job.attempt, sizes or {}, meta).pack(), job)

    def await_(self, job: Job, block: str, step: int, senders: Sequence[int]) -> Messages:
        """One message from each of these workers, decoded."""
        letters = self.mailbox.take(job, block, step, senders)
        return {sender: tensors_of(packet, self.mailbox.limits) for sender, packet in zip(senders, letters, strict=True)}

    def drive(self, program: ShardProgram, inputs: Mapping[str, Tensor], sizes: Sizes, job: Job, block: str) -> dict[str, Tensor]:
        """Run a program: compute, exchange, compute; its outputs. Compute and exchange are booked on the job's recorder."""
        rounds = [(place, tuple(each.awaits)) for place, each in enumerate(program.exchanges) if each.sends or each.awaits]
        running = program.run(inputs, sizes)
        incoming: Messages | None = None
        while True:
            try:
                with job.recorder.stretched("compute", self.slowdown):
                    outgoing = next(running) if incoming is None else running.send(incoming)
            except StopIteration as end:
                return dict(end.value)
            step, senders = rounds.pop(0)
            with job.recorder.span("exchange", stretch=False):
                self.post(job, block, step, outgoing)
                incoming = self.await_(job, block, step, senders) if senders else {}


def _decoded_nbytes(packet: Packet, limits: Limits) -> int:
    """Memory of a message and of its tensors."""
    return packet.held_nbytes + sum(frame.decoded_nbytes(limits) for frame in packet.frames)


def tensors_of(packet: Packet, limits: Limits) -> dict[str, Tensor]:
    """The tensors of a message. Raises PacketError, also where together they are too large."""
    limits.admit("messages between workers", 1, _decoded_nbytes(packet, limits))
    try:
        return {frame.name: frame.decode(limits, copy=True) for frame in packet.frames}
    except CodecError as error:
        raise PacketError(f"a message between workers: {error}") from error


@dataclass(frozen=True)
class BlockPart:
    """A divided block as the host sees it: one part of its stage, beside whole ones."""

    name: str
    """Of the block, unique among all of a deployment."""
    layers: tuple[str, ...]
    inputs: tuple[str, ...]
    sizes: tuple[str, ...]
    outputs: tuple[str, ...]
    scatter: Mapping[int, tuple[Piece, ...]]
    program: ShardProgram | None
    """The host's own share; None where it has none."""
    root: int
    """Who holds the outputs at the end."""

    @property
    def weight_nbytes(self) -> int:
        """Bytes of the weights of the host's share."""
        return self.program.weight_nbytes if self.program else 0

    def run(self, tensors: Mapping[str, Tensor], sizes: Sizes, job: Job, host: Worker) -> dict[str, Tensor]:
        """The block's outputs. Raises StageError, WorkerLost, RequestTimeout or PacketError."""
        needed = {name: sizes[name] for name in self.sizes}
        with job.recorder.span("exchange", stretch=False):
            for worker, pieces in self.scatter.items():
                if worker != HOST:
                    messages = {worker: {piece.tensor: piece.of(tensors[piece.tensor]) for piece in pieces}}
                    host.post(job, self.name, SCATTER, messages, needed)
        if self.program is not None:
            own = {piece.tensor: piece.of(tensors[piece.tensor]) for piece in self.scatter.get(HOST, ())}
            outputs = host.drive(self.program, own, needed, job, self.name)
        if self.root != HOST:
            with job.recorder.span("exchange", stretch=False):
                outputs = host.await_(job, self.name, RESULT, (self.root,))[self.root]
        return outputs

    @staticmethod
    def of(block: ShardedBlock, name: str) -> BlockPart:
        """The host's view of a divided block."""
        sizes = tuple(dict.fromkeys(block.sizes))
        return BlockPart(name, block.layers, block.inputs, sizes, block.outputs, dict(block.scatter), block.programs.get(HOST), block.root)

    def dump(self) -> tuple[dict[str, Any], list[bytes]]:
        """Plain values, and the files of the host's share."""
        program, files = dump_program(self.program) if self.program else (None, [])
        scatter = {str(worker): [[p.tensor, p.dim, p.start, p.stop] for p in pieces] for worker, pieces in self.scatter.items()}
        plain = {key: list(getattr(self, key)) for key in ("layers", "inputs", "sizes", "outputs")}
        return {"name": self.name, **plain, "scatter": scatter, "program": program, "root": self.root}, files

    @staticmethod
    def load(data: Mapping[str, Any], files: Sequence[Buffer], device: str) -> BlockPart:
        """The inverse of `dump`. Raises PlanError for malformed values, and what ``load_program`` raises."""
        try:
            layers, inputs, sizes, outputs = (tuple(map(str, data[key])) for key in ("layers", "inputs", "sizes", "outputs"))
            scatter = {
                int(worker): tuple(Piece(str(t), None if dim is None else int(dim), int(start), int(stop)) for t, dim, start, stop in rows)
                for worker, rows in data["scatter"].items()
            }
            name, root, meta = str(data["name"]), int(data["root"]), data["program"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"malformed block: {type(error).__name__}: {error}") from error
        program = load_program(meta, files, device) if meta is not None else None
        return BlockPart(name, layers, inputs, sizes, outputs, scatter, program, root)


@dataclass(frozen=True)
class LocalBlock:
    """A divided block in one process: all workers, in lock step."""

    block: ShardedBlock

    @property
    def layers(self) -> tuple[str, ...]:
        """Its layers."""
        return self.block.layers

    @property
    def sizes(self) -> tuple[str, ...]:
        """Dynamic sizes that some worker needs."""
        return self.block.sizes

    @property
    def weight_nbytes(self) -> int:
        """Bytes of the weights of all workers."""
        return sum(program.weight_nbytes for program in self.block.programs.values())

    def run(self, tensors: Mapping[str, Tensor], sizes: Sizes, job: Job) -> dict[str, Tensor]:
        """The block's outputs."""
        with job.recorder.span("compute"):
            return run_local(self.block, tensors, sizes)


class GroupWorker:
    """A worker that is not the host: its programs by block, and what it does with a message."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.programs: dict[str, tuple[ShardProgram, bool]] = {}

    def load(self, blocks: Mapping[str, tuple[ShardProgram, bool]]) -> None:
        """Take these programs in the place of others; with each, whether it ends with the block's outputs."""
        self.programs = dict(blocks)

    @property
    def weight_nbytes(self) -> int:
        """Bytes of the weights held."""
        return sum(program.weight_nbytes for program, _ in self.programs.values())

    def work(self, packet: Packet, received_s: float, recorder: Recorder) -> None:
        """This worker's share of a block. Raises Regrouped for a block that it does not hold (any more), and what programs raise."""
        block, _, _, left_s = label(packet)
        if block not in self.programs:
            raise Regrouped(recorder.stage, recorder.tier, f"it holds {sorted(self.programs)}, not block '{block}'")
        program, is_root = self.programs[block]
        limits, given = self.worker.mailbox.limits, {frame.name for frame in packet.frames}
        if left_s > limits.held_s or not given.issuperset(program.inputs):
            raise PacketError(
                f"block '{block}' needs {list(program.inputs)} and at most {limits.held_s:g} s; got {sorted(given)} and {left_s:g} s"
            )
        job = Job(packet.request_id, packet.attempt, received_s + left_s, recorder)
        outputs = self.worker.drive(program, tensors_of(packet, limits), packet.sizes, job, block)
        if is_root:
            self.worker.post(job, block, RESULT, {HOST: outputs})
