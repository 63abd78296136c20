"""The hops in which a tensor travels between tiers, and what each costs with one codec."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from partitioners.problem import Codec, Problem


def hops(problem: Problem, home: int, users: Iterable[int]) -> list[tuple[int, tuple[int, ...]]]:
    """How a tensor travels from its producer's tier to those of its users: (where it is encoded, where decoded).

    Relay "transcode": one hop a link. "forward": one hop in all.
    """
    stops = tuple(sorted(set(users) - {home}))
    if problem.relay == "forward":
        return [(home, stops)] if stops else []
    top, bottom = max((home, *stops)), min((home, *stops))
    up: list[tuple[int, tuple[int, ...]]] = [(j, (j + 1,)) for j in range(home, top)]
    return up + [(j, (j - 1,)) for j in range(home, bottom, -1)]


@dataclass(frozen=True)
class Price:
    """Of one hop with one codec, `reach` not applied."""

    encode_s: float
    up_s: float
    """Wire."""
    down_s: float
    decode_s: float
    transfer_s: float | None
    """Instead of encoding, wire up and decoding above, in latency."""
    decode_down_s: float
    """The part of `decode_s` on tiers below the start."""
    energy_j: float
    money: float

    @property
    def latency_s(self) -> float:
        """Without the latency of links."""
        if self.transfer_s is None:
            return self.encode_s + self.up_s + self.down_s + self.decode_s
        return self.transfer_s + self.down_s + self.decode_down_s


def price(problem: Problem, codec: Codec, start: int, stops: Sequence[int]) -> Price:
    """Price a hop: encoded at `start`, carried to the furthest stop each way, decoded at each stop."""
    zeros = (0.0,) * len(problem.tiers)
    encode, decode = codec.encode_s or zeros, codec.decode_s or zeros
    up, down = problem.links[start : max(stops)], problem.links[min(stops) : start]
    busy = [(start, encode[start]), *((i, decode[i]) for i in stops)]
    return Price(
        encode_s=encode[start],
        up_s=sum(codec.nbytes / link.bytes_per_s for link in up),
        down_s=sum(codec.nbytes / link.back_bytes_per_s for link in down),
        decode_s=sum(decode[i] for i in stops),
        transfer_s=sum(codec.transfer_s[start : max(stops)]) if codec.transfer_s and up else None,
        decode_down_s=sum(decode[i] for i in stops if i < start),
        energy_j=sum(problem.tiers[i].watts * s for i, s in busy) + sum(codec.nbytes * link.joules_per_byte for link in (*up, *down)),
        money=sum(problem.tiers[i].price_per_s * s for i, s in busy) + sum(codec.nbytes * link.price_per_byte for link in (*up, *down)),
    )
