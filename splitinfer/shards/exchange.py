"""What workers send one another between two computations, and how a worker puts together what comes: plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from splitinfer.errors import ShardError

HOW = ("concatenate", "sum")


def cut(tensor: Tensor, dim: int | None, start: int, stop: int) -> Tensor:
    """A slice along `dim`, in memory of its own; everything where `dim` is None."""
    return tensor if dim is None else tensor.narrow(dim, start, stop - start).contiguous()


@dataclass(frozen=True)
class Piece:
    """What a worker gets of one input of its block."""

    tensor: str
    dim: int | None = None
    """None: all of it."""
    start: int = 0
    stop: int = 0

    def of(self, tensor: Tensor) -> Tensor:
        """The piece of a whole tensor."""
        return cut(tensor, self.dim, self.start, self.stop)


@dataclass(frozen=True)
class Send:
    """A slice of an own tensor goes to a peer, under the name of what the peer makes of it."""

    peer: int
    tensor: str
    name: str
    dim: int | None = None
    start: int = 0
    stop: int = 0


@dataclass(frozen=True)
class Part:
    """A slice of an own tensor, or what a peer sent under this name."""

    source: int
    tensor: str
    dim: int | None = None
    start: int = 0
    stop: int = 0


@dataclass(frozen=True)
class Combine:
    """A new tensor made of parts, in the order of the workers, so that every worker gets the same bits."""

    tensor: str
    how: str
    """``concatenate`` or ``sum``."""
    dim: int
    blocks: int
    """Blocks of `dim` that are concatenated one by one; 1 but for tensors that hold several quantities side by side."""
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.how not in HOW or self.blocks < 1 or not self.parts:
            raise ShardError(f"'{self.tensor}' is combined by '{self.how}' of {len(self.parts)} parts in {self.blocks} blocks: not a rule")

    def apply(self, parts: list[Tensor]) -> Tensor:
        """The tensor."""
        if len(parts) == 1:
            return parts[0]
        if self.how == "sum":
            total = parts[0] + parts[1]
            for part in parts[2:]:
                total += part
            return total
        if self.blocks == 1:
            return torch.cat(parts, self.dim)
        wide = [torch.unflatten(part, self.dim, (self.blocks, -1)) for part in parts]
        return torch.cat(wide, self.dim + 1).flatten(self.dim, self.dim + 1)


@dataclass(frozen=True)
class Exchange:
    """One round of messages, as one worker sees it."""

    worker: int
    sends: tuple[Send, ...] = ()
    combines: tuple[Combine, ...] = ()

    @property
    def awaits(self) -> dict[int, tuple[str, ...]]:
        """Peer -> names of the tensors that must have come from it."""
        found: dict[int, dict[str, None]] = {}
        for combine in self.combines:
            for part in combine.parts:
                if part.source != self.worker:
                    found.setdefault(part.source, {})[part.tensor] = None
        return {peer: tuple(names) for peer, names in sorted(found.items())}

    def outgoing(self, tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
        """The messages, by peer and name."""
        messages: dict[int, dict[str, Tensor]] = {}
        for send in self.sends:
            messages.setdefault(send.peer, {})[send.name] = cut(tensors[send.tensor], send.dim, send.start, send.stop)
        return messages

    def combined(self, tensors: Mapping[str, Tensor], incoming: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The new tensors. Raises ShardError for a message that did not come."""
        made = {}
        for combine in self.combines:
            parts = [self._part(part, tensors, incoming) for part in combine.parts]
            made[combine.tensor] = combine.apply(parts)
        return made

    def _part(self, part: Part, tensors: Mapping[str, Tensor], incoming: Mapping[int, Mapping[str, Tensor]]) -> Tensor:
        if part.source == self.worker:
            return cut(tensors[part.tensor], part.dim, part.start, part.stop)
        try:
            return incoming[part.source][part.tensor]
        except KeyError:
            raise ShardError(f"worker {self.worker} waits for '{part.tensor}' of worker {part.source}; it did not come") from None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Exchange:
        """Raises ShardError for anything that `to_dict` did not write."""
        try:
            sends = tuple(Send(**_slice(send, "peer", "name")) for send in _rows(data, "sends"))
            combines = tuple(
                Combine(
                    str(row["tensor"]), str(row["how"]), int(row["dim"]), int(row["blocks"]),
                    tuple(Part(**_slice(part, "source")) for part in _rows(row, "parts")),
                )
                for row in _rows(data, "combines")
            )  # fmt: skip
            return Exchange(int(data["worker"]), sends, combines)
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"malformed exchange: {type(error).__name__}: {error}") from error


def _rows(data: Mapping[str, Any], key: str) -> Iterable[Mapping[str, Any]]:
    rows = data[key]
    if not isinstance(rows, list | tuple):
        raise TypeError(f"'{key}' is {type(rows).__name__}, not a list")
    return rows


def _slice(row: Mapping[str, Any], peer: str, *names: str) -> dict[str, Any]:
    dim, start, stop = row["dim"], int(row["start"]), int(row["stop"])
    if set(row) != {peer, "tensor", "dim", "start", "stop", *names} or not (dim is None or int(dim) >= 0) or not 0 <= start <= stop:
        raise ValueError(f"{dict(row)} is no slice of a tensor")
    texts = {name: str(row[name]) for name in ("tensor", *names)}
    return {peer: int(row[peer]), **texts, "dim": None if dim is None else int(dim), "start": start, "stop": stop}
