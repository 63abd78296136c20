"""The packet byte by byte: what is written, what is shared, and what each damaged field says."""

import functools
import gc
import itertools
import struct
import tracemalloc
from dataclasses import replace

import msgpack
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from splitinfer import codecs
from splitinfer.codecs.packet import Frame, Kind, Limits, Packet
from splitinfer.errors import CodecError, PacketError, PlanError
from splitinfer.stagefile import dump_stage, load_stage
from splitinfer.stages import Stage

RAW = codecs.get("raw")
PREFIX = struct.Struct("<4sBBHIQIQ")
START = {"magic": 0, "version": 4, "kind": 5, "reserved": 6, "header": 8, "payload": 12, "reserved 2": 20, "checksum": 24}
SMALL = Packet(Kind.REQUEST, "r1", (Frame.encode("x", torch.arange(3.0), RAW),), 1, {"n": 3}, {"left_s": 0.5})

checked = settings(derandomize=True, deadline=None, max_examples=150)

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
parts = st.lists(st.binary(max_size=40), min_size=1, max_size=3)
frames = st.lists(
    st.builds(Frame, st.text(max_size=12), st.sampled_from(codecs.names()), parts.map(tuple)), max_size=6, unique_by=lambda f: f.name
)
packets = st.builds(
    Packet, st.sampled_from(Kind), st.text(max_size=20), frames.map(tuple), st.integers(0, 2**32),
    st.dictionaries(st.text(max_size=8), st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.booleans(), max_size=4),
    st.dictionaries(st.text(max_size=8), plain, max_size=4),
)


def padded(data):
    return bytes(data) + bytes(-len(data) % 16)


def by_hand(header, payload=b"", *, kind=1, version=1, magic=b"SPLI", reserved=0, reserved_2=0, header_nbytes=None, payload_nbytes=None):
    """A packet as docs/wire-format.md describes it; `header` is packed unless it is bytes."""
    packed = header if isinstance(header, bytes) else msgpack.packb(header)
    head_nbytes = len(packed) if header_nbytes is None else header_nbytes
    tail_nbytes = len(payload) if payload_nbytes is None else payload_nbytes
    prefix = PREFIX.pack(magic, version, kind, reserved, head_nbytes, tail_nbytes, reserved_2, 0)
    rest = padded(packed) + payload
    return prefix[:24] + struct.pack("<Q", xxhash.xxh3_64_intdigest(prefix[:24] + rest)) + rest


def header(**over):
    return {"id": "r1", "try": 0, "sizes": {}, "frames": [], "meta": {}} | over


# -- round trips


@checked
@given(packets)
def test_round_trip(packet):
    got = Packet.unpack(packet.pack())
    assert (got.kind, got.request_id, got.attempt, got.sizes, got.meta) == (
        packet.kind, packet.request_id, packet.attempt, packet.sizes, packet.meta,
    )
    assert [type(size) for size in got.sizes.values()] == [type(size) for size in packet.sizes.values()]
    assert [(frame.name, frame.codec, bytes(frame.parts[0])) for frame in got.frames] == [
        (frame.name, frame.codec, b"".join(frame.parts)) for frame in packet.frames
    ]
    assert got.pack() == packet.pack()


@checked
@given(packets)
def test_bytes_are_the_documented_ones(packet):
    table = [[frame.name, frame.codec, len(b"".join(frame.parts))] for frame in packet.frames]
    fields = {"id": packet.request_id, "try": packet.attempt, "sizes": packet.sizes, "frames": table, "meta": packet.meta}
    payload = b"".join(padded(b"".join(frame.parts)) for frame in packet.frames)
    assert packet.pack() == by_hand(fields, payload, kind=packet.kind)


def test_a_packet_drawn_out():
    """The smallest request, each byte of it."""
    packed = Packet(Kind.REQUEST, "a").pack()
    assert packed[:24] == b"SPLI" + bytes([1, 1, 0, 0]) + bytes([32, 0, 0, 0]) + bytes(8) + bytes(4)
    assert packed[32:] == b"\x85\xa2id\xa1a\xa3try\x00\xa5sizes\x80\xa6frames\x90\xa4meta\x80"
    assert packed[24:32] == xxhash.xxh3_64(packed[:24] + packed[32:]).digest()[::-1]


