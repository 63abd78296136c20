"""`python -m partitioners solve problem.json`: exit 0 solved, 2 malformed, 3 infeasible, 1 any other refusal."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from partitioners import FIELDS, LATENCY, STRATEGIES, Infeasible, Objective, PartitionerError, Problem, ProblemError, Solution, solve
from partitioners.baselines import baseline_solutions


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m partitioners", description="Place ops on a line of tiers.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("solve", help="print the placement of least cost")
    command.add_argument("problem", type=Path, help="a problem in JSON, format version 1 or 2")
    command.add_argument("--objective", type=_objective, default=LATENCY, help=f"{', '.join(FIELDS)}, or 'latency + 0.2*energy'")
    command.add_argument("--strategy", choices=STRATEGIES, default="auto")
    command.add_argument("--json", action="store_true", help="print the solution as JSON")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    try:
        problem = Problem.from_json(args.problem.read_text(encoding="utf-8"))
        found = with_baselines(problem, solve(problem, args.strategy, args.objective))
    except (PartitionerError, OSError, UnicodeDecodeError) as error:
        if args.debug:
            traceback.print_exc()
        print(f"{type(error).__name__}: {args.problem}: {error}", file=sys.stderr)
        if isinstance(error, Infeasible):
            return 3
        return 2 if isinstance(error, ProblemError | OSError | UnicodeDecodeError) else 1
    print(found.to_json() if args.json else found)
    return 0


def _objective(text: str) -> Objective:
    try:
        return Objective.of(text)
    except PartitionerError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def with_baselines(problem: Problem, found: Solution) -> Solution:
    """Put what each tier alone costs beside the answer, or why it cannot be."""
    rivals = baseline_solutions(problem, objective=found.objective)
    alone = {name: rival.value if isinstance(rival, Solution) else str(rival) for name, rival in rivals.items()}
    return replace(found, baselines={**found.baselines, **alone})


if __name__ == "__main__":
    sys.exit(main())
