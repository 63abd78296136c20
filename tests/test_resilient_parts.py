"""What a family of plans and its parts do when threads, callers and processes get in each other's way; fakes stand for Ray."""

import asyncio
import logging
import os
import subprocess
import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace

import psutil
import pytest
import torch
from ray.exceptions import RayActorError
from torch import nn

from cluster.launch import TIER_LABEL
from cluster.topology import Topology
from splitinfer import Pipeline, capture
from splitinfer.codecs.packet import Limits, Packet
from splitinfer.errors import Closed, DeployError, PacketError, RequestTimeout, StageLost
from splitinfer.plans import Plan
from splitinfer.runtime import child, driver, placement, resilient
from splitinfer.runtime.actor import RESTARTED, StageActor
from splitinfer.runtime.deploy import deploy
from splitinfer.runtime.packing import Packer
from splitinfer.supervisor import Beat, Deploy, Deployed, Failed, GatewayLost, GatewayUp, Ping, Send, Undeploy
from splitinfer.supervisor.requests import Requests

TOPOLOGY = Topology.loads("""
version: 1
tiers: [{name: device, compute: measured}, {name: cloud, compute: measured}]
links: [{between: [device, cloud], up: 50 Mbps, latency: 1 ms}]
""")
X = torch.ones(1, 4)
SOON_S = 5.0  # what happens at once, on a machine that is busy


class Interrupt(BaseException):
    """Stands for KeyboardInterrupt, which would end the tests, too."""


@pytest.fixture(scope="module")
def split():
    graph = capture(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval(), (X,))
    first, second = graph.layers
    return graph, Plan.by_hand(graph, [[first], [second]], ("device", "cloud"))


class Gateway:
    """Stands for the gateway's process: all it is told succeeds at once, requests excepted."""

    def __init__(self, access, hear):
        self.hear, self.told, self.sent, self.ended, self.pid = hear, [], threading.Event(), threading.Event(), 1
        hear((GatewayUp(), None))

    def tell(self, what, payload=None):
        self.told.append(what)
        match what:
            case Deploy(plan):
                self.hear((Deployed(plan), None))
            case Ping(plan):
                self.hear((Beat(plan), None))
            case Send():
                self.sent.set()

    def stop(self):
        self.ended.set()


class Nothing(Gateway):
    """Starts, and says nothing."""

    def __init__(self, access, hear):
        super().__init__(access, lambda _: None)


@pytest.fixture
def family(split, tmp_path, monkeypatch):
    """Makes pipelines whose gateway is one of the above."""
    monkeypatch.setattr(driver, "_CLOSE_S", 0.5)

    def make(gateway=Gateway, **options):
        graph, plan = split
        monkeypatch.setattr(driver, "Child", gateway)
        return resilient.resilient(graph, [plan], TOPOLOGY, cluster=child.Access("", tmp_path), **options)

    return make


def started(pipeline):
    """Whether it has a gateway: what is said of the first tier, which no plan needs, comes after that."""
    return pipeline.drain("device", SOON_S) and pipeline.driver._child is not None


class TestCallers:
    def test_one_who_cancels_takes_nothing_from_the_others(self, family):
        """The refusal of a cancelled future failed, and with it all that was to be done in the same breath."""
        with family(Nothing, offline=False, timeout_s=0.3) as pipeline:
            futures = [pipeline.start(X) for _ in range(20)]
            futures[0].cancel()
            for future in futures[1:]:
                with pytest.raises(RequestTimeout):
                    future.result(SOON_S)

    def test_a_cancelled_answer_is_not_missed(self, family, caplog):
        with family(Nothing) as pipeline:
            asked = pipeline.submit(X)
            asked.cancel()
            assert pipeline(X).shape == (1, 2)
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]

    def test_who_waits_for_a_request_that_is_cancelled_hears_of_it(self):
        """`deploy` cancels what is under way when it ends; whoever had used `submit` waited for ever."""

        class Given(Pipeline):
            def __init__(self):
                self.inner = Future()

            def _submit(self, args, kwargs):
                return self.inner

        pipeline = Given()
        asked = pipeline.submit()
        pipeline.inner.cancel()
        with pytest.raises(Closed):
            asked.result(SOON_S)

    def test_an_error_that_cannot_be_read_is_an_error(self, family):
        with family() as pipeline:
            assert pipeline.wait_for(timeout_s=SOON_S)
            future = pipeline.start(X)
            gateway = pipeline.driver._child
            assert gateway.sent.wait(SOON_S)
            sent = next(what for what in gateway.told if isinstance(what, Send))
            gateway.hear((Failed(sent.request, sent.attempt, False, "the model's error"), b"no packet"))
            with pytest.raises(PacketError):
                future.result(SOON_S)


