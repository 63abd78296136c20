"""What is to be placed: ops with seconds per tier, tensors between them, tiers joined in a line by links.

    tiers[0] --links[0]--> tiers[1] --links[1]--> tiers[2]
     device                 edge                   cloud

Data flows down the line only: no consumer sits on a lower tier than its producer, unless the problem is `two_way`. A
model's input is an op of zero seconds, pinned where the data is born. Everything is checked when a `Problem` is built,
so solvers do not check again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from partitioners.validation import topological, validate


@dataclass(frozen=True)
class Tier:
    """A place in the line: device, edge, cloud."""

    name: str
    memory_bytes: float | None = None
    """Hard limit on the sum of its ops' `memory_bytes`; None: no limit."""
    watts: float = 0.0
    """Drawn while it computes, encodes or decodes."""
    price_per_s: float = 0.0
    """Money for each second in which it computes, encodes or decodes."""


@dataclass(frozen=True)
class Link:
    """Joins one tier to the next."""

    bytes_per_s: float
    latency_s: float
    """One way; paid once per direction that is used, whatever the number of tensors."""
    return_bytes_per_s: float | None = None
    """Towards tier 0; None: as fast as forward."""
    joules_per_byte: float = 0.0
    """In both directions."""
    price_per_byte: float = 0.0
    """In both directions."""

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
    memory_bytes: float = 0.0
    """What it takes of its tier's memory (weights, say)."""
    reach: float = 1.0
    """Probability that a request gets this far (early exits); multiplies its seconds, not its memory."""


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
    """Counts against `error_budget`, once per encoding."""
    transfer_s: tuple[float, ...] = ()
    """One number per link: encoding, wire and decoding as measured together, because they overlap. Towards the last
    tier and in latency only it replaces the three; loads, energy and money keep them. () : nothing overlaps."""


@dataclass(frozen=True)
class Tensor:
    """What an op produces: sent at most once per link and direction, whatever the number of consumers."""

    producer: str
    consumers: tuple[str, ...]
    nbytes: float
    returned: bool = False
    """It must come back to tier 0; it does so raw."""
    codecs: tuple[Codec, ...] | None = None
    """The ways it may travel; None: raw only. A list does not contain raw unless it says so."""
    name: str = ""
    """'' becomes "producer#position"."""
    reach: float = 1.0
    """Probability that it is sent, where its consumers are elsewhere; multiplies bytes and seconds, not `error`."""

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
    two_way: bool = False
    """Data may also flow towards tier 0: a tensor crosses down to its lowest consumer."""
    error_budget: float | None = None
    """Limit on the sum of the errors of the codecs used; None: no limit."""
    within: Mapping[str, float] = field(default_factory=dict)
    """Limits on other costs by their field in an answer, such as {"latency_s": 0.2}."""

    def __post_init__(self) -> None:
        """Fill in the names and zeros left out, then check everything."""
        object.__setattr__(self, "tensors", tuple(self._complete(i, t) for i, t in enumerate(self.tensors)))
        validate(self)

    def _complete(self, position: int, tensor: Tensor) -> Tensor:
        zeros = (0.0,) * len(self.tiers)
        codecs = tensor.codecs and tuple(
            c if c.encode_s and c.decode_s else replace(c, encode_s=c.encode_s or zeros, decode_s=c.decode_s or zeros)
            for c in tensor.codecs
        )
        if tensor.name and codecs is tensor.codecs:
            return tensor
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

    @property
    def limits(self) -> dict[str, float]:
        """All limits on costs by field: `within`, and the error budget as "error"."""
        budget = {} if self.error_budget is None else {"error": min(self.error_budget, self.within.get("error", self.error_budget))}
        return {**self.within, **budget}

    @classmethod
    def from_json(cls, source: str | Mapping[str, Any]) -> Problem:
        """Read format version 1 (docs/problem-format.md); raises `ProblemError` with the path of a bad field."""
        from partitioners.reader import read

        return read(source)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form as plain containers; what was left to its default is left out."""
        return {"version": 1, **_plain(self)}

    def to_json(self) -> str:
        """Return the JSON text of format version 1; `from_json` gives back an equal problem."""
        return json.dumps(self.to_dict(), indent=1, default=float)


# What a reader of the JSON form expects to see even where it equals the default.
_ALWAYS = {"name", "relay", "returned", "consumers", "links", "ops", "tensors"}


def _plain(value: Any) -> Any:
    """Containers of a dataclass, fields at their default left out."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    if not hasattr(value, "__dataclass_fields__"):
        return value
    held = {spec.name: (spec, getattr(value, spec.name)) for spec in fields(value)}
    return {
        name: _plain(item) for name, (spec, item) in held.items() if name in _ALWAYS or (item != spec.default and item not in ((), {}))
    }
