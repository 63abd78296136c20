"""Rates over time: against sums by hand, small steps, and the formats of files."""

import asyncio
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.clock import VirtualClock
from cluster.errors import TraceError
from cluster.link import Link, PacedLink
from cluster.traces import Trace, load_trace

STEPS = Trace((0.0, 3.0, 5.0), (3.0, 0.0, 6.0), 8.0)  # the one drawn in the module's docstring; 27 bytes a round


@pytest.mark.parametrize(
    ("start_s", "nbytes", "departs_s"),
    [
        (2, 12, 6.5), (0, 9, 3), (0, 9.001, 5 + 0.001 / 6), (3, 0, 3), (3, 6, 6), (7.5, 3, 8), (7.5, 6, 9), (0, 27, 8), (0, 54, 16),
        (0, 28, 8 + 1 / 3), (800, 12, 800 + 5.5), (-1, 6, 0), (-8, 12, -2.5),
    ],
)  # fmt: skip
def test_what_departs_when(start_s, nbytes, departs_s):
    assert STEPS.departs_s(start_s, nbytes) == pytest.approx(departs_s, abs=1e-9)


def test_rates_at_times():
    assert [STEPS.rate_at(t_s) for t_s in (0, 2.9, 3, 5, 7.9, 8, 11, -1)] == [3, 3, 0, 6, 6, 3, 0, 6]
    assert STEPS.mean_bytes_per_s == 27 / 8


def test_an_origin_moves_the_trace():
    later = Trace(STEPS.times_s, STEPS.bytes_per_s, STEPS.ends_s, origin_s=100.0)
    assert later.departs_s(102, 12) == pytest.approx(106.5)
    assert later.rate_at(104) == 0


def walked(trace, start_s, nbytes):
    """The same by walking from step to step."""
    edges = [*trace.times_s, trace.ends_s]
    length = edges[-1] - edges[0]
    turn = (start_s - edges[0]) // length
    while True:
        for rate, begins, ends in zip(trace.bytes_per_s, edges, edges[1:], strict=False):
            begins, ends = begins + turn * length, ends + turn * length
            here = max(start_s, begins)
            if here < ends:
                if rate and here + nbytes / rate <= ends:
                    return here + nbytes / rate
                nbytes -= rate * (ends - here)
        turn += 1


@given(seed=st.integers(0, 10**6))
def test_against_a_walk(seed):
    chance = Random(seed)
    times = sorted({round(chance.uniform(0, 20), 3) for _ in range(chance.randint(1, 8))})
    rates = [chance.choice([0.0, chance.uniform(1, 100)]) for _ in times[1:]] + [chance.uniform(1, 100)]
    trace = Trace(tuple(times), tuple(rates), times[-1] + chance.uniform(0.1, 3))
    start_s, nbytes = chance.uniform(0, 50), chance.uniform(0.01, 2000)
    departs_s = trace.departs_s(start_s, nbytes)
    assert departs_s == pytest.approx(walked(trace, start_s, nbytes), rel=1e-9)
    assert trace.departs_s(start_s, nbytes * 1.5) >= departs_s >= start_s


def test_a_constant_trace_is_a_constant_link():
    plain, traced = Link(1000.0, 0.5), Link(1000.0, 0.5, trace=Trace((0.0,), (1000.0,), 1.0))
    for ready_s, nbytes in [(0.0, 700), (0.1, 900), (5.0, 10_000), (5.0, 0)]:
        assert traced.reserve(ready_s, nbytes) == pytest.approx(plain.reserve(ready_s, nbytes))


def test_a_link_with_a_trace_queues():
    link = Link(1.0, 1.0, trace=STEPS)
    assert [link.reserve(0.0, nbytes) for nbytes in (6, 6, 6)] == [
        (pytest.approx(departs), pytest.approx(departs + 1)) for departs in (2, 5.5, 6.5)
    ]
    assert repr(link) == "Link(8 bps, traced, 1 s)"


