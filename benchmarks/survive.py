"""What is lost while machines die and links are cut: one Ray node in each of three namespaces, real links between them. Needs root.

    python benchmarks/survive.py [--section chaos|offline|load] [--seeds 1 2 3] [--requests N] [--seconds S] [--json]

chaos: requests at a steady rate while stage processes, whole nodes (the head's among them) and the gateway are killed with
SIGKILL, and links cut and restored, at times and places drawn by the seed. Each request has an input of its own, and its
answer is compared with the whole model's.

offline: both links of the device cut for longer than Ray's health check takes; requests go on all the time.

load: as many requests as the plan's bottleneck can take, for some minutes; throughput beside the bottleneck's limit, and how
much every process has grown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from tabulate import tabulate

import splitinfer as si
from cluster import lifecycle
from cluster.testbed import Testbed, namespaces
from cluster.topology import Topology
from splitinfer import zoo
from splitinfer.plans import Plan
from splitinfer.runtime.child import Access
from splitinfer.runtime.resilient import ResilientPipeline, resilient
from splitinfer.supervisor import Accept, Event, Instruction, Refuse
from splitinfer.verify import balanced_stages

TIERS = ("device", "edge", "cloud")
TOPOLOGY = Topology.loads("""
version: 1
tiers:
  - {name: device, compute: measured}
  - {name: edge, compute: measured}
  - {name: cloud, compute: measured}
links:
  - {between: [device, edge], up: 50 Mbps, latency: 2 ms}
  - {between: [edge, cloud], up: 100 Mbps, latency: 5 ms}
direct: {up: 20 Mbps, latency: 10 ms}
""")
TIMEOUT_S = 30.0
RATE_PER_S = 5.0
_INPUTS = 100
_CLOSE = 1e-4
_SETTLE_S = 240.0
_LONGEST_CUT_S = 12.0


@dataclass
class Answer:
    """One request as its caller saw it."""

    sent_s: float
    took_s: float
    by: str
    outcome: str
    """"right", "wrong", or the error."""


@dataclass
class Outcome:
    """What callers saw while things went wrong."""

    sent: int = 0
    answers: list[Answer] = field(default_factory=list)


class Model:
    """Digits: small enough that the machine's two cores are no limit, with inputs and the answers they must get."""

    def __init__(self) -> None:
        model, args, _ = zoo.digits()
        self.graph = si.capture(model, args)
        generator = torch.Generator().manual_seed(1)
        self.inputs = [torch.rand(args[0].shape, generator=generator) for _ in range(_INPUTS)]
        with torch.no_grad():
            self.wanted = [model(x) for x in self.inputs]

    def family(self) -> list[Plan]:
        """Over all tiers, then without the edge, then without the cloud. By hand: alone, the device would be best."""
        layers = balanced_stages(self.graph, 3)
        two = [layers[0], layers[1] + layers[2]]
        return [Plan.by_hand(self.graph, layers, TIERS), *(Plan.by_hand(self.graph, two, ("device", far)) for far in ("cloud", "edge"))]


@contextmanager
def running(model: Model) -> Iterator[tuple[Testbed, ResilientPipeline]]:
    """A testbed, and the family on it; this thread stands on the device."""
    with Testbed.up(TOPOLOGY) as testbed, namespaces.entered(testbed.nodes[0].namespace):
        access = Access(testbed.address, testbed.token)
        with resilient(model.graph, model.family(), testbed.topology, cluster=access, timeout_s=TIMEOUT_S, paced=False) as pipeline:
            if not pipeline.wait_for(timeout_s=_SETTLE_S):
                raise RuntimeError(f"the best plan is not in place after {_SETTLE_S:g} s: {pipeline.machine.plans}")
            yield testbed, pipeline


