"""How much an answer lost: measures of a model's output against the unsplit model's, and against labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from splitinfer.errors import UsageError

Metric = Callable[[Any, Any], float]
"""(output of the split model, output of the unsplit one) -> loss, 0 for none; averaged over the samples."""


WORST = 1e6
"""The loss of an answer that is no number: above every budget, and finite."""


def first_tensor(output: Any) -> Tensor:
    """The first floating tensor of a model's answer: logits, in most."""
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf.detach().float()
    raise UsageError("the model returns no floating tensor to compare; pass a metric of your own")


def top1(output: Any, reference: Any) -> float:
    """Share of rows whose largest entry moved."""
    one, two = first_tensor(output), first_tensor(reference)
    return float(((one.argmax(-1) != two.argmax(-1)) | _broken(one, two).any(-1)).float().mean())


def kl(output: Any, reference: Any) -> float:
    """Kullback-Leibler divergence of the output's softmax from the reference's, in nats, mean over rows."""
    one, two = first_tensor(output), first_tensor(reference)
    rows = functional.kl_div(one.log_softmax(-1), two.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    rows = torch.where(_broken(one, two).any(-1), torch.full_like(rows, WORST), rows.nan_to_num(0.0))
    return max(0.0, float(rows.mean()))


def relative(output: Any, reference: Any) -> float:
    """Relative error in the 2-norm."""
    return relative_error(first_tensor(output), first_tensor(reference))


def relative_error(one: Tensor, two: Tensor) -> float:
    """|one - two| / |two| in the 2-norm over the finite elements; 0 where nothing differs, WORST where a finite one broke."""
    one, two = one.detach().double(), two.detach().double()
    if _broken(one, two).any():
        return WORST
    both = torch.isfinite(one) & torch.isfinite(two)
    difference, size = float((one - two)[both].norm()), float(two[both].norm())
    return 0.0 if difference == 0 else difference / size if size else 1.0


def _broken(one: Tensor, two: Tensor) -> Tensor:
    """Where the reference is finite and the output is not: the worst there is, not something to leave out."""
    return torch.isfinite(two) & ~torch.isfinite(one)


METRICS: dict[str, Metric] = {"top1": top1, "kl": kl, "relative": relative}


def choose(metric: str | Metric, sample: Any) -> tuple[str, Metric]:
    """The name and the function. "auto": top1 where the answer looks like logits, (..., classes), else relative."""
    if callable(metric):
        return getattr(metric, "__name__", "metric"), metric
    if metric == "auto":
        output = first_tensor(sample)
        metric = "top1" if output.dim() >= 2 and output.shape[-1] > 1 and output.dim() <= 3 else "relative"
    if metric not in METRICS:
        raise UsageError(f"there is no metric '{metric}'; choose auto, {', '.join(METRICS)}, or pass a function")
    return metric, METRICS[metric]


class Score:
    """Loss over many samples: a metric against the reference, or accuracy against labels where there are some."""

    def __init__(self, metric: str | Metric, references: Sequence[Any], labels: Sequence[int] | None = None) -> None:
        """Raises UsageError for an unknown metric or a number of labels that is not that of the samples."""
        if not references:
            raise UsageError("accuracy needs at least one sample")
        if labels is not None and len(labels) != len(references):
            raise UsageError(f"{len(labels)} labels for {len(references)} samples; each sample needs one")
        self.references, self.labels = references, None if labels is None else [torch.as_tensor(label).reshape(-1) for label in labels]
        name, self.metric = choose(metric, references[0])
        self.name = "accuracy" if labels is not None else name
        self.whole = 1.0 if self.labels is None else self._right(references)

    def drop(self, outputs: Sequence[Any]) -> float:
        """How much all outputs together lose; accuracy may also gain, which counts as 0."""
        if self.labels is not None:
            return max(0.0, self.whole - self._right(outputs))
        losses = [self.metric(one, two) for one, two in zip(outputs, self.references, strict=True)]
        if not all(0 <= loss < float("inf") for loss in losses):
            raise UsageError(f"the metric '{self.name}' gave {min(losses)} for a sample; a loss is a finite number, zero or more")
        return sum(losses) / len(losses)

    def _right(self, outputs: Sequence[Any]) -> float:
        assert self.labels is not None
        hits = []
        for output, label in zip(outputs, self.labels, strict=True):
            rows = first_tensor(output)
            guesses = rows.argmax(-1).reshape(-1)
            if guesses.shape != label.shape:
                raise UsageError(f"a sample has {len(label)} labels and its answer {len(guesses)} rows; each row needs one")
            hits.append((guesses == label) & torch.isfinite(rows).all(-1).reshape(-1))
        return float(torch.cat(hits).float().mean())
