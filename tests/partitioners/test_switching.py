"""The rule for changing plans against the offline optimum; the estimate of a link against numpy's least squares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise, product

import numpy as np
import pytest
from line_problems import layered

from partitioners import PartitionerError
from partitioners.parametric import bandwidth_table
from partitioners.switching import LinkEstimate, Switching, offline_optimum

# --- when to switch


def paid(choose: Callable[[Sequence[float]], int], costs: Sequence[Sequence[float]], migration: float) -> float:
    """The total of a rule that starts with plan 0 and learns what a step costs after paying for it."""
    plan, total = 0, 0.0
    for row in costs:
        total += row[plan]
        chosen = choose(row)
        total += migration * (chosen != plan)
        plan = chosen
    return total


@cache
def drifting_costs(seed: int) -> list[list[float]]:
    """What each plan of a table costs while the rate of a link drifts and jitters, 600 steps."""
    table = bandwidth_table(layered(20, 3, "transcode", 3), 0.1, 1000)
    rng = np.random.default_rng(seed)
    drift, level = [], 0.0
    for step in rng.normal(0, 0.12, 600):
        level = 0.99 * level + step
        drift.append(level)
    rates = np.clip(4 * np.exp(1.4 * np.array(drift) + rng.normal(0, 0.3, 600)), 0.1, 1000)
    return [[span.value(rate) for span in table.spans] for rate in rates]


def ratios(migration: float) -> tuple[float, float]:
    """Mean cost over the offline optimum, of the rule and of always taking what was best last."""
    found = []
    for seed in range(10):
        costs = drifting_costs(seed)
        rule: Switching[int] = Switching(migration, 0)
        best, _ = offline_optimum(costs, migration, 0)
        ours = paid(lambda row, rule=rule: rule.observe(dict(enumerate(row))), costs, migration)  # type: ignore[misc]
        found.append((ours / best, paid(lambda row: int(np.argmin(row)), costs, migration) / best))
    ours_mean, greedy_mean = np.mean(found, axis=0)
    return float(ours_mean), float(greedy_mean)


@pytest.mark.parametrize("migration", [0.5, 10.0, 200.0])
def test_switching_stays_near_the_offline_optimum(migration: float) -> None:
    ours, greedy = ratios(migration)
    assert 1 <= ours <= 1.2
    assert ours <= greedy
    if migration == 200.0:
        assert greedy > 1.5  # it pays for every flicker of the rate


def test_switching_against_an_adversary_is_as_bad_as_proved_and_no_worse() -> None:
    """The current plan is always the one that costs: 4 times the optimum, the bound in the module's docstring."""
    rule: Switching[int] = Switching(1.0, 0)
    costs: list[list[float]] = []
    total, plan = 0.0, 0
    for _ in range(20_000):
        row = [0.0, 0.0]
        row[plan] = 1 / 128
        costs.append(row)
        total += row[plan]
        chosen = rule.observe(dict(enumerate(row)))
        total += chosen != plan
        plan = chosen
    best, _ = offline_optimum(costs, 1.0, 0)
    assert 3.9 * best < total <= 4.05 * best + 2


@pytest.mark.parametrize("seed", range(20))
def test_switching_between_two_plans_keeps_its_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.exponential(rng.uniform(0.001, 0.05, 2), (2000, 2)) * rng.choice([0.0, 1.0], (2000, 2))
    rule: Switching[int] = Switching(1.0, 0)
    best, _ = offline_optimum(costs, 1.0, 0)
    total = paid(lambda row: rule.observe(dict(enumerate(row))), costs.tolist(), 1.0)
    assert best - 1e-9 <= total <= (4 * best + 2) * (1 + costs.max())  # a step may overshoot the threshold


def test_switching_step_by_step() -> None:
    rule: Switching[str] = Switching(lambda old, new: 1.0 if new == "split" else 5.0)
    assert rule.observe({"device": 1.0, "split": 2.0, "cloud": 3.0}) == "device"  # the first time, the cheapest
    assert rule.observe({"device": 2.0, "split": 1.5, "cloud": 0.5}) == "device"
    assert rule.saved == {"split": 0.5, "cloud": 1.5}
    assert rule.observe({"device": 2.0, "split": 3.0, "cloud": 1.0}) == "device"
    assert rule.saved == {"split": 0.0, "cloud": 2.5}  # never below zero
    assert rule.observe({"device": 3.0, "split": 1.5, "cloud": 1.5}) == "split"  # 1.5 > 1, while 4.0 < 5
    assert rule.saved == {}
    assert rule.observe({"device": 1.0, "cloud": 9.0}) == "device"  # the current plan is gone
    assert rule.observe({"device": 1.0}) == "device"
    with pytest.raises(PartitionerError, match="no plan"):
        rule.observe({})


