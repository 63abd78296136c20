"""The same plan on real Ray nodes: equal answers, placement, failures, teardown."""

import os
import signal
import time
from dataclasses import replace

import odd_models
import psutil
import pytest
import ray
import torch
from odd_models import made
from torch import nn

from cluster.launch import TIER_LABEL, LocalCluster
from cluster.topology import Topology
from splitinfer import Pipeline, capture, deploy, plan, profile, zoo
from splitinfer.codecs.packet import Kind, Limits, Packet
from splitinfer.errors import Closed, DeployError, InputError, Overloaded, PlanError, RequestTimeout, StageError, StageLost
from splitinfer.plans import Plan, PlannedBlock
from splitinfer.routing import routes
from splitinfer.runtime import placement
from splitinfer.shards import apportion, plan_blocks, units
from splitinfer.verify import balanced_stages, compare

TIERS = ("device", "edge", "cloud")
TOPOLOGY = Topology.loads("""
version: 1
tiers:
  - {name: device, compute: {factor: 2}}
  - {name: edge, compute: {factor: 1.5}}
  - {name: cloud, compute: measured}
links:
  - {between: [device, edge], up: 20 Mbps, latency: 2 ms}
  - {between: [edge, cloud], up: 10 Mbps, down: 20 Mbps, latency: 5 ms}
""")


@pytest.fixture(scope="module")
def cluster():
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    environment = ray_settings()
    with LocalCluster(TIERS) as running:
        yield running
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before and p.status() != psutil.STATUS_ZOMBIE]
    _, alive = psutil.wait_procs(left, timeout=15)
    assert not alive, [process.cmdline() for process in alive]
    assert ray_settings() == environment


def ray_settings():
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}


def leaves(result):
    return torch.utils._pytree.tree_leaves(result)


def in_three(graph):
    return Plan.by_hand(graph, balanced_stages(graph, 3), TIERS)


class TestPieces:
    """Large tensors in pieces: the same answers, in one process and on Ray, also past a tier that only hands them on."""

    @pytest.fixture
    def planned(self):
        model, args, kwargs = zoo.resnet18()
        graph = capture(model, args, kwargs)
        layers = list(graph.layers)
        places = [index for index, cut in enumerate(graph.cuts()) if cut.possible]
        first, second = places[4], places[5]
        stages = [layers[: first + 1], layers[first + 1 : second + 1], layers[second + 1 :]]
        plan = Plan.by_hand(graph, stages, TIERS, dict.fromkeys(graph.tensors, "int8"))
        return graph, replace(plan, crossings=tuple(replace(crossing, streamed=True) for crossing in plan.crossings))

    def test_answers_equal_those_of_one_process(self, cluster, planned):
        graph, plan = planned
        local, expected = Pipeline.local(graph, plan).traced(*graph.example[0], **graph.example[1])
        with deploy(graph, plan, TOPOLOGY, cluster=cluster) as pipeline:
            futures = [pipeline.start(*graph.example[0], **graph.example[1]) for _ in range(4)]
            for answer, trace in (future.result() for future in futures):
                assert compare(leaves(local), leaves(answer)) == (0.0, True)
                assert abs(trace.nbytes() - expected.nbytes()) < 500  # headers hold numbers of other lengths
                assert trace.seconds("transfer") > 0
                assert trace.framework_s > 0  # what overlaps is counted once
        assert [name for route in routes(graph, plan)[1] for name in route.passes]  # a shortcut passes the second tier by


