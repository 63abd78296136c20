"""What is to be placed: ops with seconds per tier, tensors between them, tiers joined in a line by links.

    tiers[0] --links[0]--> tiers[1] --links[1]--> tiers[2]
     device                 edge                   cloud

Data flows down the line only: no consumer sits on a lower tier than its producer. A model's input is an op of zero
seconds, pinned where the data is born. Everything is checked when a `Problem` is built, so solvers do not check again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from partitioners.check import check, topological


@dataclass(frozen=True)
class Tier:
    """A place in the line: device, edge, cloud."""

    name: str


@dataclass(frozen=True)
class Link:
    """Joins one tier to the next."""

    bytes_per_s: float
    latency_s: float
    """One way; paid once per direction that is used, whatever the number of tensors."""
    return_bytes_per_s: float | None = None
    """Towards tier 0; None: as fast as forward."""

    @property
    def back_bytes_per_s(self) -> float:
        """The rate towards tier 0, given or taken over from the forward direction."""
        return self.bytes_per_s if self.return_bytes_per_s is None else self.return_bytes_per_s


@dataclass(frozen=True)
class Op:
    """A layer or operator."""

    name: str
    seconds: tuple[float, ...]
    """One number per tier."""
    pinned: str | None = None
    """The tier it must be on."""


@dataclass(frozen=True)
class Codec:
    """One way of putting one tensor on the wire."""

    name: str
    nbytes: float
    encode_s: tuple[float, ...] = ()
    """One number per tier; () becomes zeros."""
    decode_s: tuple[float, ...] = ()
    """One number per tier; () becomes zeros."""
    error: float = 0.0
    """Carried along for the caller; no solver of this version reads it."""


@dataclass(frozen=True)
class Tensor:
    """What an op produces: sent at most once per link, whatever the number of consumers."""

    producer: str
    consumers: tuple[str, ...]
    nbytes: float
    returned: bool = False
    """It must come back to tier 0; it does so raw."""
    codecs: tuple[Codec, ...] | None = None
    """The ways it may travel; None: raw only. A list does not contain raw unless it says so."""
    name: str = ""
    """'' becomes "producer#position"."""

    @property
    def ways(self) -> tuple[Codec, ...]:
        """The codecs to choose from, raw made explicit."""
        return (Codec("raw", self.nbytes),) if self.codecs is None else self.codecs


@dataclass(frozen=True)
class Problem:
    """A line of tiers and a graph of ops; `relay` says what a tier does with a tensor that only passes through it.

    "transcode": decoded and encoded again on every link. "forward": encoded once, decoded where it is consumed.
    """

    tiers: tuple[Tier, ...]
    links: tuple[Link, ...]
    ops: tuple[Op, ...]
    tensors: tuple[Tensor, ...]
    relay: str = "transcode"

    def __post_init__(self) -> None:
        """Fill in the names and zeros left out, then check everything."""
        object.__setattr__(self, "tensors", tuple(self._complete(i, t) for i, t in enumerate(self.tensors)))
        check(self)

    def _complete(self, position: int, tensor: Tensor) -> Tensor:
        zeros = (0.0,) * len(self.tiers)
        codecs = tensor.codecs and tuple(
            c if c.encode_s and c.decode_s else replace(c, encode_s=c.encode_s or zeros, decode_s=c.decode_s or zeros)
            for c in tensor.codecs
        )
        return replace(tensor, codecs=codecs, name=tensor.name or f"{tensor.producer}#{position}")

    @cached_property
    def op_index(self) -> dict[str, int]:
        """Position of each op by name."""
        return {op.name: i for i, op in enumerate(self.ops)}

    @cached_property
    def tier_index(self) -> dict[str, int]:
        """Position of each tier by name."""
        return {tier.name: i for i, tier in enumerate(self.tiers)}

    @cached_property
    def predecessors(self) -> dict[str, list[str]]:
        """For each op the ops it takes data from, in topological order of the keys."""
        return topological(self)

    @classmethod
    def from_json(cls, source: str | Mapping[str, Any]) -> Problem:
        """Read format version 1 (docs/problem-format.md); raises `ProblemError` with the path of a bad field."""
        from partitioners.reader import read

        return read(source)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form as plain containers; what was left to its default is left out."""
        return {
            "version": 1,
            "tiers": [vars(tier) for tier in self.tiers],
            "links": [_given(vars(link)) for link in self.links],
            "ops": [_given({"name": op.name, "seconds": list(op.seconds), "pinned": op.pinned}) for op in self.ops],
            "tensors": [_tensor_dict(tensor) for tensor in self.tensors],
            "relay": self.relay,
        }

    def to_json(self) -> str:
        """Return the JSON text of format version 1; `from_json` gives back an equal problem."""
        return json.dumps(self.to_dict(), indent=1, default=float)


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _tensor_dict(tensor: Tensor) -> dict[str, Any]:
    fields = {key: getattr(tensor, key) for key in ("name", "producer", "nbytes", "returned")}
    codecs = tensor.codecs and [
        {**vars(c), "encode_s": list(c.encode_s), "decode_s": list(c.decode_s)} for c in tensor.codecs
    ]
    return _given({**fields, "consumers": list(tensor.consumers), "codecs": codecs})
