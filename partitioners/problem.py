"""What is to be placed: ops with seconds per tier, tensors between them, tiers joined in a line by links.

    tiers[0] --links[0]--> tiers[1] --links[1]--> tiers[2]
     device                 edge                   cloud
       |
    workers[0], its host, joined to workers[1], workers[2], ... by a link each

Data flows down the line only: no consumer sits on a lower tier than its producer, unless the problem is `two_way`. A
model's input is an op of zero seconds, pinned where the data is born. Everything is checked when a `Problem` is built,
so solvers do not check again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from partitioners.validation import topological, validate

Axis = Literal["rows", "channels", "heads"]
"""Along which an op is divided: rows of the feature map, channels (columns of a matrix), attention heads."""
AXES: tuple[Axis, ...] = ("rows", "channels", "heads")


@dataclass(frozen=True)
class Worker:
    """One machine of a tier, joined to the tier's first worker, its host, by a full-duplex link of its own."""

    name: str
    bytes_per_s: float | None = None
    """From the host; None: it is the host."""
    return_bytes_per_s: float | None = None
    """To the host; None: as fast as from it."""
    latency_s: float = 0.0
    """One way, of each packet."""
    memory_bytes: float | None = None
    """Hard limit on the weights it holds; None: no limit."""

    @property
    def back_bytes_per_s(self) -> float:
        """The rate to the host; infinite for the host itself."""
        return self.forth_bytes_per_s if self.return_bytes_per_s is None else self.return_bytes_per_s

    @property
    def forth_bytes_per_s(self) -> float:
        """The rate from the host; infinite for the host itself."""
        return math.inf if self.bytes_per_s is None else self.bytes_per_s


@dataclass(frozen=True)
class Layout:
    """How the workers of one tier may divide one op."""

    tier: str
    axis: Axis
    units: int
    """What is shared out: rows of its output, channels, heads."""
    seconds_per_unit: tuple[float, ...]
    """One number per worker of the tier."""
    fixed_s: tuple[float, ...] = ()
    """One number per worker, paid by each that has a share; () becomes zeros."""
    granularity: int = 1
    """Shares are multiples of it; the last worker's takes the rest."""
    weight_bytes: float = 0.0
    """Held by each worker that has a share, whatever its size."""
    weight_bytes_per_unit: float = 0.0
    """Held for each unit of a share; not for rows, where every worker needs all weights."""
    takes: Literal["whole", "split"] = "split"
    """Whether each worker needs all of its inputs, or its share of them."""
    gives: Literal["split", "whole", "partial"] = "split"
    """Its share of the output; all of it (every worker computes the same); or a term of a sum over the workers."""
    kernel: int = 1
    """This and what follows, for rows: output row o needs the input rows o*stride - padding + dilation*(0 ... kernel-1)."""
    stride: int = 1
    dilation: int = 1
    padding: int = 0
    """Rows added above; the rows added below follow from `input_units`."""
    input_units: int | None = None
    """Rows of its inputs; None: as many as `units`."""

    @property
    def replicated(self) -> bool:
        """Whether every worker with a share computes all of it."""
        return self.gives == "whole"

    @property
    def input_rows(self) -> int:
        """Rows of its inputs, given or as many as its own."""
        return self.units if self.input_units is None else self.input_units


@dataclass(frozen=True)
class Tier:
    """A place in the line: device, edge, cloud."""

    name: str
    memory_bytes: float | None = None
    """Hard limit on the sum of its ops' `memory_bytes`, or on what all its workers hold together; None: no limit."""
    watts: float = 0.0
    """Drawn while it computes, encodes or decodes, or its workers share a block."""
    price_per_s: float = 0.0
    """Money for each second in which it computes, encodes or decodes, or its workers share a block."""
    workers: tuple[Worker, ...] = ()
    """The first is the host: it runs what is not divided, and holds its input. (): one machine, without a name."""


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
    layouts: tuple[Layout, ...] = ()
    """The ways to divide it; at most one for each tier, axis and `takes`."""


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
        if any(op.layouts for op in self.ops):
            object.__setattr__(self, "ops", tuple(map(_with_zeros, self.ops)))
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

    @cached_property
    def inputs_of(self) -> dict[str, list[Tensor]]:
        """The tensors that each op takes."""
        found: dict[str, list[Tensor]] = {op.name: [] for op in self.ops}
        for tensor in self.tensors:
            for name in tensor.consumers:
                found[name].append(tensor)
        return found

    @cached_property
    def outputs_of(self) -> dict[str, list[Tensor]]:
        """The tensors that each op makes."""
        found: dict[str, list[Tensor]] = {op.name: [] for op in self.ops}
        for tensor in self.tensors:
            found[tensor.producer].append(tensor)
        return found

    @property
    def divisible(self) -> bool:
        """Whether some op may be divided."""
        return any(op.layouts for op in self.ops)

    @property
    def limits(self) -> dict[str, float]:
        """All limits on costs by field: `within`, and the error budget as "error"."""
        budget = {} if self.error_budget is None else {"error": min(self.error_budget, self.within.get("error", self.error_budget))}
        return {**self.within, **budget}

    @classmethod
    def from_json(cls, source: str | Mapping[str, Any]) -> Problem:
        """Read format version 1 or 2 (docs/problem-format.md); raises `ProblemError` with the path of a bad field."""
        from partitioners.reader import read

        return read(source)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form as plain containers; what was left to its default is left out."""
        from partitioners.writer import plain

        return {"version": 2 if self.divisible or any(tier.workers for tier in self.tiers) else 1, **plain(self)}

    def to_json(self) -> str:
        """Return the JSON text, of format version 1 where no tier has workers; `from_json` gives back an equal problem."""
        return json.dumps(self.to_dict(), indent=1, default=float)


def _with_zeros(op: Op) -> Op:
    """Write out the `fixed_s` that layouts left out."""
    return replace(op, layouts=tuple(replace(each, fixed_s=each.fixed_s or (0.0,) * len(each.seconds_per_unit)) for each in op.layouts))
