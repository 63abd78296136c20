"""One hop between two Ray nodes of this machine: what splitinfer adds to a bare call of Ray, and Ray to a bare socket.

    python benchmarks/hop.py [--rounds 40] [--burst 5] [--breakdown] [--json]

Three ways carry the same bytes, in turn, so that all meet the same noise; the figures are medians over the rounds
of the median of a few calls in a row:

a. splitinfer: an actor on the node "device" calls the real second stage of a deployed plan on the node "cloud", as its
   first stage would, with a packet of one raw tensor, and waits for the answer's packet. The stage slices one element
   out of the tensor, and no link is paced.
b. bare Ray: the same actor calls an async actor on "cloud" that takes the same bytes and returns an answer of the same
   size; same nodes, same settings of Ray, which keep the bytes inside the call, and of the allocator.
c. bare TCP: the same number of bytes over a loopback socket to another process and the answer back; the limit.

The target is a/b of at most 1.5. `--breakdown` measures in the same way a ladder of bare actors, each of which does one
step more of what a stage does with a packet, and so shows where the time goes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import socket
import statistics
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import msgpack
import ray
import torch
from tabulate import tabulate
from torch import Tensor, nn

from cluster.launch import TIER_LABEL, LocalCluster
from cluster.topology import Compute, LinkSpec, TierSpec, Topology
from splitinfer import capture, codecs, deploy
from splitinfer.codecs.packet import Frame, Kind, Packet
from splitinfer.memory import keep_freed_memory
from splitinfer.plans import Plan
from splitinfer.runtime.actor import call_stage
from splitinfer.tracing import pack_spans

PAYLOADS_MB = (0.1, 0.6, 6.0)
TARGET = 1.5
WARM_UP = 5
UNPACED = 1e15  # bytes per second; 6 MB take 6 ns


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1)


class First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:1]


def topology() -> Topology:
    tiers = tuple(TierSpec(name, Compute()) for name in ("device", "cloud"))
    return Topology(tiers, (LinkSpec(("device", "cloud"), UNPACED, UNPACED, 0.0),))


# -- (b) bare actors; each rung of the ladder does one step more of what StageActor.handle does


class Bare:
    def __init__(self, answer: bytes, spans: bytes) -> None:
        keep_freed_memory()  # as a stage does
        self.answer, self.spans = answer, spans
        self.worker = ThreadPoolExecutor(max_workers=1)

    async def handle(self, data: bytes) -> tuple[bytes, bytes]:  # noqa: ARG002 - the bytes are the point
        return self.answer, self.spans


class Handed(Bare):
    def work(self, data: bytes) -> None:
        """What the compute thread does."""

    async def handle(self, data: bytes) -> tuple[bytes, bytes]:
        await asyncio.get_running_loop().run_in_executor(self.worker, self.work, data)
        return self.answer, self.spans


class Unpacked(Handed):
    def work(self, data: bytes) -> Packet:
        return Packet.unpack(data)


class Decoded(Unpacked):
    def work(self, data: bytes) -> tuple[Packet, Tensor]:
        packet = super().work(data)
        frame = packet.frames[0]
        return packet, codecs.get(frame.codec).decode(frame.parts[0])


class Answered(Decoded):
    """All but the stage's own graph and spans."""

    def work(self, data: bytes) -> bytes:
        packet, tensor = super().work(data)
        frame = Frame.encode("y", tensor[:1], codecs.get("raw"))
        msgpack.packb(pack_spans(()))
        return Packet(Kind.RESPONSE, packet.request_id, (frame,)).pack()


LADDER = {
    "+ hand-over to the compute thread": Handed,
    "+ unpack, with the checksum": Unpacked,
    "+ decode": Decoded,
    "+ encode and pack the answer": Answered,
}


class Timer:
    """On the device's node: calls an actor on the cloud's node and takes the time."""

    def __init__(self, packet: Packet) -> None:
        keep_freed_memory()  # as a stage does
        self.packet = packet

    async def stage(self, actor: ray.actor.ActorHandle, burst: int) -> list[float]:
        """As one stage calls the next. Each call has an id of its own and is packed just before, as in a stage."""
        seconds = []
        for _ in range(burst):
            data = self._data()
            start = time.perf_counter()
            answer, _ = await call_stage(actor, data, 60.0, "the benchmark")
            seconds.append(time.perf_counter() - start)
            if Packet.unpack(answer).kind is not Kind.RESPONSE:
                raise RuntimeError("the stage failed")
        return seconds

    async def bare(self, actor: ray.actor.ActorHandle, burst: int) -> list[float]:
        seconds = []
        for _ in range(burst):
            data = self._data()
            start = time.perf_counter()
            await actor.handle.remote(data)
            seconds.append(time.perf_counter() - start)
        return seconds

    async def answer(self, actor: ray.actor.ActorHandle) -> tuple[bytes, bytes]:
        return await call_stage(actor, self._data(), 60.0, "the benchmark")

    def _data(self) -> bytes:
        return replace(self.packet, request_id=uuid.uuid4().hex).pack()


# -- (c) bare TCP


