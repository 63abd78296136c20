"""Helper modules of this folder, and the random plans of the simulator's tests, can be imported by its tests."""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "simulator")]
