"""Bad input is refused in words or ignored, at once; nothing crashes, nothing stays behind, and the next good request is answered.

The tables are in bad_requests.py, bad_neighbours.py, bad_files.py and bad_clients.py; benchmarks/refused.py prints what became of each
kind on a real cluster, with seconds and memory.
"""

import re
import time

import bad_clients
import bad_files
import bad_neighbours
import bad_requests
import pytest
import torch
from bad_packets import LIMITS, TOPOLOGY, Mark, digits, fields, framed, holding, sealed
from stages_here import StagesHere
from stages_on_ray import ground

from cluster import client
from cluster.errors import ClusterError, TopologyError
from cluster.security import write_token
from cluster.topology import Topology
from splitinfer import Pipeline, codecs, reading
from splitinfer.codecs.block import Header
from splitinfer.codecs.packet import Frame, Kind, Limits, Packet
from splitinfer.errors import CodecError, PacketError, PlanError, StageError
from splitinfer.groups import Job, Mailbox
from splitinfer.plans import Plan
from splitinfer.runtime.shipment import GroupConfig, Member
from splitinfer.runtime.worker import deliver
from splitinfer.tracing import Recorder

LONGEST_S = 6.0
THROWN = [*bad_requests.kinds(), *bad_neighbours.kinds()]


def named(bad):
    return f"{bad.where}: {bad.name}"


@pytest.fixture(scope="module")
def stages():
    torch.set_num_threads(1)
    graph, plan, _, answer = digits()
    here = StagesHere(graph, plan, TOPOLOGY, LIMITS)
    here.answer = answer
    return here


def serves(stages, within_s=8.0):
    """A good request is answered, at the latest when what waits in vain has expired."""
    end_s = time.monotonic() + within_s
    while True:
        try:
            return torch.equal(stages.ask(5.0), stages.answer)
        except PacketError as error:
            if "would wait" not in str(error) or time.monotonic() > end_s:
                raise
            time.sleep(0.02)


@pytest.mark.parametrize("bad", THROWN, ids=named)
def test_a_stage_refuses_it_and_goes_on(stages, bad):
    start = time.monotonic()
    assert re.search(bad.answer, bad.throw(stages))
    assert time.monotonic() - start < LONGEST_S
    assert serves(stages)
    assert not Mark.path.exists()


def test_nothing_stays_behind(stages):
    """After all of the above: no request, piece or message waits, and no more attempts are remembered than were sent."""
    assert serves(stages)
    for name, actor in stages.actors.items():
        assert (actor.waiting, actor.waiting_nbytes) == (0, 0), name
        assert sum(letter.nbytes for letter in actor.mailbox._letters.values()) <= LIMITS.held_nbytes
        if name != "worker":
            assert len(actor.runner.streams._streams) <= LIMITS.held
            assert sum(stream.nbytes for stream in actor.runner.streams._streams.values()) <= LIMITS.held_nbytes


@pytest.mark.parametrize("bad", bad_files.kinds(), ids=named)
def test_every_reader_refuses_the_file_in_one_line(bad):
    start = time.monotonic()
    assert re.search(bad.answer, bad.throw(None))
    assert time.monotonic() - start < LONGEST_S
    assert not Mark.path.exists()


@pytest.mark.parametrize("bad", bad_clients.strangers(), ids=named)
def test_a_client_tells_a_strange_server_apart(bad):
    start = time.monotonic()
    assert re.search(bad.answer, bad.throw(None))
    assert time.monotonic() - start < LONGEST_S


