"""How long planning takes, beside networkx' minimum cut and HiGHS' linear program, and how wrong the competitors are.

    python benchmarks/planning.py [--section speed|cut|interval|competitors] [--quick] [--json]
                                  [--sizes 100,1000] [--tiers 2,3] [--families random] [--seeds 1,2,3] [--graphs]

speed        every strategy from Problem to placement, for each size, number of tiers, family (graphs.py) and seed;
             beside it the same cut by networkx, and the relaxation of the same program by HiGHS, neither with its
             set-up. Each strategy plans for latency, or, if it refuses that, for the first objective it accepts
cut          the minimum cut for latency against networkx, k = 3, 10,000 ops; and 100,000 ops against 10,000
interval     the integer program for the interval under memory limits at 600 ops; the certificate after 30 s at 5,000
competitors  how often, and by how much at worst, published planners miss the optimum (rivals.py)

Seconds are of the processor, medians of up to 5 runs in a process of its own (cells.py). A cell that takes more than
the limit is "over limit", and so are, untried, the same strategy's larger sizes and other seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from unittest import mock

import networkx as nx
from cells import LATE, Cell, cell, duration, median, show
from graphs import FAMILIES, problem
from tabulate import tabulate

import partitioners as p
from partitioners import milp, mincut
from partitioners.arrays import Arrays

OBJECTIVES = ("latency", "interval", "critical_path")
FLOWS = (nx.algorithms.flow.preflow_push, nx.algorithms.flow.boykov_kolmogorov)
"""networkx' two fastest; its others are far behind on these networks."""
CERTIFICATE_S = 30.0
Record = dict[str, Any]


# -- the same instance for others


def flow_network(problem: p.Problem) -> tuple[nx.DiGraph, int, int]:
    """Return the very network that 'mincut' cuts, with its source and sink."""
    seen: list[tuple[Any, ...]] = []

    def overhear(*arguments: Any) -> tuple[float, None]:
        seen.append(arguments)
        return 0.0, None

    with mock.patch.object(mincut, "minimum_cut", overhear):
        p.STRATEGIES["mincut"](problem, p.LATENCY)
    tail, head, capacity, source, sink, _ = seen[0]
    total: dict[tuple[int, int], float] = {}
    for u, v, c in zip(tail.tolist(), head.tolist(), capacity.tolist(), strict=True):
        total[u, v] = total.get((u, v), 0.0) + c
    network = nx.DiGraph()
    # An edge without a capacity is infinite to networkx.
    network.add_edges_from((u, v, {} if c == float("inf") else {"capacity": c}) for (u, v), c in total.items())
    return network, source, sink


def networkx_cut(problem: p.Problem, flow: Callable[..., Any]) -> Callable[[], Any]:
    network, source, sink = flow_network(problem)
    return lambda: nx.minimum_cut(network, source, sink, flow_func=flow)[0]


def relaxation(problem: p.Problem) -> Callable[[], Any]:
    """HiGHS on the program of 'milp' without its integers."""
    program = milp._Model(Arrays.of(problem), p.LATENCY).p
    return lambda: program.solve(1e-6, None, relaxed=True).fun


def plan(strategy: str, problem: p.Problem, objective: str) -> Callable[[], Any]:
    return partial(p.STRATEGIES[strategy], problem, p.Objective.of(objective))


def facts(found: p.Solution) -> Record:
    return {"value": found.value, "status": found.certificate.status, "gap": found.certificate.gap}


# -- speed


def accepted(strategy: str, tiers: int) -> str | None:
    """Return the first objective that a strategy plans for, tried on a chain of three ops."""
    names = [f"t{i}" for i in range(tiers)]
    ops = tuple(p.Op(f"o{i}", (1.0,) * tiers, None if i else "t0") for i in range(3))
    links = tuple(p.Link(1.0, 0.0) for _ in names[1:])
    small = p.Problem(tuple(map(p.Tier, names)), links, ops, tuple(p.Tensor(f"o{i}", (f"o{i + 1}",), 1.0) for i in range(2)))
    for objective in OBJECTIVES:
        try:
            p.solve(small, strategy, objective)
        except p.PartitionerError:
            continue
        return objective
    return None