class Caller:
    """Sends requests at a steady rate until it is told to stop."""

    def __init__(self, model: Model, pipeline: ResilientPipeline, rate_per_s: float, most: int | None = None) -> None:
        self.model, self.pipeline, self.gap_s, self.most = model, pipeline, 1 / rate_per_s, most
        self.outcome = Outcome()
        self._end, self._answered = threading.Event(), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Caller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.wait()

    def wait(self) -> Outcome:
        """Until the last request is answered, or none is answered any more."""
        self._thread.join()
        while len(self.outcome.answers) < self.outcome.sent and self._answered.acquire(timeout=2 * TIMEOUT_S):
            pass
        return self.outcome

    def _run(self) -> None:
        start = time.monotonic()
        while not self._end.is_set() and (self.most is None or self.outcome.sent < self.most):
            self._end.wait(max(0.0, start + self.outcome.sent * self.gap_s - time.monotonic()))
            number, sent_s = self.outcome.sent, time.monotonic()
            self.outcome.sent += 1
            future = self.pipeline.start(self.model.inputs[number % _INPUTS])
            future.add_done_callback(self._noted(number, sent_s))

    def _noted(self, number: int, sent_s: float) -> Callable[[Future[Any]], None]:
        def note(future: Future[Any]) -> None:
            took_s = time.monotonic() - sent_s
            if (error := future.exception()) is not None:
                found = Answer(sent_s, took_s, "nobody", f"{type(error).__name__}: {error}")
            else:
                answer, trace = future.result()
                right = bool((answer - self.model.wanted[number % _INPUTS]).abs().max() <= _CLOSE)
                found = Answer(sent_s, took_s, trace.answered_by, "right" if right else "wrong")
            self.outcome.answers.append(found)
            self._answered.release()

        return note


def counted_ends(pipeline: ResilientPipeline) -> Counter[str]:
    """How often each request is ended from now on; a future alone would not show a second answer."""
    ended, handle = Counter[str](), pipeline.machine.handle

    def watched(event: Event, now_s: float) -> list[Instruction]:
        said = handle(event, now_s)
        ended.update(each.request for each in said if isinstance(each, Accept | Refuse))
        return said

    pipeline.machine.handle = watched
    return ended


# -- chaos


@dataclass(frozen=True)
class Fault:
    """What was done, from when to when."""

    what: str
    begun_s: float
    over_s: float
    """When links were restored, processes killed."""


class Chaos:
    """Faults drawn by lot."""

    def __init__(self, seed: int, testbed: Testbed, pipeline: ResilientPipeline) -> None:
        self.chance, self.testbed, self.pipeline = random.Random(seed), testbed, pipeline
        self.faults: list[Fault] = []

    def one(self) -> None:
        """The next fault, waiting for its end."""
        kind, begun_s = self.chance.choices(["stage", "node", "link", "gateway"], [5, 2, 4, 1])[0], time.monotonic()
        self.faults.append(Fault(getattr(self, f"_{kind}")(), begun_s, time.monotonic()))

    def _stage(self) -> str:
        running = [(tier, process) for tier in TIERS for process in stage_processes(self.testbed, tier)]
        if not running:
            return "stage: none runs"
        tier, victim = self.chance.choice(running)
        with suppress(psutil.NoSuchProcess):  # it has just ended by itself
            victim.kill()
        return f"stage on {tier}"

    def _node(self) -> str:
        tier = self.chance.choice(TIERS)
        self.testbed.kill(tier)
        return f"node of {tier}"

    def _link(self) -> str:
        wire, for_s = self.chance.choice(self.testbed.wires), self.chance.uniform(0.5, _LONGEST_CUT_S)
        self.testbed.cut(wire.between)
        time.sleep(for_s)
        self.testbed.restore(wire.between)
        return f"link {' - '.join(wire.between)} for {for_s:.1f} s"

    def _gateway(self) -> str:
        pid = self.pipeline.driver.gateway_pid
        if pid is None:
            return "gateway: none runs"
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
        return "gateway"


def stage_processes(testbed: Testbed, tier: str) -> list[psutil.Process]:
    """The stage actors on a tier's node, told by the node's mark."""
    mark, found = next(node.mark for node in testbed.nodes if node.tier == tier), []
    for process in psutil.process_iter():
        try:
            if "StageActor" in " ".join(process.cmdline()) and process.environ().get("SPLITINFER_NODE", "").startswith(mark):
                found.append(process)
        except (psutil.Error, OSError):  # it has ended
            continue
    return found


def chaos(seeds: list[int], requests: int) -> list[dict[str, Any]]:
    """A row for each seed."""
    model, rows = Model(), []
    for seed in seeds:
        with running(model) as (testbed, pipeline):
            faults, ended = Chaos(seed, testbed, pipeline), counted_ends(pipeline)
            with Caller(model, pipeline, RATE_PER_S, requests) as caller:
                while caller._thread.is_alive():
                    time.sleep(faults.chance.uniform(3.0, 12.0))
                    faults.one()
                outcome = caller.wait()
            settled = pipeline.wait_for(timeout_s=_SETTLE_S)
            again = recoveries(faults.faults, pipeline)
            twice = sum(count > 1 for count in ended.values())
            rows.append(_chaos_row(seed, faults.faults, outcome, pipeline, settled) | {"twice": twice, "recoveries": again})
        print(tabulate([{name: value for name, value in rows[-1].items() if name != "recoveries"}], headers="keys", floatfmt=".2f"))
        print(tabulate(again, ["fault", "plan changed after s", "best plan again s after its end"], floatfmt=".1f"), "\n", flush=True)
    return rows


