"""Fleets, arrivals, exits by chance, re-planning, stateful plans, results and their files."""

import builtins
import csv
import itertools
import json
from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from random_plans import a_profile, a_topology, random_case

import splitinfer
from cluster.traces import Trace
from splitinfer.errors import MissingExtra, UsageError
from splitinfer.planner import baseline_plans, plan
from splitinfer.plans import INPUT, PlannedExit
from splitinfer.simulator import (
    Batching,
    Bursts,
    ClosedLoop,
    Conditions,
    Failure,
    Given,
    Periodic,
    Poisson,
    Replanning,
    System,
    simulate,
)  # fmt: skip

PROFILE = a_profile(
    {"a": 0.010, "b": 0.020},
    [("in", INPUT, ("a",), 90_000, False), ("x", "a", ("b",), 500, False), ("y", "b", (), 100, True)],
)
TOPOLOGY = a_topology([10, 1], [(1e5, 1e5, 0.002)])
SPLIT = plan(PROFILE, TOPOLOGY, codecs=["raw"])  # 100 ms here, 5 ms of wire, 20 ms there, 1 ms of wire


def test_it_is_public():
    assert splitinfer.simulate is simulate
    assert [stage.layers for stage in SPLIT.stages] == [("a",), ("b",)]


class TestArrivals:
    def first(self, process, count=5, clients=1):
        return list(itertools.islice(process.times(clients, Random(0)), count))

    def test_given(self):
        assert self.first(Given(((0.0, 0), (0.5, 0)))) == [(0.0, 0), (0.5, 0)]
        found = simulate(SPLIT, PROFILE, TOPOLOGY, Given(((0.0, 0), (0.5, 0))), requests=100)
        assert found.requests.arrival_s.tolist() == [0.0, 0.5]  # fewer than wished for is all

    def test_periodic_clients_have_phases(self):
        times = self.first(Periodic(2.0), 30, clients=3)
        assert times == sorted(times)
        for client in range(3):
            own = [time_s for time_s, who in times if who == client]
            assert np.diff(own) == pytest.approx(2.0)
        assert times[0] == (0.0, 0)
        assert self.first(Periodic(2.0), 3) == [(0.0, 0), (2.0, 0), (4.0, 0)]

    def test_poisson_has_exponential_gaps_and_spreads_over_clients(self):
        times = self.first(Poisson(10.0), 20_000, clients=4)
        gaps = np.diff([time_s for time_s, _ in times])
        assert gaps.mean() == pytest.approx(0.1, rel=0.03)
        assert gaps.std() == pytest.approx(0.1, rel=0.03)
        assert all(count == pytest.approx(5000, rel=0.05) for count in Counter(client for _, client in times).values())

    def test_bursts_have_their_rates(self):
        times = np.array([time_s for time_s, _ in self.first(Bursts(50.0, 2.0, 8.0, quiet_per_s=1.0), 50_000)])
        assert len(times) / times[-1] == pytest.approx((50 * 2 + 8) / 10, rel=0.1)
        counts = np.histogram(times, bins=np.arange(0, times[-1], 1.0))[0]
        assert counts.var() / counts.mean() > 5  # a Poisson process has 1
        assert np.diff(times).min() >= 0

    def test_csv(self, tmp_path):
        path = tmp_path / "arrivals.csv"
        path.write_text("time_s,client\n0.5,1\n1.5,0\n")
        assert Given.from_csv(path).arrivals == ((0.5, 1), (1.5, 0))
        path.write_text("0.5\n0.75\n")
        assert Given.from_csv(path).arrivals == ((0.5, 0), (0.75, 0))
        path.write_text("0.5\nsoon\n")
        with pytest.raises(UsageError, match=r"arrivals\.csv:2: 'soon' is not a time"):
            Given.from_csv(path)
        with pytest.raises(UsageError, match="cannot read the arrivals"):
            Given.from_csv(tmp_path / "none.csv")

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Poisson(0), "a rate of 0"),
            (lambda: Poisson(float("nan")), "a rate of nan"),
            (lambda: Periodic(-1), "a period of -1 s"),
            (lambda: Bursts(1, 0, 1), "bursts of 0 s"),
            (lambda: ClosedLoop(0), "a closed loop of 0 users"),
            (lambda: Given(()), "there are no arrivals"),
            (lambda: Given(((1.0, 0), (0.5, 0))), "arrival 2 is at 0.5 s"),
            (lambda: simulate(SPLIT, PROFILE, TOPOLOGY, Given(((1.0, 7),))), "client 7; there are 1"),
            (lambda: simulate(SPLIT, PROFILE, TOPOLOGY, requests=0), "0 requests"),
            (lambda: simulate(replace(SPLIT, topology=None), PROFILE), "names no topology"),
        ],
    )
    def test_refusals(self, make, message):
        with pytest.raises(UsageError, match=message):
            make()


