"""What can go wrong with a description of machines and links.

::

    ClusterError
    ├── UnitError            (also a ValueError)   a text is no quantity of the wanted kind
    ├── UnknownPresetError   (also a LookupError)  no link or machine is known by this name
    ├── TraceError                                 a trace of bandwidth is malformed
    └── TopologyError                              a cluster.yaml, or its JSON form, describes no topology

An error names the thing, gives the numbers, and says what to try.
"""

import difflib
from collections.abc import Collection, Iterator
from contextlib import contextmanager


class ClusterError(Exception):
    """Root of everything that `cluster` raises on purpose."""


class UnitError(ClusterError, ValueError):
    """A text is no quantity of the wanted kind: no unit, an unknown unit, or a number out of range."""


class UnknownPresetError(ClusterError, LookupError):
    """No link or machine is known by this name."""


class TraceError(ClusterError):
    """A trace of bandwidth cannot be read, or its times and rates are wrong."""


class TopologyError(ClusterError):
    """A description of tiers and links is wrong, and where: ``cluster.yaml:12: links[0].up: 'fast' is not ...``.

    `key` is the path of the offending key ("links[0].up"), `file` and `line` (counted from 1) say where it stands in
    a file; they are empty and None for a topology that was not read from a text.
    """

    def __init__(self, problem: str, *, key: str = "", file: str = "", line: int | None = None) -> None:
        """Keep the parts; `str` joins them."""
        super().__init__(problem)
        self.problem = problem
        self.key = key
        self.file = file
        self.line = line

    def __str__(self) -> str:
        """``file:line: key: problem``, without the parts that are not known."""
        place = f"{self.file}:{self.line}" if self.file and self.line is not None else self.file
        return ": ".join(part for part in (place, self.key, self.problem) if part)


@contextmanager
def under(key: str) -> Iterator[None]:
    """Put `key` before the key path of a TopologyError, and turn other errors of this package into one at `key`."""
    try:
        yield
    except TopologyError as error:
        path = ".".join(filter(None, (key, error.key)))
        raise TopologyError(error.problem, key=path, file=error.file, line=error.line) from None
    except ClusterError as error:
        raise TopologyError(str(error), key=key) from None


def not_one_of(name: object, known: Collection[str], kind: str) -> str:
    """The message that `name` is no known `kind`, with the nearest known name first."""
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{name!r:.80} is no known {kind}; {hint}known: {', '.join(known)}"