class TestGroups:
    """Layers that several machines share: the same answers as in one process, also when machines are lost on the way."""

    TOPOLOGY = Topology.loads("""
version: 2
tiers:
  - name: device
    compute: {factor: 1}
    peers:
      - {name: tablet, compute: {factor: 1}, up: 100 Mbps, latency: 1 ms}
      - {name: watch, compute: {factor: 1.5}, up: 40 Mbps, down: 80 Mbps, latency: 2 ms}
      - {tier: cloud}
  - {name: cloud, compute: {factor: 1}}
links:
  - {between: [device, cloud], up: 50 Mbps, latency: 2 ms}
""")

    def planned(self, shares):
        model, args, kwargs = zoo.mobilenet_v2()
        graph = capture(model, args, kwargs)
        layers = list(graph.layers)
        block = next(block for block in plan_blocks(graph, "rows").blocks if len(block.layers) > 10)
        shared = block.layers[:12]
        cut = layers.index(shared[-1]) + 1
        plan = Plan.by_hand(graph, [layers[:cut], layers[cut:]], ("device", "cloud"))
        names = ("device", "tablet", "watch", "cloud")[: len(shares)]
        block = PlannedBlock(shared, "rows", apportion(units(graph, shared, "rows"), shares), names)
        return graph, replace(plan, stages=(replace(plan.stages[0], blocks=(block,)), plan.stages[1]))

    @pytest.mark.parametrize("shares", [(2, 1), *(pytest.param(shares, marks=pytest.mark.slow) for shares in ((3, 2, 1, 2), (0, 1, 1)))])
    def test_answers_equal_those_of_one_process(self, cluster, shares):
        graph, plan = self.planned(shares)
        assert Plan.from_json(plan.to_json()) == plan
        expected = Pipeline.local(graph, plan)(*graph.example[0], **graph.example[1])
        with deploy(graph, plan, self.TOPOLOGY, cluster=cluster) as pipeline:
            for answer, trace in (pipeline.traced(*graph.example[0], **graph.example[1]) for _ in range(2)):
                assert compare(leaves(expected), leaves(answer)) == (0.0, True)
                assert trace.seconds("exchange") > 0
            assert sorted(pipeline.deployment.workers[0]) == [place for place, share in enumerate(shares) if share and place]

    @pytest.mark.slow
    def test_the_share_of_a_killed_worker_goes_to_the_others(self, cluster):
        graph, plan = self.planned((2, 1, 1))
        args, kwargs = graph.example
        expected = Pipeline.local(graph, plan)(*args, **kwargs)
        with deploy(graph, plan, self.TOPOLOGY, cluster=cluster) as pipeline:
            pipeline(*args, **kwargs)
            (group,), workers = pipeline.packer.groups.values(), pipeline.deployment.workers
            for left in (1, 0):  # one worker is killed, then the other: the tier's own machine answers alone
                victim = ray.get(workers[0][max(workers[0])].info.remote())["pid"]
                futures = [pipeline.submit(*args, **kwargs) for _ in range(4)]
                os.kill(victim, signal.SIGKILL)
                futures += [pipeline.submit(*args, **kwargs) for _ in range(2)]
                for future in futures:
                    assert compare(leaves(expected), leaves(future.result()))[0] < 1e-4
                assert len(workers[0]) == left
            assert group.planned.blocks[0].shares[1:] == (0, 0)

    def test_a_plan_for_other_machines_is_refused(self, cluster):
        graph, plan = self.planned((2, 1))
        block = replace(plan.stages[0].blocks[0], workers=("device", "toaster"))
        other = replace(plan, stages=(replace(plan.stages[0], blocks=(block,)), plan.stages[1]))
        with pytest.raises(PlanError, match=r"toaster.*gives 'device' the machines"):
            deploy(graph, other, self.TOPOLOGY, cluster=cluster)

    def test_a_worker_without_memory_for_its_share_is_refused(self, cluster):
        graph, plan = self.planned((2, 1))
        data = self.TOPOLOGY.to_dict()
        data["tiers"][0]["peers"][0]["memory_bytes"] = 1000
        with pytest.raises(DeployError, match=r"'tablet' would hold .* and allows 1000 B"):
            deploy(graph, plan, Topology.from_dict(data), cluster=cluster)


