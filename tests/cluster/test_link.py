"""A link is pure: first come, first served, closed form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.link import Link

# The schedule in the docstring of Link.
DIAGRAM = """\
seconds  0 1 2 3 4 5 6 7 8 9
queue    . B B . . . . . . .
wire     A A A B B . . C . .
flight   . . . A A B B . C C
"""


def drawn(link, packets, seconds=10):
    """The schedule of (name, ready_s, nbytes) packets, one column a second."""
    rows = {row: ["."] * seconds for row in ("queue", "wire", "flight")}
    for name, ready_s, nbytes in packets:
        starts_s = link.starts_s(ready_s)
        departs_s, arrives_s = link.reserve(ready_s, nbytes)
        times = (ready_s, starts_s, departs_s, arrives_s)
        for row, start, end in zip(rows, times, times[1:], strict=False):
            for second in range(int(start), int(end)):
                assert rows[row][second] == "."
                rows[row][second] = name
    lines = [f"{'seconds':8} " + " ".join(map(str, range(seconds)))]
    return "\n".join(lines + [f"{row:8} " + " ".join(cells) for row, cells in rows.items()]) + "\n"


def test_schedule_is_the_one_drawn_in_the_docstring():
    assert drawn(Link(1.0, 2.0), [("A", 0, 3), ("B", 1, 2), ("C", 7, 1)]) == DIAGRAM
    documented = [line.strip() for line in Link.__doc__.splitlines()]
    assert [line for line in documented if line in DIAGRAM.splitlines() and line] == DIAGRAM.splitlines()


def test_idle_link_is_bytes_over_rate_plus_latency():
    assert Link(1000.0, 0.5).reserve(10.0, 250) == (10.25, 10.75)


def test_zero_bytes_cost_the_latency_only_and_keep_their_place():
    link = Link(1000.0, 0.5)
    assert link.reserve(1.0, 0) == (1.0, 1.5)
    link.reserve(2.0, 1000)
    assert link.reserve(2.0, 0) == (3.0, 3.5)


def test_starts_s_changes_nothing():
    link = Link(1.0)
    assert link.starts_s(4.0) == link.starts_s(4.0) == 4.0
    assert link.reserve(4.0, 1) == (5.0, 5.0)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_refuses_rates(rate):
    with pytest.raises(ValueError, match="positive, finite rate"):
        Link(rate, 0)


@pytest.mark.parametrize("latency_s", [-1, float("nan"), float("inf")])
def test_refuses_latencies(latency_s):
    with pytest.raises(ValueError, match="finite and not negative"):
        Link(1, latency_s)


def test_refuses_packets_and_stays_as_it_was():
    link = Link(1.0)
    with pytest.raises(ValueError, match="zero bytes or more"):
        link.reserve(0, -1)
    with pytest.raises(ValueError, match="time must be finite"):
        link.reserve(float("nan"), 1)
    assert link.reserve(0, 1) == (1.0, 1.0)


packets = st.lists(st.tuples(st.floats(0, 100), st.integers(0, 10**6)), min_size=1, max_size=30)


@given(packets=packets, rate=st.floats(1, 1e9), latency_s=st.floats(0, 10))
def test_wire_serves_one_packet_at_a_time_in_order(packets, rate, latency_s):
    link = Link(rate, latency_s)
    free_s = float("-inf")
    for ready_s, nbytes in packets:
        starts_s = link.starts_s(ready_s)
        departs_s, arrives_s = link.reserve(ready_s, nbytes)
        assert starts_s >= free_s  # busy intervals never overlap
        assert starts_s in (ready_s, free_s)  # and the wire never idles while a packet waits
        assert departs_s == starts_s + nbytes / rate
        assert departs_s >= free_s  # departures are monotone
        assert arrives_s == departs_s + latency_s
        free_s = departs_s


@given(sizes=st.lists(st.integers(0, 10**6), min_size=1, max_size=20), rate=st.floats(1, 1e9))
def test_backlog_departs_after_the_sum_of_its_bytes(sizes, rate):
    link = Link(rate)
    departs_s = [link.reserve(0.0, nbytes)[0] for nbytes in sizes][-1]
    assert departs_s == pytest.approx(sum(sizes) / rate)


def test_repr_reads_like_a_person_writes():
    assert repr(Link(731250.0, 0.02)) == "Link(5.85 Mbps, 20 ms)"


class TestJitter:
    def arrivals(self, seed, count=20_000, gap_s=1.0):
        link = Link(1e6, 0.2, jitter_s=0.1, seed=seed)
        return [link.reserve(number * gap_s, 1000)[1] - number * gap_s for number in range(count)]

    def test_it_is_uniform_about_the_latency(self):
        times = self.arrivals(1)
        assert sum(times) / len(times) == pytest.approx(0.201, rel=0.005)
        assert 0.101 <= min(times) < 0.1015
        assert 0.3005 < max(times) <= 0.301

    def test_packets_stay_in_order(self):
        link = Link(1e6, 0.2, jitter_s=0.2, seed=1)
        arrived = [link.reserve(number * 0.001, 100)[1] for number in range(1000)]
        assert arrived == sorted(arrived)
        assert len(set(arrived)) < 900  # some wait for the one ahead

    def test_equal_seeds_are_equal(self):
        assert self.arrivals(3, 50) == self.arrivals(3, 50) != self.arrivals(4, 50)


class TestLoss:
    def test_rounds_of_repair_are_those_of_the_unluckiest_segment(self):
        """Against drawing each segment: the mean number of rounds over packets of 10 segments at 20 % loss."""
        link = Link(1e12, 0.5, loss=0.2, seed=1)
        rounds = [round(link.reserve(10.0 * number, 14_600)[1] - 10.0 * number - 0.5, 3) for number in range(20_000)]
        assert set(rounds) <= set(range(20))
        expected = sum(1 - (1 - 0.2**attempt) ** 10 for attempt in range(1, 60))
        assert sum(rounds) / len(rounds) == pytest.approx(expected, rel=0.03)
        assert rounds.count(0) / len(rounds) == pytest.approx(0.8**10, rel=0.1)

    def test_the_wire_carries_lost_bytes_too(self):
        departs_s, _ = Link(1000.0, 0.0, loss=0.5, seed=1).reserve(0.0, 100)
        assert departs_s == pytest.approx(0.2)

    def test_none_is_none(self):
        assert Link(1000.0, 0.1, loss=0.0, jitter_s=0.0).reserve(0.0, 100) == (0.1, 0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"jitter_s": 0.3}, "at most the latency, here 0.2"), ({"jitter_s": -1}, "jitter_s is -1"), ({"loss": 1.0}, "loss is 1.0"),
     ({"loss": float("nan")}, "loss is nan")],
)  # fmt: skip
def test_refuses_jitter_and_loss(options, message):
    with pytest.raises(ValueError, match=message):
        Link(1.0, 0.2, **options)


def test_repr_names_what_varies():
    assert repr(Link(1e6, 0.02, jitter_s=0.001, loss=0.01)) == "Link(8 Mbps, 20 ms, jitter 1 ms, loss 0.01)"