def speed(options: argparse.Namespace) -> Iterator[Record]:
    hopeless: set[tuple[str, str, int]] = set()
    for n in options.sizes:
        for tiers in options.tiers:
            goals = {name: accepted(name, tiers) for name in p.STRATEGIES}
            for family in options.families:
                for seed in options.seeds:
                    instance = problem(family, n, tiers, seed)
                    calls = {name: partial(plan, name, instance, goal) for name, goal in goals.items() if goal}
                    calls |= {f"networkx {flow.__name__}": partial(networkx_cut, instance, flow) for flow in FLOWS}
                    calls["HiGHS LP"] = partial(relaxation, instance)
                    for who, prepare in calls.items():
                        known = (who, family, tiers) in hopeless
                        plain = facts if who in goals else float
                        found = Cell(why=LATE) if known else cell(prepare, options.limit, plain)
                        if found.why == LATE:
                            hopeless.add((who, family, tiers))
                        yield {"who": who, "goal": goals.get(who), "ops": n, "tiers": tiers, "family": family, "seed": seed, "cell": found}


def speed_tables(records: Sequence[Record], options: argparse.Namespace) -> str:
    parts = []
    for tiers in options.tiers:
        mine = [r for r in records if r["tiers"] == tiers]
        rows = []
        for who in dict.fromkeys(r["who"] for r in mine):
            goal = next(r["goal"] for r in mine if r["who"] == who)
            name = who if goal in (None, "latency") else f"{who} ({goal})"
            cells = ([r["cell"] for r in mine if (r["who"], r["ops"]) == (who, n)] for n in options.sizes)
            rows.append([name, *(show(each, options.limit) for each in cells)])
        head = [f"k = {tiers}", *(f"{n:,} ops" for n in options.sizes)]
        parts.append(table(head, rows))
    return "\n\n".join(parts)


# -- the cut against networkx


def cut(options: argparse.Namespace) -> Iterator[Record]:
    for family in options.families:
        for seed in options.seeds:
            for n in options.cut_sizes:
                instance = problem(family, n, 3, seed)
                ours = cell(partial(plan, "mincut", instance, "latency"), options.limit, facts)
                record = {"ops": n, "family": family, "seed": seed, "ours": ours}
                if n == options.cut_sizes[0]:
                    theirs = {flow.__name__: cell(partial(networkx_cut, instance, flow), options.limit, float) for flow in FLOWS}
                    record |= {"networkx": theirs}
                yield record


def cut_table(records: Sequence[Record], options: argparse.Namespace) -> str:
    small, *large = options.cut_sizes
    rows, ratios = [], []
    for r in (r for r in records if r["ops"] == small):
        done = {name: each.seconds for name, each in r["networkx"].items() if each.seconds is not None}
        best = min(done, key=lambda name: done[name], default=None)
        least = done[best] if best else options.limit
        ratio = least / r["ours"].seconds if r["ours"].seconds else 0.0
        ratios.append(ratio)
        theirs = f"{best} {duration(least)}" if best else f"over {options.limit:g} s"
        rows.append([r["family"], r["seed"], duration(r["ours"].seconds), theirs, f"{'' if best else '> '}{ratio:.1f}"])
    text = [table([f"{small:,} ops, k = 3", "seed", "mincut", "networkx, the faster", "ratio"], rows)]
    text.append(f"\nmedian ratio {statistics.median(ratios):.1f}, worst {min(ratios):.1f}, over {len(ratios)} graphs")
    first = median(r["ours"] for r in records if r["ops"] == small)
    for n in large:
        cells = [r["ours"] for r in records if r["ops"] == n]
        times = median(cells)
        ratio = f", {times / first:.1f} times that of {small:,} ops ({duration(first)})" if times and first else ""
        text.append(f"{n:,} ops: {show(cells, options.limit)}{ratio}")
    return "\n".join(text)


# -- the interval under memory limits