def test_tensors_of_each_codec_come_back():
    tensor = torch.arange(600.0).view(2, 3, 100)
    packet = Packet(Kind.RESPONSE, "r", tuple(Frame.encode(name, tensor, codecs.get(name)) for name in codecs.names()))
    got = Packet.unpack(packet.pack())
    for name in codecs.names():
        decoded = got.frame(name).decode(Limits())
        assert decoded.shape == tensor.shape
        assert torch.allclose(decoded, tensor, atol=1.2, rtol=0)
    assert torch.equal(got.frame("raw").decode(Limits()), tensor)
    assert torch.equal(packet.frame("raw").decode(Limits()), tensor)  # before it was sent, in several parts


def test_many_frames_and_empty_ones():
    written = [Frame(f"t{turn}", "raw", (bytes(turn % 3),)) for turn in range(1000)]
    got = Packet.unpack(Packet(Kind.REQUEST, "r", tuple(written)).pack())
    assert [(frame.name, frame.nbytes) for frame in got.frames] == [(f"t{turn}", turn % 3) for turn in range(1000)]
    assert Packet.unpack(Packet(Kind.ERROR, "r", (Frame("x", "raw", ()),)).pack()).frame("x").nbytes == 0


def test_missing_frame_names_those_present():
    with pytest.raises(PacketError, match=r"no tensor 'y' in the packet; it holds \['x'\]"):
        SMALL.frame("y")


def test_unknown_codec_of_a_frame_is_refused_when_decoded():
    got = Packet.unpack(Packet(Kind.REQUEST, "r", (Frame("x", "zip", (b"",)),)).pack())
    with pytest.raises(CodecError, match="no codec 'zip'"):
        got.frame("x").decode(Limits())


def test_limits_reach_the_codec():
    with pytest.raises(CodecError, match="needs 12 bytes; the limit is 11"):
        SMALL.frame("x").decode(Limits(tensor_nbytes=11))


# -- memory


def test_frames_are_aligned_views_of_the_packet():
    sizes = (0, 1, 15, 16, 17, 33)
    data = Packet(Kind.REQUEST, "r", tuple(Frame(f"t{nbytes}", "raw", (bytes([nbytes]) * nbytes,)) for nbytes in sizes)).pack()
    for buffer in (data, bytearray(data), memoryview(data)):
        whole = memoryview(buffer)
        at = 32 + len(padded(whole[32 : 32 + struct.unpack_from("<I", data, START["header"])[0]]))
        for frame, nbytes in zip(Packet.unpack(buffer).frames, sizes, strict=True):
            (part,) = frame.parts
            assert part.obj is whole.obj
            assert len(part) == nbytes
            if nbytes:
                start = torch.frombuffer(part, dtype=torch.uint8).data_ptr() - torch.frombuffer(whole, dtype=torch.uint8).data_ptr()
                assert start == at
            assert at % 16 == 0
            at += nbytes + -nbytes % 16
        assert at == len(data)


def test_packing_does_not_copy_a_raw_tensor_before_the_join():
    tensor = torch.arange(64.0)
    part = Frame.encode("x", tensor, RAW).parts[1]
    assert torch.frombuffer(part, dtype=torch.float32).data_ptr() == tensor.data_ptr()


@checked
@given(packets, st.text(max_size=40), st.integers(0, 70_000))
def test_frame_predicts_how_much_the_packet_grows(packet, name, nbytes):
    frame = Frame(name, "raw", (bytes(nbytes),))
    grown = Packet(packet.kind, packet.request_id, (*packet.frames, frame), packet.attempt, packet.sizes, packet.meta)
    assert abs(len(grown.pack()) - len(packet.pack()) - frame.wire_nbytes) < 16


# -- what is refused


def refused(data, match, limits=Limits()):  # noqa: B008 - frozen
    with pytest.raises(PacketError, match=match):
        Packet.unpack(data, limits)


def test_by_hand_is_accepted():
    assert Packet.unpack(by_hand(header())).request_id == "r1"


def test_each_truncation_and_trailing_bytes():
    data = SMALL.pack()
    for size in range(len(data)):
        message = f"truncated or padded: the packet declares {len(data)} bytes and has {size}"
        refused(data[:size], message if size >= 32 else f"at least 32 bytes; this has {size}")
    refused(data + b"\0", f"declares {len(data)} bytes and has {len(data) + 1}")
    refused(data + data, "declares")


