"""``splitinfer demo``: two models over three tiers on this machine, with real photographs and a really trained network.

MobileNetV2 has random weights with batch-norm statistics of the photographs, so its sizes are "shape only"; the
accuracies come from the digits CNN, which is trained here in seconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn

from cluster.launch import LocalCluster
from cluster.topology import Topology
from splitinfer import zoo
from splitinfer.errors import MissingExtra
from splitinfer.graph import Graph
from splitinfer.importer import capture
from splitinfer.pipeline import Pipeline
from splitinfer.planner import baseline_plans, plan
from splitinfer.plans import Plan
from splitinfer.profiler import profile
from splitinfer.profiles import Profile
from splitinfer.runtime.deploy import RayPipeline, deploy
from splitinfer.runtime.measure import wait_for_calm
from splitinfer.tracing import Trace
from splitinfer.trained import trained_digits

CLUSTER = """\
version: 1
tiers:
  - {name: device, compute: {factor: 6}}
  - {name: edge, compute: {factor: 2}}
  - {name: cloud, compute: measured}
links:
  - {between: [device, edge], preset: Wi-Fi, latency: 2 ms}
  - {between: [edge, cloud], preset: 4G, latency: 20 ms}
"""
"""A device six times and an edge machine twice as slow as this one, behind Wi-Fi and 4G."""

LOSSY = ("raw", "zstd", "fp16", "int8")
_WARM_UP = 3
_GAP_S = 0.1  # between an answer and the next request: each meets idle machines, which is what a latency is of
Show = Callable[..., object]


@dataclass(frozen=True)
class Row:
    """One plan's requests: predicted beside measured."""

    model: str
    plan: str
    predicted_s: float
    measured_s: float
    """Median over the requests."""
    predicted_nbytes: float
    measured_nbytes: float
    slept_share: float
    """Share of the measured latency that was declared sleep."""
    rest_predicted_s: float
    """Computing, coding and calls without wire and stretch."""
    rest_measured_s: float

    @property
    def error(self) -> float:
        """Of the latency, relative to the measurement."""
        return self.predicted_s / self.measured_s - 1

    @property
    def rest_error(self) -> float:
        """Of what is not declared sleep, relative to the measurement."""
        return self.rest_predicted_s / self.rest_measured_s - 1


def run_demo(requests: int, show: Show = print) -> dict[str, Any]:
    """Plan, run and compare; returns what was shown as plain values."""
    topology = Topology.loads(CLUSTER)
    torch.set_num_threads(topology.tiers[0].threads)  # this process stands for the device
    show(topology)
    show("\nTraining the digits CNN ...")
    digits, pictures, labels = trained_digits()
    accuracy = _accuracy(digits(pictures), labels)
    show(f"held-out accuracy of the whole model: {accuracy:.2%} of {len(labels)} images")
    photos = photographs()
    mobilenet, _, _ = zoo.mobilenet_v2()
    calibrate_batch_norm(mobilenet, photos)
    models: dict[str, tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = {
        "MobileNetV2": (mobilenet, (), {"pixel_values": photos[:1]}), "digits CNN": (digits, (pictures[:1],), {})
    }  # fmt: skip
    rows: list[Row] = []
    plans: dict[str, dict[str, Plan]] = {}
    with LocalCluster([tier.name for tier in topology.tiers]) as cluster:
        for name, (model, args, kwargs) in models.items():
            graph = capture(model, args, kwargs, "batch")
            measured = profile(graph, topology, cluster=cluster)
            plans[name] = _plans(measured, topology)
            show(f"\n=== {name}: the chosen plan, codecs {', '.join(LOSSY)} allowed\n\n{plans[name]['chosen plan']}")
            rows += _run(name, graph, plans[name], topology, cluster, requests)
    show(f"\n=== predicted beside measured, median of {requests} requests each, one every 0.1 s\n\n{_table(rows)}")
    errors = _errors(rows)
    show("\n" + _summary(errors))
    whole_and_split = _split_accuracy(digits, pictures, labels)
    show("\n=== accuracy of the digits CNN, whole and in three stages\n\n" + _accuracy_table(accuracy, whole_and_split))
    return {
        "rows": [row.__dict__ | {"error": row.error, "rest_error": row.rest_error} for row in rows], **errors,
        "accuracy": {"whole": accuracy, **{name: value for name, (value, _) in whole_and_split.items()}},
    }  # fmt: skip


# -- data and models


def photographs(size: int = 224, count: int = 8) -> Tensor:
    """Crops of scikit-learn's two photographs, (count, 3, size, size) float32 in 0..1. Raises MissingExtra."""
    try:
        from PIL import Image
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise MissingExtra("scikit-learn and pillow", extra="demo") from error
    crops = []
    for index in range(count):
        photo = load_sample_images().images[index % 2]
        height, width, _ = photo.shape
        left = (width - height) * index // max(1, count - 1)
        crop = Image.fromarray(photo[:, left : left + height]).resize((size, size))
        crops.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1).float() / 255)
    return torch.stack(crops)


