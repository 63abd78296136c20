"""The command ``splitinfer``. Parsing the command line loads neither torch nor ray.

Exit codes: 0 done; 1 a check failed (``verify`` found a difference); 2 bad input, in one line; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from splitinfer.commands import COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, 'head' for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:  # the last place: one line for people, a trace on request
        if options.debug or not _expected(error):
            raise
        print("splitinfer:", *(line.strip() for line in str(error).splitlines()), file=sys.stderr)
        return 2


def _expected(error: Exception) -> bool:
    """Whether an error speaks to the user; anything else is a bug of ours and shows its trace."""
    from cluster.errors import ClusterError
    from partitioners.errors import PartitionerError
    from splitinfer.errors import SplitinferError

    return isinstance(error, ClusterError | PartitionerError | SplitinferError)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is for --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="splitinfer", description="Distributed split inference for PyTorch models.")
    parser.add_argument("--version", action="version", version=_version())
    table = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for each in COMMANDS:
        each.add(table)
    return parser


def _version() -> str:
    from splitinfer import __version__

    return f"splitinfer {__version__}"
