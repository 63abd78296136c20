"""Tensors in pieces: whatever order they come in, the tensor is that of the whole encoding; the overlap is what a flow shop takes."""

import contextlib
import gc
import itertools
import random
import threading
import weakref
from collections.abc import Callable, Iterator
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
        {"part": torch.zeros(2), "start": 0},
        {"part": torch.zeros(2), "start": 1},
        {"part": torch.zeros(2), "start": 2, "of": 3},
        {"part": torch.zeros(0), "start": 4},
    ],
    ids=str,
)
def test_pieces_that_do_not_fit_each_other_are_refused(second: dict[str, object]) -> None:
    streams = Streams(Limits())
    for index, change in enumerate([{"part": torch.zeros(2)}, second]):
        part = change.pop("part")
        frame = Frame("x", "raw", (codecs.get("raw").encode(part),))
        streams.put(Packet(Kind.PIECE, "r", (frame,), meta=GOOD | {"piece": index} | change), now=True)
    with pytest.raises(PacketError, match=r"(does|do) not fit"):
        streams.take(REQUEST, "x", 5.0)


def test_a_promised_giant_is_not_allocated() -> None:
    streams = Streams(Limits())
    frame = Frame("x", "raw", (codecs.get("raw").encode(torch.zeros(2)),))
    streams.put(Packet(Kind.PIECE, "r", (frame,), meta=GOOD | {"shape": [1 << 50]}), now=True)
    with pytest.raises(PacketError, match="limit is 1073741824"):
        streams.take(REQUEST, "x", 5.0)


def test_a_tensor_that_its_pieces_leave_in_part_empty_is_not_handed_out() -> None:
    """Two halves at one place, or along two dimensions, add up to the size; the rest of the memory is what the process had there."""
    for second in ({"start": 0, "dim": 0}, {"start": 2, "dim": 1}):
        streams = Streams(Limits())
        for index, (at, part) in enumerate([({"start": 0, "dim": 0}, torch.ones(2, 4)), (second, torch.ones(4, 2).T.reshape(2, 4))]):
            part = part if at["dim"] == 0 else part.reshape(4, 2)
            frame = Frame("x", "raw", (codecs.get("raw").encode(part),))
            streams.put(Packet(Kind.PIECE, "r", (frame,), meta=GOOD | {"shape": [4, 4], "piece": index} | at), now=True)
        with pytest.raises(PacketError, match="fit"):
            streams.take(REQUEST, "x", 0.05)


def test_a_shape_of_many_dimensions_is_refused_before_it_is_multiplied() -> None:
    frame = Frame("x", "raw", (codecs.get("raw").encode(torch.zeros(2)),))
    piece = Packet(Kind.PIECE, "r", (frame,), meta=GOOD | {"shape": [2**64 - 1] * 30_000})
    with pytest.raises(PacketError, match="malformed piece"):
        Streams(Limits()).put(piece, now=True)


def piece(number: object, part: torch.Tensor, codec: str = "raw", **change: object) -> Packet:
    """As it comes from a peer, for a request that never comes."""
    frame = Frame.encode("x", part, codecs.get(codec))
    return Packet.unpack(Packet(Kind.PIECE, str(number), (frame,), meta=GOOD | {"left_s": float("inf")} | change).pack())


MIB = 1 << 20
HELD = Limits(held_nbytes=8 * MIB)


@pytest.fixture
def busy() -> Iterator[Callable[[Streams], threading.Event]]:
    """Keeps a decoder at work until the event is set, at the latest when the test is over."""
    gates = []

    def start(streams: Streams) -> threading.Event:
        gates.append(threading.Event())
        streams._decoder.submit(gates[-1].wait)
        return gates[-1]

    yield start
    for gate in gates:
        gate.set()


def settled(streams: Streams) -> bool:
    """Once all that waits is decoded."""
    gate = threading.Event()
    streams._decoder.submit(gate.set)
    return gate.wait(20)