def _serve(port: multiprocessing.connection.Connection, nbytes: int, answer_nbytes: int) -> None:
    """The other process: receive everything, answer, until the connection closes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port.send(server.getsockname()[1])
        peer, _ = server.accept()
        with peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            buffer = bytearray(nbytes)
            while _receive(peer, buffer):
                peer.sendall(bytes(answer_nbytes))


def _receive(peer: socket.socket, buffer: bytearray) -> bool:
    view, got = memoryview(buffer), 0
    while got < len(view):
        count = peer.recv_into(view[got:])
        if not count:
            return False
        got += count
    return True


class Tcp:
    """A connection to a process that swallows packets and answers."""

    def __init__(self, peer: socket.socket, nbytes: int, answer_nbytes: int) -> None:
        self.peer, self.data, self.answer = peer, bytes(nbytes), bytearray(answer_nbytes)

    def seconds(self) -> float:
        start = time.perf_counter()
        self.peer.sendall(self.data)
        _receive(self.peer, self.answer)
        return time.perf_counter() - start


@contextlib.contextmanager
def tcp(nbytes: int, answer_nbytes: int) -> Iterator[Tcp]:
    context = multiprocessing.get_context("spawn")
    port, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, nbytes, answer_nbytes), daemon=True)
    process.start()
    try:
        with socket.create_connection(("127.0.0.1", port.recv())) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield Tcp(peer, nbytes, answer_nbytes)
    finally:
        process.join(timeout=10)


# -- rounds


def on(tier: str, kind: type, *args: object) -> ray.actor.ActorHandle:
    """An actor on a tier's node, with the options of a stage's."""
    return ray.remote(kind).options(num_cpus=0, label_selector={TIER_LABEL: tier}, max_concurrency=1000).remote(*args)


def measure(payload_mb: float, rounds: int, burst: int, breakdown: bool, cluster: LocalCluster) -> dict[str, float]:
    """Median seconds of each way, by its name."""
    x = torch.zeros(1, int(payload_mb * 1e6) // 4)
    graph = capture(nn.Sequential(Flat(), First()).eval(), (x,))
    layers = list(graph.layers)
    plan = Plan.by_hand(graph, [layers[:1], layers[1:]], ["device", "cloud"])
    with deploy(graph, plan, topology(), cluster=cluster) as pipeline, contextlib.ExitStack() as stop:
        pipeline(x)  # the whole path works
        (name,) = pipeline.routes[1].decodes
        packet = Packet(Kind.REQUEST, "0" * 32, (Frame.encode(name, x.reshape(-1), codecs.get("raw")),), meta={"left_s": 60.0})
        timer, stage = on("device", Timer, packet), pipeline.actors[1]
        answer = ray.get(timer.answer.remote(stage))
        rungs = {"bare Ray": Bare, **(LADDER if breakdown else {})}
        actors = {key: on("cloud", kind, *answer) for key, kind in rungs.items()}
        for actor in (timer, *actors.values()):
            stop.callback(ray.kill, actor)
        wire = stop.enter_context(tcp(len(packet.pack()), sum(map(len, answer))))
        seconds: dict[str, list[float]] = {key: [] for key in ("splitinfer", *actors, "bare TCP")}
        for _ in range(WARM_UP + rounds):
            seconds["splitinfer"].append(statistics.median(ray.get(timer.stage.remote(stage, burst))))
            for key, actor in actors.items():
                seconds[key].append(statistics.median(ray.get(timer.bare.remote(actor, burst))))
            seconds["bare TCP"].append(statistics.median(wire.seconds() for _ in range(burst)))
    return {key: statistics.median(times[WARM_UP:]) for key, times in seconds.items()}


def table(results: dict[float, dict[str, float]]) -> str:
    rows = [
        [f"{mb:g} MB", *(f"{found[key] * 1e3:.2f}" for key in ("splitinfer", "bare Ray", "bare TCP")),
         f"{found['splitinfer'] / found['bare Ray']:.2f}", f"{found['bare Ray'] / found['bare TCP']:.1f}"]
        for mb, found in results.items()
    ]  # fmt: skip
    return tabulate(rows, ["payload", "splitinfer ms", "bare Ray ms", "bare TCP ms", "a/b", "b/c"], disable_numparse=True, stralign="right")


def ladder(results: dict[float, dict[str, float]]) -> str:
    steps = ["bare Ray", *LADDER, "splitinfer"]
    rows = [[step, *(f"{found[step] * 1e3:.2f}" for found in results.values())] for step in steps]
    return tabulate(rows, ["ms", *(f"{mb:g} MB" for mb in results)], disable_numparse=True, colalign=("left", *["right"] * len(results)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--burst", type=int, default=5, help="calls in a row in each turn (default 5); 1: each meets idle processes")
    parser.add_argument("--breakdown", action="store_true", help="where the time goes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with LocalCluster(["device", "cloud"]) as cluster:
        results = {mb: measure(mb, options.rounds, options.burst, options.breakdown, cluster) for mb in PAYLOADS_MB}
    ratios = {mb: found["splitinfer"] / found["bare Ray"] for mb, found in results.items()}
    if options.json:
        print(json.dumps({"seconds": results, "ratio": ratios, "target": TARGET, "met": max(ratios.values()) <= TARGET}))
        return
    print(table(results))
    verdict = "met" if max(ratios.values()) <= TARGET else "not met"
    print(f"\ntarget: a/b at most {TARGET}: {verdict} (worst {max(ratios.values()):.2f}); medians of {options.rounds} rounds")
    if options.breakdown:
        print(f"\n{ladder(results)}")


if __name__ == "__main__":
    main()
