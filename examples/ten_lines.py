"""Split a model of your own in about ten lines: capture, profile, plan, run, compare.

    python examples/ten_lines.py

The model is an ordinary module of this file. The machines and links are those of examples/cluster.yaml, all emulated,
so that nothing but this process is needed: the plan's stages run here, one after the other, through the same packets
that would cross the network.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

import splitinfer
from cluster import Topology

HERE = Path(__file__).parent


class Block(nn.Module):
    """Two convolutions with a shortcut, at half the resolution."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride=2, padding=1)
        self.second = nn.Conv2d(outside, outside, 3, padding=1)
        self.shortcut = nn.Conv2d(inside, outside, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class Detector(nn.Module):
    """What is in the picture, and where: (1, 3, 160, 160) -> twenty class scores and a box."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 16, 32, 64, 128, 256, 512]
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in pairwise(widths)))
        self.scores = nn.Linear(512, 20)
        self.box = nn.Linear(512, 4)

    def forward(self, picture: Tensor) -> dict[str, Tensor]:
        features = self.blocks(picture).mean((2, 3))
        return {"scores": self.scores(features).softmax(1), "box": self.box(features).sigmoid()}


def main() -> None:
    torch.manual_seed(0)
    model, picture = Detector().eval(), torch.rand(1, 3, 160, 160)

    # The ten lines.
    torch.set_num_threads(1)
    graph = splitinfer.capture(model, (picture,))
    profile = splitinfer.profile(graph)
    topology = Topology.load(HERE / "cluster.yaml")
    plan = splitinfer.plan(profile, topology)
    print(plan)
    pipeline = splitinfer.Pipeline.local(graph, plan)
    with torch.no_grad():
        whole, split = model(picture), pipeline(picture)
    exact = all(torch.equal(whole[name], split[name]) for name in whole)
    print(f"\nthe split model returns {sorted(split)}, {'equal bit for bit' if exact else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