class TestTheEnd:
    def test_it_waits_for_answers_that_are_being_decoded(self, family, monkeypatch):
        with family(Nothing) as pipeline:
            assert started(pipeline)
            accept, gateway = pipeline.driver._accept, pipeline.driver._child

            def slowly(*given):
                gateway.ended.wait(SOON_S)
                threading.Event().wait(0.1)
                accept(*given)

            monkeypatch.setattr(pipeline.driver, "_accept", slowly)
            future = pipeline.start(X)
        assert future.result(timeout=0)[0].shape == (1, 2)

    def test_nobody_waits_for_a_supervisor_that_fails(self, family, monkeypatch):
        with family(Nothing) as pipeline:
            monkeypatch.setattr(pipeline.machine, "handle", lambda event, now_s: 1 / 0)
            future = pipeline.start(X)
            pipeline.close(0.0)
            with pytest.raises(Closed):
                future.result(timeout=0)

    def test_a_request_that_comes_in_while_it_closes_is_refused(self, family, monkeypatch):
        with family(Nothing) as pipeline:
            monkeypatch.setattr(pipeline.graph, "bind", lambda args, kwargs: pipeline.close(0.0))
            with pytest.raises(Closed):
                pipeline.start(X).result(SOON_S)

    def test_who_loses_patience_leaves_nothing_behind(self, family, monkeypatch):
        """Ctrl-C while it waits for what is under way: the gateway and the cluster of its own went on."""

        def interrupted(timeout=None):
            raise Interrupt

        with family(Nothing, offline=False) as pipeline:
            assert started(pipeline)
            future, gateway = pipeline.start(X), pipeline.driver._child
            monkeypatch.setattr(pipeline.driver._closed, "wait", interrupted)
            with pytest.raises(Interrupt):
                pipeline.close()
            with pytest.raises(Closed):
                future.result(SOON_S)
            assert gateway.ended.is_set()
            assert not pipeline.driver._thread.is_alive()

    def test_it_is_opened_once(self, family):
        with family(Nothing) as pipeline:
            with pytest.raises(Closed, match="once"):
                pipeline.__enter__()
            assert pipeline(X).shape == (1, 2)
        with pytest.raises(Closed, match="once"):
            pipeline.__enter__()

    def test_a_cluster_of_its_own_is_not_left_when_its_record_is(self, split, monkeypatch, tmp_path):
        graph, plan = split
        ended = []

        class Record:
            address, token, tls = "127.0.0.9:9", str(tmp_path), None

        monkeypatch.setattr(driver, "Child", Nothing)
        monkeypatch.setattr(resilient.lifecycle, "up_local", lambda topology, name: Record)
        monkeypatch.setattr(resilient.lifecycle, "down", ended.append)
        with resilient.resilient(graph, [plan], TOPOLOGY) as pipeline:
            assert pipeline(X).shape == (1, 2)
        assert ended == [pipeline._own]


def test_a_plan_is_not_removed_before_it_is_deployed(family, monkeypatch):
    """Packing takes time; a removal that overtook it left the plan deployed, with nobody to know."""
    with family(Nothing) as pipeline:
        assert started(pipeline)
        (name,), gateway, packed = pipeline.fronts, pipeline.driver._child, threading.Event()
        monkeypatch.setattr(pipeline.driver.packers[name], "shipment", lambda: packed.wait(SOON_S))
        pipeline.driver._carry_out(Deploy(name), None)
        pipeline.driver._carry_out(Undeploy(name), None)
        packed.set()
        pipeline.driver._packing.submit(int).result(SOON_S)
        assert [what for what in gateway.told if isinstance(what, Deploy | Undeploy)] == [Deploy(name), Undeploy(name)]


class TestChild:
    """Scripts in the place of the gateway."""

    @pytest.fixture
    def started(self, tmp_path, monkeypatch):
        children = []

        def start(script, hear):
            program = tmp_path / "program"
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o700)
            monkeypatch.setattr(child.sys, "executable", str(program))
            children.append(child.Child(child.Access("", tmp_path), hear))
            return children[-1]

        yield start
        for each in children:
            if not each._stopped.is_set():
                each.stop()

    def test_one_that_hangs_is_ended_with_what_it_holds(self, started):
        before, heard = psutil.Process().num_fds(), []
        hung = started("exec sleep 60", heard.append)
        for _ in range(4):
            hung.tell(Deploy("plan"), bytes(1 << 22))  # more than a socket takes: the sender is stuck in the first
        hung.stop()
        assert not any(thread.is_alive() for thread in hung._threads)
        assert psutil.Process().num_fds() == before
        assert not heard

    def test_one_that_has_ended_has_no_pid(self, started):
        """Its number may be another process's by now."""
        heard, told = [], threading.Event()
        ended = started("echo no way; exit 3", lambda event: (heard.append(event), told.set()))
        assert told.wait(SOON_S)
        assert heard == [(GatewayLost("the gateway's process ended with 3: no way"), None)]
        assert ended.pid is None

    def test_an_interrupt_of_the_terminal_is_for_the_caller_alone(self, started):
        running = started("exec sleep 60", lambda _: None)
        assert os.getpgid(running.pid) != os.getpgid(0)

    def test_a_process_that_cannot_be_killed_does_not_stop_the_supervisor(self, started, monkeypatch):
        stuck = started("exec sleep 60", lambda _: None)
        wait = stuck._process.wait

        def never(timeout=None):
            if timeout is None:
                raise AssertionError("waits for ever")
            raise subprocess.TimeoutExpired("gateway", timeout)

        monkeypatch.setattr(stuck._process, "wait", never)
        stuck.stop()
        wait()


