"""Against closed forms of queueing theory. Seeds were fixed before the runs."""

import math

import numpy as np
import pytest
from random_plans import a_profile, a_topology

from splitinfer.planner import plan
from splitinfer.plans import INPUT
from splitinfer.simulator import Bursts, ClosedLoop, Periodic, Poisson, System, simulate
from splitinfer.simulator.statistics import BATCHES, half_width

# Three tiers, links up and down: seven deterministic stages behind each other, of which the edge is the slowest.
PROFILE = a_profile(
    {"a": 0.010, "b": 0.020, "c": 0.010},
    [("in", INPUT, ("a",), 9_000, False), ("x", "a", ("b",), 900, False), ("y", "b", ("c",), 800, False), ("z", "c", (), 100, True)],
)
TANDEM = a_topology([1.5, 1, 1.2], [(1e5, 1e5, 0.004), (1e5, 1e5, 0.01)])


def in_three(problem):
    place = {"<input>": 0, "<entry>": 0, "a": 0, "b": 1, "c": 2}
    return {op.name: problem.tiers[min(place[op.name], len(problem.tiers) - 1)].name for op in problem.ops}


def a_tandem():
    made = plan(PROFILE, TANDEM, codecs=["raw"], strategy=lambda problem: in_three(problem) if len(problem.tiers) == 3 else {})
    assert [stage.tier for stage in made.stages] == ["t0", "t1", "t2"]
    return made


SLOWEST_S = 0.020


def friedman_s(rate):
    """Mean seconds in a deterministic tandem: the slowest stage's M/D/1 wait, and what an idle request takes.

    Friedman: Reduction methods for tandem queuing systems, Operations Research 13(1), 1965.
    """
    load = rate * SLOWEST_S
    return a_tandem().cost.latency_s + load * SLOWEST_S / (2 * (1 - load))


def check_friedman(load, requests, most):
    rate = load / SLOWEST_S
    found = simulate(a_tandem(), PROFILE, TANDEM, Poisson(rate), requests=requests, warmup=requests // 20, seed=1).latency_s
    assert found.mean_low <= friedman_s(rate) <= found.mean_high
    assert (found.mean_high - found.mean_low) / found.mean <= most


@pytest.mark.parametrize(("load", "requests"), [(0.3, 20_000), (0.6, 40_000)])
def test_poisson_arrivals_in_a_deterministic_tandem(load, requests):
    check_friedman(load, requests, 0.02)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("load", "requests"), [(0.3, 200_000), (0.6, 400_000), (0.9, 4_000_000)])
def test_poisson_arrivals_in_a_deterministic_tandem_at_length(load, requests):
    check_friedman(load, requests, 0.02)


# One tier alone: one queue.
SINGLE = a_profile({"a": 0.02}, [("in", INPUT, ("a",), 1, False), ("z", "a", (), 1, True)])
ALONE = a_topology([1], [])


def one_queue(rate, requests, **system):
    made = plan(SINGLE, ALONE, codecs=["raw"])
    return simulate(made, SINGLE, ALONE, Poisson(rate), requests=requests, warmup=1000, seed=1, system=System(**system))


def inside(found, expected):
    low, high = found.latency_s.mean_low, found.latency_s.mean_high
    assert low <= expected <= high
    assert (high - low) / expected < 0.12


@pytest.mark.parametrize("variation", [0.0, 0.5, 1.0, 2.0])
def test_one_worker_is_m_g_1(variation):
    """Pollaczek and Khinchine; a variation of 1 is M/M/1."""
    load, service = 0.6, 0.02
    expected = service + load * service * (1 + variation**2) / (2 * (1 - load))
    inside(one_queue(load / service, 100_000, variation=variation), expected)


def test_m_m_1_in_every_percentile():
    """The time in an M/M/1 queue is exponential."""
    load, service = 0.5, 0.02
    found = one_queue(load / service, 200_000, variation=1.0).latency_s
    mean = service / (1 - load)
    assert (found.p50, found.p95, found.p99) == pytest.approx([-mean * math.log(1 - q) for q in (0.5, 0.95, 0.99)], rel=0.03)