def calibrate_batch_norm(model: nn.Module, images: Tensor) -> None:
    """Give a random network the batch statistics of real images, so that its activations look like activations."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        model(images)
    for norm in norms:
        norm.eval()


# -- plans and requests


def _plans(measured: Profile, topology: Topology) -> dict[str, Plan]:
    """Each tier alone with its compressed input, and the chosen plan."""
    made = baseline_plans(measured, topology, LOSSY)
    made["chosen, lossless"] = plan(measured, topology)
    made["chosen plan"] = plan(measured, topology, codecs=LOSSY)
    return made


def _run(name: str, graph: Graph, plans: Mapping[str, Plan], topology: Topology, cluster: LocalCluster, requests: int) -> list[Row]:
    """All plans deployed and asked in turn, so that a drift of the machine meets them all alike."""
    traces: dict[str, list[Trace]] = {label: [] for label in plans}
    with ExitStack() as stack:
        pipelines = {label: stack.enter_context(deploy(graph, made, topology, cluster=cluster)) for label, made in plans.items()}
        wait_for_calm()
        for _ in range(_WARM_UP + requests):
            for label, pipeline in pipelines.items():
                traces[label].append(_traced(pipeline, graph))
    return [_row(name, label, plans[label], topology, found[_WARM_UP:]) for label, found in traces.items()]


def _traced(pipeline: RayPipeline, graph: Graph) -> Trace:
    args, kwargs = graph.example
    time.sleep(_GAP_S)
    return pipeline.traced(*args, **kwargs)[1]


def _row(name: str, label: str, made: Plan, topology: Topology, traces: Sequence[Trace]) -> Row:
    cost = made.cost
    assert cost is not None  # every plan here comes from the planner
    return Row(
        name, label, cost.latency_s, statistics.median(trace.total_s for trace in traces),
        cost.up_nbytes, statistics.median(trace.nbytes() for trace in traces),
        statistics.median(trace.slept_s / trace.total_s for trace in traces),
        _without_sleep(made, topology), statistics.median(trace.total_s - trace.slept_s for trace in traces),
    )  # fmt: skip


def _without_sleep(made: Plan, topology: Topology) -> float:
    """The predicted latency less wire, return and stretch: what this machine really does."""
    cost = made.cost
    assert cost is not None  # as above
    factor = {tier.name: tier.compute.factor or 1.0 for tier in topology.tiers}
    worked = sum(stage.seconds / factor[stage.tier] for stage in made.stages)
    share = worked / cost.compute_s if cost.compute_s else 1.0  # codec work is spread like compute
    return worked + share * (cost.encode_s + cost.decode_s) + cost.framework_s


def _errors(rows: Sequence[Row]) -> dict[str, float]:
    return {
        "median_error": statistics.median(abs(row.error) for row in rows),
        "worst_error": max(abs(row.error) for row in rows),
        "slept_share": statistics.median(row.slept_share for row in rows),
        "median_rest_error": statistics.median(abs(row.rest_error) for row in rows),
        "worst_rest_error": max(abs(row.rest_error) for row in rows),
    }


# -- tables


def _table(rows: Sequence[Row]) -> str:
    body = [
        [row.model, row.plan, _ms(row.predicted_s), _ms(row.measured_s), f"{row.error:+.1%}", f"{row.predicted_nbytes:,.0f}",
         f"{row.measured_nbytes:,.0f}", f"{row.slept_share:.0%}", _ms(row.rest_predicted_s), _ms(row.rest_measured_s),
         f"{row.rest_error:+.0%}"]
        for row in rows
    ]  # fmt: skip
    head = ["model", "plan", "predicted ms", "measured ms", "error", "predicted bytes", "measured bytes", "declared sleep",
            "rest predicted", "rest measured", "error of rest"]  # fmt: skip
    return tabulate(body, head, disable_numparse=True, colalign=("left", "left", *["right"] * 9))


def _summary(errors: Mapping[str, float]) -> str:
    return (
        f"median error of the latency {errors['median_error']:.1%}, worst {errors['worst_error']:.1%}; "
        f"declared sleep (wire, stretching) is {errors['slept_share']:.0%} of the median latency; "
        f"error of the rest alone: median {errors['median_rest_error']:.1%}, worst {errors['worst_rest_error']:.1%}"
    )


def _split_accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, tuple[float, int]]:
    """Accuracy in three stages with each codec, and how many answers changed."""
    graph = capture(model, (images[:2],), {}, "batch")
    order = list(graph.layers)
    stages = [order[:6], order[6:11], order[11:]]
    with torch.no_grad():
        whole = model(images).argmax(1)
    found = {}
    for codec in LOSSY:
        made = Plan.by_hand(graph, stages, codecs=dict.fromkeys(graph.tensors, codec))
        logits = Pipeline.local(graph, made)(images)
        found[codec] = (_accuracy(logits, labels), int((logits.argmax(1) != whole).sum()))
    return found


def _accuracy_table(whole: float, split: Mapping[str, tuple[float, int]]) -> str:
    rows = [["whole", f"{whole:.2%}", "", ""]]
    rows += [
        [f"split, {codec}", f"{value:.2%}", f"{(value - whole) * 100:+.2f} points", f"{changed} answers differ"]
        for codec, (value, changed) in split.items()
    ]
    return tabulate(rows, ["model", "accuracy", "difference", ""], disable_numparse=True)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).float().mean())


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


