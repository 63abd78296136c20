"""One thread everywhere, because equality bit for bit holds at equal threads only; and a cache of this run's own."""

import sys
import tempfile
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # for the helper modules beside the tests

torch.set_num_threads(1)  # fixtures of a module come before those of a test


@pytest.fixture(scope="session", autouse=True)
def _own_cache():
    """No test reads or fills the user's cache of stage files; processes that tests start inherit the variable."""
    with tempfile.TemporaryDirectory(prefix="splitinfer-cache-") as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLITINFER_CACHE", directory)
        yield


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