class TestSystems:
    @pytest.mark.parametrize(
        ("system", "message"),
        [
            (System(machines={"t0": 2}), "machines: there is no 't0'"),
            (System(machines={"t1": 2}), "2 machines of tier 't1' above 1"),
            (System(workers={"moon": 2}), "workers: there is no 'moon'; choose from t0, t1"),
            (System(workers={"t0": 0}), "workers are at least 1"),
            (System(queue_limit=-1), "queue limits at least 0"),
            (System(queue_limit={"t0:t9": 1}), "queue_limit: there is no 't0:t9'"),
            (System(links={"t1": Conditions()}), "links: there is no 't1'; choose from t0:t1, t1:t0"),
            (System(links={"t0:t1": Conditions(jitter_s=1.0)}), "link 't0:t1': jitter_s is 1"),
            (System(batching={"t1": Batching(0)}), "batches of 0"),
            (System(failures=(Failure("t1", 2, 1),)), "'t1' fails from 2 to 1 s"),
            (System(failures=(Failure("t1", 1, 2, machine=3),)), "machine 3 of 't1' fails; there are 1"),
            (System(variation=-1.0), "a variation of -1"),
        ],
    )
    def test_refusals(self, system, message):
        with pytest.raises(UsageError, match=message):
            simulate(SPLIT, PROFILE, TOPOLOGY, system=system)

    def test_clients_have_devices_and_links_of_their_own_and_share_what_is_above(self):
        """Two clients at the same moment meet at the edge only, and four with two edge machines in pairs."""
        together = Given(((0.0, 0), (0.0, 1)))
        found = simulate(SPLIT, PROFILE, TOPOLOGY, together, requests=2, system=System(clients=2))
        idle_s = SPLIT.cost.latency_s
        assert found.requests.latency_s.tolist() == pytest.approx([idle_s, idle_s + 0.020])
        four = Given(tuple((0.0, client) for client in range(4)))
        found = simulate(SPLIT, PROFILE, TOPOLOGY, four, requests=4, system=System(clients=4, machines={"t1": 2}))
        by_client = dict(zip(found.requests.client.tolist(), found.requests.latency_s.tolist(), strict=True))
        assert [by_client[client] for client in range(4)] == pytest.approx([idle_s, idle_s + 0.020] * 2)
        assert found.tiers["t1"].most_waiting == 2

    def test_a_thousand_cameras(self):
        found = simulate(
            SPLIT, PROFILE, TOPOLOGY, Periodic(1.0), requests=5000, system=System(clients=1000, machines={"t1": 50}, workers={"t1": 2})
        )
        assert found.throughput_per_s == pytest.approx(1000, rel=0.05)
        assert found.tiers["t1"].utilisation == pytest.approx(1000 * 0.02 / 100, rel=0.05)
        assert found.tiers["t0"].utilisation == pytest.approx(0.1, rel=0.05)
        assert len(set(found.requests.client.tolist())) == 1000

    def test_one_machine_of_several_fails(self):
        arrivals = Given(((0.0, 0), (0.0, 1)))
        system = System(clients=2, machines={"t1": 2}, failures=(Failure("t1", 0.0, 5.0, machine=1),))
        found = simulate(SPLIT, PROFILE, TOPOLOGY, arrivals, requests=2, system=system)
        assert found.requests.latency_s.tolist() == pytest.approx([SPLIT.cost.latency_s, 5.0 + 0.02 + 0.003])

    def test_dropped_users_of_a_closed_loop_come_again(self):
        found = simulate(SPLIT, PROFILE, TOPOLOGY, ClosedLoop(5), requests=200, system=System(queue_limit=1))
        assert found.completed + sum(found.dropped.values()) == 200
        assert found.completed > 40

    def test_stateful_plans_take_one_request_of_a_client_at_a_time(self):
        both = Given(((0.0, 0), (0.0, 0), (0.0, 1)))
        found = simulate(replace(SPLIT, stateful=True), PROFILE, TOPOLOGY, both, requests=3, system=System(clients=2))
        idle_s = SPLIT.cost.latency_s
        assert sorted(found.requests.latency_s.tolist()) == pytest.approx([idle_s, idle_s + 0.02, 2 * idle_s])

    def test_a_trace_slows_the_link_it_names_alone(self):
        trace = Trace((0.0, 1.0), (1e5, 1e3), 100.0)
        system = System(links={"t0:t1": Conditions(trace=trace)})
        found = simulate(SPLIT, PROFILE, TOPOLOGY, Given(((0.0, 0), (2.0, 0))), requests=2, system=system)
        idle_s = SPLIT.cost.latency_s
        assert found.requests.latency_s.tolist() == pytest.approx([idle_s, idle_s + 500 / 1e3 - 500 / 1e5])

    def test_loss_and_jitter_lengthen_the_tail(self):
        system = System(links={"t0:t1": Conditions(jitter_s=0.001, loss=0.05)})
        found = simulate(SPLIT, PROFILE, TOPOLOGY, requests=2000, system=system).latency_s
        assert found.p50 == pytest.approx(SPLIT.cost.latency_s, rel=0.02)
        assert found.p99 > SPLIT.cost.latency_s + 0.004  # a round trip