class TestAnswers:
    def test_equal_to_eager_bit_for_bit_with_results_from_several_stages(self, cluster):
        model, args, _ = zoo.two_inputs_tied()
        graph = capture(model, args, dynamic_shapes="batch")
        with deploy(graph, in_three(graph), TOPOLOGY, cluster=cluster) as pipeline, torch.no_grad():
            for batch in (1, 3):
                call = tuple(torch.cat([leaf] * batch) for leaf in args)
                assert compare(leaves(model(*call)), leaves(pipeline(*call))) == (0.0, True)

    @pytest.mark.slow
    def test_planned_and_deployed_from_measurements_on_the_nodes(self, cluster):
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        measured = profile(graph, TOPOLOGY, cluster=cluster, repeats=6)
        made_plan = plan(measured, TOPOLOGY)
        assert measured.framework.measured
        assert measured.framework.call_s > 0
        with deploy(graph, made_plan, TOPOLOGY, cluster=cluster) as pipeline, torch.no_grad():
            assert torch.equal(pipeline(*args), model(*args))

    @pytest.mark.slow
    def test_tiers_with_nodes_of_their_own_are_measured_there_and_not_emulated(self, cluster):
        nodes = ", ".join(f"{{name: {tier}, compute: measured, node: {{{TIER_LABEL}: {tier}}}}}" for tier in TIERS[:2])
        real = Topology.loads(f"""
version: 1
tiers: [{nodes}]
links: [{{between: [device, edge], up: 1 Mbps, latency: 5 s}}]
""")
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        measured = profile(graph, real, cluster=cluster, repeats=6)
        assert [m.tier for m in measured.measurements] == ["device", "edge"]
        assert all("measured on its node" in measured.times(tier).source for tier in real.tiers)
        order = list(graph.layers)
        with deploy(graph, Plan.by_hand(graph, [order[:3], order[3:]], TIERS[:2]), real, cluster=cluster) as pipeline, torch.no_grad():
            answer, trace = pipeline.traced(*args)
        assert torch.equal(answer, model(*args))
        assert trace.slept_s == 0  # neither pacing nor stretching: the declared 5 s are the real link's business
        assert trace.total_s < 5

    def test_the_input_travels_to_a_remote_first_stage_past_a_skipped_tier(self, cluster):
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        hand = Plan.by_hand(graph, [list(graph.layers)], ["cloud"])
        cloud_only = Plan(hand.model, hand.fingerprint, TIERS, hand.stages)
        with deploy(graph, cloud_only, TOPOLOGY, cluster=cluster) as pipeline, torch.no_grad():
            answer, trace = pipeline.traced(*args)
            assert torch.equal(answer, model(*args))
        (wire,) = [span for span in trace.spans if span.kind == "wire"]
        packet_nbytes = wire.nbytes / 2  # over both links
        # store and forward: each link's rate and latency, one after the other
        declared = packet_nbytes * (8 / 20e6 + 8 / 10e6) + 0.002 + 0.005
        assert wire.slept_s == pytest.approx(declared)

    @pytest.mark.slow
    def test_a_lossy_plan_differs_a_little_and_says_its_bytes(self, cluster):
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        stages = balanced_stages(graph, 3)
        raw, small = (Plan.by_hand(graph, stages, TIERS, dict.fromkeys(graph.tensors, codec)) for codec in ("raw", "int8"))
        sent = []
        for made_plan in (raw, small):
            with deploy(graph, made_plan, TOPOLOGY, cluster=cluster) as pipeline:
                answer, trace = pipeline.traced(*args)
                sent.append(trace.nbytes())
                difference = compare(leaves(model(*args).detach()), leaves(answer))[0]
        assert 0 < difference < 0.1
        assert sent[1] < sent[0] / 2

    def test_state_follows_the_order_of_calls(self, cluster):
        model = made(odd_models.Counter)
        x = torch.randn(3, 4)
        graph = capture(model, (x,))
        order = list(graph.layers)
        with deploy(graph, Plan.by_hand(graph, [order[:2], order[2:]], TIERS[:2]), TOPOLOGY, cluster=cluster) as pipeline, torch.no_grad():
            futures = [pipeline.submit(x * step) for step in range(6)]
            for step, future in enumerate(futures):
                assert torch.equal(future.result(), model(x * step)), f"call {step}"


