"""What nobody should send to a stage: bad requests, bad pieces of tensors, and more of both than the limits hold."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import torch
from bad_packets import (
    GIANT,
    LIMITS,
    PICKLE,
    SHAPE,
    SOON_S,
    STREAMED,
    Bad,
    Stages,
    fields,
    flipped,
    framed,
    good_request,
    holding,
    left,
    nested,
    sealed,
    swollen,
    told,
)
from torch import Tensor

from splitinfer import codecs
from splitinfer.codecs.packet import Frame, Kind, Packet

RAW = partial(framed, "raw")
PACKING = ("zstd", "fp16+zstd", "int8", "int4+zstd", "uint8", "eb0.01", "topk0.1", "dct50")
BOMBS = {name: framed(name, torch.zeros(1, 1, 8, 1 << 21)) for name in PACKING}
"""64 MiB of zeros, in some kilobytes."""

REQUESTS: dict[str, tuple[Callable[[Packet], object], str]] = {
    "nothing": (lambda _: b"", "at least 32 bytes; this has 0"),
    "random bytes": (lambda _: os.urandom(5000), "not a splitinfer packet"),
    "a pickle": (lambda _: PICKLE, "not a splitinfer packet"),
    "HTTP": (lambda _: b"GET / HTTP/1.1\r\nHost: splitinfer\r\n\r\n", "not a splitinfer packet"),
    "a text in place of bytes": (lambda _: "SPLI" * 20, "bytes-like"),
    "a number in place of bytes": (lambda _: 7, "int"),
    "cut short": (lambda good: good.pack()[:-1], "truncated or padded"),
    "bytes behind its end": (lambda good: good.pack() + bytes(16), "truncated or padded"),
    "another version": (lambda _: sealed(fields(), version=2), "packet version 2; this side speaks version 1"),
    "a kind that is none": (lambda _: sealed(fields(), kind=99), "unknown packet kind 99"),
    "reserved bits": (lambda _: sealed(fields(), reserved=1), "reserved fields"),
    "a wrong checksum": (lambda good: flipped(good.pack()), "checksum mismatch"),
    "a header above the limit": (lambda _: sealed(fields(id="x" * LIMITS.header_nbytes)), "a header of .* bytes; the limit is 8192"),
    "a packet above the limit": (lambda _: sealed(fields(), bytes(LIMITS.packet_nbytes)), "a packet of .* bytes; the limit is 1048576"),
    "16 EiB declared": (lambda _: sealed(fields(), declared=2**64 - 16), "the packet declares 1844"),
    "too many frames": (lambda _: sealed(fields(frames=[[str(n), "raw", 0] for n in range(17)])), "17 frames; the limit is 16"),
    "two frames of one name": (lambda _: sealed(fields(frames=[["x", "raw", 0]] * 2)), "two frames bear the same name"),
    "a frame beyond the packet": (lambda _: sealed(fields(frames=[["x", "raw", 1 << 60]])), "declares 1152921504606846976 bytes; 0"),
    "a long identifier": (lambda _: sealed(fields(id="x" * 2000)), "a name of 2000 characters; the limit is 1024"),
    "no msgpack": (lambda _: sealed(b"\xc1" * 40), "malformed header"),
    "msgpack 4,000 deep": (lambda _: sealed(b"\x91" * 4000), "malformed header"),
    "an array of 4 billion": (lambda _: sealed(b"\xdd\xff\xff\xff\xff"), "malformed header"),
    "a header that lacks keys": (lambda _: sealed({"id": "x"}), "a header holds exactly"),
    "keys of wrong types": (lambda _: sealed(fields(sizes=[1], meta=3)), "a field has the wrong type"),
    "meta 900 deep": (lambda good: replace(good, meta={"left_s": 5.0, "x": nested(900)}).pack(), "answered"),
    "left_s in words": (lambda good: left(good, "soon"), "left_s is a number of seconds; got 'soon'"),
    "left_s true": (lambda good: left(good, True), "left_s is a number of seconds; got True"),
    "left_s NaN": (lambda good: left(good, float("nan")), "left_s is a number of seconds; got nan"),
    "left_s negative": (lambda good: left(good, -1.0), "the request expired"),
    "left_s of a century": (lambda good: left(good, 3e9), "left_s is 3e.09 s; the limit is 30"),
    "left_s infinite": (lambda good: left(good, float("inf")), "left_s is inf s; the limit is 30"),
    "an answer": (lambda good: replace(good, kind=Kind.RESPONSE).pack(), "a stage takes requests; got a packet of kind RESPONSE"),
    "a stage file": (lambda good: replace(good, kind=Kind.STAGE).pack(), "a stage takes requests; got a packet of kind STAGE"),
    "no tensor": (lambda good: replace(good, frames=()).pack(), r"no tensor 'images' in the packet; it holds \[\]"),
    "another tensor": (lambda good: holding(good, RAW(torch.zeros(1), name="x")), r"it holds \['x'\]"),
    "another dtype": (lambda good: holding(good, RAW(torch.zeros(1, 1, 8, 8).double())), "expected torch.float32 1x1x8x8"),
    "another shape": (lambda good: holding(good, RAW(torch.zeros(1, 1, 8, 9))), "expected torch.float32 1x1x8x8"),
    "an exabyte declared": (lambda good: holding(good, RAW(torch.zeros(1), GIANT)), "needs .* bytes; the limit is 262144"),
    "shorter than declared": (lambda good: holding(good, RAW(torch.zeros(3), (1, 1, 8, 8))), "body of 12 bytes where 64 x float32"),
    "a tensor's header cut short": (lambda good: holding(good, Frame("images", "raw", (bytes(9),))), "tensor 'images'"),
    "an unknown codec": (lambda good: holding(good, replace(RAW(torch.zeros(1, 1, 8, 8)), codec="zip9")), "no codec 'zip9'"),
    "another codec's bytes": (lambda good: holding(good, replace(RAW(torch.zeros(1, 1, 8, 8)), codec="zstd")), "written by codec number 0"),
    **{f"64 MiB of zeros by {name}": (partial(holding, frame=bomb), "limit is 262144") for name, bomb in BOMBS.items()},
    **{f"more than declared by {name}": (partial(swollen, codec=name), "where|declares|malformed") for name in BOMBS},
}
"""For stage 0, each made from a good request."""


def asked(make: Callable[[Packet], object], stages: Stages) -> str:
    """A request to stage 0."""
    return told(stages.call("stage0", "handle", make(good_request(stages))))


# -- pieces of a tensor, for stage 1

WHOLE = torch.zeros(SHAPE)


def piece(request_id: str, tensor: Tensor = WHOLE, *, name: str = STREAMED, attempt: int = 0, **meta: object) -> bytes:
    """The only piece of a tensor, or what `meta` makes of it."""
    whole = {"piece": 0, "of": 1, "dim": 0, "start": 0, "shape": list(tensor.shape), "left_s": 5.0}
    return Packet(Kind.PIECE, request_id, (Frame.encode(name, tensor, codecs.get("raw")),), attempt, meta=whole | meta).pack()


def half(request_id: str, number: int, tensor: Tensor = WHOLE[:, :16], **meta: object) -> bytes:
    """One of two pieces."""
    return piece(request_id, tensor, **{"piece": number, "of": 2, "dim": 1, "start": 16 * number, "shape": list(SHAPE)} | meta)


def zipped(request_id: str) -> bytes:
    frame = framed("zstd", torch.zeros(1, 32, 8, 1 << 16), name=STREAMED)
    return replace(Packet.unpack(piece(request_id)), frames=(frame,)).pack()


def double(request_id: str) -> bytes:
    frames = (framed("raw", WHOLE), framed("raw", WHOLE, name=STREAMED))
    return replace(Packet.unpack(piece(request_id)), frames=frames).pack()


LATE, ALIEN = f"pieces of .* did not arrive within {SOON_S}", "does not fit"
PIECES: dict[str, tuple[Callable[[str], list[bytes]], str]] = {
    "no piece at all": (lambda _: [], LATE),
    "pieces of another request": (lambda _: [piece("x")], LATE),
    "pieces of another attempt": (lambda of: [piece(of, attempt=1)], LATE),
    "a piece of another tensor": (lambda of: [piece(of, name="relu")], LATE),
    "random bytes": (lambda _: [os.urandom(5000)], LATE),
    "a pickle": (lambda _: [PICKLE], LATE),
    "a request in the place of a piece": (lambda of: [replace(Packet.unpack(piece(of)), kind=Kind.REQUEST).pack()], LATE),
    "two tensors in one piece": (lambda of: [double(of)], LATE),
    "piece 3 of 2": (lambda of: [piece(of, piece=3, of=2)], LATE),
    "a piece of 17": (lambda of: [piece(of, of=17)], LATE),
    "along a dimension that is none": (lambda of: [half(of, 0, dim=4)], LATE),
    "a negative place": (lambda of: [half(of, 0, start=-1)], LATE),
    "a shape in words": (lambda of: [half(of, 0, shape=["one"])], LATE),
    "left_s NaN": (lambda of: [piece(of, left_s=float("nan"))], LATE),
    "left_s negative": (lambda of: [piece(of, left_s=-1.0)], LATE),
    "meta 900 deep": (lambda of: [piece(of, x=nested(900), left_s="long")], LATE),
    "another dtype": (lambda of: [piece(of, WHOLE.double())], "expected torch.float32 1x32x8x8"),
    "another shape": (lambda of: [piece(of, WHOLE[:, :5])], "expected torch.float32 1x32x8x8"),
    "an exabyte declared": (lambda of: [half(of, 0, shape=[1, 1 << 50, 8, 8])], "bytes; the limit is 262144"),
    "64 MiB of zeros": (lambda of: [zipped(of)], "bytes; the limit is 262144"),
    "halves that overlap": (lambda of: [half(of, 0), half(of, 1, start=8)], "do not fit each other"),
    "halves that leave a gap": (lambda of: [half(of, 0, WHOLE[:, :8]), half(of, 1)], "do not fit each other"),
    "a half beyond the end": (lambda of: [half(of, 0), half(of, 1, start=20)], ALIEN),
    "halves of two shapes": (lambda of: [half(of, 0), half(of, 1, shape=[1, 64, 8, 8])], ALIEN),
    "halves of two dtypes": (lambda of: [half(of, 0), half(of, 1, WHOLE[:, :16].double())], ALIEN),
    "each piece twice": (lambda of: [half(of, 0), half(of, 0), half(of, 1), half(of, 1)], "answered"),
}


def fed(make: Callable[[str], list[bytes]], answer: str, stages: Stages) -> str:
    """Pieces to stage 1, then their request."""
    request_id = uuid.uuid4().hex
    for data in make(request_id):
        stages.call("stage1", "feed", data)
    return told(stages.call("stage1", "handle", sealed(fields(id=request_id, meta={"left_s": SOON_S if answer == LATE else 5.0}))))


def flooded(stages: Stages) -> str:
    """Pieces whose requests never come, and one that does."""
    stages.calls("stage1", "feed", [(piece(uuid.uuid4().hex, left_s=1.0),) for _ in range(300)])
    return fed(lambda of: [piece(of)], "", stages)


# -- more than the limits hold


def crowded(stages: Stages) -> str:
    """Requests that wait for their pieces."""
    many: list[tuple[object, ...]] = [(sealed(fields(meta={"left_s": 0.6})),) for _ in range(3 * stages.limits.held)]
    return _most(stages.calls("stage1", "handle", many))


def heavy(stages: Stages) -> str:
    """The same, few and large."""
    large = {"meta": {"left_s": 0.6}, "frames": [["x", "raw", 1_000_000]]}
    many: list[tuple[object, ...]] = [(sealed(fields(**large), bytes(1_000_000)),) for _ in range(6)]
    return _most(stages.calls("stage1", "handle", many))


def _most(answers: list[object]) -> str:
    texts = [told(answer) for answer in answers]
    refused = [text for text in texts if "holds" in text]
    return refused[0] if refused else texts[-1]


def replayed(stages: Stages) -> str:
    data = good_request(stages).pack()
    first, second = (told(stages.call("stage0", "handle", data)) for _ in range(2))
    return second if first == "answered" else f"the first: {first}"


def meanwhile(stages: Stages) -> str:
    """Good requests beside some whose pieces never come."""
    many: list[tuple[object, ...]] = [(sealed(fields(meta={"left_s": 1.0})),) for _ in range(3)]
    with ThreadPoolExecutor(1) as pool:
        lost, end_s, longest_s = pool.submit(stages.calls, "stage1", "handle", many), time.monotonic() + 0.5, 0.0
        while time.monotonic() < end_s:
            start = time.monotonic()
            stages.ask(10.0)
            longest_s = max(longest_s, time.monotonic() - start)
        return f"good ones within {longest_s:.2f} s meanwhile" if not lost.done() else "good ones afterwards"


def kinds() -> list[Bad]:
    """All of them."""
    found = [Bad(name, "request", partial(asked, make), answer) for name, (make, answer) in REQUESTS.items()]
    found.append(Bad("a request a second time", "request", replayed, "was taken before; a new attempt needs a new number"))
    found.append(Bad("more requests than may wait", "request", crowded, "holds 8 requests"))
    found.append(Bad("more bytes than may wait", "request", heavy, "holds 4 requests"))
    found += [Bad(name, "piece", partial(fed, make, answer), answer) for name, (make, answer) in PIECES.items()]
    found.append(Bad("requests that wait for pieces", "piece", meanwhile, "meanwhile"))
    found.append(Bad("300 pieces without requests", "piece", flooded, "9 would wait"))
    return found
