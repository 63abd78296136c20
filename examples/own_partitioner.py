"""Bring your own partitioner: a plain function from a Problem to op -> tier, beside the exact plan and its proof.

    python examples/own_partitioner.py

Two naive ideas are passed as `strategy=`. The planner asks a strategy once for every choice of tiers (the device alone,
device and edge, device and cloud, all three, the direct link), checks and prices each placement, choosing the codecs of
what crosses, and keeps the best. The certificate of the exact plan says how much the ideas leave on the table.
"""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

import splitinfer
from cluster import Topology
from partitioners import Problem, evaluate
from splitinfer import demo

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


def step_by_step(problem: Problem) -> dict[str, str]:
    """From there, move the border by one op at a time for as long as that is cheaper."""
    order = list(problem.predecessors)
    first, last = problem.tiers[0].name, problem.tiers[-1].name

    def cut(border: int) -> dict[str, str]:
        return _legal(problem, {name: first if place < border else last for place, name in enumerate(order)})

    def seconds(border: int) -> float:
        return evaluate(problem, cut(border))[0].latency_s  # the planner's own price, codecs chosen

    border = sum(tier == first for tier in half_and_half(problem).values())
    for step in (-1, 1):
        while 1 <= border + step <= len(order) and seconds(border + step) < seconds(border):
            border += step
    return cut(border)


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
    plans |= {idea.__name__: splitinfer.plan(profile, topology, strategy=idea) for idea in (half_and_half, step_by_step)}
    rows = []
    for name, plan in plans.items():
        ms, proof = plan.cost.latency_s * 1e3, plan.certificate
        where = " -> ".join(f"{stage.tier} {len(stage.layers)}" for stage in plan.stages)
        rows.append([name, where, f"{ms:.1f}", f"{plan.cost.up_nbytes:,.0f}", f"{plan.cost.latency_s / exact.cost.latency_s:.2f}", proof["status"]])
    print(tabulate(rows, ["strategy", "layers", "latency ms", "bytes up", "against exact", "certificate"], disable_numparse=True))
    proof = exact.certificate
    print(f"\nexact: {proof['status']} by {proof['strategy']}; no plan takes less than {proof['bound'] * 1e3:.3f} ms (gap {proof['gap']:.1e})")


if __name__ == "__main__":
    main()
