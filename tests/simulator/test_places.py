"""Schedules drawn by hand: queues, batches, parallel steps, failures."""

from random import Random

import pytest
from random_plans import a_topology

from splitinfer.simulator import Batching, Failure, System
from splitinfer.simulator.engine import Engine, Request
from splitinfer.simulator.fleet import Fleet
from splitinfer.simulator.steps import FORK, Compute, Parallel, Program, Transfer

# 10 bytes a second, a second of latency.
TOPOLOGY = a_topology([1, 1, 1], [(10, 10, 1.0), (10, 10, 1.0)])


def work(seconds, tier="t0", coding_s=0.0, wake_s=0.0, key="work", after_s=0.0):
    return Compute(tier, key, seconds, coding_s, wake_s, after_s)


def ends(arrivals, steps=None, **system):
    """Request -> when it ended; (what, where, when) for one that failed. `arrivals`: times, or (time, steps)."""
    found = {}

    def ended(request, outcome, resource):
        assert request.index not in found  # once
        found[request.index] = engine.now_s if outcome == "done" else (outcome, resource, engine.now_s)

    engine = Engine(ended)
    plans = [(item, steps) if steps is not None else item for item in arrivals]
    used = {name for _, each in plans for name in Program(tuple(each)).resources}
    fleet = Fleet(engine, TOPOLOGY, System(**system), used, Random(0))
    for index, (time_s, each) in enumerate(plans):
        request = Request(tuple(each), fleet.places[0], None, time_s, 0, 0, index)
        engine.at(time_s, engine.begin, request, 0.0)
    engine.run()
    return [found[index] for index in range(len(plans))]


class TestQueues:
    def test_first_come_first_served(self):
        """seconds  0 1 2 3 4 5 6
        worker      A A A B B . C"""
        assert ends([(0, [work(3)]), (1, [work(2)]), (6, [work(1)])]) == [3, 5, 7]

    def test_waking_up_is_paid_where_the_worker_was_idle(self):
        assert ends([0, 1, 9], [work(2, wake_s=0.5)]) == [2.5, 4.5, 11.5]

    def test_two_workers(self):
        assert ends([0, 0, 0], [work(2)], workers={"t0": 2}) == [2, 2, 4]

    def test_a_delay_after_a_step_holds_nobody_up(self):
        assert ends([0, 0], [work(2, after_s=5)]) == [7, 9]

    def test_a_full_queue_drops(self):
        assert ends([0, 1, 2, 5], [work(4)], queue_limit=1) == [4, 8, ("dropped", "t0", 2), 12]

    def test_a_full_queue_of_a_link_drops(self):
        """seconds  0 1 2 3 4 5 6 7
        wire        A A A B B B . .
        flight            A . . B"""
        limits = {"t0:t1": 1, "t0": 0}
        assert ends([0, 1, 2], [Transfer("t0:t1", 30)], queue_limit=limits) == [4, 7, ("dropped", "t0:t1", 2)]

    def test_ways_up_and_down_do_not_meet(self):
        assert ends([(0, [Transfer("t0:t1", 30)]), (0, [Transfer("t1:t0", 30)])]) == [4, 4]

    def test_store_and_forward(self):
        assert ends([0], [Transfer("t0:t1", 30), Transfer("t1:t2", 20)]) == [3 + 1 + 2 + 1]


class TestBatches:
    def test_a_full_batch_starts_at_once(self):
        # 3 together: half of the time is shared, so 2 * (0.5 + 0.5 * 3) and 3 * 0.25 for coding.
        steps = [work(2, coding_s=0.25)]
        assert ends([0, 0, 0], steps, batching={"t0": Batching(3, 10.0, 0.5)}) == [4.75] * 3

    def test_the_oldest_waits_no_longer_than_it_must(self):
        assert ends([0, 1, 9], [work(2)], batching={"t0": Batching(3, 4.0, 0.5)}) == [7, 7, 15]

    def test_without_waiting_a_batch_is_what_queued_meanwhile(self):
        assert ends([0, 1, 1.5], [work(2)], batching={"t0": Batching(8, 0.0, 1.0)}) == [2, 4, 4]

    def test_nothing_saved_is_one_after_the_other_together(self):
        assert ends([0, 0], [work(2)], batching={"t0": Batching(2, 1.0, 0.0)}) == [4, 4]

    def test_other_work_makes_another_batch(self):
        arrivals = [(0, [work(2, key="a")]), (0, [work(2, key="b")]), (0, [work(2, key="a")])]
        assert ends(arrivals, batching={"t0": Batching(2, 5.0, 1.0)}) == [2, 7, 2]

    def test_the_longest_of_unequal_work_is_what_is_shared(self):
        arrivals = [(0, [work(2)]), (0, [work(4)])]
        assert ends(arrivals, batching={"t0": Batching(2, 5.0, 0.5)}) == [0.5 * 4 + 0.5 * 6] * 2

    def test_waking_up_is_paid_once(self):
        assert ends([0, 0, 1], [work(2, wake_s=0.5)], batching={"t0": Batching(2, 0.5, 1.0)}) == [2.5, 2.5, 4.5]

    def test_a_full_queue_drops(self):
        found = ends([0, 0, 0], [work(2)], batching={"t0": Batching(3, 1.0, 1.0)}, queue_limit=2)
        assert found == [3, 3, ("dropped", "t0", 0)]

    def test_a_failure_interrupts_the_whole_batch(self):
        options = {"batching": {"t0": Batching(2, 0.0, 1.0)}, "failures": (Failure("t0", 1, 5),)}
        assert ends([0, 0.5], [work(2)], retry=True, **options) == [7, 7]
        assert ends([0, 0.5], [work(2)], retry=False, **options) == [("lost", "t0", 2), 7]


