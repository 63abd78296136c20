"""What ops, tensors and links cost under an objective, as arrays: the numbers that cuts and programs are built of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from partitioners.arrays import Arrays, Floats, Ints
from partitioners.objective import Objective


@dataclass(frozen=True)
class Rates:
    """Prices on top of an objective's: for a second of load, and for a byte held."""

    tier: Floats
    """(k,) ops, encoding and decoding."""
    up: Floats
    """(k-1,) wire."""
    down: Floats
    """(k-1,) wire."""
    memory: Floats
    """(k,)"""


class Prices:
    """What the ops, tensors and links of a problem cost under the additive part of an objective."""

    def __init__(self, a: Arrays, objective: Objective, extra: Rates | None = None) -> None:
        self.a = a
        tiers, links = a.problem.tiers, a.problem.links
        latency, energy, money = (objective.weight(name) for name in ("latency", "energy", "money"))
        # A second of work on a tier, a byte on a link.
        none = np.zeros(a.tiers)
        extra = extra or Rates(none, none[1:], none[1:], none)
        aside = np.array([energy * tier.watts + money * tier.price_per_s for tier in tiers]) + extra.tier
        busy = aside + latency  # `aside` remains where `transfer_s` has the latency in it
        byte = np.array([energy * link.joules_per_byte + money * link.price_per_byte for link in links])
        loaded = byte + extra.up * np.array([1 / link.bytes_per_s for link in links])
        up = loaded + latency * np.array([1 / link.bytes_per_s for link in links])
        down = byte + (latency + extra.down) * np.array([1 / link.back_bytes_per_s for link in links])
        overlapped = ~np.isnan(a.transfer_s).any(axis=1, keepdims=True) & bool(links)
        error = objective.weight("error") * a.error[:, None]
        self.latency = latency * np.array([link.latency_s for link in links])
        """(k-1,)"""
        self.stay = a.seconds * busy + a.memory_bytes[:, None] * extra.memory + a.returned_bytes[:, None] * np.cumsum([0.0, *down])
        """(n, k) the op itself, and the bytes of its results on the way back."""
        self.up = np.where(overlapped, a.nbytes[:, None] * loaded + latency * a.transfer_s, a.nbytes[:, None] * up)
        """(C, k-1)"""
        self.down = a.nbytes[:, None] * down
        """(C, k-1)"""
        self.encode_up = a.encode_s * np.where(overlapped, aside, busy) + error
        """(C, k) where the hop goes up, and perhaps down as well; the price of its error is in it."""
        self.encode_down = a.encode_s * busy + error
        """(C, k) where the hop goes down only."""
        self.decode_up = a.decode_s * np.where(overlapped, aside, busy)
        """(C, k) on a tier above the start."""
        self.decode_down = a.decode_s * busy
        """(C, k) on a tier below the start."""

    def hop(self, start: int, stops: Sequence[int]) -> Floats:
        """(C,) encode at `start`, carry to the furthest stop each way, decode at every stop."""
        up, down = [i for i in stops if i > start], [i for i in stops if i < start]
        total = (self.encode_up if up else self.encode_down)[:, start]
        total = total + self.decode_up[:, up].sum(axis=1) + self.decode_down[:, down].sum(axis=1)
        return np.asarray(total + self.up[:, start : max(stops)].sum(axis=1) + self.down[:, min(stops) : start].sum(axis=1))

    def value(self, tier: Ints) -> float:
        """Price of a placement with the best codecs: what `cost.evaluate` says, from arrays."""
        total = float(self.stay[np.arange(len(tier)), tier].sum())
        for start, stops, tensors in self.a.travels(tier):
            total += float(self.a.cheapest(self.hop(start, stops))[tensors].sum())
        return total + float(self.latency @ self.a.usage(tier).sum(axis=0))
