"""The errors of this package.

    PartitionerError
    ├── ProblemError     the problem is malformed; `path` names the field, as in ops[3].seconds[1]
    └── Infeasible       the problem is well formed, but no placement, or not this one, keeps its rules
"""

from __future__ import annotations


class PartitionerError(Exception):
    """Root of the tree: catch this to catch everything raised here on purpose."""


class ProblemError(PartitionerError):
    """A field of a problem is malformed; `path` is where it stands in the JSON form."""

    def __init__(self, path: str, message: str) -> None:
        """Put the path before the message."""
        self.path = path
        super().__init__(f"{path}: {message}")


class Infeasible(PartitionerError):
    """A rule of the problem is broken: a pin, the direction of the data, an op without a tier."""