class TestStories:
    """What was not refused once."""

    def test_pictures_smaller_than_a_block_were_bombs(self):
        """Each pixel of (n, 1, 1, 1) was padded to 8 x 8 by the reader of `dct`: 8 KB became 2.4 GB where 8 MB were allowed."""
        codec = codecs.get("dct50")
        for shape in ((1000, 1, 1, 1), (1, 1000, 1, 1), (1, 1, 9, 9), (1, 4097, 8, 8)):
            header = Header(codec.codec_id, 0, torch.float32, shape).pack()
            with pytest.raises(CodecError, match="in the form of an image"):
                codec.decode(header + codec.parameters + bytes(10_000))
        for shape in ((1000, 1, 1, 1), (1, 1, 9, 9)):
            assert torch.equal(codec.decode(codec.encode(torch.full(shape, 0.3))), torch.full(shape, 0.3))  # whole, then

    def test_memory_was_taken_before_dtype_and_shape_were_checked(self, monkeypatch):
        """Some KB of zeros could take `Limits.tensor_nbytes`, a gigabyte, that the process then kept."""
        graph, plan, _, _ = digits()
        pipeline = Pipeline.local(graph, plan)
        good = Packet.unpack(pipeline.request(*graph.example).data)
        bomb = framed("zstd", torch.zeros(1, 1, 8, 1 << 20))
        monkeypatch.setattr(Frame, "decode", lambda *_, **__: pytest.fail("decoded"))
        with pytest.raises(StageError, match=r"expected torch.float32 1x1x8x8"):
            pipeline.runners[0].run(holding(good, bomb))

    @pytest.mark.parametrize("left_s", [None, float("nan"), float("inf"), 1e9, True])
    def test_a_request_without_a_deadline_could_be_waited_for_without_end(self, left_s):
        """One whose pieces never came held the thread that computes; NaN upset the order of the event loop's timers."""
        graph, plan, _, _ = digits()
        runner = Pipeline.local(graph, plan).runners[1]
        with pytest.raises(PacketError, match="left_s is"):
            runner.accept(sealed(fields(meta={"left_s": left_s})))

    def test_an_operator_could_write_files(self, stages, tmp_path):
        """`aten::from_file` of a stage file made one, on whatever machine the stage ran."""
        path = tmp_path / "made"
        row = bad_neighbours.calling("aten::from_file.default", str(path), True, 4)
        assert "reads or writes files" in bad_neighbours.loaded(lambda it: bad_neighbours.programmed(it, row), stages)
        assert serves(stages)
        assert not path.exists()

    def test_a_message_without_room_left_its_request_waiting_until_the_deadline(self):
        box, group = Mailbox(Limits(held=1)), GroupConfig("s", 0, (Member("a", None, None), Member("b", None, None)), "raw")
        meta = {"block": "b", "step": 0, "from": 1, "left_s": 5.0}
        deliver(box, Packet(Kind.SHARD, "another", meta=meta), group)
        with pytest.raises(PacketError, match="2 would wait"):
            deliver(box, Packet(Kind.SHARD, "r", meta=meta), group)
        start = time.monotonic()
        with pytest.raises(PacketError, match="2 would wait"):
            box.take(Job("r", 0, start + 60.0, Recorder("s", "t")), "b", 0, [1])
        assert time.monotonic() - start < 5.0

    def test_numbers_to_base_60_took_minutes(self):
        text = "version: 1\ntiers: [{name: a, compute: measured, threads: " + "1:" * 60_000 + "1}]"
        start = time.monotonic()
        with pytest.raises(TopologyError):
            Topology.loads(text)
        assert time.monotonic() - start < LONGEST_S

    def test_a_file_without_end_was_read_until_memory_was_full(self, monkeypatch):
        monkeypatch.setattr(reading, "LARGEST_NBYTES", 1 << 20)
        with pytest.raises(PlanError, match="larger than 1 MiB"):
            Plan.load("/dev/zero")

    @pytest.mark.parametrize("token", [b"", b"\n", b"two words", b"x" * 5000, b"\x80\x05pickle", "é".encode()], ids=repr)
    def test_a_token_that_is_none_aborted_rays_client(self, tmp_path, token):
        write_token(tmp_path / "token")
        (tmp_path / "token").write_bytes(token)
        with pytest.raises(ClusterError, match="holds no token"):
            client.members("127.0.0.1:1", tmp_path / "token")

    @pytest.mark.parametrize("address", ["127.0.0.1:65536", "127.0.0.1:²", "127.0.0.1:" + "9" * 5000, "x" * 300 + ":1", "a..b:1"], ids=len)
    def test_addresses_that_are_none_left_traces(self, tmp_path, address):
        write_token(tmp_path / "token")
        with pytest.raises(ClusterError, match=r"is no address of a head|is no name of a host"):
            client.members(address, tmp_path / "token")


@pytest.fixture(scope="module")
def field():
    torch.set_num_threads(1)
    with ground() as made:
        made.ask()
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("bad", [*bad_clients.kinds(), *THROWN], ids=named)
def test_a_real_cluster_refuses_it_and_goes_on(field, bad):
    start = time.monotonic()
    assert re.search(bad.answer, bad.throw(field.site if bad.where in bad_clients.WHERE else field.stages))
    assert time.monotonic() - start < 3 * LONGEST_S
    field.serves_again()
    assert field.gone() == []
    assert not Mark.path.exists()
