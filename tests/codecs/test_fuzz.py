"""Damaged and hostile packets: each is refused with our errors or gives tensors within the limits, in little memory.

    python tests/codecs/test_fuzz.py --mutants 100000

Mutants come in three depths. *Damaged* bytes must all fail the checksum. *Sealed* ones carry sizes and checksum made
right again, so that the parsers behind them are reached. *Rebuilt* ones change a value of the msgpack header or a
field of an encoded tensor, and are packed anew.
"""

import argparse
import random
import resource
import struct
import time
import tracemalloc
import warnings
from collections import Counter
from copy import deepcopy

import msgpack
import pytest
import torch
import xxhash

from splitinfer import codecs
from splitinfer.codecs.block import DTYPES
from splitinfer.codecs.packet import Frame, Kind, Limits, Packet
from splitinfer.errors import CodecError, PacketError

LIMITS = Limits(packet_nbytes=1 << 18, header_nbytes=1 << 16, tensor_nbytes=1 << 20, frames=64)
PYTHON_NBYTES = 4 * LIMITS.tensor_nbytes  # a decompressed and an unshuffled body at once, and something for the rest
GROWTH_NBYTES = 48 << 20  # of the whole process, torch included; allocators keep some of what they had
NAMES = (*codecs.names(), "zstd3", "fp16+zstd", "bf16", "bf16+zstd", "int8/tensor", "int6/channel+zstd", "int4/block16",
         "int4/channel/sym+zstd", "int3/block32/sym", "int2/tensor+zstd", "eb0.01", "eb0.1rel", "topk0.1", "topk0.5/fp16", "uint8", "dct50")
SLOWEST_S = 5.0  # a mutant takes well below a millisecond; this is a hang

EXTREMES = (0, 1, 2, 3, 5, 16, 63, 64, 65, 127, 128, 255, 256, 1 << 15, (1 << 16) - 1, 1 << 16, 1 << 18, (1 << 20) - 1, 1 << 20,
            (1 << 20) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
ODD_VALUES = (None, True, False, -1, 0, 1, 2**64 - 1, -(2**63), 0.5, float("nan"), float("inf"), "", "x" * 300, "zip", "int8", "eb0.1",
              b"raw", [], {}, [[]] * 9, {"x": {}}, msgpack.ExtType(5, b"12"), msgpack.Timestamp(1, 2), ["x", "raw", 0])


# -- seeds


def seeds():
    """Valid packets of every codec, every dtype, several layouts and kinds."""
    rng = random.Random(0)
    torch.manual_seed(0)
    layouts = (lambda t: t, lambda t: t.permute(0, 3, 1, 2), lambda t: t[:, ::2], lambda t: t[:1].expand_as(t), lambda t: t[:0],
               lambda t: t[0, 0, 0, 0])
    packets = []
    for dtype in DTYPES:
        base = (torch.randn(2, 4, 5, 8) * 3).clamp(min=0)
        tensor = base.to(dtype) if dtype is not torch.complex32 else base.view(torch.int32).view(torch.complex32)
        for name in NAMES:
            frames = tuple(Frame.encode(f"t{turn}", layout(tensor), codecs.get(name)) for turn, layout in enumerate(rng.sample(layouts, 2)))
            kind, request = rng.choice(list(Kind)), f"r{len(packets)}"
            packets.append(Packet(kind, request, frames, rng.randrange(3), {"n": 3, "f": 0.5}, {"left_s": 1.5}))
    zeros = torch.zeros(1 << 17)  # half of the limit in a few bytes
    channels = torch.cat([torch.randn(64, 6), torch.randn(64, 2) * 1e3], 1)
    for name in NAMES[1:]:
        codec = codecs.get(name)
        stored = codec.estimate(torch.ones(1 << 17, device="meta")) > 1 << 12 and len(codec.encode(zeros)) > 1 << 12
        frames = (Frame.encode("zeros", zeros[: 1 << (10 if stored else 17)], codec), Frame.encode("map", channels.t(), codec))
        packets.append(Packet(Kind.RESPONSE, "bomb", frames))
    packets.append(Packet(Kind.ERROR, "e", meta={"error": {"type": "ValueError", "rows": [[1, 2], ["a", None]]}}))
    return [packet.pack() for packet in packets]


# -- mutations: (bytearray, rng, seeds) -> bytes


def flipped(data, rng, others):
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def edited(data, rng, others):
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xC1, 0xDC, 0xDF, 0xFF, rng.randrange(256)))
    return data


def truncated(data, rng, others):
    return data[: rng.randrange(len(data))]


def inserted(data, rng, others):
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 4, 8, 16, 100)))
    return data


def removed(data, rng, others):
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 4, 8, 16, 100))]
    return data


def duplicated(data, rng, others):
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    at = rng.randrange(len(data) + 1)
    data[at:at] = data[start:end]
    return data


def extreme_number(data, rng, others):
    size, form = rng.choice(((4, "<I"), (8, "<Q")))
    if len(data) >= size:
        at = rng.randrange(len(data) - size + 1)
        at -= at % size if rng.random() < 0.7 else 0
        data[at : at + size] = struct.pack(form, rng.choice(EXTREMES) % (1 << 8 * size))
    return data


