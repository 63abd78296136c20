"""Files that are none: whatever reads one refuses it in one line, and soon.

Each content is given to every reader of files that this project has, except stage files (bad_neighbours.py).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bad_packets import PICKLE, Bad, Mark

from cluster import state
from cluster.errors import ClusterError
from cluster.security import environment
from cluster.ssh import Hosts
from cluster.topology import Topology
from cluster.traces import load_trace
from partitioners.errors import PartitionerError
from partitioners.problem import Problem
from splitinfer.calibrations import Calibration
from splitinfer.errors import SplitinferError
from splitinfer.learn.bottleneck import Bottleneck
from splitinfer.learn.exits import ExitHead
from splitinfer.learn.learned import Learned
from splitinfer.plans import Plan
from splitinfer.profiles import Profile
from splitinfer.report.traces import load_traces
from splitinfer.simulator.arrivals import Given


def load_record(path: Path) -> object:
    """As the record of a cluster."""
    with environment({"XDG_STATE_HOME": str(path.parent)}):
        (state.claim("a") / "record.json").write_bytes(path.read_bytes())
        return state.load("a")


JSON: dict[str, Callable[[Path], object]] = {
    "plan": Plan.load, "profile": Profile.load, "calibration": Calibration.load, "record": load_record, "traces": load_traces,
    "problem": lambda path: Problem.from_json(path.read_text(encoding="utf-8", errors="replace")),
}  # fmt: skip
YAML: dict[str, Callable[[Path], object]] = {"cluster.yaml": Topology.load, "hosts.yaml": Hosts.load}
OTHER: dict[str, Callable[[Path], object]] = {
    "learned part": Learned.load, "bottleneck": Bottleneck.load, "exit": ExitHead.load, "bandwidths": load_trace,
    "arrivals": Given.from_csv,
}  # fmt: skip
READERS = JSON | YAML | OTHER

RECORD = {
    "name": "a", "kind": "local", "labels": {}, "address": "127.0.0.2:1", "token": "", "tls": None, "mark": "0" * 32, "hosts": {},
    "reach": {}, "cpus": 1,
}  # fmt: skip
ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{x}: &{x} [{','.join([f'*{y}'] * 9)}]\n" for y, x in zip("abcdefghi", "bcdefghij", strict=True)
)
TIER = "version: 1\ntiers: [{name: a, compute: measured}]\n"

EVERY: dict[str, bytes] = {
    "nothing": b"",
    "random bytes": os.urandom(5000),
    "zeros": bytes(5000),
    "a pickle": PICKLE,
    "a pickle in ASCII": f"cos\nsystem\n(S'touch {Mark.path}'\ntR.".encode(),
    "null": b"null",
    "a list": b"[]",
    "another version": b'{"version": 99}',
    "10,000 lists in each other": b"[" * 10_000,
    "10,000 maps in each other": b'{"a":' * 10_000,
    "an unknown key": b'{"version": 1, "__class__": "os.system"}',
    "NaN": b'{"version": NaN}',
    "5,000 digits": b'{"version": ' + b"9" * 5000 + b"}",
    "a number above all": b'{"version": 1e999}',
    "half a character": b'{"version": 1, "model": "\\ud800", "name": "\\ud800"}',
}
FOR_YAML: dict[str, bytes] = {
    "aliases for a billion values": ALIASES.encode(),
    "an alias of itself": b"a: &a [*a]",
    "a tag of Python": f"!!python/object/apply:os.system ['touch {Mark.path}']".encode(),
    "a number to base 60, 100 KB": TIER.encode() + b"? links\n: " + b"1:" * 50_000 + b"1",
    "a fraction to base 60, 100 KB": TIER.encode() + b"? links\n: " + b"1:" * 50_000 + b"1.5",
    "a key of 100 KB": TIER.encode() + b"? " + b"k" * 100_000 + b"\n: [" + b"1," * 5_000 + b"]",
    "20 KB of brackets": b"[" + b"[]," * 7_000 + b"]",
    "a megabyte": b"#" * (1 << 20),
    "a key twice": TIER.encode() + b"version: 1",
    "a merge key": b"a: &a {b: 1}\nc: {<<: *a}",
}
FOR_RECORDS: dict[str, bytes] = {f"its {key} is a list": json.dumps(RECORD | {key: [1]}).encode() for key in RECORD} | {
    "a mark that fits all": json.dumps(RECORD | {"mark": ""}).encode()
}


def read(readers: dict[str, Callable[[Path], object]], content: bytes, _: object = None) -> str:
    """What each reader says; raises AssertionError where one takes it, or uses more than one line."""
    said = {}
    for name, reader in readers.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "file")
            path.write_bytes(content)
            try:
                raise AssertionError(f"the reader of the {name} took it: {reader(path)!s:.100}")
            except (SplitinferError, ClusterError, PartitionerError) as error:
                said[name] = str(error).replace(folder, "")
        assert "\n" not in said[name], f"{name}: {said[name]}"
    return f"all of {len(said)}: {next(iter(said.values()))}"


def kinds() -> list[Bad]:
    """All of them."""
    tables = {"any file": (READERS, EVERY), "YAML file": (YAML, FOR_YAML), "record": ({"record": load_record}, FOR_RECORDS)}
    return [
        Bad(name, where, partial(read, readers, content), "^all of ")
        for where, (readers, contents) in tables.items()
        for name, content in contents.items()
    ]