class TestDeploy:
    """`deploy` without Ray: only its own side."""

    @pytest.fixture
    def pipeline(self, split):
        graph, plan = split
        return deploy(graph, plan, TOPOLOGY)

    def test_answers_that_come_while_it_is_drained_do_not_upset_it(self, pipeline):
        class Late(Future):
            def done(self):
                pipeline._open.discard(self)  # as the loop's thread may do at any moment
                return True

        late = Late()
        late.set_result(None)
        pipeline._open.add(late)
        pipeline.deployment = object()
        assert pipeline.drain(0.0)

    def test_who_loses_patience_with_the_drain_ends_the_actors(self, pipeline, monkeypatch):
        def interrupted(timeout_s=None):
            raise Interrupt

        ended = []
        pipeline._exit.callback(ended.append, True)
        monkeypatch.setattr(pipeline, "drain", interrupted)
        with pytest.raises(Interrupt):
            pipeline.__exit__(None, None, None)
        assert ended

    def test_a_mend_that_hangs_holds_nobody_beyond_the_deadline(self, pipeline):
        released, lost = threading.Event(), StageLost("stage1", "process", "gone")

        class Hangs:
            def mend(self, timeout_s):
                released.wait(SOON_S)

        pipeline.deployment, loop, start = Hangs(), asyncio.new_event_loop(), time.monotonic()
        try:
            with pytest.raises(StageLost):
                loop.run_until_complete(pipeline._recover(lost, start + 0.2))
            assert time.monotonic() - start < SOON_S / 2
        finally:
            released.set()
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()


class TestDeployment:
    """Actors of a Ray that fails as soon as they are to be connected."""

    @pytest.fixture
    def ray(self, monkeypatch):
        class Ray:
            made, killed = [], []

            def remote(self, kind):
                return self

            def options(self, **settings):
                self.made.append(settings)
                return SimpleNamespace(remote=lambda *given: SimpleNamespace(connect=SimpleNamespace(remote=lambda following: None)))

            def nodes(self):
                return [{"Alive": True, "Labels": {TIER_LABEL: tier.name}} for tier in TOPOLOGY.tiers]

            def get(self, waiting, timeout):
                raise RayActorError

            def kill(self, actor):
                self.killed.append(actor)

        monkeypatch.setattr(placement, "ray", Ray())
        return placement.ray

    @pytest.fixture
    def shipment(self, split):
        return Packer(Pipeline.local(*split), TOPOLOGY, Limits(), paced=False).shipment()

    def test_one_that_fails_half_way_leaves_no_actor(self, ray, shipment):
        deployment = placement.Deployment(shipment)
        with pytest.raises(DeployError, match="did not start"):
            deployment.start()
        started = list(deployment.actors)
        deployment.stop()
        assert ray.killed == started
        assert len(started) == 2

    def test_full_stages_still_answer_pings(self, ray, shipment):
        """As many requests as Ray lets in were as many as `deploy` allows: behind them no ping, and no message of a peer, came through."""
        with pytest.raises(DeployError):
            placement.Deployment(shipment).start()
        assert all(settings["max_concurrency"] > shipment.limits.held for settings in ray.made)


def test_a_stage_without_the_next_one_cannot_work(split):
    """Started again between being connected and being loaded, it failed each request instead of asking to be mended."""
    graph, plan = split
    config = Packer(Pipeline.local(graph, plan), TOPOLOGY, Limits(), paced=False).shipment().stages[0].config
    actor = StageActor(config)
    actor.runner = object()

    async def asked():
        answer, _ = await actor.handle(b"")
        return await actor.is_loaded(), await actor.ping(1.0), Packet.unpack(answer, Limits()).meta["type"]

    assert asyncio.run(asked()) == (False, (0, RESTARTED), "StageLost")
    actor.connect(object())
    assert asyncio.run(actor.is_loaded())


def test_the_state_can_be_looked_at_while_requests_come_in():
    class Arriving:
        """A request that another one follows while it is looked at."""

        places = ("plan",)

        @property
        def under_way(self):
            requests._open[len(requests._open)] = Arriving()
            return True

    requests = Requests(lambda _: None, 10, True, True)
    requests._open[0] = Arriving()
    assert requests.under_way("plan") == 1