class TestCsv:
    def test_with_and_without_names(self, tmp_path):
        path = tmp_path / "link.csv"
        path.write_text("time_s,bytes_per_s\n0,100\n2,50\n\n")
        assert Trace.from_csv(path) == load_trace(path) == Trace((0.0, 2.0), (100.0, 50.0), 4.0)
        path.write_text("0,100\n")
        assert load_trace(path) == Trace((0.0,), (100.0,), 1.0)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "holds no row"),
            ("time,rate\n", "holds no row"),
            ("0,100\n1,fast\n", r"link\.csv:2: '1,fast' is not a time in s and a rate"),
            ("0,100\n1\n", r"link\.csv:2: '1' is not"),
            ("0,100\n0,50\n", r"link\.csv: the times of a trace increase; row 2 is at 0 s"),
            ("0,100\n1,-5\n", r"row 2 of a trace has the rate -5"),
            ("0,0\n1,0\n", "no rate above 0"),
            ("0,nan\n", "row 1 of a trace has the rate nan"),
            ("nan,5\n", "a time that is not finite"),
        ],
    )
    def test_refusals(self, tmp_path, text, message):
        path = tmp_path / "link.csv"
        path.write_text(text)
        with pytest.raises(TraceError, match=message):
            load_trace(path)

    def test_no_file(self, tmp_path):
        with pytest.raises(TraceError, match="cannot read the trace"):
            load_trace(tmp_path / "none.csv")
        (tmp_path / "bytes").write_bytes(b"\xff\xfe")
        with pytest.raises(TraceError, match="it is not UTF-8 text"):
            load_trace(tmp_path / "bytes")


class TestMahimahi:
    def test_packets_of_1500_bytes_at_milliseconds(self, tmp_path):
        path = tmp_path / "link.up"
        path.write_text("2\n2\n5\n")
        trace = load_trace(path)
        assert trace == Trace.from_mahimahi(path)
        assert trace.ends_s == pytest.approx(0.005)
        assert trace.departs_s(0.0, 3000) == pytest.approx(0.002)
        assert trace.departs_s(0.0, 4500) == pytest.approx(0.005)
        assert trace.departs_s(0.0, 6000) == pytest.approx(0.0065)  # half of what 7 ms can carry
        assert trace.mean_bytes_per_s == pytest.approx(4500 / 0.005)

    def test_departures_are_those_of_the_packets_or_less_than_a_millisecond_before(self, tmp_path):
        chance = Random(1)
        at = sorted(chance.randint(1, 400) for _ in range(300))
        path = tmp_path / "link.up"
        path.write_text("\n".join(map(str, at)))
        trace = load_trace(path)
        for _ in range(200):
            start_ms, packets = chance.randint(0, 300), chance.randint(1, 50)
            usable = [ms for ms in at if ms > start_ms]
            if len(usable) >= packets:
                nbytes = 1500 * packets - chance.randint(0, 1400)
                early_ms = usable[packets - 1] - 1000 * trace.departs_s(start_ms / 1000, nbytes)
                assert -1e-6 <= early_ms < 1

    def test_refusals(self, tmp_path):
        path = tmp_path / "link.up"
        path.write_text("1\n2\nx\n")
        with pytest.raises(TraceError, match=r"link\.up:3: 'x' is not a whole number of milliseconds"):
            load_trace(path)
        path.write_text("\n")
        with pytest.raises(TraceError, match="holds no line"):
            Trace.from_mahimahi(path)


def test_times_and_rates_must_pair():
    with pytest.raises(TraceError, match="got 1 times and 2 rates"):
        Trace((0.0,), (1.0, 2.0), 3.0)


def test_the_runtime_sleeps_as_long_as_the_simulator_schedules():
    """One link, two users: the paced sender on a virtual clock, and plain arithmetic on an equal link."""

    def a_link():
        return Link(1.0, 0.5, jitter_s=0.2, loss=0.1, trace=STEPS, seed=7)

    async def sent():
        paced, arrived = PacedLink(a_link(), clock), []
        for nbytes in (6, 12, 0, 20):
            await paced.send(nbytes)
            arrived.append(clock.now_s())
        return arrived

    clock = VirtualClock()
    arrived = asyncio.run(clock.run(sent()))
    link, ready_s, expected = a_link(), 0.0, []
    for nbytes in (6, 12, 0, 20):
        ready_s = link.reserve(ready_s, nbytes)[1]
        expected.append(ready_s)
    assert arrived == pytest.approx(expected)
