"""One thread everywhere: equality bit for bit holds at equal threads only."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # for the helper modules beside the tests


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