def test_each_flipped_bit():
    data = SMALL.pack()
    for place, bit in itertools.product(range(len(data)), range(8)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << bit
        match place:
            case 0 | 1 | 2 | 3:
                refused(damaged, "not a splitinfer packet")
            case 4:
                refused(damaged, f"packet version {damaged[4]}; this side speaks version 1: install the same splitinfer")
            case 8 | 9 | 10 | 11:
                refused(damaged, "a header of|truncated or padded|checksum mismatch")
            case 12 | 13 | 14 | 15 | 16 | 17 | 18 | 19:
                refused(damaged, "truncated or padded")
            case _:
                refused(damaged, "checksum mismatch: the packet was damaged")


@pytest.mark.parametrize(("over", "message"), [
    ({"magic": b"SPLJ"}, "not a splitinfer packet"), ({"version": 0}, "packet version 0"), ({"version": 2}, "packet version 2"),
    ({"kind": 0}, "unknown packet kind 0"), ({"kind": 7}, "unknown packet kind 7"), ({"kind": 255}, "unknown packet kind 255"),
    ({"reserved": 7}, "reserved fields hold 7 and 0"), ({"reserved_2": 9}, "reserved fields hold 0 and 9"),
    ({"header_nbytes": 2**32 - 1}, "a header of 4294967295 bytes; the limit is 1048576"), ({"header_nbytes": 100}, "declares 144 bytes"),
    ({"payload_nbytes": 2**64 - 1}, "declares 18446744073709551695 bytes and has 80"), ({"payload_nbytes": 16}, "declares 96 bytes"),
], ids=str)
def test_fields_of_the_prefix_with_a_right_checksum(over, message):
    refused(by_hand(header(), **over), message)


def test_sizes_are_checked_before_the_checksum_is_computed():
    data = SMALL.pack()
    refused(data, f"a packet of {len(data)} bytes; the limit is {len(data) - 1}", Limits(packet_nbytes=len(data) - 1))
    refused(data[:24] + bytes(8) + data[32:], "a header of [0-9]+ bytes; the limit is 8", Limits(header_nbytes=8))
    assert Packet.unpack(data, Limits(packet_nbytes=len(data), header_nbytes=64, frames=1)).request_id == "r1"


ROW = ["x", "raw", 0]


@pytest.mark.parametrize(("fields", "message"), [
    (header(extra=1), "exactly"), ({key: value for key, value in header().items() if key != "meta"}, "exactly"), ([1, 2], "exactly"),
    (None, "exactly"), ({}, "exactly"), (header(id=1), "wrong type"), (header(id=b"r"), "wrong type"), (header(id=None), "wrong type"),
    (header(**{"try": -1}), "wrong type"), (header(**{"try": 1.0}), "wrong type"), (header(**{"try": True}), "wrong type"),
    (header(sizes=[]), "wrong type"), (header(sizes={"n": "3"}), "wrong type"), (header(sizes={"n": None}), "wrong type"),
    (header(meta=[]), "wrong type"), (header(meta=None), "wrong type"), (header(frames={}), "wrong type"),
    (header(frames=[1]), "wrong type"), (header(frames=[["x", "raw"]]), "wrong type"), (header(frames=[[*ROW, 1]]), "wrong type"),
    (header(frames=[[1, "raw", 0]]), "wrong type"),
    (header(frames=[["x", None, 0]]), "wrong type"), (header(frames=[["x", "raw", -1]]), "wrong type"),
    (header(frames=[["x", "raw", 1.0]]), "wrong type"), (header(frames=[["x", "raw", True]]), "wrong type"),
    (header(frames=["xyz"]), "wrong type"), (header(frames=[{"a": 1, "b": 2, "c": 3}]), "wrong type"),
    (header(meta={1: 2}), "malformed header"), (header(sizes={1: 2}), "malformed header"), (b"", "malformed header"),
    (b"\xc1", "malformed header"), (msgpack.packb(header()) + b"\0", "malformed header"),
    (msgpack.packb(header())[:-1], "malformed header"),
    (b"\x81\xa2\xff\xfe\x00", "malformed header"), (b"\xdd\xff\xff\xff\xff", "malformed header"), (b"\x91" * 100_000, "malformed header"),
    (b"\xd7\xff" + b"\xff" * 8, "malformed header|exactly"), (b"\xc7\x05\xff" + bytes(5), "malformed header"),
], ids=lambda value: repr(value)[:60])
def test_headers_that_are_not_one(fields, message):
    refused(by_hand(fields), message)


@pytest.mark.parametrize(("table", "payload", "message"), [
    ([["x", "raw", 17]], 16, "frame 'x' declares 17 bytes; 16 are left"),
    ([["x", "raw", 2**64 - 1]], 16, "declares 18446744073709551615"),
    ([ROW, ["y", "raw", 1]], 0, "frame 'y' declares 1 bytes; 0 are left"),
    ([["x", "raw", 16]], 32, "frames end at byte [0-9]+, the packet at"),
    ([], 16, "frames end"), ([["x", "raw", 15]], 15, "frames end"), ([["x", "raw", 15], ROW], 15, "declares 0 bytes; -1 are left"),
], ids=str)
def test_tables_that_do_not_fit_the_payload(table, payload, message):
    refused(by_hand(header(frames=table), bytes(payload)), message)


def test_too_many_frames():
    data = by_hand(header(frames=[[str(i), *ROW[1:]] for i in range(9)]))
    assert len(Packet.unpack(data, Limits(frames=9)).frames) == 9
    refused(data, "9 frames; the limit is 8", Limits(frames=8))
    refused(by_hand(header(frames=[ROW] * 65_537)), "65537 frames; the limit is 65536")
    refused(by_hand(header(frames=[ROW] * 2)), "two frames bear the same name")


# -- what a packet takes in memory


def nest(value, times):
    return functools.reduce(lambda inner, _: {"": inner}, range(times), value)


@pytest.mark.parametrize("over", [
    {"meta": {"a": [{}] * 100_000}}, {"meta": {"a": [[]] * 100_000}}, {"meta": {"a": [nest({}, 30)] * 3_000}}, {"meta": nest({}, 400)},
    {"meta": {"a": [{"": []}] * 50_000}}, {"meta": {"a": ["ab"] * 50_000}}, {"meta": {"a": [msgpack.ExtType(5, b"")] * 50_000}},
    {"meta": {"a": "a" * 100_000 + "\U0001f600"}}, {"meta": {f"{n:x}": 0 for n in range(30_000)}},
    {"sizes": {f"{n:x}": 1.5 for n in range(30_000)}}, {"frames": [[f"{n:x}", "", 0] for n in range(60_000)]},
], ids=lambda over: str(over)[:40])
def test_the_memory_of_a_header_is_at_most_what_is_declared(over):
    """Headers chosen to make as many Python objects of a byte as can be."""
    data = by_hand(header(**over))
    gc.collect()
    tracemalloc.start()
    packet = Packet.unpack(data)
    taken, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data) + taken < packet.held_nbytes
    assert peak < packet.held_nbytes


