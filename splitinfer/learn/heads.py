"""Training an early exit's head: distillation on pooled features, computed once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from splitinfer.errors import UsageError
from splitinfer.graph import Graph
from splitinfer.learn.exits import CONFIDENCES, WEIGHTS, ExitHead, check_waist, output_of
from splitinfer.learn.halves import Halves, Samples, checked, weights_digest


def train_exit(
    graph: Graph,
    tensor: str,
    samples: Iterable[Any],
    labels: Sequence[int] | Tensor | None = None,
    *,
    hidden: int = 64,
    grid: int = 2,
    confidence: str = "softmax",
    steps: int = 400,
    batch: int = 128,
    rate: float = 3e-3,
    decay: float = 1e-3,
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
) -> ExitHead:
    """Train a head that answers in the model's place, at one tensor between layers.

    Maps (batch, channels, height, width) are averaged to `grid` x `grid` places, sequences (batch, steps, width) over the
    steps, and matrices taken as they are; one hidden layer and a ReLU follow. It learns the model's own answers by
    Kullback-Leibler divergence; `labels`, one for each row, add the cross-entropy. `samples` as in ``train_bottleneck``. The
    pooled features of all samples are computed once and stay in memory: rows x features floats. `rate` and `decay`: of
    AdamW. Equal arguments and `seed` give equal weights on one machine.

    Raises CutError where no exit is possible: a model that returns anything but one (batch, classes) tensor, a tensor that
    the layers behind it can pass by, a stateful model; InputError for samples that do not fit the graph.
    """
    if confidence not in CONFIDENCES:
        raise UsageError(f"there is no confidence '{confidence}'; choose one of {', '.join(CONFIDENCES)}")
    output = output_of(graph, checked(graph, tensor))
    grid = check_waist(graph, tensor, grid)
    halves, given = Halves(graph, tensor, device), Samples(graph, samples, labels)
    features, answers, marks = _recorded(halves, given, grid)
    mean, spread = features.mean(0), features.std(0, correction=0)
    spread = torch.where(spread > 1e-6 * spread.max(), spread, torch.ones_like(spread))
    weights = _started(features.shape[1], hidden, answers.shape[1], seed, features.device)
    normal = (features - mean) / spread
    with torch.no_grad():
        first = float(_divergence(_answered(normal, weights), answers))
    _train(weights, normal, answers, marks, steps, batch, rate, decay, seed, progress)
    with torch.no_grad():
        last = float(_divergence(_answered(normal, weights), answers))
        inner = weights[0] / spread  # mean and spread become part of the first layer
        folded = [inner, weights[1] - inner @ mean, weights[2], weights[3]]
    made = dict(zip(WEIGHTS, (weight.detach().cpu().contiguous() for weight in folded), strict=True))
    return ExitHead(graph.fingerprint, weights_digest(graph), tensor, output.name, grid, confidence, first, last, **made)


def _pool(values: Tensor, grid: int) -> Tensor:
    if values.dim() == 4:
        return functional.adaptive_avg_pool2d(values, grid).flatten(1)
    return values.mean(1) if values.dim() == 3 else values


def _recorded(halves: Halves, samples: Samples, grid: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pooled features, the model's answers and the labels of all rows."""
    features, answers, marks = [], [], []
    with torch.no_grad():
        for batch in samples.all():
            values = halves.before(batch)
            features.append(_pool(values[halves.tensor].float(), grid))
            (answer,) = halves.behind(values, batch).values()
            answers.append(answer.float())
            marks += [batch.labels.to(answer.device)] if batch.labels is not None else []
    return torch.cat(features), torch.cat(answers), torch.cat(marks) if marks else None


def _started(features: int, hidden: int, classes: int, seed: int, device: torch.device) -> list[Tensor]:
    """He's normal weights (2015), zero biases."""
    random = torch.Generator().manual_seed(seed)
    shapes = ((hidden, features), (hidden,), (classes, hidden), (classes,))
    drawn = [
        torch.randn(shape, generator=random) * math.sqrt(2 / shape[1]) if len(shape) == 2 else torch.zeros(shape) for shape in shapes
    ]
    return [weight.to(device).requires_grad_() for weight in drawn]


def _answered(features: Tensor, weights: Sequence[Tensor]) -> Tensor:
    inner = functional.linear(features, weights[0], weights[1]).relu()
    return functional.linear(inner, weights[2], weights[3])


def _divergence(answer: Tensor, target: Tensor) -> Tensor:
    return functional.kl_div(answer.log_softmax(-1), target.log_softmax(-1), reduction="batchmean", log_target=True)


def _train(
    weights: list[Tensor], features: Tensor, answers: Tensor, marks: Tensor | None, steps: int, batch: int, rate: float, decay: float,
    seed: int, progress: bool,
) -> None:  # fmt: skip
    random = torch.Generator().manual_seed(seed + 1)
    optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    for _ in tqdm(range(steps), desc="training the exit", disable=not progress, leave=False):
        chosen = torch.randint(len(features), (min(batch, len(features)),), generator=random).to(features.device)
        answer = _answered(features[chosen], weights)
        loss = _divergence(answer, answers[chosen])
        if marks is not None:
            loss = loss + functional.cross_entropy(answer, marks[chosen])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