def recoveries(faults: list[Fault], pipeline: ResilientPipeline) -> list[tuple[str, float | None, float | None]]:
    """For each fault that showed: when the plan changed after it began, and when the best was back after it ended, others between."""
    best, found = next(iter(pipeline.fronts)), []
    for fault, following in zip(faults, [*faults[1:], None], strict=True):
        until_s = following.begun_s if following else float("inf")
        changed = [switch.at_s for switch in pipeline.switches if fault.begun_s < switch.at_s < until_s and switch.plan != best]
        again = [switch.at_s for switch in pipeline.switches if changed and switch.at_s > changed[0] and switch.plan == best]
        found.append((fault.what, changed[0] - fault.begun_s if changed else None, again[0] - fault.over_s if again else None))
    return found


def _chaos_row(seed: int, faults: list[Fault], outcome: Outcome, pipeline: ResilientPipeline, settled: bool) -> dict[str, Any]:
    answers = outcome.answers
    ends = sorted(answer.sent_s + answer.took_s for answer in answers)
    best = next(iter(pipeline.fronts))
    return {
        "seed": seed, "requests": outcome.sent, **_kinds(faults),
        "lost": outcome.sent - sum(answer.outcome in ("right", "wrong") for answer in answers),
        "wrong": sum(answer.outcome == "wrong" for answer in answers),
        "degraded": sum(answer.by == "the whole model" for answer in answers),
        "longest_s": max(answer.took_s for answer in answers),
        "p50_ms": 1e3 * statistics.median(answer.took_s for answer in answers),
        "no_answer_s": max((after - before for before, after in itertools.pairwise(ends)), default=0.0),
        "longest_without_best_s": max(_without_best(pipeline, best), default=0.0),
        "best_again": settled,
    }  # fmt: skip


def _kinds(faults: list[Fault]) -> dict[str, int]:
    found = Counter(fault.what.split()[0] for fault in faults if "none runs" not in fault.what)
    return {f"{kind}s": found[kind] for kind in ("stage", "node", "link", "gateway")}


def _without_best(pipeline: ResilientPipeline, best: str) -> list[float]:
    """How long each stretch was in which new requests did not take the best plan, after it was first in place."""
    left_s: float | None = None
    found = []
    for switch in itertools.dropwhile(lambda switch: switch.plan != best, pipeline.switches):
        if switch.plan != best:
            left_s = switch.at_s if left_s is None else left_s
        elif left_s is not None:
            found.append(switch.at_s - left_s)
            left_s = None
    return found


# -- offline


def offline(seconds: float) -> list[dict[str, Any]]:
    """All links of the device cut, and restored."""
    model, rows = Model(), []
    for for_s in (5.0, seconds):
        with running(model) as (testbed, pipeline), Caller(model, pipeline, RATE_PER_S) as caller:
            time.sleep(5.0)
            best = next(iter(pipeline.fronts))
            mine = [wire.between for wire in testbed.wires if "device" in wire.between]
            cut_s = time.monotonic()
            for link in mine:
                testbed.cut(link)
            time.sleep(for_s)
            for link in mine:
                testbed.restore(link)
            restored_s = time.monotonic()
            pipeline.wait_for(timeout_s=_SETTLE_S)
            time.sleep(2.0)
            caller._end.set()
            outcome = caller.wait()
            answers = outcome.answers
            alone = [answer.sent_s + answer.took_s - cut_s for answer in answers if answer.by == "the whole model"]
            alone = [took_s for took_s in alone if took_s > 0]  # the machine may have been too busy for a moment before
            back = [answer.sent_s + answer.took_s - restored_s for answer in answers if answer.sent_s > restored_s and "+" in answer.by]
            rows.append({
                "cut_s": for_s, "requests": outcome.sent,
                "lost or wrong": outcome.sent - sum(answer.outcome == "right" for answer in answers),
                "first_degraded_answer_s": min(alone, default=float("nan")), "longest_request_s": max(answer.took_s for answer in answers),
                "remote_again_s": min(back, default=float("nan")),
                "best_again_s": pipeline.switches[-1].at_s - restored_s if pipeline.current == best else float("nan"),
            })  # fmt: skip
        print(tabulate([rows[-1]], headers="keys"), flush=True)
    return rows


