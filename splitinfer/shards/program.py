"""What one worker of a divided block does, as a generator that knows no network, and all workers in one process.

::

    worker 0   stage --> exchange --> stage --> exchange --> outputs
    worker 1   stage --> exchange --> stage --> exchange
                          (all-reduce)           (to the root)
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from splitinfer.codecs.block import Buffer
from splitinfer.errors import ShardError
from splitinfer.shards.exchange import Exchange, Piece
from splitinfer.stagefile import dump_stage, load_stage
from splitinfer.stages import Stage

Messages = dict[int, dict[str, Tensor]]
"""Peer -> name -> tensor."""
Sizes = Mapping[str, int | float | bool]


@dataclass(frozen=True)
class ShardProgram:
    """The steps of one worker."""

    worker: int
    inputs: tuple[str, ...]
    """What it gets of the block's inputs."""
    outputs: tuple[str, ...]
    """What it returns: all outputs of the block on the root, nothing elsewhere."""
    steps: tuple[Stage | Exchange, ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The computations."""
        return tuple(step for step in self.steps if isinstance(step, Stage))

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """The rounds of messages; every worker of a block has as many."""
        return tuple(step for step in self.steps if isinstance(step, Exchange))

    @property
    def weight_nbytes(self) -> int:
        """Bytes of the weights that the worker holds."""
        return sum(stage.weight_nbytes for stage in self.stages)

    @property
    def sizes(self) -> tuple[str, ...]:
        """Dynamic sizes that the stages need."""
        return tuple(dict.fromkeys(size for stage in self.stages for size in stage.sizes))

    def run(self, inputs: Mapping[str, Tensor], sizes: Sizes) -> Generator[Messages, Messages, dict[str, Tensor]]:
        """Yields the messages of each exchange that concerns the worker, takes what came, and returns the outputs.

        Raises StageError for a failure inside a stage and ShardError for a message that did not come.
        """
        held = dict(inputs)
        last = self._last_use()
        for position, step in enumerate(self.steps):
            if isinstance(step, Stage):
                held |= step(held, sizes)
            else:
                incoming: Messages = {}
                if step.sends or step.awaits:
                    incoming = yield step.outgoing(held)
                held |= step.combined(held, incoming)
            held = {name: tensor for name, tensor in held.items() if last.get(name, -1) > position}
        return {name: held[name] for name in self.outputs}

    def _last_use(self) -> dict[str, int]:
        """Tensor -> the last step that reads it, so that memory is freed behind it."""
        last: dict[str, int] = {}
        for position, step in enumerate(self.steps):
            if isinstance(step, Stage):
                used = set(step.inputs)
            else:
                own = {part.tensor for combine in step.combines for part in combine.parts if part.source == self.worker}
                used = own | {send.tensor for send in step.sends}
            last |= dict.fromkeys(used, position)
        return last | dict.fromkeys(self.outputs, len(self.steps))


@dataclass(frozen=True)
class ShardedBlock:
    """A run of layers divided over workers. Made by :func:`splitinfer.shards.divide`."""

    layers: tuple[str, ...]
    axis: str
    """``rows``, ``channels`` or ``heads``."""
    shares: tuple[int, ...]
    """Worker -> units of the block's first axis; 0 for a worker that is left out."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    scatter: Mapping[int, tuple[Piece, ...]]
    """Worker -> what it gets of the inputs; only what it reads."""
    programs: Mapping[int, ShardProgram]
    """Worker -> its steps; workers that are left out have none."""
    divided: tuple[str, ...]
    """The layers of which each worker does a part; the others run whole on every worker that needs them."""
    reasons: Mapping[str, str]
    """Layer that is not divided -> why."""

    @property
    def workers(self) -> tuple[int, ...]:
        """Those that take part."""
        return tuple(self.programs)

    @property
    def root(self) -> int:
        """The worker that holds the outputs at the end."""
        return self.workers[0]

    @property
    def sizes(self) -> tuple[str, ...]:
        """Dynamic sizes that some worker needs (:func:`splitinfer.sizes.sizes_at`)."""
        return tuple(dict.fromkeys(size for program in self.programs.values() for size in program.sizes))


def run_local(
    block: ShardedBlock, tensors: Mapping[str, Tensor], sizes: Sizes, turn: Callable[[int], AbstractContextManager[object]] = nullcontext
) -> dict[str, Tensor]:
    """The block's outputs: all workers in this process, in turns; ``turn(worker)`` is entered around each of them.

    Raises what :meth:`ShardProgram.run` raises.
    """
    running = {
        worker: program.run({piece.tensor: piece.of(tensors[piece.tensor]) for piece in block.scatter[worker]}, sizes)
        for worker, program in block.programs.items()
    }
    results: dict[int, dict[str, Tensor]] = {}
    # A generator yields only where it sends or receives, so a round of the loop is not a round of the block:
    # messages wait in the mail until their receiver asks for them, in the order in which they were sent.
    mail: dict[tuple[int, int], list[dict[str, Tensor]]] = {}
    waiting: dict[int, tuple[int, ...]] = {}
    rounds = {worker: [step for step in program.exchanges if step.sends or step.awaits] for worker, program in block.programs.items()}

    def advance(worker: int, incoming: Messages | None) -> None:
        try:
            with turn(worker):
                outgoing = next(running[worker]) if incoming is None else running[worker].send(incoming)
        except StopIteration as end:
            results[worker] = end.value
            return
        for peer, message in outgoing.items():
            mail.setdefault((worker, peer), []).append(message)
        waiting[worker] = tuple(rounds[worker].pop(0).awaits)

    for worker in block.workers:
        advance(worker, None)
    while waiting:
        ready = [worker for worker, peers in waiting.items() if all(mail.get((peer, worker)) for peer in peers)]
        if not ready:
            raise ShardError(f"workers {sorted(waiting)} of '{block.layers[0]}' wait for one another: their programs do not fit together")
        for worker in ready:
            advance(worker, {peer: mail[peer, worker].pop(0) for peer in waiting.pop(worker)})
    return results[block.root]


def dump_program(program: ShardProgram) -> tuple[dict[str, Any], list[bytes]]:
    """The program as plain values, and one stage file (:mod:`splitinfer.stagefile`) for each computation."""
    steps = [step.to_dict() if isinstance(step, Exchange) else None for step in program.steps]
    meta = {"worker": program.worker, "inputs": list(program.inputs), "outputs": list(program.outputs), "steps": steps}
    return meta, [dump_stage(stage) for stage in program.stages]


def load_program(meta: Mapping[str, Any], stages: Sequence[Buffer], device: str = "cpu") -> ShardProgram:
    """The program of `dump_program`, its weights on `device`.

    Raises ShardError for malformed values, and what ``load_stage`` raises.
    """
    try:
        steps = [None if step is None else Exchange.from_dict(step) for step in meta["steps"]]
        names = [tuple(str(name) for name in meta[key]) for key in ("inputs", "outputs")]
        worker = int(meta["worker"])
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"malformed shard program: {type(error).__name__}: {error}") from error
    if steps.count(None) != len(stages):
        raise ShardError(f"a shard program of {steps.count(None)} computations came with {len(stages)} stage files")
    loaded = iter(stages)
    return ShardProgram(worker, names[0], names[1], tuple(load_stage(next(loaded), device) if step is None else step for step in steps))