@pytest.fixture(scope="module")
def running(cluster):
    torch.set_num_threads(1)
    model, args, _ = zoo.digits()
    graph = capture(model, args)
    with deploy(graph, in_three(graph), TOPOLOGY, cluster=cluster) as pipeline:
        yield pipeline, graph, args


class TestOneDeployment:
    def test_each_stage_is_on_its_tiers_node_with_its_own_weights_and_threads(self, running):
        pipeline, graph, _ = running
        tier_of_node = {node["NodeID"]: node["Labels"][TIER_LABEL] for node in ray.nodes() if node["Alive"]}
        for stage, planned in zip(pipeline.info(), pipeline.plan.stages, strict=True):
            assert tier_of_node[stage["node_id"]] == planned.tier == stage["tier"]
            assert stage["threads"] == 1
            assert stage["weight_nbytes"] == sum(graph.layers[name].weight_nbytes for name in planned.layers)
        assert len({stage["pid"] for stage in pipeline.info()} | {os.getpid()}) == 4

    def test_the_trace_names_each_step_in_order(self, running):
        pipeline, _, args = running
        _, trace = pipeline.traced(*args)
        steps = [(span.stage, span.kind) for span in trace.spans]
        work = ["decode", "compute", "encode"]
        assert steps == [
            *(("stage0", kind) for kind in work), ("stage0", "wire"), *(("stage1", kind) for kind in work), ("stage1", "wire"),
            *(("stage2", kind) for kind in work), ("stage2", "return"), ("stage1", "return"),
        ]  # fmt: skip
        assert trace.total_s == pytest.approx(sum(trace.breakdown().values()))
        assert trace.framework_s > 0

    def test_slower_tiers_stretch_their_own_measured_work(self, running):
        pipeline, _, args = running
        _, trace = pipeline.traced(*args)
        for span in trace.spans:
            if span.kind in ("decode", "compute", "encode"):
                factor = {"device": 2, "edge": 1.5, "cloud": 1}[span.tier]
                worked = span.seconds - span.slept_s
                assert span.slept_s >= (factor - 1) * worked * 0.999  # a sleep may be late, never short

    def test_transfers_overlap_computation_of_other_requests(self, running):
        pipeline, _, args = running
        traces = [future.result()[1] for future in [pipeline.start(*args) for _ in range(12)]]
        overlaps = 0
        for one in traces:
            for wire in (span for span in one.spans if span.kind == "wire"):
                for other in traces:
                    overlaps += other is not one and any(
                        span.kind == "compute" and wire.start_s < span.start_s < wire.start_s + wire.seconds for span in other.spans
                    )
        assert overlaps > 0
        assert len({trace.request_id for trace in traces}) == 12

    def test_a_call_that_does_not_fit_is_refused_before_it_is_sent(self, running):
        pipeline, _, (x,) = running
        with pytest.raises(InputError, match="size 9 in dimension 2"):
            pipeline(torch.zeros(1, 1, 9, 8))
        assert isinstance(pipeline.submit(x.double()).exception(), InputError)

    @pytest.mark.parametrize("damage", [lambda p: p[:-1], lambda p: b"", lambda p: p[:40] + bytes([p[40] ^ 1]) + p[41:]])
    def test_a_damaged_packet_gets_an_error_packet_back(self, running, damage):
        pipeline, _, args = running
        whole = pipeline.request(args, {}).data
        answer, _ = ray.get(pipeline.deployment.actors[0].handle.remote(damage(whole)))
        packet = Packet.unpack(answer)
        assert packet.kind is Kind.ERROR
        assert packet.meta["type"] == "PacketError"
        assert pipeline(*args) is not None  # and the stage lives on

    def test_an_attempt_is_answered_once(self, running):
        pipeline, _, args = running
        data = pipeline.request(args, {}).data
        first, again = (Packet.unpack(ray.get(pipeline.deployment.actors[0].handle.remote(data))[0]) for _ in range(2))
        assert first.kind is Kind.RESPONSE
        assert "was taken before" in again.meta["message"]

    def test_a_second_cluster_in_one_process_is_refused(self, running):
        with pytest.raises(Exception, match="already connected to Ray"), LocalCluster(["device"]):
            pass


