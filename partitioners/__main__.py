"""`python -m partitioners solve problem.json`: exit 0 solved, 2 malformed, 3 infeasible, 1 any other refusal."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from partitioners import STRATEGIES, Infeasible, PartitionerError, Problem, ProblemError, solve


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m partitioners", description="Place ops on a line of tiers.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("solve", help="print the placement of minimum latency")
    command.add_argument("problem", type=Path, help="a problem in JSON, format version 1")
    command.add_argument("--strategy", choices=STRATEGIES, default="auto")
    command.add_argument("--json", action="store_true", help="print the solution as JSON")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    try:
        found = solve(Problem.from_json(args.problem.read_text(encoding="utf-8")), args.strategy)
    except (PartitionerError, OSError, UnicodeDecodeError) as error:
        if args.debug:
            traceback.print_exc()
        print(f"{type(error).__name__}: {args.problem}: {error}", file=sys.stderr)
        if isinstance(error, Infeasible):
            return 3
        return 2 if isinstance(error, ProblemError | OSError | UnicodeDecodeError) else 1
    print(found.to_json() if args.json else found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
