"""Activation codecs: three verbs, ``encode``, ``decode`` and ``estimate``, behind one protocol and one grammar of names.

>>> import torch
>>> from splitinfer import codecs
>>> data = codecs.get("int4/channel+zstd").encode(torch.rand(1, 64, 56, 56))
>>> codecs.get("int4/channel+zstd").decode(data).shape
torch.Size([1, 64, 56, 56])

What there is to choose from: :func:`catalogue`, and docs/codecs.md.
"""

from __future__ import annotations

from splitinfer.codecs.base import Codec
from splitinfer.codecs.block import TensorLike
from splitinfer.codecs.forms import DEFAULT, SUGGESTED, catalogue, get

__all__ = ["LOSSLESS", "Codec", "TensorLike", "catalogue", "get", "names", "suggested"]

LOSSLESS = tuple(name for name in DEFAULT if get(name).lossless)
"""Those of :func:`names` that return every bit; of any other codec, its `lossless` says it."""


def names() -> tuple[str, ...]:
    """The codecs that are measured unless others are asked for."""
    return DEFAULT


def suggested() -> tuple[str, ...]:
    """The codecs that a calibration should try on activations: from lossless to a few bits."""
    return SUGGESTED
