"""What no neighbour of a stage should say: bad messages between machines that share layers, bad answers, bad stage files."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import msgpack
import numpy as np
import torch
from bad_packets import LIMITS, PICKLE, SOON_S, Bad, Mark, Stages, fields, flipped, good_request, nested, sealed, told

from splitinfer import codecs
from splitinfer.codecs.packet import Frame, Kind, Limits, Packet
from splitinfer.groups import RESULT, SCATTER
from splitinfer.store import default_directory, digest_of

# -- messages of machines that share layers, for the stage and the worker

BLOCK = "stage2/0/0"
SHARD = {"block": BLOCK, "step": 0, "from": 1, "left_s": SOON_S}


def shard(request_id: str, frames: tuple[Frame, ...] = (), **meta: object) -> bytes:
    return Packet(Kind.SHARD, request_id, frames, meta=SHARD | meta).pack()


def scattered(stages: Stages, request_id: str, *, dtype: torch.dtype = torch.float32, **meta: object) -> bytes:
    """What the stage sends the worker for a block."""
    block: Any = stages.front.stages[2][0][0]
    frames = []
    for part in block.scatter[1]:
        shape = list(stages.front.graph.tensors[part.tensor].shape)
        shape[part.dim] = part.stop - part.start
        frames.append(Frame.encode(part.tensor, torch.zeros(shape, dtype=dtype), codecs.get("raw")))
    return shard(request_id, tuple(frames), step=SCATTER, **{"from": 0} | meta)


MALFORMED = "malformed message between workers"
SHARDS: dict[str, tuple[str, Callable[[Stages, str], bytes], str]] = {
    "to a stage that shares nothing": ("stage0", lambda _, of: shard(of), "shares its layers with nobody"),
    "from a machine that is none": ("stage2", lambda _, of: shard(of, **{"from": 9}), "from worker 9"),
    "from a machine that is none, to a worker": ("worker", lambda _, of: shard(of, **{"from": 9}), "from worker 9"),
    "from itself": ("stage2", lambda _, of: shard(of, **{"from": 0}), "from worker 0"),
    "from in words": ("stage2", lambda _, of: shard(of, **{"from": "me"}), MALFORMED),
    "a broken step": ("stage2", lambda _, of: shard(of, step=1.5), MALFORMED),
    "left_s NaN": ("stage2", lambda _, of: shard(of, left_s=float("nan")), MALFORMED),
    "no block": ("stage2", lambda _, of: shard(of, block=None), MALFORMED),
    "meta 900 deep": ("stage2", lambda _, of: shard(of, block=nested(900)), MALFORMED),
    "a request": ("stage2", lambda _, of: sealed(fields(id=of)), "kind SHARD; got REQUEST|malformed message"),
    "a request, to a worker": ("worker", lambda _, of: sealed(fields(id=of)), "kind REQUEST"),
    "random bytes": ("stage2", lambda *_: os.urandom(5000), "not a splitinfer packet"),
    "random bytes, to a worker": ("worker", lambda *_: os.urandom(5000), "not a splitinfer packet"),
    "a pickle": ("worker", lambda *_: PICKLE, "not a splitinfer packet"),
    "inputs of a block that it does not hold": ("worker", lambda it, of: scattered(it, of, block="stage2/7/7"), "not block 'stage2/7/7'"),
    "inputs without tensors": ("worker", lambda _, of: shard(of, step=SCATTER, **{"from": 0}), r"needs \[.relu.\] .* got \[\]"),
    "inputs of another dtype": ("worker", lambda it, of: scattered(it, of, dtype=torch.int64), "expected|failed in layer"),
    "inputs whose peer never answers": ("worker", scattered, "sent nothing for step"),
    "inputs for a century": ("worker", lambda it, of: scattered(it, of, left_s=3e9), "at most 30 s; .* 3e.09 s"),
    "results that nobody asked for": ("stage2", lambda _, of: shard(of, step=RESULT), "ignored"),
}


def received(actor: str, make: Callable[[Stages, str], bytes], stages: Stages) -> str:
    return told(stages.call(actor, "receive", make(stages, uuid.uuid4().hex)))


def posted(actor: str, stages: Stages) -> str:
    """More messages than may wait."""
    many: list[tuple[object, ...]] = [(shard(uuid.uuid4().hex, left_s=1.0, **{"from": 0 if actor == "worker" else 1}),) for _ in range(50)]
    return told(stages.calls(actor, "receive", many)[-1])


# -- answers of whoever is behind stage 0


def response(request_id: str = "x", kind: Kind = Kind.RESPONSE, attempt: int = 0) -> bytes:
    return Packet(kind, request_id, (Frame.encode("linear_1", torch.zeros(1, 10), codecs.get("raw")),), attempt).pack()


NO_SPANS = msgpack.packb([])
ANSWERS: dict[str, tuple[object, str]] = {
    "nothing": ((b"", NO_SPANS), "at least 32 bytes"),
    "random bytes": ((os.urandom(5000), NO_SPANS), "not a splitinfer packet"),
    "a pickle": ((PICKLE, NO_SPANS), "not a splitinfer packet"),
    "a packet above the limit": ((sealed(fields(), bytes(LIMITS.packet_nbytes), kind=2), NO_SPANS), "the limit is 1048576"),
    "no pair": (5, "int"),
    "a pair of numbers": ((5, 5), "int|bytes-like"),
    "the answer to another request": ((response(), NO_SPANS), "for attempt 0 of request x"),
    "a request": ((response(kind=Kind.REQUEST), NO_SPANS), "kind REQUEST"),
    "spans that are none": ((response(), b"\xc1"), "spans|msgpack|Unpack|Format"),
    "silence": (None, "no answer from behind"),
}


def answered(answer: object, stages: Stages) -> str:
    """A good request while an impostor stands behind stage 0."""
    with stages.impostor(answer):
        try:
            stages.ask(SOON_S if answer is None else 5.0)
        except Exception as error:
            return str(error)
    return "answered"


# -- stage files, for stage 0


def altered(stages: Stages, **meta: object) -> tuple[bytes, ...]:
    """Its stage file with other facts."""
    packet = Packet.unpack(stages.cargo.files[0], Limits(header_nbytes=1 << 20))
    return (replace(packet, meta={**packet.meta, **meta}).pack(),)


def programmed(stages: Stages, row: list[object]) -> tuple[bytes, ...]:
    """Its stage file with this operation before the last."""
    program: Mapping[str, Any] = Packet.unpack(stages.cargo.files[0], Limits(header_nbytes=1 << 20)).meta["program"]
    rows = program["rows"]
    return altered(stages, program={**program, "rows": [*rows[:-1], row, rows[-1]]})


def calling(target: str, *args: object) -> list[object]:
    return ["x", "call_function", target, {"t": list(args)}, {"d": {}}]


TOUCHES = "reads or writes files of this machine; no stage may"
CODE = f"x = __import__('os').system('touch {Mark.path}') #"
LOADS: dict[str, tuple[Callable[[Stages], tuple[bytes, ...]], str]] = {
    "random bytes": (lambda _: (os.urandom(5000),), "not a splitinfer packet"),
    "a pickle": (lambda _: (PICKLE,), "not a splitinfer packet"),
    "no file": (lambda _: (), "malformed parts of a stage"),
    "a request": (lambda it: (good_request(it).pack(),), "a stage file of torch None"),
    "of another torch": (lambda it: altered(it, torch="1.0.0"), "a stage file of torch 1.0.0; this machine has torch"),
    "no program": (lambda it: altered(it, program=None), "malformed stage file"),
    "an operator that is none": (lambda it: programmed(it, calling("os::system")), "does not know the operator 'os::system'"),
    "a function of Python": (lambda it: programmed(it, calling("builtins.eval", CODE)), "does not know the operator 'builtins.eval'"),
    "an operator that reads files": (lambda it: programmed(it, calling("aten::from_file.default", "/etc/passwd", False, 10)), TOUCHES),
    "an operator that writes files": (lambda it: programmed(it, calling("aten::save.default", {"n": "images"}, str(Mark.path))), TOUCHES),
    "a method": (lambda it: programmed(it, ["x", "call_method", "__class__", {"t": []}, {"d": {}}]), "an operation 'call_method'"),
    "a module": (lambda it: programmed(it, ["x", "call_module", "x", {"t": []}, {"d": {}}]), "an operation 'call_module'"),
    "code for a name": (lambda it: programmed(it, [CODE, *calling("aten::relu.default", {"n": "images"})[1:]]), "where a name belongs"),
    "code for an input": (lambda it: programmed(it, ["x", "placeholder", CODE, {"t": []}, {"d": {}}]), "where a name belongs"),
    "code for a weight": (lambda it: programmed(it, ["x", "get_attr", f"a.{CODE}", {"t": []}, {"d": {}}]), "where a name belongs"),
    "code for a keyword": (lambda it: programmed(it, [*calling("aten::relu.default")[:4], {"d": {CODE: 1}}]), "where a name belongs"),
    "an argument of another kind": (lambda it: programmed(it, calling("aten::relu.default", {"p": "x"})), "does not know"),
    "arguments 900 deep": (lambda it: programmed(it, calling("aten::relu.default", nested(400))), "malformed|does not know"),
}


def loaded(make: Callable[[Stages], tuple[bytes, ...]], stages: Stages) -> str:
    """What stage 0 says to these files in the place of its own; it keeps its own then."""
    return _load(stages, make(stages))


def _load(stages: Stages, files: tuple[bytes, ...], digests: list[str] | None = None) -> str:
    digests = [digest_of(file) for file in files] if digests is None else digests
    arrays = [np.frombuffer(file, np.uint8) for file in files]
    try:
        found = stages.call("stage0", "load", stages.cargo.data, digests, digests[: len(arrays)], *arrays)
    except Exception as error:
        return str(error)
    return "not here" if found is None else "loaded"


def misnamed(stages: Stages) -> str:
    """A file under another's hash."""
    return _load(stages, stages.cargo.files, ["0" * 64])


