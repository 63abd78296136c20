"""Measure a captured model for planning: times from :mod:`splitinfer.stopwatch`, and all that needs no clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from splitinfer import codecs
from splitinfer.codecs.packet import Kind, Packet
from splitinfer.flops import layer_flops
from splitinfer.graph import Graph
from splitinfer.pipeline import whole
from splitinfer.profiles import Framework, LayerProfile, Profile, TensorProfile
from splitinfer.shards.ways import ways
from splitinfer.sizes import sizes_at
from splitinfer.stages import Stage
from splitinfer.stopwatch import measure

if TYPE_CHECKING:
    from cluster.launch import LocalCluster
    from cluster.topology import Topology

def profile(
    graph: Graph,
    topology: Topology | None = None,
    *,
    cluster: LocalCluster | None = None,
    codec_names: Iterable[str] | None = None,
    repeats: int = 30,
    budget_s: float = 10.0,
    threads: int | None = None,
    progress: bool = False,
) -> Profile:
    """Measure a model for planning.

    Without a topology, here: in this process, with `threads` torch threads (default 1) on the CPU. With one, each tier
    that has a Ray node of its own is measured there, the others once in a process of their own on this machine for each
    number of threads; that needs a `cluster` or a connection to Ray, and also measures what a call between stages costs.
    At most `repeats` runs or `budget_s` seconds for each machine. Raises CodecError for an unknown codec.
    """
    names = tuple(codec_names) if codec_names is not None else codecs.names()
    for name in names:
        codecs.get(name)
    stage = whole(graph)
    tensors, sizes = example(graph, stage)
    crossing = list(graph.tensors)
    if topology is None:
        one = measure(stage, tensors, sizes, crossing, names, repeats=repeats, budget_s=budget_s, threads=threads or 1, progress=progress)
        measured, framework = [one], Framework()
    else:
        from splitinfer.runtime.measure import measure_tiers

        settings = {"crossing": crossing, "codec_names": list(names), "repeats": repeats, "budget_s": budget_s}
        measured, framework = measure_tiers(stage, tensors, sizes, topology, cluster, settings, progress=progress)
    sent = measured[0][1]
    skeleton = _skeleton(graph)
    return replace(
        skeleton, measurements=tuple(one for one, _ in measured), framework=framework,
        tensors=tuple(replace(tensor, sent_nbytes=dict(sent.get(tensor.name, {}))) for tensor in skeleton.tensors),
    )  # fmt: skip


def example(graph: Graph, stage: Stage) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The sample's tensors and dynamic dimensions by name."""
    tensors, dimensions = graph.bind(*graph.example)
    return tensors, sizes_at(graph, stage.sizes, dimensions)


def _skeleton(graph: Graph) -> Profile:
    """All that needs no clock."""
    flops, peaks = layer_flops(graph), _peaks(graph)
    outputs = dict.fromkeys(graph.layers, 0)
    for tensor in graph.tensors.values():
        if tensor.producer in outputs:
            outputs[tensor.producer] += tensor.nbytes
    layers = tuple(
        LayerProfile(name, flops[name], layer.weight_nbytes, outputs[name], peaks[name]) for name, layer in graph.layers.items()
    )
    tensors = tuple(
        TensorProfile(t.name, t.producer, t.consumers, t.shape, t.dtype, t.nbytes, t.returned) for t in graph.tensors.values()
    )
    together = tuple((tuple(sorted(group.layers)), group.reason) for group in graph.together)
    sizes = dict.fromkeys(whole(graph).sizes, 1)
    empty = Packet(Kind.REQUEST, "0" * 32, sizes=sizes, meta={"left_s": 1.0})
    return Profile(
        graph.name, graph.fingerprint, graph.stateful, layers, tensors, together, (), len(empty.pack()), exits=graph.exits,
        layouts=ways(graph),
    )  # fmt: skip


def _peaks(graph: Graph) -> dict[str, int]:
    """Bytes of the tensors between layers that are alive while each layer runs."""
    order = {name: index for index, name in enumerate(graph.layers)}
    alive = dict.fromkeys(graph.layers, 0)
    names = list(order)
    for tensor in graph.tensors.values():
        first = order.get(tensor.producer, 0)
        last = len(names) - 1 if tensor.returned else max((order[c] for c in tensor.consumers), default=first)
        for name in names[first : last + 1]:
            alive[name] += tensor.nbytes
    return alive