def spliced(data, rng, others):
    other = rng.choice(others)
    start = rng.randrange(len(data) + 1)
    return data[:start] + other[start if rng.random() < 0.5 else rng.randrange(len(other)) :]


BYTES = (flipped, edited, truncated, inserted, removed, duplicated, extreme_number, spliced)


def sealed(data):
    """The bytes, cut or filled so that the declared sizes hold, with the right checksum."""
    if len(data) < 48:
        data = data + bytes(48 - len(data))
    data[:5] = b"SPLI\1"
    data[5] = data[5] % 5 or 1
    header = struct.unpack_from("<I", data, 8)[0] % (len(data) - 31)
    header = min(header, (len(data) - 32) // 16 * 16)
    struct.pack_into("<HIQI", data, 6, 0, header, len(data) - 32 - header - -header % 16, 0)
    struct.pack_into("<Q", data, 24, xxhash.xxh3_64_intdigest(bytes(data[:24]) + bytes(data[32:])))
    return data


def odd_header(data, rng, others):
    """A value somewhere in the msgpack header replaced, removed, repeated or added; sizes and checksum right."""
    size = struct.unpack_from("<I", data, 8)[0]
    header = msgpack.unpackb(data[32 : 32 + size])
    for _ in range(rng.randint(1, 2)):
        place = header
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = rng.choice(keys)
            if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
                break
            place = place[key]
        if not place:
            continue
        held = place[key]
        match rng.randrange(5):
            case 0:
                place[key] = deepcopy(rng.choice(ODD_VALUES))
            case 1 if isinstance(held, int):
                place[key] = max(-(2**63), min(2**64 - 1, rng.choice((held + 1, held - 1, held + 16, held * 2, rng.choice(EXTREMES)))))
            case 2:
                del place[key]
            case 3 if isinstance(place, list):
                place.insert(rng.randrange(len(place) + 1), held)
            case _ if isinstance(place, dict):
                place[rng.choice(("x", "id", "frames", 7, b"x"))] = deepcopy(rng.choice(ODD_VALUES))
            case _:
                place[key] = deepcopy(rng.choice(ODD_VALUES))
    packed = msgpack.packb(header)
    if rng.random() < 0.2:
        packed = bytes(rng.choice(BYTES)(bytearray(packed), rng, others))
    rest = packed + bytes(-len(packed) % 16) + data[32 + size + -size % 16 :]
    start = bytearray(data[:32])
    struct.pack_into("<I", start, 8, len(packed))
    return sealed(start + rest)


def odd_tensor(data, rng, others):
    """A field of an encoded tensor, or bytes of its body, replaced; the packet packed anew."""
    packet = Packet.unpack(data)
    frames = list(packet.frames)
    if not frames:
        return sealed(flipped(data, rng, others))
    turn = rng.randrange(len(frames))
    body = bytearray(frames[turn].parts[0])
    codec = frames[turn].codec
    for _ in range(rng.randint(1, 3)):
        if len(body) < 16:
            break
        match rng.randrange(6):
            case 0:
                body[rng.randrange(8)] = rng.choice((0, 1, 2, 3, 4, 5, 6, 19, 20, 63, 64, 65, 255))
            case 1:
                at = 8 + 8 * rng.randrange(min(body[3] * 2 or 1, (len(body) - 8) // 8))
                body[at : at + 8] = struct.pack("<Q", rng.choice(EXTREMES))
            case 2:
                codec = rng.choice(NAMES)
                body[0] = codecs.get(codec).codec_id
                body[1] = rng.choice((*range(12), *range(16, 26), *range(32, 41)))
            case 3:
                body[2] = rng.randrange(len(DTYPES))
            case 4:
                at = 8 + 8 * rng.randrange(max(1, min(body[3], (len(body) - 8) // 8)))
                number = struct.unpack_from("<Q", body, at)[0] + rng.choice((-1, 1)) if len(body) >= at + 8 else 0
                body[at : at + 8] = struct.pack("<Q", number % (1 << 64))
            case _:
                body = bytearray(rng.choice(BYTES)(body, rng, others))
                if not body:
                    break
    frames[turn] = Frame(frames[turn].name, codec, (bytes(body),))
    return bytearray(Packet(packet.kind, packet.request_id, tuple(frames), packet.attempt, packet.sizes, packet.meta).pack())


def mutate(data, rng, others):
    """A mutant and its depth: "damaged", "sealed" or "rebuilt"."""
    mutant = bytearray(data)
    depth = rng.choice(("damaged", "sealed", "rebuilt", "rebuilt"))
    if depth == "rebuilt":
        return bytes(rng.choice((odd_header, odd_tensor, odd_tensor))(mutant, rng, others)), depth
    for _ in range(rng.randint(1, 3)):
        mutant = rng.choice(BYTES)(mutant, rng, others) if mutant else bytearray(b"\0")
    return bytes(sealed(mutant) if depth == "sealed" else mutant), depth


# -- the receiver


def received(data, copy):
    """Decode everything, read every element, and return the tensors' bytes."""
    nbytes = 0
    for frame in Packet.unpack(data, LIMITS).frames:
        tensor = frame.decode(LIMITS, copy=copy)
        assert tensor.nbytes <= LIMITS.tensor_nbytes
        assert not copy or tensor.untyped_storage().nbytes() <= LIMITS.tensor_nbytes + 64
        nbytes += tensor.contiguous().nbytes
    assert nbytes <= LIMITS.tensor_nbytes * LIMITS.frames
    return nbytes


def fuzz(mutants, seed):
    """Outcomes by depth, and the figures that the limits are about. Raises AssertionError, with the mutant, for anything else."""
    rng = random.Random(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: complex32 is experimental
        corpus = seeds()
        sound = [received(data, copy=True) for data in corpus]
        known = set(corpus)
        counts, slowest, python_peak = Counter(), 0.0, 0
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        tracemalloc.start()
        try:
            for turn in range(mutants):
                data, depth = mutate(rng.choice(corpus), rng, corpus)
                outcome, seconds, nbytes = attempt(data, copy=turn % 2 == 0)
                slowest, python_peak = max(slowest, seconds), max(python_peak, nbytes)
                counts[depth, outcome] += 1
                if depth == "damaged" and data not in known and outcome != "PacketError":
                    raise AssertionError(f"damage went unseen: {outcome} of {data.hex()}")
                if turn % 1000 == 0:  # a refused packet leaves nothing behind
                    assert [received(other, copy=False) for other in corpus] == sound
        finally:
            tracemalloc.stop()
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return counts, time.perf_counter() - started, slowest, python_peak, growth


def attempt(data, copy):
    """Outcome, seconds and peak bytes of Python's own allocations."""
    tracemalloc.reset_peak()
    held, started = tracemalloc.get_traced_memory()[0], time.perf_counter()
    try:
        received(data, copy)
        outcome = "accepted"
    except (PacketError, CodecError) as error:
        outcome = type(error).__name__
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__}: {error}; copy={copy}; the mutant: {data.hex()}") from error
    return outcome, time.perf_counter() - started, tracemalloc.get_traced_memory()[1] - held


def check(mutants, seed):
    counts, seconds, slowest, python_peak, growth = fuzz(mutants, seed)
    assert counts.total() == mutants
    assert python_peak <= PYTHON_NBYTES
    assert growth <= GROWTH_NBYTES
    assert slowest <= SLOWEST_S
    return counts, seconds, slowest, python_peak, growth


# -- tests


@pytest.mark.parametrize("seed", range(5))
def test_mutants_are_refused_or_harmless(seed):
    counts, *_ = check(2000, seed)
    reached = {(depth, outcome) for (depth, outcome), count in counts.items() if count >= 5}
    assert reached >= {("damaged", "PacketError"), *((depth, outcome) for depth in ("sealed", "rebuilt")
                                                    for outcome in ("PacketError", "CodecError", "accepted"))}


@pytest.mark.slow
def test_a_hundred_thousand_mutants():
    check(100_000, 12345)


def test_mutants_are_the_same_for_the_same_seed():
    corpus = seeds()
    once, again = ([mutate(corpus[turn % len(corpus)], rng, corpus) for turn in range(200)] for rng in (random.Random(7), random.Random(7)))
    assert once == again
    assert len({data for data, _ in once}) > 190


def test_seeds_cover_every_codec_and_dtype():
    found = {(frame.codec, frame.parts[0][2]) for data in seeds() for frame in Packet.unpack(data).frames}
    assert found == {(name, code) for name in NAMES for code in range(len(DTYPES))}


def test_the_receiver_notices(monkeypatch):
    """The checks of this file can fail: a tensor beyond the limit, and an error that is not ours."""
    big = Packet(Kind.REQUEST, "r", (Frame.encode("x", torch.zeros(1 << 18), codecs.get("zstd")),)).pack()
    assert received(big, copy=True) == 1 << 20
    with pytest.raises(CodecError):
        received(Packet(Kind.REQUEST, "r", (Frame.encode("x", torch.zeros((1 << 18) + 1), codecs.get("zstd")),)).pack(), copy=True)
    monkeypatch.setattr(Packet, "unpack", lambda data, limits: {}["no error of ours"])
    with pytest.raises(AssertionError, match="KeyError: 'no error of ours'; copy=True; the mutant: 53504c49"):
        attempt(big, copy=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=12345)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts, seconds, slowest, python_peak, growth = check(options.mutants, options.seed)
    accepted = sum(count for (_, outcome), count in counts.items() if outcome == "accepted")
    print(f"{options.mutants} mutants: {options.mutants - accepted} refused, {accepted} accepted, {seconds:.1f} s")
    for (depth, outcome), count in sorted(counts.items()):
        print(f"  {depth:8} {outcome:12} {count:7}")
    print(f"  slowest mutant {slowest * 1e3:.1f} ms")
    print(f"  peak memory growth: {growth / 2**20:.1f} MiB of the process, {python_peak / 2**20:.2f} MiB of Python objects at one mutant")


if __name__ == "__main__":
    main()