def test_the_memory_of_a_packet_holds_all_its_bytes_and_is_no_part_of_it():
    data = by_hand(header(frames=[["x", "raw", 48]]), bytes(48))
    packet = Packet.unpack(data)
    assert len(data) < packet.held_nbytes < len(data) + 10_000
    assert (SMALL.held_nbytes, replace(SMALL, held_nbytes=5)) == (0, SMALL)


def test_names_are_kept_so_they_are_short():
    long = "x" * 1024
    assert Packet.unpack(by_hand(header(id=long, frames=[[long, "raw", 0]]))).request_id == long
    refused(by_hand(header(id=long + "x")), "a name of 1025 characters; the limit is 1024")
    refused(by_hand(header(frames=[[long + "x", "raw", 0]])), "a name of 1025 characters; the limit is 1024")


@pytest.mark.parametrize("name", codecs.names())
def test_decoded_bytes_are_known_before_a_tensor_is_decoded(name):
    frame = Frame.encode("x", torch.rand(3, 8, 8).transpose(0, 2) > 0.5 if name == "bits" else torch.rand(3, 8, 8), codecs.get(name))
    assert frame.decoded_nbytes(Limits()) == frame.decode(Limits()).nbytes == 768
    assert frame.decoded_nbytes(Limits(tensor_nbytes=767)) == 0  # decode refuses it
    assert Frame("x", name, ()).decoded_nbytes(Limits()) == Frame("x", name, (b"nonsense",)).decoded_nbytes(Limits()) == 0


