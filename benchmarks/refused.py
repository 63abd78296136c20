"""What becomes of bad input: a row for each kind, thrown at a real cluster of three nodes with token and TLS on this machine.

    python benchmarks/refused.py [--rounds 2] [--only TEXT] [--json]

The kinds are those of the tests (tests/bad_*.py): strange clients and servers, connections that hold up Ray's ports, bad requests,
pieces, messages between workers, answers and stage files, and files that are none. A row says what the answer was, after how many
seconds, how long until a good request was answered like the whole model, by how much the private memory of the stages' processes
grew, and whether every process of the cluster is still the same. Each round throws all kinds again, at the same processes: what
leaks grows in every round. Rows are those of the last round, or the first that failed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "tests")]  # the tables are the tests'

import bad_clients  # noqa: E402
import bad_files  # noqa: E402
import bad_neighbours  # noqa: E402
import bad_requests  # noqa: E402
import torch  # noqa: E402
from bad_packets import Bad, Mark  # noqa: E402
from stages_on_ray import Ground, ground  # noqa: E402
from tabulate import tabulate  # noqa: E402
from tqdm import tqdm  # noqa: E402

KINDS = [*bad_clients.kinds(), *bad_requests.kinds(), *bad_neighbours.kinds(), *bad_files.kinds()]
WARM_UP = 50
_SHOWN = 72


@dataclass(frozen=True)
class Row:
    """One kind of bad input."""

    where: str
    kind: str
    answer: str
    refused_s: float
    serves_after_s: float
    grown_nbytes: int
    """Private memory of the stages and the worker together."""
    ok: bool
    """The answer is the expected one, a good request was answered, and all processes are those of before."""


def thrown(field: Ground, bad: Bad) -> Row:
    """Throw it, then ask for something good."""
    held, start = field.stages.private_nbytes(), time.perf_counter()
    try:
        answer = bad.throw(field.site if bad.where in bad_clients.WHERE else field.stages)
        ok = re.search(bad.answer, answer) is not None
    except Exception as error:  # whatever is not said in words
        answer, ok = f"{type(error).__name__}: {error}", False
    refused_s = time.perf_counter() - start
    try:
        serves_after_s = field.serves_again()
    except Exception as error:
        answer, ok, serves_after_s = f"{answer}; and then {type(error).__name__}: {error}", False, float("inf")
    if gone := field.gone():
        answer, ok = f"{answer}; ended: {', '.join(gone)}", False
    return Row(bad.where, bad.name, answer, refused_s, serves_after_s, field.stages.private_nbytes() - held, ok and not Mark.path.exists())


def rounds(number: int, only: str) -> tuple[list[Row], list[int]]:
    """The rows, and the private memory before the first round and after each."""
    kinds = [bad for bad in KINDS if only in f"{bad.where}: {bad.name}"]
    rows: dict[str, Row] = {}
    with ground() as field:
        for _ in range(WARM_UP):
            field.ask()
        held = [field.stages.private_nbytes()]
        for turn in range(number):
            for bad in tqdm(kinds, desc=f"round {turn + 1}", disable=not sys.stderr.isatty(), leave=False):
                key = f"{bad.where}: {bad.name}"
                if key not in rows or rows[key].ok:
                    rows[key] = thrown(field, bad)
            for _ in range(WARM_UP):
                field.ask()
            held.append(field.stages.private_nbytes())
    return list(rows.values()), held


def table(rows: list[Row], held: list[int]) -> str:
    """For people."""
    head = ["where", "kind", "answer", "s", "good after s", "grown KB", ""]
    cells = [
        [row.where, row.kind, row.answer.splitlines()[0][:_SHOWN], f"{row.refused_s:.2f}", f"{row.serves_after_s:.2f}",
         f"{row.grown_nbytes / 1e3:,.0f}", "" if row.ok else "NOT REFUSED"]
        for row in rows
    ]  # fmt: skip
    places = ", ".join(f"{count} {where}" for where, count in Counter(row.where for row in rows).items())
    grown = ", ".join(f"{(after - before) / 1e6:+.1f} MB" for before, after in pairwise(held))
    slowest = max(rows, key=lambda row: row.serves_after_s)
    return "\n".join([
        tabulate(cells, head, disable_numparse=True, colalign=("left", "left", "left", "right", "right", "right", "left")),
        "",
        f"{len(rows)} kinds ({places}); refused or ignored as they should be, everything alive: {sum(row.ok for row in rows)}",
        f"pickles executed: {int(Mark.path.exists())}; longest until a good request was answered: {slowest.serves_after_s:.2f} s "
        f"(after '{slowest.kind}')",
        f"private memory of 3 stages and 1 worker: {held[0] / 1e6:.0f} MB, then by round {grown}",
    ])  # fmt: skip


def main() -> int:
    """1 where something was not refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default="", help="kinds whose 'where: kind' contains this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, held = rounds(options.rounds, options.only)
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "private_nbytes": held, "pickles_executed": Mark.path.exists()}))
    else:
        print(table(rows, held))
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
