"""Lets the tests of this folder share `line_problems`; pytest's importlib mode leaves the folder off the path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
