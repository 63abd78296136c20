"""How far a model's answers moved, as a loss to train by."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from splitinfer.errors import UsageError

MATCHES = ("auto", "kl", "cosine", "mse")


def mismatch(answers: Mapping[str, Tensor], taught: Mapping[str, Tensor], match: str) -> Tensor:
    """Mean over the results of how far `answers` are from `taught`; 0 where they are equal, about 1 where unrelated."""
    losses = [_one(answers[name].float(), target.float(), match) for name, target in taught.items()]
    return torch.stack(losses).mean()


def check_match(match: str) -> None:
    """Raise UsageError for a measure that does not exist."""
    if match not in MATCHES:
        raise UsageError(f"there is no measure '{match}' to match by; choose one of {', '.join(MATCHES)}")


def _one(answer: Tensor, target: Tensor, match: str) -> Tensor:
    match _kind(target, match):
        case "kl":
            rows = functional.kl_div(answer.log_softmax(-1), target.log_softmax(-1), reduction="none", log_target=True)
            return rows.sum(-1).mean()
        case "cosine":
            return (1 - functional.cosine_similarity(answer, target, dim=-1)).mean()
        case _:
            return relative(answer, target)


def _kind(target: Tensor, match: str) -> str:
    """auto: unit vectors, as sentence encoders give, by cosine; rows of a matrix as logits; anything else by its values."""
    if match != "auto":
        return match
    if target.dim() != 2 or target.shape[1] < 2:
        return "mse"
    unit = torch.allclose(target.norm(dim=1), torch.ones(len(target), device=target.device), atol=1e-3)
    return "cosine" if unit else "kl"


def relative(answer: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the mean square of the target."""
    return functional.mse_loss(answer, target) / target.square().mean().clamp_min(torch.finfo(target.dtype).tiny)
