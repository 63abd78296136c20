"""Registers the marker of the longer runs, wherever pytest is started."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Add the marker `slow`."""
    config.addinivalue_line("markers", "slow: a longer run of a property")