class TestParallel:
    def test_it_ends_when_the_last_branch_ends(self):
        """t0      A A . . . .
        t1      A A A A . .
        t2      . . . . B B"""
        group = Parallel(((work(2),), (work(1, "t1"), work(3, "t1"))))
        assert ends([0], [group, work(2, "t2")]) == [6]

    def test_branches_share_resources_with_other_requests(self):
        group = Parallel(((work(2),), (work(1, "t1"),)))
        assert ends([0, 0], [group]) == [2, 4]

    def test_a_divided_block(self):
        """Halves of a block here and there: the input's half goes over, the result's half comes back."""
        remote = (Transfer("t0:t1", 10), work(2, "t1"), Transfer("t1:t0", 5))
        assert ends([0], [work(1), Parallel(((work(3),), remote)), work(1)]) == [1 + (1 + 1 + 2 + 0.5 + 1) + 1]

    def test_groups_in_groups(self):
        inner = Parallel(((work(2, "t1"),), (work(5, "t2"),)))
        assert ends([0], [Parallel(((work(1), inner), (work(2),)))]) == [6]  # t0 serves 1, then 2; the inner group runs from 1 to 6

    def test_an_empty_group_takes_no_time(self):
        assert ends([0], [Parallel(()), work(1)]) == [1]
        assert FORK not in System().workers

    def test_a_dropped_branch_ends_the_request_once(self):
        group = Parallel(((work(4),), (work(1, "t1"),), (Parallel(((work(1),), (work(1, "t2"),))),)))
        assert ends([0, 1], [group, work(9, "t2")], queue_limit=1)[1][0] == "dropped"


class TestFailures:
    def test_what_was_in_service_is_done_again_when_it_should_have_ended(self):
        """seconds  0 1 2 3 4 5 6 7 8 9
        worker      A A X X X B B A A A      A is missed at 3 and queues behind B"""
        failures = (Failure("t0", 2, 5),)
        assert ends([(0, [work(3)]), (1, [work(2)])], failures=failures) == [10, 7]

    def test_or_lost(self):
        failures = (Failure("t0", 2, 5),)
        assert ends([(0, [work(3)]), (1, [work(2)])], failures=failures, retry=False) == [("lost", "t0", 3), 7]

    def test_what_comes_meanwhile_waits(self):
        assert ends([3], [work(2)], failures=(Failure("t0", 2, 5),)) == [7]

    def test_failures_may_overlap(self):
        failures = (Failure("t0", 2, 5), Failure("t0", 4, 8))
        assert ends([3], [work(2)], failures=failures) == [10]

    def test_a_link_loses_what_is_on_the_wire_and_in_flight(self):
        """seconds  0 1 2 3 4 5 6 7 8 9
        wire        A B B X X X C B B . (A has arrived at 2; B fails at 3 and is missed at 4)"""
        arrivals = [(0, [Transfer("t0:t1", 10)]), (1, [Transfer("t0:t1", 20)]), (2, [Transfer("t0:t1", 10)])]
        failures = (Failure("t0:t1", 2.5, 6),)
        assert ends(arrivals, failures=failures) == [2, 10, 8]
        assert ends(arrivals, failures=failures, retry=False) == [2, ("lost", "t0:t1", 4), 8]

    def test_the_other_way_goes_on(self):
        assert ends([1], [Transfer("t1:t0", 10)], failures=(Failure("t0:t1", 0, 9),)) == [3]

    def test_failures_of_a_link_may_overlap(self):
        failures = (Failure("t0:t1", 1, 9), Failure("t0:t1", 2, 5))
        assert ends([0], [Transfer("t0:t1", 20)], failures=failures) == [9 + 2 + 1]


def any_step(chance):
    return chance.choice([work(chance.random(), chance.choice(["t0", "t1"])), Transfer("t0:t1", chance.randint(0, 20))])


@pytest.mark.parametrize("limit", [None, 3])
def test_requests_are_neither_lost_nor_doubled(limit):
    """Whatever happens, each request ends once."""
    for seed in range(30):
        chance = Random(seed)
        failures = []
        for name in ("t0", "t1", "t0:t1"):
            start = chance.uniform(0, 30)
            failures.append(Failure(name, start, start + chance.uniform(0.1, 5)))
        arrivals = []
        for _ in range(60):
            group = Parallel(tuple((any_step(chance),) for _ in range(chance.randint(0, 3))))
            arrivals.append((chance.uniform(0, 30), [any_step(chance), group, any_step(chance)]))
        batching = {"t1": Batching(3, 0.1)} if chance.random() < 0.5 else {}
        found = ends(arrivals, failures=tuple(failures), batching=batching, retry=chance.random() < 0.5, queue_limit=limit)
        assert len(found) == 60
