"""Bring your own partitioner: a plain function from a Problem to op -> tier, beside the exact plan and its proof.

    python examples/own_partitioner.py

Two naive ideas that people have first are passed as `strategy=`. The planner checks their placements, chooses codecs
for what crosses and prices them like any other; the exact strategy's certificate says how much they leave on the table.
"""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

import splitinfer
from cluster import Topology
from partitioners import Problem
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


def smallest_tensor(problem: Problem) -> dict[str, str]:
    """Cut where the fewest raw bytes cross, however much the first tier has to compute for that."""
    order = list(problem.predecessors)
    place = {name: index for index, name in enumerate(order)}
    lasts = [(place[t.producer], max(map(place.get, t.consumers)), t.nbytes) for t in problem.tensors if t.consumers]
    cuts = range(1, len(order) - 1)  # after the input, before the output
    crossing = {cut: sum(nbytes for born, last, nbytes in lasts if born <= cut < last) for cut in cuts}
    best = min((cut for cut in cuts if crossing[cut]), key=lambda cut: crossing[cut])
    first, last = problem.tiers[0].name, problem.tiers[-1].name
    return _legal(problem, {name: first if place[name] <= best else last for name in order})


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
    plans |= {idea.__name__: splitinfer.plan(profile, topology, strategy=idea) for idea in (half_and_half, smallest_tensor)}
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
