"""Captured models as planning problems: layers, tensors and FLOPs of the model, seconds by rooflines of known machines.

Device, edge and cloud are a Raspberry Pi 4, a Jetson Nano and a T4, each at the geometric middle of its interval
(cluster.presets); on two tiers the Jetson is left out. Activations travel as int8, a quarter of their bytes, at no
cost, and the input as 8-bit samples likewise: with fp32 a split is hardly ever the answer, and every planner is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import partitioners as p
from cluster.presets import machine_preset
from splitinfer import capture, zoo
from splitinfer.flops import layer_flops
from splitinfer.graph import Graph
from splitinfer.plans import INPUT

MACHINES = {2: ("raspberry-pi-4", "nvidia-t4"), 3: ("raspberry-pi-4", "jetson-nano", "nvidia-t4")}
LATENCY_S = 0.001
UPLINK_MBPS = 100.0
"""From the edge to the cloud; the first link is the one that varies."""


class Inception(nn.Module):
    """GoogLeNet's plan with a third of its widths: a stem, nine blocks of four branches, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 24, 7, 2), nn.MaxPool2d(3, 2, 1), conv(24, 64, 3), nn.MaxPool2d(3, 2, 1))
        widths = [64, 88, 160, 172, 172, 172, 176, 280, 280]
        self.blocks = nn.ModuleList(Block(before, after) for before, after in zip(widths, [*widths[1:], 344], strict=True))
        self.pool, self.head = nn.MaxPool2d(3, 2, 1), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(344, 1000))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        for i, block in enumerate(self.blocks):
            x = block(self.pool(x) if i in (2, 7) else x)
        scores: Tensor = self.head(x)
        return scores


class Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        quarter, rest = after // 4, after - 3 * (after // 4)
        self.one = conv(before, quarter, 1)
        self.three = nn.Sequential(conv(before, before // 2, 1), conv(before // 2, rest, 3))
        self.five = nn.Sequential(conv(before, before // 8, 1), conv(before // 8, quarter, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(before, quarter, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], 1)


def conv(before: int, after: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, size, stride, size // 2), nn.ReLU())


def inception() -> zoo.Sample:
    torch.manual_seed(0)
    return Inception().eval(), (torch.rand(1, 3, 224, 224),), {}


MODELS: Mapping[str, Callable[[], zoo.Sample]] = {
    "ResNet-50": zoo.resnet50,
    "Inception-like": inception,
    "GPT-2, small": zoo.gpt2,
    "Whisper, small": zoo.whisper,
}


@dataclass(frozen=True)
class Shape:
    """What planning needs of a model."""

    graph: Graph
    flops: Mapping[str, int]

    @classmethod
    def of(cls, name: str) -> Shape:
        model, args, kwargs = MODELS[name]()
        graph = capture(model, args, kwargs)
        return cls(graph, layer_flops(graph))

    def problem(self, tiers: int, mbps: float) -> p.Problem:
        machines = [machine_preset(name) for name in MACHINES[tiers]]
        op_of = self._together()
        moved = {name: layer.weight_nbytes for name, layer in self.graph.layers.items()}
        for tensor in self.graph.tensors.values():
            for name in (tensor.producer, *tensor.consumers):
                moved[name] = moved.get(name, 0) + tensor.nbytes
        seconds: dict[str, Any] = {}
        for layer, flops in self.flops.items():
            bounds = [machine.estimate_s(flops, moved[layer]) for machine in machines]
            held = seconds.setdefault(op_of[layer], [0.0] * tiers)
            seconds[op_of[layer]] = [before + (least * most) ** 0.5 for before, (least, most) in zip(held, bounds, strict=True)]
        ops = [p.Op(INPUT, (0.0,) * tiers, machines[0].name), *(p.Op(name, tuple(each)) for name, each in seconds.items())]
        tensors = []
        for tensor in self.graph.tensors.values():
            producer = op_of[tensor.producer]
            users = tuple(dict.fromkeys(op_of[name] for name in tensor.consumers if op_of[name] != producer))
            if users or tensor.returned:
                tensors.append(p.Tensor(producer, users, tensor.nbytes / 4, tensor.returned and producer != INPUT, name=tensor.name))
        rates = [mbps, UPLINK_MBPS][: tiers - 1]
        links = tuple(p.Link(rate * 1e6 / 8, LATENCY_S) for rate in rates)
        return p.Problem(tuple(p.Tier(machine.name) for machine in machines), links, tuple(ops), tuple(tensors))

    def _together(self) -> dict[str, str]:
        """Layer -> op; layers that must share a stage are one."""
        op_of = {name: name for name in (INPUT, *self.graph.layers)}
        for group in self.graph.together:
            merged = {op_of[name] for name in group.layers}
            first = next(op for op in op_of.values() if op in merged)
            op_of = {name: first if op in merged else op for name, op in op_of.items()}
        return op_of