def test_what_may_wait_is_limited_in_number_and_bytes():
    limits = Limits(held=3, held_nbytes=100)
    limits.admit("letters", 3, 100)
    for number, nbytes in ((4, 0), (0, 101)):
        with pytest.raises(PacketError, match=f"letters: {number} would wait and take {nbytes} bytes; the limits are 3 and 100 bytes"):
            limits.admit("letters", number, nbytes)


# -- stage files

MUL = "aten::mul.Tensor"


def stage_file(kind=Kind.STAGE, target=MUL, argument=None, **over):
    """A stage that multiplies by a weight; then its operator, its second argument or other fields of its file replaced."""
    graph = fx.Graph()
    x, weight = graph.placeholder("x"), graph.get_attr("weight_0")
    graph.output((graph.call_function(torch.ops.aten.mul.Tensor, (x, weight), name="y"),))
    root = torch.nn.Module()
    root.register_buffer("weight_0", torch.tensor([2.0, 3.0]))
    module = fx.GraphModule(root, graph, class_name="Stage")
    stage = Stage("s", ("l",), module, ("x",), (), ("y",), {"y": "l"}, {"x": ("float32", (None, 2))}, stateful=False)
    packet = Packet.unpack(dump_stage(stage))
    for row in packet.meta["program"]["rows"]:
        if row[2] == MUL:
            row[2] = target
            row[3]["t"][1] = row[3]["t"][1] if argument is None else argument
    return Packet(kind, packet.request_id, packet.frames, meta={**packet.meta, **over}).pack()


def test_stage_file_runs_and_is_written_the_same_again():
    stage = load_stage(stage_file())
    assert stage({"x": torch.ones(1, 2)}, {})["y"].tolist() == [[2.0, 3.0]]
    assert stage.expects == {"x": ("float32", (None, 2))}
    assert dump_stage(stage) == stage_file()


def test_stage_file_is_the_documented_packet():
    """What docs/wire-format.md says, read by hand."""
    data = stage_file()
    assert data[5] == 4
    head = msgpack.unpackb(data[32 : 32 + struct.unpack_from("<I", data, START["header"])[0]])
    assert head["frames"] == [["weight_0", "raw", 16 + 8]]
    assert head["meta"]["program"] == {"inner": {}, "rows": [
        ["x", "placeholder", "x", {"t": []}, {"d": {}}], ["weight_0", "get_attr", "weight_0", {"t": []}, {"d": {}}],
        ["y", "call_function", MUL, {"t": [{"n": "x"}, {"n": "weight_0"}]}, {"d": {}}],
        ["output", "output", "output", {"t": [{"t": [{"n": "y"}]}]}, {"d": {}}],
    ]}
    documented = {"torch", "name", "layers", "inputs", "sizes", "outputs", "layer_of", "stateful", "expects", "program", "trained"}
    assert set(head["meta"]) == documented


@pytest.mark.parametrize("version", ["2.12.0", "3", None])
def test_stage_file_of_another_torch_is_refused(version):
    with pytest.raises(PlanError, match=f"stage file of torch {version}; this machine has torch .* install the same version"):
        load_stage(stage_file(torch=version))


@pytest.mark.parametrize("target", [
    "aten::no_such_operator.default", "aten::mul.no_such_overload", "nobody::mul.Tensor", "higher_order::nothing", "os.system",
    "builtins::eval.default", "::", "", "aten::", "aten::__class__.default",
])
def test_stage_file_with_an_unknown_operator_is_refused(target):
    with pytest.raises(PlanError, match="does not know the operator"):
        load_stage(stage_file(target=target))


@pytest.mark.parametrize("argument", [{"z": 1}, {"a": "load"}, {"a": "no_such_dtype"}], ids=str)
def test_stage_file_with_an_unknown_argument_is_refused(argument):
    with pytest.raises(PlanError, match="does not know"):
        load_stage(stage_file(argument=argument))


def test_packet_of_another_kind_is_no_stage_file():
    with pytest.raises(PlanError):
        load_stage(stage_file(kind=Kind.REQUEST))


def test_damaged_stage_file_is_refused():
    data = bytearray(stage_file())
    data[-1] ^= 1
    with pytest.raises(PacketError, match="checksum"):
        load_stage(bytes(data))
