"""One thread everywhere: equality bit for bit holds at equal threads only."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # for the helper modules beside the tests

torch.set_num_threads(1)  # fixtures of a module come before those of a test


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
