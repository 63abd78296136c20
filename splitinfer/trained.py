"""Networks trained here, in seconds, on scikit-learn's digits: what accuracies are measured on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from splitinfer import zoo
from splitinfer.errors import MissingExtra


def trained_digits(epochs: int = 12, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """The digits CNN trained on three quarters of the digits, and the held-out images and labels.

    Images are (450, 1, 8, 8) float32 in 0..1. Raises MissingExtra without scikit-learn.
    """
    return _trained(zoo.DigitsCNN, epochs, seed)


def trained_vit(epochs: int = 40, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """The digits' vision transformer, trained and returned like `trained_digits`."""
    return _trained(zoo.DigitsViT, epochs, seed)


def _trained(make: type[nn.Module], epochs: int, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingExtra("scikit-learn", extra="demo") from error
    data = load_digits()
    images = torch.tensor(data.images[:, None] / 16, dtype=torch.float32)
    labels = torch.tensor(data.target)
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=0.25, random_state=seed, stratify=labels)
    torch.manual_seed(seed)
    model = make().train()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    batches = -(-len(train_x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, epochs * batches)  # transformers do not learn without a warm-up
    for _ in range(epochs):
        order = torch.randperm(len(train_x))
        for chosen in torch.split(order, 64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(train_x[chosen]), train_y[chosen]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return model.eval(), test_x, test_y
