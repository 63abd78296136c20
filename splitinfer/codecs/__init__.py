"""Activation codecs: three verbs, ``encode``, ``decode`` and ``estimate``, behind one protocol.

>>> import torch
>>> from splitinfer import codecs
>>> data = codecs.get("int8").encode(torch.rand(1, 64, 56, 56))
>>> codecs.get("int8").decode(data).shape
torch.Size([1, 64, 56, 56])
"""

from __future__ import annotations

from splitinfer.codecs.block import Codec, TensorLike
from splitinfer.codecs.lossless import Raw, Zstd
from splitinfer.codecs.quantized import Fp16, Int8
from splitinfer.errors import CodecError

__all__ = ["LOSSLESS", "Codec", "TensorLike", "get", "names"]

_REGISTRY: dict[str, Codec] = {codec.name: codec for codec in (Raw(), Zstd(), Fp16(), Int8())}

LOSSLESS = tuple(name for name, codec in _REGISTRY.items() if codec.lossless)
"""The codecs that return every bit."""


def names() -> tuple[str, ...]:
    """The names that :func:`get` knows."""
    return tuple(_REGISTRY)


def get(name: str) -> Codec:
    """The codec of this name. Raises CodecError, which lists the known names, for any other."""
    try:
        return _REGISTRY[name]
    except KeyError:
        raise CodecError(f"no codec '{name}'; known: {', '.join(_REGISTRY)}") from None
