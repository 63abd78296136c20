"""A family of plans on real Ray nodes of this machine: processes, gateways and nodes are killed, and every call is answered."""

import json
import threading
import time
from contextlib import ExitStack
from dataclasses import replace

import odd_models
import psutil
import pytest
import torch
from odd_models import made
from torch import nn

from cluster import lifecycle
from cluster.topology import Topology
from splitinfer import capture, zoo
from splitinfer.cli import main
from splitinfer.errors import Closed, InputError, Overloaded, PlanError, RequestTimeout, StageError
from splitinfer.plans import Cost, Plan
from splitinfer.runtime.resilient import resilient
from splitinfer.supervisor import Settings
from splitinfer.verify import balanced_stages

TIERS = ("device", "edge", "cloud")
CLUSTER = """
version: 1
tiers:
  - {name: device, compute: measured}
  - {name: edge, compute: measured}
  - {name: cloud, compute: measured}
links:
  - {between: [device, edge], up: 50 Mbps, latency: 1 ms}
  - {between: [edge, cloud], up: 50 Mbps, latency: 1 ms}
direct: {up: 50 Mbps, latency: 2 ms}
"""
TOPOLOGY = Topology.loads(CLUSTER)
PATIENT = Settings(silence_s=10.0)  # this machine may be busy with other things
BEST, WITHOUT_EDGE = "device+edge+cloud", "device+cloud"


def family(graph):
    """Over all tiers, and without the edge; made by hand, because a model as small as this belongs on the device."""
    layers = balanced_stages(graph, 3)
    near = Plan.by_hand(graph, [layers[0], layers[1] + layers[2]], ("device", "cloud"))
    return [Plan.by_hand(graph, layers, TIERS), near]


@pytest.fixture(scope="module")
def digits():
    torch.set_num_threads(1)
    model, args, _ = zoo.digits()
    graph = capture(model, args)
    with torch.no_grad():
        yield graph, args, model(*args)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        record = lifecycle.up_local(TOPOLOGY, name="resilient")
        yield record
        lifecycle.down("resilient")


@pytest.fixture(scope="module")
def running(cluster, digits):
    graph, _, _ = digits
    with resilient(graph, family(graph), TOPOLOGY, cluster="resilient", settings=PATIENT) as pipeline:
        assert pipeline.wait_for()
        yield pipeline


class Callers:
    """Calls without a pause while the block runs, from two threads; what came back, and when."""

    def __init__(self, pipeline, args):
        self.pipeline, self.args, self.found, self.errors, self._end = pipeline, args, [], [], threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(2)]

    def _call(self):
        while not self._end.is_set():
            try:
                self.found.append(self.pipeline.traced(*self.args))
            except Exception as error:
                self.errors.append(error)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join()


def check(callers, want):
    assert not callers.errors
    assert callers.found
    assert all(torch.equal(answer, want) for answer, _ in callers.found)
    assert all(trace.degraded == (trace.answered_by == "the whole model") for _, trace in callers.found)
    assert len({trace.request_id for _, trace in callers.found}) == len(callers.found)


def stages(cluster):
    """The processes of stage actors, by the tier whose node they run on."""
    found = {}
    for process in psutil.process_iter():
        try:
            title, mark = " ".join(process.cmdline()), process.environ().get("SPLITINFER_NODE", "")
        except (psutil.Error, OSError):
            continue
        if "StageActor" in title and mark.startswith(cluster.mark):
            found.setdefault(mark.split("/")[1], []).append(process)
    return found


def wait(pipeline, plan, seconds=90.0):
    assert pipeline.wait_for(plan, seconds), (plan, pipeline.current, pipeline.machine.plans, list(pipeline.switches)[-3:])


