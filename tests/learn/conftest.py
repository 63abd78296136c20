"""One digits CNN, trained for a few epochs, and what is learned from it: made once for all tests of this folder."""

from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from splitinfer import capture, demo
from splitinfer.learn import train_bottleneck, train_exit


@pytest.fixture(scope="session")
def digits():
    """The model, its graph, and three sets of images that do not overlap: to train on, to record on, held out."""
    torch.set_num_threads(1)
    model, held_out, labels = demo.trained_digits(epochs=5)
    model.zero_grad(set_to_none=True)
    data = load_digits()
    images = torch.tensor(data.images[:, None] / 16, dtype=torch.float32)
    seen, _, seen_labels, _ = train_test_split(images, torch.tensor(data.target), test_size=0.25, random_state=0, stratify=data.target)
    with torch.no_grad():
        whole = model(held_out).argmax(1)
    return SimpleNamespace(
        model=model, graph=capture(model, (held_out[:1],), dynamic_shapes="batch"), held_out=held_out, labels=labels, whole=whole,
        train=list(seen[:1000].split(1)), train_labels=seen_labels[:1000],
        record=list(seen[1000:].split(1)), record_labels=seen_labels[1000:],
    )  # fmt: skip


@pytest.fixture(scope="session")
def bottleneck(digits):
    return train_bottleneck(digits.graph, "max_pool2d", digits.train, 16, steps=100)


@pytest.fixture(scope="session")
def heads(digits):
    return [train_exit(digits.graph, name, digits.train, steps=150) for name in ("relu", "max_pool2d_1")]