# -- load


def load(seconds: float) -> list[dict[str, Any]]:
    """Requests without a pause for so many seconds, `_UNDER_WAY` at once; what the plan's bottleneck could do; growth of processes."""
    model = Model()
    slow = Topology.loads("""
version: 1
tiers: [{name: device, compute: measured}, {name: edge, compute: measured}, {name: cloud, compute: measured}]
links: [{between: [device, edge], up: 2 Mbps, latency: 5 ms}, {between: [edge, cloud], up: 4 Mbps, latency: 5 ms}]
""")
    plan = Plan.by_hand(model.graph, balanced_stages(model.graph, 3), TIERS)
    _, trace = si.Pipeline.local(model.graph, plan).traced(model.inputs[0])
    nbytes = [span.nbytes for span in trace.spans if span.kind == "wire"]
    limit = min(link.up_bytes_per_s / size for link, size in zip(slow.links, nbytes, strict=True))
    record = lifecycle.up_local(slow, name=f"load{os.getpid()}")
    with ExitStack() as stack:
        stack.callback(lifecycle.down, record.name)
        pipeline = stack.enter_context(resilient(model.graph, [plan], slow, cluster=record.name, timeout_s=TIMEOUT_S))
        if not pipeline.wait_for(timeout_s=_SETTLE_S):
            raise RuntimeError("the plan is not in place")
        Pressing(model, pipeline, 60.0).run()  # allocators and caches fill
        before, start_s = memory(record.mark), time.monotonic()
        pressing = Pressing(model, pipeline, seconds)
        pressing.run()
        elapsed_s, after = time.monotonic() - start_s, memory(record.mark)
    throughput = pressing.done / elapsed_s
    grown = {name: after[name] - before[name] for name in before if name in after}
    row = {"seconds": elapsed_s, "requests": pressing.done, "lost or wrong": pressing.bad, "per_s": throughput, "limit_per_s": limit,
           "of_limit": throughput / limit}  # fmt: skip
    print(tabulate([row], headers="keys"))
    print(
        tabulate(
            [[name, f"{before[name] / 1e6:.1f}", f"{grown[name] / 1e6:+.1f}"] for name in sorted(grown)], ["process", "MB", "grown MB"]
        )
    )
    return [row | {"grown_nbytes": grown}]


class Pressing:
    """Keeps a number of requests under way, and hears of each."""

    def __init__(self, model: Model, pipeline: ResilientPipeline, seconds: float) -> None:
        self.model, self.pipeline, self.seconds = model, pipeline, seconds
        self.done = self.bad = 0

    def run(self) -> None:
        """For so many seconds."""
        end_s, number = time.monotonic() + self.seconds, 0
        pending: list[tuple[int, Future[Any]]] = []
        while time.monotonic() < end_s or pending:
            while len(pending) < _UNDER_WAY and time.monotonic() < end_s:
                pending.append((number % _INPUTS, self.pipeline.submit(self.model.inputs[number % _INPUTS])))
                number += 1
            place, future = pending.pop(0)
            right = future.exception() is None and bool((future.result() - self.model.wanted[place]).abs().max() <= _CLOSE)
            self.done, self.bad = self.done + right, self.bad + (not right)


_UNDER_WAY = 8


def memory(mark: str) -> dict[str, int]:
    """Private bytes of this process, the gateway, the stages, and the other processes of Ray, by name and pid."""
    found = {}
    for process in [psutil.Process(), *psutil.process_iter()]:
        try:
            words, own = process.cmdline(), process.pid == os.getpid()
            name = "caller" if own else "gateway" if "splitinfer.runtime.gateway" in words and process.ppid() == os.getpid() else ""
            if name or process.environ().get("SPLITINFER_NODE", "").startswith(mark):
                found[f"{name or process.name()} {process.pid}"] = process.memory_full_info().uss
        except (psutil.Error, OSError):
            continue
    return found


def main() -> None:
    """Print the sections asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", choices=["chaos", "offline", "load"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--requests", type=int, default=1000, help="of each seed of chaos")
    parser.add_argument("--seconds", type=float, help="default: 90 for offline, 600 for load")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sections: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "chaos": lambda: chaos(options.seeds, options.requests), "offline": lambda: offline(options.seconds or 90.0),
        "load": lambda: load(options.seconds or 600.0),
    }  # fmt: skip
    found = {name: work() for name, work in sections.items() if options.section in (None, name)}
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