def test_a_saving_equal_to_the_migration_is_not_enough() -> None:
    rule: Switching[int] = Switching(1.0, 0)
    assert [rule.observe({0: 0.5, 1: 0.0}) for _ in range(3)] == [0, 0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_offline_optimum_is_the_best_of_all_sequences(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs, move = rng.uniform(0, 1, (5, 3)), rng.uniform(0, 0.6, (3, 3))
    np.fill_diagonal(move, 0.0)

    def total(path: Sequence[int], start: int | None) -> float:
        first = 0.0 if start is None else move[start, path[0]]
        return float(first + sum(costs[i, p] for i, p in enumerate(path)) + sum(move[a, b] for a, b in pairwise(path)))

    for start in (None, 1):
        best, path = offline_optimum(costs, move, start)
        assert best == pytest.approx(min(total(every, start) for every in product(range(3), repeat=5)))
        assert total(path, start) == pytest.approx(best)


# --- what a link is worth


@pytest.mark.parametrize("forgetting", [1.0, 0.9])
def test_link_estimate_is_weighted_least_squares(forgetting: float) -> None:
    rng = np.random.default_rng(3)
    nbytes = rng.uniform(1e3, 1e6, 60)
    seconds = 0.01 + nbytes / 2e6 + rng.normal(0, 1e-3, 60)
    estimate = LinkEstimate(forgetting)
    for count, (size, took) in enumerate(zip(nbytes, seconds, strict=True), 1):
        estimate.observe(size, took)
        if count < 5:
            continue
        root = np.sqrt(forgetting ** np.arange(count - 1, -1, -1))
        system = np.stack([root, root * nbytes[:count]], axis=1)
        (latency, slope), *_ = np.linalg.lstsq(system, root * seconds[:count], rcond=None)
        assert estimate.latency_s == pytest.approx(latency, rel=1e-6)
        assert estimate.seconds_per_byte == pytest.approx(slope, rel=1e-9)
    assert estimate.bytes_per_s == pytest.approx(2e6, rel=0.05)


def test_small_messages_tell_only_the_latency() -> None:
    rng = np.random.default_rng(5)
    estimate = LinkEstimate()
    for size in rng.uniform(10, 200, 300):
        estimate.observe(size, 0.02 + size / 1e6 + rng.normal(0, 0.002))
        assert not estimate.identified
    assert (estimate.bytes_per_s, estimate.seconds_per_byte) == (None, None)
    assert estimate.latency_s == pytest.approx(0.02, rel=0.05)
    for size in rng.uniform(1e4, 1e5, 30):
        estimate.observe(size, 0.02 + size / 1e6 + rng.normal(0, 0.002))
    assert estimate.bytes_per_s == pytest.approx(1e6, rel=0.1)


def test_messages_of_one_size_identify_nothing() -> None:
    estimate = LinkEstimate()
    for _ in range(100):
        estimate.observe(5e4, 0.1)
    assert not estimate.identified
    assert estimate.latency_s == pytest.approx(0.1)


def test_a_rate_is_averaged_in_the_domain_of_time() -> None:
    """Half the messages at 1 MB/s, half at 9 MB/s: 1.8 MB/s is what predicts their times, 5 MB/s is not."""
    rng = np.random.default_rng(7)
    estimate = LinkEstimate(1.0)
    for rate in rng.permutation([1e6, 9e6] * 2000):
        size = rng.uniform(0, 1e5)
        estimate.observe(size, 0.01 + size / rate)
    assert estimate.bytes_per_s == pytest.approx(1.8e6, rel=0.05)


def test_link_estimate_follows_a_change() -> None:
    rng = np.random.default_rng(9)
    estimate = LinkEstimate(0.9)
    for rate in (8e6, 1e6):
        for size in rng.uniform(1e4, 1e5, 200):
            estimate.observe(size, 0.005 + size / rate)
        assert estimate.bytes_per_s == pytest.approx(rate, rel=1e-3)
        assert estimate.latency_s == pytest.approx(0.005, rel=1e-2)
    assert estimate.messages == pytest.approx(19, rel=0.01)  # (1 + 0.9) / (1 - 0.9)


@pytest.mark.parametrize("forgetting", [0.0, 1.1])
def test_link_estimate_refuses_to_forget_oddly(forgetting: float) -> None:
    with pytest.raises(PartitionerError, match="above 0 and at most 1"):
        LinkEstimate(forgetting)
