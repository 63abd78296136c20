"""Blocks that several machines share, in threads of one process: the same messages as on Ray, without Ray."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import splitinfer as si
from splitinfer import codecs, zoo
from splitinfer.codecs.packet import Frame, Kind, Limits, Packet
from splitinfer.errors import PacketError, PlanError, Regrouped, RequestTimeout, StageError, WorkerLost
from splitinfer.groups import HOST, SCATTER, BlockPart, GroupWorker, Job, Mailbox, Worker, label, tensors_of
from splitinfer.parts import dump_parts, load_parts
from splitinfer.runtime.errors import error_packet, raised
from splitinfer.shards import ShardedBlock, divide, dump_program, load_program, plan_blocks, run_local, units
from splitinfer.sizes import sizes_at
from splitinfer.tracing import Recorder


class Office:
    """Workers of one block, each with a thread to compute, and a post that delivers at once."""

    def __init__(self, block: ShardedBlock, slowdown: float = 1.0) -> None:
        self.part = BlockPart.of(block, "b")
        self.boxes = {worker: Mailbox(Limits()) for worker in {HOST, *block.workers}}
        self.threads = ThreadPoolExecutor(8)
        self.failures: list[Future[None]] = []
        self.sent: list[tuple[int, int, int]] = []
        self.members = {w: Worker(w, "raw", self.send, box, slowdown) for w, box in self.boxes.items()}
        self.others = {w: GroupWorker(member) for w, member in self.members.items() if w != HOST and w in block.programs}
        for w, other in self.others.items():
            meta, files = dump_program(block.programs[w])
            other.load({"b": (load_program(meta, files), w == block.root)})

    def send(self, peer: int, data: bytes, job: Job) -> None:
        packet = Packet.unpack(data)
        _, step, sender, _ = label(packet)
        self.sent.append((sender, peer, len(data)))
        if step == SCATTER:
            work = self.threads.submit(self.others[peer].work, packet, time.monotonic(), Recorder("s", "t"))
            work.add_done_callback(lambda done: done.exception() and self.boxes[HOST].fail(job.request_id, job.attempt, done.exception()))
        else:
            self.boxes[peer].put(packet)

    def run(self, tensors: dict[str, Tensor], sizes: dict[str, int], seconds: float = 20.0) -> dict[str, Tensor]:
        self.job = Job("r", 0, time.monotonic() + seconds, Recorder("s", "t"))
        return self.part.run(tensors, sizes, self.job, self.members[HOST])


def block_of(model, args, kwargs, axis: str, shares) -> tuple[si.Graph, ShardedBlock]:
    graph = si.capture(model, args, kwargs)
    blocks = [block for block in plan_blocks(graph, axis).blocks if block.axis == axis]
    block = max(blocks, key=lambda each: len(each.layers))
    layers = block.layers[: 30 if axis == "rows" else None]
    return graph, divide(graph, layers, axis, shares)


def inputs_of(graph: si.Graph, block: ShardedBlock) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Random values for what enters the block."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name in block.inputs:
        spec = graph.tensors[name]
        shape = [size if isinstance(size, int) else 2 for size in spec.shape]
        dtype = getattr(torch, spec.dtype)
        floats = dtype.is_floating_point
        tensors[name] = torch.randn(shape, generator=generator, dtype=dtype) if floats else torch.ones(shape, dtype=dtype)
    return tensors, sizes_at(graph, block.sizes, {})


CASES = {
    "rows": (zoo.mobilenet_v2, "rows", (3, 2, 1)),
    "rows without the host": (zoo.resnet18, "rows", (0, 2, 1)),
    "heads": (zoo.bert, "heads", (1, 1)),
    "heads of another root": (zoo.bert, "heads", (0, 1, 1)),
    "channels": (zoo.vit, "channels", (2, 1, 1)),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_messages_between_threads_give_what_one_process_gives(case: str) -> None:
    factory, axis, shares = CASES[case]
    graph, block = block_of(*factory(), axis, shares)
    tensors, sizes = inputs_of(graph, block)
    office = Office(block)
    expected = run_local(block, tensors, sizes)
    for _ in range(2):  # nothing of a request stays behind
        outputs = office.run(tensors, sizes)
        assert set(outputs) == set(block.outputs)
        assert all(torch.equal(outputs[name], expected[name]) for name in expected)
    assert {kind for kind in ("compute", "exchange") if any(span.kind == kind for span in office.job.recorder.finish())} >= {"exchange"}


def test_parts_travel_and_come_back() -> None:
    _, block = block_of(*zoo.mobilenet_v2(), "rows", (3, 2))
    data, files = dump_parts([(block,)], {id(block): "b"})
    ((part,),) = load_parts(data, files, "cpu")
    assert isinstance(part, BlockPart)
    assert (part.layers, part.outputs, part.root, part.scatter) == (block.layers, block.outputs, block.root, dict(block.scatter))
    assert part.weight_nbytes == block.programs[HOST].weight_nbytes
    for damaged in (data[:-1], b"\xc1", b"\x91\x91\x92\x80\x00"):
        with pytest.raises(PlanError, match="malformed"):
            load_parts(damaged, files, "cpu")
    with pytest.raises(PlanError, match="malformed parts"):
        load_parts(data, files[:-1], "cpu")


def test_a_failure_at_one_worker_reaches_the_host_at_once() -> None:
    graph, block = block_of(*zoo.mobilenet_v2(), "rows", (1, 1))
    tensors, sizes = inputs_of(graph, block)
    office = Office(block)
    office.others[1].load({})
    start = time.monotonic()
    with pytest.raises(Regrouped, match="not block 'b'"):
        office.run(tensors, sizes, seconds=30)
    assert time.monotonic() - start < 10  # far from the deadline


def letter(**change: object) -> Packet:
    return Packet(Kind.SHARD, "r", meta={"block": "b", "step": 0, "from": 1, "left_s": 5.0} | change)


class TestMailbox:
    def job(self, seconds: float = 5.0) -> Job:
        return Job("r", 0, time.monotonic() + seconds, Recorder("s", "t"))

    def test_a_message_may_come_before_or_after_it_is_asked_for(self) -> None:
        box = Mailbox(Limits())
        box.put(letter())
        threading.Timer(0.05, lambda: box.put(letter(**{"from": 2}))).start()
        assert [label(packet)[2] for packet in box.take(self.job(), "b", 0, (2, 1))] == [2, 1]

    def test_other_steps_attempts_and_blocks_are_other_messages(self) -> None:
        box = Mailbox(Limits())
        for packet in (letter(step=1), letter(block="c"), Packet(Kind.SHARD, "r", (), 1, {}, letter().meta)):
            box.put(packet)
        with pytest.raises(RequestTimeout, match="worker 1 of block 'b' sent nothing for step 0"):
            box.take(self.job(0.02), "b", 0, (1,))

    def test_a_failure_wakes_those_who_wait_and_those_who_will(self) -> None:
        box = Mailbox(Limits())
        threading.Timer(0.05, lambda: box.fail("r", 0, WorkerLost("s", "tablet", "gone"))).start()
        for _ in range(2):
            with pytest.raises(WorkerLost, match="'tablet', which shares the layers of stage 's', is gone"):
                box.take(self.job(), "b", 0, (1,))
        with pytest.raises(RequestTimeout):  # another attempt is another matter
            box.take(Job("r", 1, time.monotonic() + 0.02, Recorder("s", "t")), "b", 0, (1,))

    @pytest.mark.parametrize("change", [{"block": 3}, {"step": "0"}, {"from": True}, {"left_s": -1.0}, {"left_s": float("nan")}], ids=str)
    def test_malformed_messages_are_refused(self, change: dict[str, object]) -> None:
        with pytest.raises(PacketError, match="malformed message between workers"):
            Mailbox(Limits()).put(letter(**change))
        with pytest.raises(PacketError, match="malformed message between workers"):
            Mailbox(Limits()).put(Packet(Kind.REQUEST, "r", meta=letter().meta))

    def test_it_is_bounded_and_forgets_what_is_too_late(self) -> None:
        box = Mailbox(Limits())
        for number in range(4096):
            box.put(letter(step=number, left_s=0.0))
        for number in range(4096):
            box.put(letter(step=number))
        with pytest.raises(PacketError, match=r"4097 would wait .* the limits are 4096 and"):
            box.put(letter(step=5000))
        box.put(letter(step=4095))  # it came twice

    def full(self, box: Mailbox, made: Iterator[Packet]) -> int:
        """How many are taken before one is refused."""
        for count, packet in enumerate(made):
            try:
                box.put(Packet.unpack(packet.pack()))
            except PacketError:
                return count
        raise AssertionError("it took all of them")

    def test_the_sum_of_what_waits_is_bounded_in_bytes_as_sent_as_parsed_and_as_decoded(self) -> None:
        limits = Limits(held_nbytes=1 << 23)
        mib = torch.ones(1 << 18)
        sent, dense = (Frame.encode("x", mib, codecs.get(codec)) for codec in ("raw", "zstd"))
        assert self.full(Mailbox(limits), (replace(letter(step=n), frames=(sent,)) for n in range(100))) == 3  # as they came, and decoded
        assert self.full(Mailbox(limits), (replace(letter(step=n), frames=(dense,)) for n in range(100))) == 7
        assert self.full(Mailbox(limits), (letter(step=n, more=[{}] * 10_000) for n in range(100))) == 6

    def test_a_message_whose_tensors_are_too_large_together_is_not_decoded(self) -> None:
        dense = Frame.encode("x", torch.ones(1 << 18), codecs.get("zstd"))
        packet = replace(letter(), frames=tuple(replace(dense, name=str(n)) for n in range(9)))
        assert len(tensors_of(packet, Limits())) == 9
        with pytest.raises(PacketError, match=f"take {9 << 20} bytes; the limits are 4096 and {8 << 20} bytes"):
            tensors_of(packet, Limits(held_nbytes=8 << 20))

    def test_no_deadline_keeps_a_message_for_ever(self) -> None:
        box = Mailbox(Limits(held=2, held_s=0.0))
        for number in range(100):
            box.put(letter(step=number, left_s=float("inf")))

    def test_a_failed_attempt_keeps_no_messages_and_takes_none(self) -> None:
        box = Mailbox(Limits(held=1))
        box.put(letter())
        box.fail("r", 0, WorkerLost("s", "tablet", "gone"))
        box.put(letter(step=1))
        box.put(Packet(Kind.SHARD, "r", (), 1, {}, letter().meta))  # there is room for the next attempt
        assert len(box.take(Job("r", 1, time.monotonic() + 5, Recorder("s", "t")), "b", 0, (1,))) == 1

    def test_failures_are_remembered_by_number_the_last_ones(self) -> None:
        box = Mailbox(Limits())
        for number in range(1000):
            box.fail(str(number), 0, PacketError("another machine of the group failed"))
        assert list(box._failed) == [(str(number), 0) for number in range(744, 1000)]

    def test_a_failure_that_is_remembered_does_not_keep_the_tensors_of_its_request(self) -> None:
        """An exception that was raised refers to the stack on which it was, and that to all activations."""
        box, held = Mailbox(Limits()), []

        def work(act: Callable[[], object]) -> None:
            activation = torch.zeros(3)
            held.append(weakref.ref(activation))
            act()

        def lost() -> None:
            raise WorkerLost("s", "tablet", "gone")

        for act in (lost, lambda: box.take(self.job(), "b", 0, (1,))):
            try:
                work(act)
            except WorkerLost as error:
                box.fail("r", 0, error)
        gc.collect()
        assert [reference() for reference in held] == [None, None]

    def test_a_damaged_tensor_is_an_error_of_the_packet(self) -> None:
        box = Mailbox(Limits())
        box.put(Packet(Kind.SHARD, "r", (Frame("x", "raw", (b"nonsense",)),), meta=letter().meta))
        with pytest.raises(PacketError, match="a message between workers"):
            Worker(0, "raw", lambda *_: None, box).await_(self.job(), "b", 0, (1,))


def test_errors_travel_as_what_they_are() -> None:
    lost = raised(Packet.unpack(error_packet(WorkerLost("s", "tablet", "gone"), "phone").pack()))
    assert isinstance(lost, WorkerLost)
    assert (lost.stage, lost.layer, lost.cause) == ("s", "tablet", "gone")
    failed = raised(Packet.unpack(error_packet(StageError("s", "conv1", "bad"), "phone").pack()))
    assert type(failed) is StageError


def test_units_of_the_planned_shares_are_kept() -> None:
    graph, block = block_of(*zoo.mobilenet_v2(), "rows", (3, 2, 1))
    assert sum(block.shares) == units(graph, block.layers, "rows").count