def with_exit(reach):
    profile = a_profile(
        {"a": 0.010, "head": 0.001, "b": 0.020},
        [("in", INPUT, ("a",), 90_000, False), ("x", "a", ("b", "head"), 500, False), ("sure", "head", (), 4, True),
         ("early", "head", (), 100, True), ("y", "b", (), 100, True)],
        together=((("a", "head"), "an exit"),), exits=("head",),
    )  # fmt: skip
    exits = (PlannedExit("head", "early", "sure", "y", 0.5, reach),)
    return profile, plan(profile, TOPOLOGY, codecs=["raw"], exits=exits)


def test_chance_ends_requests_at_exits():
    profile, made = with_exit(0.3)
    assert [stage.layers for stage in made.stages] == [("a", "head"), ("b",)]
    found = simulate(made, profile, TOPOLOGY, requests=20_000)
    assert found.exits["head"] / 20_000 == pytest.approx(0.7, abs=0.01)
    assert found.latency_s.mean == pytest.approx(made.cost.latency_s, rel=0.01)
    early = found.requests.latency_s[found.requests.exit == "head"]
    assert early == pytest.approx(0.110)
    assert simulate(made, profile, TOPOLOGY, requests=5, expected=True).latency_s.max == pytest.approx(made.cost.latency_s)


class TestReplanning:
    # 0.306 s with the device alone; 0.126 s split while the link is good, 5.1 s while it is bad.
    TRACE = Trace((0.0, 100.0, 200.0), (1e5, 1e2, 1e5), 300.0)
    SYSTEM = System(links={"t0:t1": Conditions(trace=TRACE)})
    LOCAL = baseline_plans(PROFILE, TOPOLOGY, ["raw"])["t0 only"]

    def run(self, cost_s, **changed):
        again = Replanning((self.LOCAL,), cost_s)
        return simulate(SPLIT, PROFILE, TOPOLOGY, Periodic(1.0), requests=300, **{"system": self.SYSTEM, "replanning": again} | changed)

    def test_it_leaves_a_bad_link_and_comes_back(self):
        found = self.run(10.0)
        assert [number for _, number in found.switches] == [1, 0]
        (away, _), (back, _) = found.switches
        assert 100 <= away <= 104  # after three requests have lost more than 10 s
        assert 200 <= back <= 300
        fixed = simulate(SPLIT, PROFILE, TOPOLOGY, Periodic(1.0), requests=300, system=self.SYSTEM)
        assert found.latency_s.mean < fixed.latency_s.mean / 5
        assert set(found.requests.plan.tolist()) == {0, 1}

    def test_a_dear_change_is_not_made(self):
        assert self.run(1e6).switches == ()

    def test_what_has_failed_is_left_at_once(self):
        system = System(failures=(Failure("t1", 50.0, 60.0),))
        found = self.run(1e6, system=system)
        assert found.switches[0] == (50.0, 1)


