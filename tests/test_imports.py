"""One direction of imports, and nothing heavy before it is needed; each case in a fresh interpreter."""

import subprocess
import sys

import pytest


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def loaded(code, *packages):
    result = run(f"import sys\n{code}\nprint(sorted(name for name in {packages!r} if name in sys.modules))")
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


HELP = """
import contextlib, io
from splitinfer.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main(['{}'])
"""


@pytest.mark.parametrize(
    ("code", "packages"),
    [
        ("import partitioners", ("torch", "ray", "splitinfer", "cluster")),
        ("import cluster; from cluster import Topology, Link, VirtualClock", ("torch", "ray", "partitioners", "splitinfer")),
        ("import splitinfer", ("torch", "ray", "numpy")),
        ("import splitinfer; splitinfer.capture; splitinfer.Pipeline", ("ray",)),
        ("import splitinfer; splitinfer.plan; splitinfer.Plan; splitinfer.Profile", ("torch", "ray")),
        ("import splitinfer.cli", ("torch", "ray", "numpy")),
        (HELP.format("--help"), ("torch", "ray", "numpy")),
        ("from splitinfer.profiler import profile; from splitinfer.verify import verify_split", ("ray",)),
    ],
)
def test_what_is_not_loaded(code, packages):
    assert loaded(code, *packages) == "[]"


def test_the_check_can_fail():
    assert loaded("import splitinfer; splitinfer.capture", "torch", "ray") == "['torch']"


def test_public_names_are_all_there():
    import splitinfer

    for name in splitinfer.__all__:
        assert getattr(splitinfer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = splitinfer.nothing


def test_no_module_bears_the_name_of_a_public_function():
    import splitinfer

    for name in ("capture", "profile", "plan", "deploy"):
        assert callable(getattr(splitinfer, name))
        assert run(f"import splitinfer.{name}").returncode != 0
