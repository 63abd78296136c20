"""Importing the package costs next to nothing and pulls in nothing it does not use."""

import subprocess
import sys
from pathlib import Path

import pytest

import cluster

HEAVY = ("torch", "ray", "partitioners", "splitinfer", "numpy")


def run(code):
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "use", ["import cluster", "import cluster; cluster.Topology, cluster.Link, cluster.VirtualClock, cluster.PacedLink"]
)
def test_loads_nothing_heavy(use):
    assert run(f"import sys; {use}; print([name for name in {HEAVY} if name in sys.modules])").strip() == "[]"


def test_import_is_cheap_and_lazy():
    # Best of three fresh interpreters, in CPU time: a busy machine may slow each of them, hardly all.
    code = "import time; t = time.process_time(); import cluster; print(time.process_time() - t)"
    assert min(float(run(code)) for _ in range(3)) < 0.03
    assert run("import sys, cluster; print([n for n in ('yaml', 'asyncio') if n in sys.modules])").strip() == "[]"


def test_names_are_found_where_they_live():
    assert cluster.Topology.__module__ == "cluster.topology"
    assert set(cluster.__all__) <= set(dir(cluster))
    assert sorted(cluster._ROOM_OF) == cluster.__all__
    with pytest.raises(AttributeError, match="no attribute 'Tpology'"):
        _ = cluster.Tpology
