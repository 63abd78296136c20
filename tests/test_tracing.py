"""Traces for the viewers of Chrome and Perfetto: the rules of the Trace Event Format, and the times of the spans."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinfer.tracing import KINDS, Span, Trace, chrome_trace, save_chrome

REQUEST = Trace(
    "r1",
    0.05,
    (
        Span("stage0", "device", "compute", 100.000, 0.010, 0.005),
        Span("stage0", "device", "encode", 100.010, 0.002),
        Span("stage0", "device", "wire", 100.012, 0.020, 0.019, nbytes=1234),
        Span("stage1", "cloud", "decode", 100.033, 0.001),
        Span("stage1", "cloud", "compute", 100.034, 0.004),
        Span("stage1", "cloud", "return", 100.038, 0.008, 0.008, nbytes=99),
    ),
)


def complete(trace):
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def named(trace, kind):
    """(pid, tid) -> name, from the metadata."""
    return {(e["pid"], e["tid"]): e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M" and e["name"] == kind}


def rows(trace):
    found = {}
    for event in complete(trace):
        found.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    return {row: sorted(times) for row, times in found.items()}


def test_a_process_for_each_tier_and_a_thread_for_each_kind():
    trace = REQUEST.to_chrome()
    processes = {pid: name for (pid, _), name in named(trace, "process_name").items()}
    threads = named(trace, "thread_name")
    assert [processes[pid] for pid in sorted(processes)] == ["device", "cloud"]
    shown = [(processes[e["pid"]], threads[e["pid"], e["tid"]], e["args"]["stage"]) for e in complete(trace)]
    assert shown == [(span.tier, span.kind, span.stage) for span in REQUEST.spans]


def test_microseconds_from_the_first_span():
    events = complete(REQUEST.to_chrome())
    assert [e["ts"] for e in events] == pytest.approx([0, 10_000, 12_000, 33_000, 34_000, 38_000])
    assert [e["dur"] for e in events] == pytest.approx([10_000, 2_000, 20_000, 1_000, 4_000, 8_000])
    declared, total = pytest.approx(19_000), pytest.approx(REQUEST.total_s * 1e6)
    assert events[2]["args"] == {"request": "r1", "stage": "stage0", "nbytes": 1234, "declared_sleep_us": declared, "total_us": total}


def test_overlapping_requests_take_more_rows_and_use_them_again():
    wires = [(0.0, 3.0), (1.0, 1.0), (2.5, 1.0), (4.0, 1.0)]
    trace = chrome_trace([Trace(str(i), 9.0, (Span("stage0", "device", "wire", *times),)) for i, times in enumerate(wires)])
    threads = named(trace, "thread_name")
    placed = {e["args"]["request"]: threads[e["pid"], e["tid"]] for e in complete(trace)}
    assert placed == {"0": "wire", "1": "wire 2", "2": "wire 2", "3": "wire"}


spans = st.builds(
    Span, st.sampled_from(["stage0", "stage1"]), st.sampled_from(["device", "cloud"]), st.sampled_from(KINDS),
    st.floats(0, 1e5), st.floats(0, 10), st.floats(0, 1), st.integers(0, 10**9),
)  # fmt: skip


@given(st.lists(st.builds(Trace, st.text(), st.floats(0, 100), st.lists(spans, max_size=8).map(tuple)), max_size=5))
def test_the_rules_of_the_format(traces):
    trace = json.loads(json.dumps(chrome_trace(traces), allow_nan=False))
    assert len(complete(trace)) == sum(len(each.spans) for each in traces)
    for event in trace["traceEvents"]:
        assert event["ph"] in ("X", "M")
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
    for event in complete(trace):
        assert event["ts"] >= 0
        assert event["dur"] >= 0
        assert (event["pid"], event["tid"]) in named(trace, "thread_name")
    for times in rows(trace).values():
        for (_, end), (start, _) in itertools.pairwise(times):
            assert start >= end - 1e-3  # a nanosecond: times were subtracted and scaled


def test_no_requests_are_a_valid_file(tmp_path):
    save_chrome([], tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text()) == {"traceEvents": [], "displayTimeUnit": "ms"}
