"""Virtual time: order, stillness, and no waiting on the real clock."""

import asyncio

import pytest

from cluster.clock import Clock, RealClock, VirtualClock
from cluster.errors import ClusterError


def test_stands_still_until_advanced():
    async def main():
        clock = VirtualClock(start_s=5)
        sleeper = asyncio.ensure_future(clock.sleep_until(7))
        await clock.advance(1.5)
        assert (clock.now_s(), sleeper.done()) == (6.5, False)
        await clock.advance(0.5)
        assert (clock.now_s(), sleeper.done()) == (7, True)

    asyncio.run(main())


def test_wakes_in_order_of_time_then_of_falling_asleep():
    log = []

    async def sleeper(clock, name, *times):
        for t_s in times:
            await clock.sleep_until(t_s)
            log.append((name, clock.now_s()))

    async def main():
        clock = VirtualClock()
        work = asyncio.gather(sleeper(clock, "a", 3, 4), sleeper(clock, "b", 1, 4), sleeper(clock, "c", 3, 3.5))
        await clock.advance(10)
        await work
        assert clock.now_s() == 10

    asyncio.run(main())
    assert log == [("b", 1), ("a", 3), ("c", 3), ("c", 3.5), ("b", 4), ("a", 4)]


def test_a_cancelled_sleeper_is_forgotten():
    async def main():
        clock = VirtualClock()
        sleeper = asyncio.ensure_future(clock.sleep_until(1))
        await asyncio.sleep(0)
        sleeper.cancel()
        await clock.advance(2)
        assert sleeper.cancelled()

    asyncio.run(main())


def test_run_advances_as_far_as_the_work_sleeps():
    async def work(clock):
        await clock.sleep_until(2)
        await clock.sleep_until(1)  # has passed: no move back
        await clock.sleep_until(3600)
        return "done"

    async def main():
        clock = VirtualClock()
        return await clock.run(work(clock)), clock.now_s()

    assert asyncio.run(main()) == ("done", 3600)


def test_run_says_when_the_work_waits_for_something_else():
    async def main():
        await VirtualClock().run(asyncio.Event().wait())

    with pytest.raises(ClusterError, match="nothing sleeps on this clock"):
        asyncio.run(main())


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_time_moves_forward_by_finite_steps(seconds):
    with pytest.raises(ValueError, match="moves forward"):
        asyncio.run(VirtualClock().advance(seconds))


@pytest.mark.parametrize("clock", [RealClock(), VirtualClock()], ids=["real", "virtual"])
def test_both_clocks_refuse_endless_sleep_and_pass_by_the_past(clock: Clock):
    with pytest.raises(ValueError, match="must be finite"):
        asyncio.run(clock.sleep_until(float("inf")))
    before_s = clock.now_s()
    asyncio.run(clock.sleep_until(before_s - 1))
    assert clock.now_s() >= before_s


def test_real_clock_never_wakes_before_its_time(monkeypatch):
    # The machine's clock and both sleeps are replaced: each sleep wakes 10 % too early.
    now = [100.0]
    coarse, fine = [], []

    async def asyncio_sleep(seconds):
        coarse.append(seconds)
        now[0] += 0.9 * seconds

    def thread_sleep(seconds):
        fine.append(seconds)
        now[0] += 0.9 * seconds if seconds > 1e-9 else seconds

    monkeypatch.setattr("cluster.clock.time.monotonic", lambda: now[0])
    monkeypatch.setattr("cluster.clock.time.sleep", thread_sleep)
    monkeypatch.setattr("cluster.clock.asyncio.sleep", asyncio_sleep)
    loop = asyncio.new_event_loop()
    monkeypatch.setattr(loop, "run_in_executor", lambda _, call, seconds: _done(loop, call(seconds)))
    loop.run_until_complete(RealClock().sleep_until(101.0))
    loop.close()
    assert now[0] >= 101.0
    assert coarse == [pytest.approx(0.998)]  # the event loop's timer, then exact sleeps in a thread
    assert len(fine) > 1


def _done(loop, result):
    future = loop.create_future()
    future.set_result(result)
    return future

