"""The same plan on Ray; the only rooms that import ray."""
