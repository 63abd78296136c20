"""Links with a clock, in virtual time: what a sender sees, and what it says when it cannot keep pace."""

import asyncio
import logging

import pytest

from cluster.clock import VirtualClock
from cluster.link import Delivery, Link, PacedLink, PacedPath


class Oversleeper(VirtualClock):
    """A busy machine: every sleep ends `by_s` too late."""

    def __init__(self, by_s):
        super().__init__()
        self.by_s = by_s

    async def sleep_until(self, t_s):
        await super().sleep_until(t_s + self.by_s)


def sent(clock, *sends):
    """Deliveries of sends started at the same time, in the order given."""

    async def together():
        return await asyncio.gather(*(path.send(nbytes) for path, nbytes in sends))

    return asyncio.run(clock.run(together()))


def test_packets_queue_and_their_times_add_up():
    clock = VirtualClock()
    link = PacedLink(Link(1000.0, 0.5), clock)
    assert sent(clock, (link, 1000), (link, 500), (link, 0)) == [
        Delivery(0.0, 1.5, 0.0),
        Delivery(1.0, 1.0, 0.0),
        Delivery(1.5, 0.5, 0.0),
    ]
    assert clock.now_s() == 2.0
    assert (link.packets, link.nbytes, link.late_packets, link.worst_late_s) == (3, 1500, 0, 0.0)
    assert link.report() == "link: kept its declared rate over 3 packets, 1.465 KiB (the worst by 0 s)."


def test_path_stores_and_forwards():
    clock = VirtualClock()
    path = PacedPath([Link(1000.0, 0.5), Link(500.0, 0.25)], clock)
    # 1 s + 0.5 s over the first link; 2 s + 0.25 s over the second, where the second packet waits from 2.5 s to 3.5 s.
    assert sent(clock, (path, 1000), (path, 1000)) == [Delivery(0.0, 3.75, 0.0), Delivery(2.0, 3.75, 0.0)]
    assert clock.now_s() == 5.75


def test_shared_link_serves_who_is_there_before_who_is_on_the_way():
    clock = VirtualClock()
    first, shared = Link(1.0), Link(1.0)
    far, near = PacedPath([first, shared], clock), PacedPath([shared], clock)
    assert sent(clock, (far, 3), (near, 1)) == [Delivery(0.0, 6.0, 0.0), Delivery(0.0, 1.0, 0.0)]


def test_no_links_is_one_machine():
    clock = VirtualClock()
    assert sent(clock, (PacedPath([], clock), 10**9)) == [Delivery(0.0, 0.0, 0.0)]
    assert clock.now_s() == 0


@pytest.mark.parametrize("links", [[], [Link(1.0)]])
def test_negative_size_is_refused_before_it_counts(links):
    clock = VirtualClock()
    path = PacedPath(links, clock)
    with pytest.raises(ValueError, match="zero bytes or more"):
        sent(clock, (path, -1))
    assert path.report() == "link: no packets sent."


def test_lateness_does_not_add_up_over_the_links():
    clock = Oversleeper(0.25)
    path = PacedPath([Link(1.0), Link(1.0), Link(1.0)], clock)
    assert sent(clock, (path, 1)) == [Delivery(0.0, 3.0, 0.25)]


def test_warns_once_and_reports_when_late(caplog):
    clock = Oversleeper(0.01)
    link = PacedLink(Link(1000.0), clock, name="device -> edge")
    with caplog.at_level(logging.WARNING, logger="cluster.link"):
        for _ in range(3):
            assert sent(clock, (link, 100))[0].late_s == pytest.approx(0.01)
    assert link.late_packets == 3
    assert link.worst_late_s == pytest.approx(0.01)
    assert [record.getMessage() for record in caplog.records] == [
        "device -> edge cannot keep its declared rate: a packet of 100 B is 10 ms late on 100 ms of declared time. "
        "Free the machine of other work, or declare a slower link."
    ]
    assert link.report() == (
        "device -> edge: did not keep its declared rate: 3 of 3 packets, 300 B late, the worst by 10 ms, "
        "10.0 % over the declared time in all."
    )


@pytest.mark.parametrize(
    ("nbytes", "late_s", "late_packets"),
    [
        (0, 0.0009, 0),  # below 1 ms
        (0, 0.0011, 1),
        (1000, 0.045, 0),  # below 5 % of a second
        (1000, 0.055, 1),
    ],
)
def test_late_is_beyond_a_millisecond_and_beyond_five_percent(nbytes, late_s, late_packets):
    clock = Oversleeper(late_s)
    link = PacedLink(Link(1000.0), clock)
    sent(clock, (link, nbytes))
    assert link.late_packets == late_packets
    assert link.worst_late_s == pytest.approx(late_s)
