"""Bring your own partitioner: a plain function from a Problem to op -> tier, beside the exact plan and its proof.

    python examples/own_partitioner.py

Two naive ideas are passed as `strategy=`. The planner asks a strategy once for every choice of tiers (the device alone,
device and edge, device and cloud, all three, the direct link), checks and prices each placement, choosing the codecs of
what crosses, and keeps the best. An idea of one's own earns a price, no proof; the certificate of the exact plan says
how much the idea leaves on the table. Where an idea shows as the device alone, its real splits are dearer than that.
"""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

import splitinfer
from cluster import Topology
from partitioners import Problem, evaluate
from splitinfer import Plan, demo

HERE = Path(__file__).parent


def half_and_half(problem: Problem) -> dict[str, str]:
    """The first tier computes until half of its own compute time is spent; the last tier does the rest."""
    order = list(problem.predecessors)  # in topological order
    seconds = {op.name: op.seconds[0] for op in problem.ops}
    first, last = problem.tiers[0].name, problem.tiers[-1].name
    placement, spent = {}, 0.0
    for name in order:
        spent += seconds[name]
        placement[name] = first if spent <= sum(seconds.values()) / 2 else last
    return _legal(problem, placement)


def best_border(problem: Problem) -> dict[str, str]:
    """Try every place of one border between first and last tier, at the planner's own price with its choice of codecs."""
    order = list(problem.predecessors)
    first, last = problem.tiers[0].name, problem.tiers[-1].name
    borders = range(1, len(order) + 1)
    cuts = (_legal(problem, {name: first if place < border else last for place, name in enumerate(order)}) for border in borders)
    return min(cuts, key=lambda cut: evaluate(problem, cut)[0].latency_s)


def _legal(problem: Problem, placement: dict[str, str]) -> dict[str, str]:
    """Pinned ops where they must be."""
    return placement | {op.name: op.pinned for op in problem.ops if op.pinned is not None}


def main() -> None:
    topology = Topology.load(HERE / "cluster.yaml")
    model, _, kwargs = splitinfer.zoo.mobilenet_v2()
    photos = demo.photographs()
    demo.calibrate_batch_norm(model, photos)
    graph = splitinfer.capture(model, (), {**kwargs, "pixel_values": photos[:1]})
    profile = splitinfer.profile(graph, repeats=15)
    exact = splitinfer.plan(profile, topology)
    plans = {"exact": exact}
    plans |= {idea.__name__: splitinfer.plan(profile, topology, strategy=idea) for idea in (half_and_half, best_border)}
    rows = [[name, *_row(plan, exact)] for name, plan in plans.items()]
    print(tabulate(rows, ["strategy", "layers", "latency ms", "bytes up", "against exact", "certificate"], disable_numparse=True))
    proof = exact.certificate
    bound_ms = proof["bound"] * 1e3
    print(f"\nexact: {proof['status']} by {proof['strategy']}; no plan takes less than {bound_ms:.3f} ms (gap {proof['gap']:.1e})")


def _row(plan: Plan, exact: Plan) -> list[str]:
    where = " -> ".join(f"{stage.tier} {len(stage.layers)}" for stage in plan.stages)
    slower = plan.cost.latency_s / exact.cost.latency_s
    return [where, f"{plan.cost.latency_s * 1e3:.1f}", f"{plan.cost.up_nbytes:,.0f}", f"{slower:.2f}", plan.certificate["status"]]


if __name__ == "__main__":
    main()
