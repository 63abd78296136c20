"""Tensors in pieces: whatever order they come in, the tensor is that of the whole encoding; the overlap is what a flow shop takes."""

import itertools
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import splitinfer as si
from splitinfer import codecs, zoo
from splitinfer.codecs.packet import Frame, Kind, Limits, Packet
from splitinfer.errors import PacketError, RequestTimeout
from splitinfer.overlap import median_piece, overlapped_s
from splitinfer.plans import Plan
from splitinfer.streaming import Streams, packed_pieces, pieces_of, timed_pieces

LARGE = torch.relu(torch.randn(24, 120, 120, generator=torch.Generator().manual_seed(1)))
REQUEST = Packet(Kind.REQUEST, "r", meta={"left_s": 5.0})


def packed(codec: str, tensor: torch.Tensor = LARGE) -> list[bytes]:
    return list(packed_pieces("x", tensor, codec, "r", 0, 5.0))


@pytest.mark.parametrize("codec", ["raw", "zstd", "fp16", "int8", "int4/channel+zstd3", "eb0.01"])
@pytest.mark.parametrize("order", ["as sent", "reversed", "shuffled", "twice"])
def test_pieces_in_any_order_give_the_tensor_of_which_each_part_was_coded(codec: str, order: str) -> None:
    data = packed(codec)
    dim, sizes = pieces_of(LARGE)
    expected = torch.cat([codecs.get(codec).decode(codecs.get(codec).encode(part)) for part in LARGE.split(sizes, dim)], dim)
    arranged = {"as sent": data, "reversed": data[::-1], "shuffled": random.Random(3).sample(data, len(data)), "twice": data * 2}[order]
    streams = Streams(Limits())
    for each in arranged:
        streams.put(Packet.unpack(each))
    assert torch.equal(streams.take(REQUEST, "x", 5.0), expected)


def test_a_large_tensor_makes_many_pieces_and_a_small_one_makes_one() -> None:
    assert len(packed("zstd")) == 5
    assert len(packed("zstd", torch.randn(100))) == 1
    assert len(packed("raw", torch.randn(1 << 23))) == 16  # calls are bounded, whatever the size


@pytest.mark.parametrize(
    "tensor", [torch.tensor(3.0), torch.zeros(0), torch.zeros(3, 0, 2), torch.randn(1, 1, 1), LARGE.mT, LARGE.flatten()[1:]]
)
def test_whatever_cannot_be_divided_goes_in_one_piece_and_keeps_its_layout(tensor: torch.Tensor) -> None:
    (data,) = packed("zstd", tensor)
    streams = Streams(Limits())
    streams.put(Packet.unpack(data))
    arrived = streams.take(REQUEST, "x", 5.0)
    assert torch.equal(arrived, tensor)
    assert arrived.stride() == tensor.stride()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 30))
def test_pieces_cover_a_tensor_without_a_gap(shape: list[int], scale: int) -> None:
    shape[-1] *= scale * 100
    dim, sizes = pieces_of(torch.empty(shape))
    assert sum(sizes) == shape[dim]
    assert min(sizes) >= 1
    assert all(size == 1 for size in shape[:dim])  # each piece is one run of memory


def test_a_piece_that_never_comes_is_a_timeout() -> None:
    streams = Streams(Limits())
    for each in packed("zstd")[:-1]:
        streams.put(Packet.unpack(each))
    with pytest.raises(RequestTimeout, match=r"'x' did not arrive within 0\.050 s"):
        streams.take(REQUEST, "x", 0.05)


def test_damaged_pieces_are_an_error_of_the_packet() -> None:
    streams = Streams(Limits())
    pieces = [Packet.unpack(each) for each in packed("zstd")]
    frame = pieces[2].frames[0]
    pieces[2] = replace(pieces[2], frames=(replace(frame, parts=(bytes(frame.nbytes),)),))
    for piece in pieces:
        streams.put(piece)
    with pytest.raises(PacketError, match="tensor 'x'"):
        streams.take(REQUEST, "x", 5.0)


def test_a_tensor_larger_than_the_limit_is_refused_at_its_first_piece() -> None:
    streams = Streams(Limits(tensor_nbytes=1000))
    streams.put(Packet.unpack(packed("zstd")[0]))
    with pytest.raises(PacketError, match="1000"):
        streams.take(REQUEST, "x", 5.0)


GOOD = {"piece": 0, "of": 2, "dim": 0, "start": 0, "shape": [4], "left_s": 5.0}