def interval(options: argparse.Namespace) -> Iterator[Record]:
    small, large = options.interval_sizes
    for family in options.families:
        for seed in options.seeds:
            limited, free = (problem(family, small, 3, seed, limited=limits) for limits in (True, False))
            yield {
                "ops": small, "family": family, "seed": seed,
                "milp": cell(partial(plan, "milp", limited, "interval"), options.limit, facts),
                "networkx": min((cell(partial(networkx_cut, free, flow), options.limit) for flow in FLOWS), key=_seconds),
            }  # fmt: skip
    name = "lagrange" if "lagrange" in p.STRATEGIES else "auto"
    for family in options.families:
        for seed in options.seeds:
            limited = problem(family, large, 3, seed, limited=True)
            begun = time.perf_counter()
            # Its limit is of the wall clock, hence this one, too.
            found = cell(partial(plan, name, limited, "interval"), 20 * CERTIFICATE_S, facts)
            yield {"ops": large, "family": family, "seed": seed, "strategy": name, "large": found, "wall": time.perf_counter() - begun}


def _seconds(found: Cell) -> float:
    return float("inf") if found.seconds is None else found.seconds


def interval_table(records: Sequence[Record], options: argparse.Namespace) -> str:
    sizes = [f"{n:,} ops, k = 3, limits" for n in options.interval_sizes]
    small = [
        [r["family"], r["seed"], *_proof(r["milp"]), duration(r["milp"].seconds), duration(r["networkx"].seconds)]
        for r in records if "milp" in r
    ]  # fmt: skip
    large = [[r["family"], r["seed"], r["strategy"], *_proof(r["large"]), f"{r['wall']:.0f} s"] for r in records if "large" in r]
    return "\n\n".join([
        table([sizes[0], "seed", "milp", "gap", "time", "networkx' cut"], small),
        table([sizes[1], "seed", "strategy", "", "gap", "wall clock"], large),
    ])  # fmt: skip


def _proof(found: Cell) -> tuple[str, str]:
    if not found.answer:
        return found.why, ""
    return found.answer["status"], f"{found.answer['gap']:.1e}" if found.answer["gap"] is not None else ""


# -- all together


def competitors(options: argparse.Namespace) -> Iterator[Record]:
    import rivals

    yield from rivals.on_random_graphs(options.instances)
    if options.graphs:
        yield from rivals.on_captured_graphs()


def competitors_tables(records: Sequence[Record], options: argparse.Namespace) -> str:  # noqa: ARG001 - one signature
    import rivals

    return "\n\n".join(table(*each) for each in rivals.tables(records))


SECTIONS: dict[str, tuple[Callable[..., Iterator[Record]], Callable[..., str]]] = {
    "speed": (speed, speed_tables),
    "cut": (cut, cut_table),
    "interval": (interval, interval_table),
    "competitors": (competitors, competitors_tables),
}


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return tabulate(rows, head, disable_numparse=True)


def _numbers(text: str) -> list[int]:
    return [int(item) for item in text.split(",")]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--section", choices=SECTIONS, action="append", help="may be repeated; default: all")
    parser.add_argument("--sizes", type=_numbers, default=[100, 1_000, 10_000, 100_000], help="of the section speed")
    parser.add_argument("--tiers", type=_numbers, default=[2, 3, 4], help="of the section speed")
    parser.add_argument("--families", type=lambda text: text.split(","), default=list(FAMILIES), help=", ".join(FAMILIES))
    parser.add_argument("--seeds", type=_numbers, default=[1, 2, 3])
    parser.add_argument("--limit", type=float, default=60.0, help="seconds a cell may take (default 60)")
    parser.add_argument("--instances", type=int, default=1000, help="random graphs of the section competitors")
    parser.add_argument("--graphs", action="store_true", help="the section competitors on captured models, too; needs torch")
    parser.add_argument("--quick", action="store_true", help="small and few: under two minutes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.cut_sizes, options.interval_sizes = [10_000, 100_000], [600, 5_000]
    if options.quick:
        options.sizes, options.tiers, options.seeds, options.families = [100, 500], [3], options.seeds[:1], ["random", "residual"]
        options.cut_sizes, options.interval_sizes = [1_000, 3_000], [100, 200]
        options.instances, options.limit = 50, min(options.limit, 5.0)
    return options


def main() -> None:
    options = _options()
    results = {}
    for name in options.section or SECTIONS:
        measure, tables = SECTIONS[name]
        print(f"-- {name}", file=sys.stderr)
        records = list(measure(options))
        results[name] = records
        if not options.json:
            print(tables(records, options), end="\n\n", flush=True)
    if options.json:
        print(json.dumps(results, default=lambda item: item.__dict__))


if __name__ == "__main__":
    main()