def climbing(stages: Stages) -> str:
    """A path in the place of a hash."""
    return _load(stages, stages.cargo.files, ["../../etc/passwd"])


def swapped(stages: Stages) -> str:
    """The file of its hash, altered on the disk: it is not there, then."""
    digest = digest_of(stages.cargo.files[0])
    (default_directory() / digest).write_bytes(flipped(stages.cargo.files[0]))
    return _load(stages, (), [digest])


def kinds() -> list[Bad]:
    """All of them."""
    found = [Bad(name, "message of a worker", partial(received, actor, make), answer) for name, (actor, make, answer) in SHARDS.items()]
    for actor in ("stage2", "worker"):
        found.append(Bad(f"50 messages at once to {actor}", "message of a worker", partial(posted, actor), "9 would wait"))
    found += [Bad(name, "answer", partial(answered, answer), pattern) for name, (answer, pattern) in ANSWERS.items()]
    found += [Bad(name, "stage file", partial(loaded, make), answer) for name, (make, answer) in LOADS.items()]
    found.append(Bad("another hash", "stage file", misnamed, "has not the hash"))
    found.append(Bad("a path for a hash", "stage file", climbing, "has not the hash|is no SHA-256"))
    found.append(Bad("altered on the disk", "stage file", swapped, "not here"))
    return found