class TestFailures:
    def test_an_error_names_stage_and_layer(self, cluster):
        class Looks(nn.Module):
            def __init__(self):
                super().__init__()
                self.before, self.table, self.after = nn.Identity(), nn.Embedding(4, 8), nn.Linear(8, 8)

            def forward(self, index):
                return self.after(self.table(index + 1))

        index = torch.tensor([1, 2])
        graph = capture(Looks().eval(), (index,))
        order = list(graph.layers)
        assert order == ["add", "table", "after"]
        with deploy(graph, Plan.by_hand(graph, [order[:1], order[1:]], TIERS[:2]), TOPOLOGY, cluster=cluster) as pipeline:
            with pytest.raises(StageError, match=r"stage 'stage1' failed in layer 'table': IndexError") as caught:
                pipeline(torch.tensor([1, 77]))
            assert "index_select" in caught.value.remote_traceback or "embedding" in caught.value.remote_traceback
            assert pipeline(index).shape == (2, 8)  # the next request is served

    def test_killed_stages_are_loaded_again_and_requests_under_way_answered(self, cluster):
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        with deploy(graph, in_three(graph), TOPOLOGY, cluster=cluster) as pipeline, torch.no_grad():
            for stage in pipeline.info()[:2]:
                futures = [pipeline.start(*args) for _ in range(4)]
                os.kill(stage["pid"], signal.SIGKILL)
                futures += [pipeline.start(*args) for _ in range(4)]
                answers = [future.result() for future in futures]
                assert all(torch.equal(answer, model(*args)) for answer, _ in answers)
                assert len({trace.request_id for _, trace in answers}) == 8
            assert {stage["pid"] for stage in pipeline.info()}.isdisjoint({stage["pid"] for stage in pipeline.started[:2]})

    def test_a_request_of_a_model_with_state_is_not_tried_again(self, cluster):
        model = made(odd_models.Counter)
        x = torch.randn(3, 4)
        graph = capture(model, (x,))
        order = list(graph.layers)
        with deploy(graph, Plan.by_hand(graph, [order[:2], order[2:]], TIERS[:2]), TOPOLOGY, cluster=cluster, timeout_s=30) as pipeline:
            pipeline(x)
            os.kill(pipeline.info()[1]["pid"], signal.SIGKILL)
            with pytest.raises(StageLost, match=r"stage 'behind stage0' is lost: .*Actor"):
                pipeline(x)

    def test_what_is_too_much_is_refused_and_what_was_taken_is_answered(self, cluster):
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        with deploy(graph, in_three(graph), TOPOLOGY, cluster=cluster, most_in_flight=3) as pipeline, torch.no_grad():
            futures = [pipeline.submit(*args) for _ in range(3)]
            with pytest.raises(Overloaded, match=r"3 requests are under way; the limit is 3"):
                pipeline.submit(*args)
            assert pipeline.drain()
            assert all(future.done() and torch.equal(future.result(), model(*args)) for future in futures)
            with pytest.raises(Closed, match="takes no more requests"):
                pipeline(*args)

    def test_a_stage_holds_no_more_than_its_limits(self, cluster):
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        with deploy(graph, in_three(graph), TOPOLOGY, cluster=cluster, limits=Limits(held=2)) as pipeline, torch.no_grad():
            futures = [pipeline.submit(*args) for _ in range(12)]
            refused = [future for future in futures if isinstance(future.exception(), Overloaded)]
            assert 0 < len(refused) < 12
            assert "the limits are 2 and" in str(refused[0].exception())
            assert all(torch.equal(future.result(), model(*args)) for future in futures if future not in refused)

    def test_nodes_of_different_versions_are_refused(self, cluster, monkeypatch):
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        said = [{"tier": tier, "versions": {"torch": version}} for tier, version in (("device", "2.13"), ("cloud", "2.12"))]
        monkeypatch.setattr(placement.Deployment, "_load", lambda self, place: said[min(place, 1)])
        with (
            pytest.raises(DeployError, match=r"different versions of torch: 2\.13 on 'device', 2\.12 on 'cloud'; install"),
            deploy(graph, in_three(graph), TOPOLOGY, cluster=cluster),
        ):
            pass

    def test_a_request_past_its_deadline(self, cluster):
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        slow = Topology.loads("""
version: 1
tiers: [{name: device, compute: measured}, {name: cloud, compute: measured}]
links: [{between: [device, cloud], up: 1 Mbps, latency: 20 s}]
""")
        order = list(graph.layers)
        split = Plan.by_hand(graph, [order[:3], order[3:]], ["device", "cloud"])
        with deploy(graph, split, slow, cluster=cluster, timeout_s=0.3) as pipeline:
            start = time.monotonic()
            with pytest.raises(RequestTimeout):
                pipeline(*args)
            assert time.monotonic() - start < 10  # not the 20 s of the link

    def test_what_cannot_work_fails_before_anything_starts(self, cluster):
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        with pytest.raises(PlanError, match=r"tier 'moon'; the topology has \['device', 'edge', 'cloud'\]"):
            deploy(graph, Plan.by_hand(graph, [list(graph.layers)], ["moon"]), TOPOLOGY, cluster=cluster)
        tight = Topology.from_dict(TOPOLOGY.to_dict() | {"tiers": [
            tier | {"memory_bytes": 1000} for tier in TOPOLOGY.to_dict()["tiers"]
        ]})  # fmt: skip
        with pytest.raises(DeployError, match=r"holds 287 KiB of weights; 'device' allows 1000 B"):
            deploy(graph, Plan.by_hand(graph, [list(graph.layers)], ["device"]), tight, cluster=cluster)
        other = capture(model, (torch.cat([args[0]] * 2),))
        with pytest.raises(PlanError, match="Plan again"):
            deploy(other, in_three(graph), TOPOLOGY, cluster=cluster)
        with pytest.raises(Closed, match="inside its 'with' block"):
            deploy(graph, in_three(graph), TOPOLOGY, cluster=cluster)(*args)

    @pytest.mark.parametrize(
        ("compute", "message"),
        [("{factor: 0.5}", "cannot emulate a faster one"), ("{preset: raspberry-pi-4}", "cannot be emulated")],
    )
    def test_tiers_that_cannot_be_emulated(self, cluster, compute, message):
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        alone = Topology.loads(f"version: 1\ntiers: [{{name: device, compute: {compute}}}]\nlinks: []\n")
        with pytest.raises(DeployError, match=message):
            deploy(graph, Plan.by_hand(graph, [list(graph.layers)], ["device"]), alone, cluster=cluster)

    def test_a_missing_node_is_named(self, cluster):
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        real = Topology.loads("version: 1\ntiers: [{name: device, compute: measured, node: {rack: seven}}]\nlinks: []\n")
        with (
            pytest.raises(DeployError, match=r"no live Ray node has the labels {'rack': 'seven'}; the 3 nodes have"),
            deploy(graph, Plan.by_hand(graph, [list(graph.layers)], ["device"]), real, cluster=cluster),
        ):
            pass