@pytest.mark.slow
def test_it_answers_before_the_first_plan_is_in_place_and_says_so(cluster, digits):
    graph, args, want = digits
    with resilient(graph, family(graph), TOPOLOGY, cluster="resilient", settings=PATIENT) as pipeline:
        answer, trace = pipeline.traced(*args)
        assert torch.equal(answer, want)
        assert (trace.degraded, trace.answered_by) == (True, "the whole model")
        wait(pipeline, BEST)
        answer, trace = pipeline.traced(*args)
        assert torch.equal(answer, want)
        assert (trace.degraded, trace.answered_by) == (False, BEST)
        assert [span.kind for span in trace.spans if span.stage == "stage1"][:2] == ["decode", "compute"]
    with pytest.raises(Closed, match="not open"):
        pipeline(*args)


@pytest.mark.slow
def test_a_killed_stage_is_loaded_again_while_others_answer(running, cluster, digits):
    _, args, want = digits
    wait(running, BEST)
    with Callers(running, args) as callers:
        for victim in stages(cluster)["edge"]:
            victim.kill()
        wait(running, WITHOUT_EDGE)
        wait(running, BEST)
        assert running.traced(*args)[1].answered_by == BEST
    check(callers, want)
    assert WITHOUT_EDGE in {trace.answered_by for _, trace in callers.found}


@pytest.mark.slow
def test_a_killed_gateway_is_started_again_while_the_device_answers(running, digits):
    _, args, want = digits
    wait(running, BEST)
    with Callers(running, args) as callers:
        psutil.Process(running.driver.gateway_pid).kill()
        wait(running, None)
        wait(running, BEST)
    check(callers, want)
    assert "ended with -9" in next(switch.why for switch in reversed(running.switches) if switch.plan is None)


@pytest.mark.slow
@pytest.mark.parametrize("tier", TIERS)
def test_a_killed_node_comes_back_and_so_does_the_best_plan(running, cluster, digits, tier):
    """The head among them: its cluster ends with it, and a new one takes its place."""
    _, args, want = digits
    wait(running, BEST)
    with Callers(running, args) as callers:
        assert lifecycle.kill(cluster, tier) > 0
        wait(running, WITHOUT_EDGE if tier == "edge" else None, 120.0)
        wait(running, BEST, 300.0)
    check(callers, want)


@pytest.mark.slow
def test_a_drained_tier_gets_nothing_new_until_it_is_returned(running, digits):
    _, args, want = digits
    wait(running, BEST)
    with Callers(running, args) as callers:
        assert running.drain("edge", 30.0)
        assert running.current == WITHOUT_EDGE
        assert running.traced(*args)[1].answered_by == WITHOUT_EDGE
        running.undrain("edge")
        wait(running, BEST)
    check(callers, want)


