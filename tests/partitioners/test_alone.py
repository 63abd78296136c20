"""The package with an import system that refuses all but the standard library, numpy, scipy and networkx."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

GUARD = """
import importlib, pkgutil, sys, sysconfig

class Refuse:
    known = {*sys.stdlib_module_names, sysconfig._get_sysconfigdata_name(), "partitioners", "numpy", "scipy", "networkx"}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in self.known:
            raise ModuleNotFoundError(f"refused: {name}", name=name)

sys.meta_path.insert(0, Refuse())
import partitioners
for module in pkgutil.iter_modules(partitioners.__path__):
    importlib.import_module(f"partitioners.{module.name}")
"""


def alone(code: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-c", GUARD + code], capture_output=True, text=True, timeout=120, cwd=root)


def test_nothing_but_numpy_scipy_and_networkx_is_imported() -> None:
    done = alone(
        "from partitioners import Link, Op, Problem, Tensor, Tier, solve\n"
        "p = Problem((Tier('a'), Tier('b')), (Link(1, 0),), (Op('x', (3, 1)), Op('y', (3, 1))), (Tensor('x', ('y',), 1),))\n"
        "print([solve(p, 'auto', goal).value for goal in ('latency', 'interval')])\n"
    )
    assert (done.returncode, done.stdout) == (0, "[2.0, 2.0]\n"), done.stderr


def test_the_guard_can_fail() -> None:
    assert "refused: torch" in alone("import torch").stderr