@pytest.mark.parametrize(
    "change",
    [
        {"piece": -1}, {"piece": "0"}, {"piece": True}, {"piece": 2}, {"of": 17}, {"of": 0}, {"dim": 1}, {"dim": -1}, {"start": 1.5},
        {"start": None}, {"shape": 4}, {"shape": [-4]}, {"shape": ["4"]}, {"left_s": "long"}, {"left_s": -1.0}, {"left_s": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_malformed_pieces_are_refused(change: dict[str, object]) -> None:
    frame = Frame("x", "raw", (codecs.get("raw").encode(torch.zeros(2)),))
    Streams(Limits()).put(Packet(Kind.PIECE, "r", (frame,), meta=GOOD))
    with pytest.raises(PacketError, match="malformed piece"):
        Streams(Limits()).put(Packet(Kind.PIECE, "r", (frame,), meta=GOOD | change))
    with pytest.raises(PacketError, match="one frame"):
        Streams(Limits()).put(Packet(Kind.PIECE, "r", (), meta=GOOD))
    with pytest.raises(PacketError, match="one frame"):
        Streams(Limits()).put(Packet(Kind.REQUEST, "r", (frame,), meta=GOOD))


@pytest.mark.parametrize(
    "second",
    [
        {"part": torch.zeros(3), "start": 2},
        {"part": torch.zeros(2), "start": 3},
        {"part": torch.zeros(2, dtype=torch.float64), "start": 2},
        {"part": torch.zeros(2, 1), "start": 2},
        {"part": torch.zeros(2), "start": 2, "shape": [5]},
        {"part": torch.zeros(()), "start": 2},
    ],
    ids=str,
)
def test_pieces_that_do_not_fit_each_other_are_refused(second: dict[str, object]) -> None:
    streams = Streams(Limits())
    for index, change in enumerate([{"part": torch.zeros(2)}, second]):
        part = change.pop("part")
        frame = Frame("x", "raw", (codecs.get("raw").encode(part),))
        streams.put(Packet(Kind.PIECE, "r", (frame,), meta=GOOD | {"piece": index} | change), now=True)
    with pytest.raises(PacketError, match="does not fit"):
        streams.take(REQUEST, "x", 5.0)


def test_a_promised_giant_is_not_allocated() -> None:
    streams = Streams(Limits())
    frame = Frame("x", "raw", (codecs.get("raw").encode(torch.zeros(2)),))
    streams.put(Packet(Kind.PIECE, "r", (frame,), meta=GOOD | {"shape": [1 << 50]}), now=True)
    with pytest.raises(PacketError, match="limit is 1073741824"):
        streams.take(REQUEST, "x", 5.0)


def test_too_many_tensors_under_way_are_refused_until_a_deadline_passes() -> None:
    streams = Streams(Limits())
    frame = Frame("x", "raw", (codecs.get("raw").encode(torch.zeros(2)),))
    for number in range(300):
        streams.put(Packet(Kind.PIECE, str(number), (frame,), meta=GOOD | {"left_s": 0.0}))
    for number in range(256):
        streams.put(Packet(Kind.PIECE, str(number), (frame,), meta=GOOD))
    with pytest.raises(PacketError, match="256"):
        streams.put(Packet(Kind.PIECE, "one more", (frame,), meta=GOOD))


times = st.floats(0, 10, allow_nan=False)


@given(st.lists(st.tuples(times, times, times), min_size=1, max_size=8), st.lists(st.floats(0.1, 2), max_size=3))
def test_overlap_is_the_longest_way_through_pieces_and_machines(pieces: list[tuple[float, float, float]], rates: list[float]) -> None:
    """In a permutation flow shop the makespan is the longest staircase through (piece, machine)."""
    rows = [[encode_s, *(nbytes * rate for rate in rates), 2 * decode_s] for encode_s, nbytes, decode_s in pieces]
    machines = len(rows[0])
    longest = 0.0
    for turns in itertools.combinations_with_replacement(range(len(rows)), machines - 1):
        bounds = [0, *turns, len(rows) - 1]
        longest = max(longest, sum(sum(rows[i][m] for i in range(bounds[m], bounds[m + 1] + 1)) for m in range(machines)))
    assert overlapped_s(pieces, 1.0, 2.0, rates) == pytest.approx(longest)


def test_measured_pieces_hold_the_bytes_that_are_sent() -> None:
    found = median_piece([timed_pieces("x", LARGE, "zstd") for _ in range(3)])
    sent = packed_pieces("x", LARGE, "zstd", "0" * 32, 0, 5.0)  # an identifier as long as those of requests
    assert [nbytes for _, nbytes, _ in found] == [len(each) for each in sent]
    assert all(encode_s >= 0 and decode_s >= 0 for encode_s, _, decode_s in found)


def in_pieces(plan: Plan) -> Plan:
    return replace(plan, crossings=tuple(replace(crossing, streamed=True) for crossing in plan.crossings))


def test_a_plan_in_pieces_still_runs_in_one_process() -> None:
    model, args, kwargs = zoo.resnet18()
    graph = si.capture(model, args, kwargs)
    plan = Plan.by_hand(graph, _thirds(graph), ["device", "edge", "cloud"])
    whole, pieces = si.Pipeline.local(graph, plan), si.Pipeline.local(graph, in_pieces(plan))
    assert any(len(pieces_of(torch.empty(graph.tensors[crossing.tensor].shape))[1]) > 1 for crossing in plan.crossings)
    expected, trace = whole.traced(*args, **kwargs)
    answer, divided = pieces.traced(*args, **kwargs)
    assert torch.equal(answer.logits, expected.logits)
    assert trace.nbytes() < divided.nbytes() < 1.01 * trace.nbytes()  # a header for each piece
    assert Plan.from_json(in_pieces(plan).to_json()) == in_pieces(plan)


def _thirds(graph: si.Graph) -> list[list[str]]:
    """Two early cuts, where tensors are large."""
    layers = list(graph.layers)
    first, second = [index for index, cut in enumerate(graph.cuts()) if cut.possible][3:8:4]
    return [layers[: first + 1], layers[first + 1 : second + 1], layers[second + 1 :]]
