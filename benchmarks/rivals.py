"""How often, and by how much at worst, published planners miss the optimum; on random graphs and on captured models."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from graphs import FAMILIES, problem

import partitioners as p
from partitioners.competitors import COMPETITORS, dads_cut

Record = dict[str, Any]
MISS = 1e-6
"""Relative; below it an answer is the optimum."""
MBPS = [10 ** (i / 4) for i in range(-4, 13)]
"""Bandwidths of the captured models' first link: 0.1 to 1000 Mbps."""


def compare(instance: p.Problem, **labels: object) -> Record:
    """The optimum, what each competitor's plan truly costs, and what DADS promised."""
    best = p.solve(instance)
    if best.certificate.status != "optimal":
        raise AssertionError(f"{labels}: {best.certificate}")
    values = {name: strategy(instance, p.LATENCY).value for name, strategy in COMPETITORS.items()}
    return {**labels, "tiers": len(instance.tiers), "best": best.value, "values": values, "claimed": dads_cut(instance).claimed}


def on_random_graphs(count: int) -> Iterator[Record]:
    """`count` graphs of 8 to 64 ops of all families, each on two tiers and on three; half of them without link latency.

    The seed is the instance's number. On every other pair of them the ops differ much in how well each tier suits them.
    """
    names = list(FAMILIES)
    for i in range(count):
        for tiers in (2, 3):
            latency_s, spread = 0.02 * (i % 2), 1.2 if i // 2 % 2 else 0.4
            instance = problem(names[i % len(names)], 8 + i * 7 % 57, tiers, i, latency_s=latency_s, spread=spread)
            yield compare(instance, graphs="random")


def on_captured_graphs() -> Iterator[Record]:
    """ResNet-50, an Inception-like net, GPT-2 and Whisper over `MBPS`."""
    import captured

    for name in captured.MODELS:
        shape = captured.Shape.of(name)
        for tiers in (2, 3):
            for mbps in MBPS:
                yield compare(shape.problem(tiers, mbps), graphs=name, ops=len(shape.flops))


def tables(records: Sequence[Record]) -> Iterator[tuple[list[str], list[list[object]]]]:
    for tiers in sorted({r["tiers"] for r in records}):
        for graphs in dict.fromkeys(r["graphs"] for r in records):
            mine = [r for r in records if (r["tiers"], r["graphs"]) == (tiers, graphs)]
            if mine:
                what = f"{len(mine)} random graphs" if graphs == "random" else f"{graphs}, {mine[0]['ops']} layers, {len(mine)} bandwidths"
                yield _table(f"{what}, k = {tiers}", mine)


def _table(title: str, records: Sequence[Record]) -> tuple[list[str], list[list[object]]]:
    rows: list[list[object]] = []
    for name in COMPETITORS:
        ratios = [r["values"][name] / r["best"] for r in records]
        missed = [ratio for ratio in ratios if ratio > 1 + MISS]
        middle = f"{statistics.median(missed):.2f}" if missed else ""
        rows.append([name, f"{len(missed) / len(ratios):.1%}", middle, f"{max(ratios):.2f}"])
    below = [r["best"] / r["claimed"] for r in records if r["claimed"] < r["best"] * (1 - MISS)]
    rows.append([
        "dads_no_reverse promises", f"{len(below) / len(records):.1%} below any plan",
        f"{statistics.median(below):.2f}" if below else "", f"{max(below, default=1.0):.2f}",
    ])  # fmt: skip
    return [title, "misses the optimum", "median factor of these", "worst factor"], rows