class TestWhatAPeerCanMakeAStageHold:
    """Many small lies: each piece is within the limits of a packet and of a tensor, their sum is not."""

    def fill(self, streams: Streams, made: Iterator[Packet], now: bool = True) -> int:
        """How many are taken before one is refused."""
        for count, packet in enumerate(made):
            try:
                streams.put(packet, now=now)
            except PacketError:
                return count
        raise AssertionError("it took all of them")

    def test_small_packets_that_decode_to_large_tensors(self) -> None:
        large = torch.ones(MIB // 4)
        assert self.fill(Streams(HELD), (piece(n, large, "zstd", of=1) for n in range(100))) == 8

    def test_small_pieces_of_large_tensors(self) -> None:
        streams = Streams(HELD)
        taken = 0
        for number in range(100):
            streams.put(piece(number, torch.zeros(1, 1024), shape=[256, 1024]), now=True)
            packet = Packet(Kind.REQUEST, str(number))
            try:
                streams.take(packet, "x", 0.0)
            except RequestTimeout:
                taken += 1  # there was room for it, and it waited for the rest
            except PacketError as error:
                raise AssertionError("what is taken makes room") from error
        assert taken == 100
        for number in range(7):
            streams.put(piece(number, torch.zeros(1, 1024), shape=[256, 1024]), now=True)
        streams.put(piece("last", torch.zeros(1, 1024), shape=[257, 1024]), now=True)
        with pytest.raises(PacketError, match=rf"8 would wait and take {8 * MIB + 4096} bytes; the limits are 4096 and {8 * MIB} bytes"):
            streams.take(Packet(Kind.REQUEST, "last"), "x", 5.0)

    @pytest.mark.parametrize(("part", "more", "fit"), [(torch.zeros(MIB // 4), None, 7), (torch.zeros(2), [{}] * 10_000, 6)])
    def test_pieces_that_wait_for_a_busy_decoder(self, busy, part: torch.Tensor, more: object, fit: int) -> None:
        """Large ones, and such whose header is large as soon as it was read."""
        streams = Streams(HELD)
        busy(streams)
        assert self.fill(streams, (piece(n // 16, part, piece=n % 16, of=16, more=more) for n in range(100)), now=False) == fit

    def test_a_tensor_for_which_there_is_no_room_fails_at_once_and_others_do_not(self) -> None:
        streams = Streams(HELD)
        one, other = (Packet(Kind.REQUEST, name, meta={"left_s": 60.0}) for name in ("one", "other"))
        half = torch.ones(MIB // 2)
        streams.put(piece("one", half, of=2, shape=[MIB]), now=True)
        for index in (0, 1):
            streams.put(piece("other", half[:4], piece=index, start=4 * index, shape=[8]), now=True)
        with pytest.raises(PacketError, match="would wait"):
            streams.put(piece("one", torch.ones(MIB + 1), piece=1, start=0, shape=[MIB]), now=True)
        with pytest.raises(PacketError, match="would wait"):
            streams.take(one, "x", 60.0)
        assert torch.equal(streams.take(other, "x", 60.0), torch.ones(8))

    @pytest.mark.parametrize("now", [True, False])
    @pytest.mark.parametrize(("codec", "change"), [("raw", {"shape": [5]}), ("raw", {"start": 3}), ("zstd", {}), ("raw", {"of": 3})])
    def test_a_tensor_that_failed_keeps_none_of_its_pieces(self, busy, codec: str, change: dict[str, object], now: bool) -> None:
        """Its error has no stack, which refers to all that was at hand."""
        streams = Streams(HELD)
        streams.put(piece("r", torch.zeros(2)), now=True)
        packet = piece("r", torch.zeros(2), **{"piece": 1, "start": 2} | change)
        packet = replace(packet, frames=(replace(packet.frames[0], codec=codec),))
        frame = weakref.ref(packet.frames[0].parts[0])
        streams.put(packet, now=now)
        del packet
        assert settled(streams)
        gc.collect()
        assert frame() is None
        (stream,) = streams._streams.values()
        assert (stream.tensor.done(), stream.nbytes, stream.whole) == (True, 0, None)
        busy(streams)
        streams.put(piece("r", torch.zeros(2), piece=7, of=16))
        assert stream.nbytes == 0

    def test_what_is_too_late_goes_although_the_decoder_is_busy(self, busy) -> None:
        streams = Streams(HELD)
        busy(streams)
        packet = piece("r", torch.zeros(2), left_s=0.0)
        frame = weakref.ref(packet.frames[0].parts[0])
        streams.put(packet)
        del packet
        streams.put(piece("next", torch.zeros(2)))
        gc.collect()
        assert frame() is None

    def test_what_somebody_waits_for_stays(self) -> None:
        """Its first piece said that no time was left; its request says otherwise."""
        streams = Streams(HELD)
        streams.put(piece("r", torch.ones(2), left_s=0.0), now=True)

        def rest() -> None:
            streams.put(piece("other", torch.ones(2)), now=True)
            streams.put(piece("r", torch.ones(2), piece=1, start=2), now=True)

        threading.Timer(0.05, rest).start()
        assert torch.equal(streams.take(REQUEST, "x", 5.0), torch.ones(4))

    def test_no_deadline_keeps_a_piece_for_ever_and_its_request_makes_room(self) -> None:
        streams = Streams(replace(HELD, held_s=0.0))
        for number in range(100):  # each goes when the next one comes
            streams.put(piece(number, torch.ones(MIB), of=1), now=True)
        assert len(streams._streams) == 1
        streams = Streams(HELD)
        for number in range(100):
            streams.put(piece(number, torch.ones(MIB), of=1), now=True)
            assert torch.equal(streams.take(Packet(Kind.REQUEST, str(number)), "x", 5.0), torch.ones(MIB))

    def test_a_piece_that_comes_again_and_again_prolongs_nothing(self) -> None:
        streams = Streams(HELD)
        streams.put(piece("r", torch.zeros(2), left_s=10.0), now=True)
        (stream,) = streams._streams.values()
        until_s = stream.until_s
        streams.put(piece("r", torch.zeros(2), left_s=500.0), now=True)
        assert stream.until_s == until_s
        streams.put(piece("r", torch.zeros(1), left_s=500.0, piece=1, start=2), now=True)
        assert stream.until_s > until_s + 400

    def test_the_sum_is_exact_whatever_happens_to_the_pieces(self) -> None:
        """Taken, damaged, refused, late, twice: at the end nothing is booked."""
        streams, chance = Streams(HELD), random.Random(7)
        for _ in range(300):
            number, index = chance.randrange(20), chance.randrange(3)
            part = torch.zeros(chance.choice([1, 2, 3]) * MIB // 4)
            count = chance.choice([1, 3, 3, 3])
            change = {"piece": index % count, "of": count, "start": index * MIB // 2, "shape": [3 * MIB // 2]}
            made = piece(number, part, **change, left_s=chance.choice([0, 60]))
            with contextlib.suppress(PacketError):
                streams.put(made, now=chance.random() < 0.7)
            if chance.random() < 0.3:
                with contextlib.suppress(PacketError, RequestTimeout):
                    streams.take(Packet(Kind.REQUEST, str(chance.randrange(20))), "x", 0.0)
            assert 0 <= sum(stream.nbytes for stream in streams._streams.values()) <= HELD.held_nbytes
        for number in range(20):
            with contextlib.suppress(PacketError, RequestTimeout):
                streams.take(Packet(Kind.REQUEST, str(number)), "x", 0.0)
        assert settled(streams)
        assert not streams._streams


def test_too_many_tensors_under_way_are_refused_until_a_deadline_passes() -> None:
    streams = Streams(Limits(held=256))
    frame = Frame("x", "raw", (codecs.get("raw").encode(torch.zeros(2)),))
    for number in range(300):
        streams.put(Packet(Kind.PIECE, str(number), (frame,), meta=GOOD | {"left_s": 0.0}))
    for number in range(256):
        streams.put(Packet(Kind.PIECE, str(number), (frame,), meta=GOOD))
    with pytest.raises(PacketError, match=r"257 would wait .* the limits are 256 and"):
        streams.put(Packet(Kind.PIECE, "one more", (frame,), meta=GOOD))
    assert len(streams._streams) == 256


times = st.floats(0, 10, allow_nan=False)


@given(st.lists(st.tuples(times, times, times), min_size=1, max_size=8), st.lists(st.floats(0.1, 2), max_size=3))
def test_overlap_is_the_longest_way_through_pieces_and_machines(pieces: list[tuple[float, float, float]], rates: list[float]) -> None:
    """In a permutation flow shop the makespan is the longest staircase through (piece, machine)."""
    rows = [[encode_s, *(nbytes * rate for rate in rates), decode_s] for encode_s, nbytes, decode_s in pieces]
    machines = len(rows[0])
    longest = 0.0
    for turns in itertools.combinations_with_replacement(range(len(rows)), machines - 1):
        bounds = [0, *turns, len(rows) - 1]
        longest = max(longest, sum(sum(rows[i][m] for i in range(bounds[m], bounds[m + 1] + 1)) for m in range(machines)))
    assert overlapped_s(pieces, rates) == pytest.approx(longest)


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