class TestResults:
    FOUND = simulate(SPLIT, PROFILE, TOPOLOGY, Poisson(8.0), requests=2000, warmup=100, seed=5)

    def test_equal_seeds_equal_results_and_others_not(self):
        options = {"requests": 500, "system": System(variation=0.5, links={"t0:t1": Conditions(0.001, 0.1)})}
        one, two, other = (simulate(SPLIT, PROFILE, TOPOLOGY, Poisson(8.0), seed=seed, **options).to_json() for seed in (5, 5, 6))
        assert one == two != other

    def test_another_system_meets_the_same_arrivals(self):
        one = simulate(SPLIT, PROFILE, TOPOLOGY, Poisson(8.0), requests=50, seed=5)
        two = simulate(SPLIT, PROFILE, TOPOLOGY, Poisson(8.0), requests=50, seed=5, system=System(variation=1.0, workers={"t0": 4}))
        assert sorted(one.requests.arrival_s) == sorted(two.requests.arrival_s)

    def test_json(self):
        data = json.loads(self.FOUND.to_json())
        assert {"mean", "p50", "p95", "p99"} <= set(data["latency_s"])
        assert set(data["utilisation"]) == {"tiers", "links"}
        assert data["utilisation"]["tiers"]["t0"] == pytest.approx(0.8, rel=0.1)
        assert set(data["utilisation"]["links"]) == {"t0:t1", "t1:t0"}
        assert (data["dropped"], data["lost"], data["completed"]) == (0, 0, 2000)
        assert data["latency_s"]["mean_low"] < data["latency_s"]["mean"] < data["latency_s"]["mean_high"]

    def test_percentiles_are_those_of_the_table(self):
        assert self.FOUND.latency_s.p95 == pytest.approx(np.percentile(self.FOUND.requests.latency_s, 95))

    def test_queues_over_time_average_to_the_mean(self):
        found = simulate(SPLIT, PROFILE, TOPOLOGY, Poisson(9.0), requests=50_000, seed=2)
        assert 200 <= len(found.samples.times_s) <= 512
        assert np.mean(found.samples.waiting["t0"]) == pytest.approx(found.tiers["t0"].mean_waiting, rel=0.25)
        assert max(found.samples.waiting["t0"]) <= found.tiers["t0"].most_waiting

    def test_csv(self, tmp_path):
        self.FOUND.to_csv(tmp_path / "requests.csv")
        rows = list(csv.DictReader((tmp_path / "requests.csv").open()))
        assert len(rows) == 2000
        assert float(rows[7]["latency_s"]) == self.FOUND.requests.latency_s[7]
        with pytest.raises(UsageError, match="cannot write"):
            self.FOUND.to_csv(tmp_path / "none" / "requests.csv")

    def test_parquet(self, tmp_path):
        parquet = pytest.importorskip("pyarrow.parquet")
        self.FOUND.to_parquet(tmp_path / "requests.parquet")
        table = parquet.read_table(tmp_path / "requests.parquet")
        assert table.column_names == ["arrival_s", "latency_s", "client", "plan", "exit"]
        assert table["latency_s"].to_pylist() == self.FOUND.requests.latency_s.tolist()

    def test_parquet_without_pyarrow(self, tmp_path, monkeypatch):
        whole = builtins.__import__

        def without(name, *rest):
            if name.startswith("pyarrow"):
                raise ImportError(name)
            return whole(name, *rest)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(MissingExtra, match=r"'pyarrow' is not installed; .* 'splitinfer\[parquet\]'"):
            self.FOUND.to_parquet(tmp_path / "requests.parquet")

    def test_picture(self, tmp_path):
        self.FOUND.save_picture(tmp_path / "found.png")
        assert (tmp_path / "found.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        with pytest.raises(UsageError, match="cannot write"):
            self.FOUND.save_picture(tmp_path / "found.nothing")
        left, middle, right = self.FOUND.figure().axes
        assert left.lines[0].get_ydata()[-1] == 1
        assert [bar.get_width() for bar in right.patches] == [
            use.utilisation for use in (*self.FOUND.tiers.values(), *self.FOUND.links.values())
        ]
        assert middle.lines

    def test_text(self):
        text = str(self.FOUND)
        assert text.startswith("2000 requests in ")
        assert "95 % sure" in text
        assert "t0:t1" in text

    def test_nothing_answered(self):
        system = System(queue_limit=0, failures=(Failure("t0", 0.0, 9.0),))
        found = simulate(SPLIT, PROFILE, TOPOLOGY, Given(((1.0, 0),)), requests=1, system=system)
        assert found.latency_s is None
        assert json.loads(found.to_json())["dropped"] == 1
        assert "no request was answered" in str(found)
        found.figure()


def test_the_files_are_enough(tmp_path):
    """The plan's own topology serves where none is given."""
    for seed in range(20):
        profile, topology, made = random_case(seed)
        if made.topology:
            assert simulate(made, profile).latency_s == simulate(made, profile, topology).latency_s