@pytest.mark.parametrize("workers", [2, 5])
def test_several_workers_are_m_m_c(workers):
    """Erlang's C formula."""
    load, service = 0.8, 0.02
    offered = load * workers
    queued = offered**workers / math.factorial(workers) / (1 - load)
    waits = queued / (sum(offered**k / math.factorial(k) for k in range(workers)) + queued)
    expected = service + waits * service / (workers * (1 - load))
    inside(one_queue(offered / service, 100_000, variation=1.0, workers={"t0": workers}), expected)


@pytest.mark.parametrize("limit", [0, 2])
def test_a_full_queue_drops_as_m_m_1_k(limit):
    load, service, requests = 0.8, 0.02, 100_000
    found = one_queue(load / service, requests, variation=1.0, queue_limit=limit)
    places = limit + 1
    blocked = (1 - load) * load**places / (1 - load ** (places + 1))
    assert sum(found.dropped.values()) / requests == pytest.approx(blocked, rel=0.05)
    assert found.completed + sum(found.dropped.values()) == requests
    assert found.tiers["t0"].utilisation == pytest.approx(load * (1 - blocked), rel=0.02)


@pytest.mark.parametrize("load", [0.3, 0.9])
def test_littles_law(load):
    """What is in service and what waits, averaged over time, is what arrives times how long it stays; exactly, as all have left."""
    found = simulate(a_tandem(), PROFILE, TANDEM, Poisson(load / SLOWEST_S), requests=5000, seed=3)
    busy = sum(use.busy_s for use in (*found.tiers.values(), *found.links.values()))
    waiting = sum(use.mean_waiting for use in (*found.tiers.values(), *found.links.values())) * found.duration_s
    in_flight = 2 * (0.004 + 0.01) * 5000
    assert busy + waiting + in_flight == pytest.approx(found.requests.latency_s.sum(), rel=1e-9)


def test_utilisation_is_load_after_a_warm_up_too():
    found = simulate(a_tandem(), PROFILE, TANDEM, Periodic(0.025), requests=4000, warmup=1000, seed=3)
    used = {name: use.utilisation for name, use in (*found.tiers.items(), *found.links.items())}
    assert used == pytest.approx({
        "t0": 0.6, "t1": 0.8, "t2": 0.48, "t0:t1": 0.36, "t1:t2": 0.32, "t2:t1": 0.04, "t1:t0": 0.04,
    }, rel=1e-3)  # fmt: skip
    assert found.latency_s.min == pytest.approx(found.latency_s.max)  # regular arrivals never meet


@pytest.mark.parametrize(("users", "throughput"), [(1, None), (2, None), (50, 1 / SLOWEST_S)])
def test_a_closed_loop_is_bound_by_its_users_or_by_the_slowest_stage(users, throughput):
    made = a_tandem()
    found = simulate(made, PROFILE, TANDEM, ClosedLoop(users), requests=3000, warmup=100)
    expected = throughput or users / made.cost.latency_s
    assert found.throughput_per_s == pytest.approx(expected, rel=0.01)
    assert made.cost.interval_s == pytest.approx(SLOWEST_S)


def test_users_who_think():
    made = a_tandem()
    found = simulate(made, PROFILE, TANDEM, ClosedLoop(1, think_s=0.1), requests=1000)
    assert found.throughput_per_s == pytest.approx(1 / (made.cost.latency_s + 0.1), rel=0.01)


def test_bursts_wait_longer_than_poisson_at_the_same_rate():
    smooth = simulate(a_tandem(), PROFILE, TANDEM, Poisson(20), requests=20_000, seed=1)
    bursty = simulate(a_tandem(), PROFILE, TANDEM, Bursts(40, 1.0, 1.0), requests=20_000, seed=1)
    assert bursty.throughput_per_s == pytest.approx(smooth.throughput_per_s, rel=0.05)
    assert bursty.latency_s.mean > 1.05 * smooth.latency_s.mean


def test_intervals_hold_what_they_promise():
    """Of 300 intervals from independent values about 95 % hold the mean; of values that depend on each other over ten too."""
    chance = np.random.default_rng(1)
    for memory in (0, 0.9):
        held = 0
        for _ in range(300):
            noise = chance.normal(size=6000)
            values = noise.copy()
            if memory:
                for i in range(1, len(values)):
                    values[i] = memory * values[i - 1] + noise[i]
            held += abs(values.mean()) <= half_width(values)
        assert 0.92 <= held / 300 <= 0.985
    assert half_width(np.ones(10 * BATCHES - 1)) is None