class TestWithoutCluster:
    """Nobody answers at the cluster's address: the clock is the deadline, and the device."""

    @pytest.fixture
    def nowhere(self, tmp_path):
        from splitinfer.runtime.child import Access

        token = tmp_path / "token"
        token.write_text("0" * 64)
        token.chmod(0o600)
        return Access("127.0.0.9:9", token)

    def test_the_device_answers_alone(self, nowhere, digits):
        graph, args, want = digits
        with resilient(graph, family(graph), TOPOLOGY, cluster=nowhere) as pipeline:
            answers = [pipeline.submit(*args) for _ in range(20)]
            assert all(torch.equal(answer.result(), want) for answer in answers)
            assert pipeline.current is None

    def test_a_call_that_does_not_fit_is_refused_at_once(self, nowhere, digits):
        graph, _, _ = digits
        with (
            resilient(graph, family(graph), TOPOLOGY, cluster=nowhere) as pipeline,
            pytest.raises(InputError, match="size 9 in dimension 2"),
        ):
            pipeline(torch.zeros(1, 1, 9, 8))

    def test_who_may_not_answer_alone_waits_until_the_deadline(self, nowhere, digits):
        graph, args, _ = digits
        with resilient(graph, family(graph), TOPOLOGY, cluster=nowhere, offline=False, timeout_s=0.5) as pipeline:
            start = time.monotonic()
            with pytest.raises(RequestTimeout):
                pipeline(*args)
            assert 0.5 <= time.monotonic() - start < 5

    def test_too_many_requests_are_refused_with_both_numbers(self, nowhere, digits):
        graph, args, want = digits
        with resilient(graph, family(graph), TOPOLOGY, cluster=nowhere, settings=Settings(most_in_flight=5)) as pipeline:
            futures = [pipeline.submit(*args) for _ in range(200)]
            errors = [future.exception() for future in futures if future.exception()]
            assert errors
            assert all(isinstance(error, Overloaded) and "5" in str(error) for error in errors)
            assert all(torch.equal(future.result(), want) for future in futures if not future.exception())

    def test_closing_answers_what_is_under_way(self, nowhere, digits):
        graph, args, want = digits
        with ExitStack() as stack:
            pipeline = stack.enter_context(resilient(graph, family(graph), TOPOLOGY, cluster=nowhere))
            futures = [pipeline.submit(*args) for _ in range(30)]
        assert all(torch.equal(future.result(timeout=0), want) for future in futures)

    def test_the_models_own_error_is_the_callers(self, nowhere):
        class Looks(nn.Module):
            def __init__(self):
                super().__init__()
                self.table, self.after = nn.Embedding(4, 8), nn.Linear(8, 8)

            def forward(self, index):
                return self.after(self.table(index))

        index = torch.tensor([1, 2])
        graph = capture(Looks().eval(), (index,))
        split = Plan.by_hand(graph, [["table"], ["after"]], TIERS[:2])
        with resilient(graph, [split], TOPOLOGY, cluster=nowhere) as pipeline:
            with pytest.raises(StageError, match=r"layer 'table': IndexError"):
                pipeline(torch.tensor([1, 77]))
            assert pipeline(index).shape == (2, 8)

    def test_a_model_with_state_keeps_the_order_of_calls(self, nowhere):
        model = made(odd_models.Counter)
        x = torch.randn(3, 4)
        graph = capture(model, (x,))
        order = list(graph.layers)
        split = Plan.by_hand(graph, [order[:2], order[2:]], TIERS[:2])
        with pytest.raises(PlanError, match="keeps state"):
            resilient(graph, [split], TOPOLOGY, cluster=nowhere)

    def test_a_device_without_memory_answers_with_the_smaller_model(self, nowhere, digits):
        graph, args, _ = digits
        data = TOPOLOGY.to_dict()
        data["tiers"][0]["memory_bytes"] = 200_000
        tight = Topology.from_dict(data)
        with pytest.raises(PlanError, match=r"'device' can give no answer: the model's weights take .* its memory is 195.3 KiB"):
            resilient(graph, family(graph), tight, cluster=nowhere)
        with resilient(graph, family(graph), tight, cluster=nowhere, smaller=lambda x: x.sum()) as pipeline:
            answer, trace = pipeline.traced(*args)
        assert answer == args[0].sum()
        assert (trace.degraded, trace.answered_by) == (True, "a smaller model")


@pytest.mark.slow
def test_the_command_says_who_answered(cluster, digits, tmp_path, capsys):
    graph, _, _ = digits
    for name, plan in zip(("plan.json", "plan-without-edge.json"), family(graph), strict=True):
        costly = replace(plan, cost=Cost(latency_s=0.01 if name == "plan.json" else 0.02), objective="latency")
        costly.save(tmp_path / name)
    (tmp_path / "cluster.yaml").write_text(CLUSTER, encoding="utf-8")
    arguments = ["--family", str(tmp_path), "--cluster", "resilient", "--topology", str(tmp_path / "cluster.yaml"), "--requests", "20"]
    assert main(["run", "splitinfer.zoo:digits", *arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["errors"] == {}
    assert sum(row["requests"] for row in report["answers"]) == 20
    assert report["answers"][0]["by"] == BEST
