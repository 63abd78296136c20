"""Measured requests from files, and files that are none."""

import json
from random import Random

import pytest
from small_plans import measured

from splitinfer.errors import UsageError
from splitinfer.report import load_traces
from splitinfer.tracing import chrome_trace


def written(tmp_path, data):
    path = tmp_path / "traces.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_what_run_wrote(tmp_path):
    traces = [measured(0.2, request="r1"), measured(0.3, request="r2")]
    found = load_traces(written(tmp_path, chrome_trace(traces)))
    assert found.whole
    assert [trace.request_id for trace in found.traces] == ["r1", "r2"]
    for trace, meant in zip(found.traces, traces, strict=True):
        assert trace.total_s == pytest.approx(meant.total_s)
        for span, other in zip(trace.spans, meant.spans, strict=True):
            assert (span.stage, span.tier, span.kind, span.nbytes) == (other.stage, other.tier, other.kind, other.nbytes)
            assert (span.seconds, span.slept_s) == (pytest.approx(other.seconds), pytest.approx(other.slept_s))


def test_a_file_that_does_not_say_how_long_the_whole_request_took(tmp_path):
    data = chrome_trace([measured(0.2)])
    for event in data["traceEvents"]:
        event["args"].pop("total_us", None)
    found = load_traces(written(tmp_path, data))
    assert not found.whole
    assert found.traces[0].total_s == pytest.approx(0.2 - 0.02)  # what lies around the spans is not in the file


def test_a_list_of_traces(tmp_path):
    traces = (measured(0.2), measured(0.3))
    found = load_traces(written(tmp_path, [trace.to_dict() for trace in traces]))
    assert found.whole
    assert found.traces == traces


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "malformed traces"),
        ("3", "neither a list of requests nor an object with 'traceEvents'"),
        ("[]", "holds no request"),
        ({"traceEvents": 5}, "'traceEvents' is no list of objects"),
        ({"traceEvents": [5]}, "'traceEvents' is no list of objects"),
        ({"traceEvents": [{"ph": "M", "name": "process_name", "pid": [], "args": {}}]}, r"'traceEvents\[0\]' names no process"),
        ({"traceEvents": [{"ph": "M", "name": "process_name", "pid": 1, "args": 3}]}, r"'traceEvents\[0\]' names no process"),
        ({"traceEvents": [{"ph": "X", "cat": "wire", "pid": 1, "ts": 0, "dur": 1}]}, r"traceEvents\[0\].args"),
        ({"traceEvents": [{"ph": "X", "cat": "wire", "pid": 1, "ts": 0, "dur": "1", "args": {"request": "r"}}]}, r"traceEvents\[0\].dur"),
        ({"traceEvents": [{"ph": "X", "cat": "nap", "pid": 1, "ts": 0, "dur": 1, "args": {"request": "r"}}]}, "'nap', 1e-06 s; kinds are"),
        ({"traceEvents": [{"ph": "X", "cat": "wire", "pid": 1, "ts": 0, "dur": -1, "args": {"request": "r"}}]}, "'wire', -1e-06 s"),
        ("[" * 100_000, "malformed traces"),
    ],
)
def test_malformed(tmp_path, data, message):
    with pytest.raises(UsageError, match=message):
        load_traces(written(tmp_path, data))


def test_damaged_files_are_refused_or_read_but_never_crash(tmp_path):
    chance = Random(3)
    text = json.dumps(chrome_trace([measured()]))
    refused = 0
    for _ in range(400):
        at = chance.randrange(len(text))
        damaged = text[:at] + chance.choice(["", '"', "{", "9", "-", "null", "[]", "e9"]) + text[at + chance.randint(0, 6) :]
        try:
            load_traces(written(tmp_path, damaged))
        except UsageError:
            refused += 1
    assert refused > 200


def test_no_file(tmp_path):
    with pytest.raises(UsageError, match="cannot read the traces"):
        load_traces(tmp_path / "none.json")
