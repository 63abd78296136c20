"""Labels of a dynamic programme: what a decision adds to them, which columns still matter, which labels are worth keeping.

A label is a row of numbers, each the better the smaller:

    value     the additive part of what is minimised
    peak      the largest load that is certain by now
    limited   each limited cost, the bytes held on each limited tier and, where all of them are limited, on a tier and those after it
    loads     of the tiers, the links up and the links down, if the peak matters
    paid      for each link and direction with latency, minus the largest reach that has paid for it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from partitioners.arrays import Arrays, Bools, Floats, Ints
from partitioners.cost import ROUNDING
from partitioners.objective import ADDITIVE, FIELDS, Objective
from partitioners.placement import Direction
from partitioners.prices import Prices

VALUE, PEAK = 0, 1
CHUNK = 256  # labels compared with each other at once; 256 x 256 booleans stay in the processor's cache
EARLIER = np.triu(np.ones((CHUNK, CHUNK), dtype=bool), 1)


def memory_of(tier: str) -> str:
    """Name the bytes that a tier holds, as a cost."""
    return f"memory_bytes of tier {tier!r}"


class Columns:
    """The columns of the labels for one objective under some limits.

    A label is a linear image of a bill: additive costs | bytes held per tier | loads of tiers, links up, links down.
    """

    def __init__(self, a: Arrays, weights: Mapping[str, float], limits: Mapping[str, float]) -> None:
        """Costs by their field in an answer, and `memory_of` tiers."""
        self.a, k = a, a.tiers
        self._prices = [Prices(a, Objective({name: 1.0})) for name in ADDITIVE]
        costs = [*(FIELDS[name] for name in ADDITIVE), *(memory_of(tier.name) for tier in a.problem.tiers)]
        # Where a bill has what; load of tier i, of link j up, of link j down.
        self._memory, self._load, self._up, self._down = (len(ADDITIVE) + offset for offset in (0, k, 2 * k, 3 * k - 1))
        bill = self._down + k - 1
        # Where a label has what.
        limited = [name for name in costs if name in limits]
        # Where all tiers from the j-th on are limited, so is what they hold together: it shows early what cannot fit later.
        memory = [limits.get(memory_of(tier.name), np.inf) for tier in a.problem.tiers]
        shared = [j for j in range(k - 1) if np.isfinite(sum(memory[j:]))]
        self.interval, peaked = weights.get("interval_s", 0.0), "interval_s" in weights or "interval_s" in limits
        self.limited = slice(2, 2 + len(limited) + len(shared))
        self.loads = slice(self.limited.stop, self.limited.stop + (bill - self._load if peaked else 0))
        limit = [*(limits[name] for name in limited), *(sum(memory[j:]) for j in shared), limits.get("interval_s", np.inf)]
        self.limit = np.array(limit) * (1 + ROUNDING) + 1e-12
        """Of the limited columns, and of the peak."""
        latency = np.array([link.latency_s for link in a.problem.links])
        slow = np.flatnonzero(latency).tolist() if weights.get("latency_s") or "latency_s" in limits else []
        ends = self.loads.stop + len(slow), self.loads.stop + 2 * len(slow)
        self.paid: dict[Direction, dict[int, int]] = {
            "up": dict(zip(slow, range(self.loads.stop, ends[0]), strict=True)),
            "down": dict(zip(slow, range(*ends), strict=True)),
        }
        self.width = ends[1]
        self._image = np.zeros((bill, self.width))
        self._image[: len(costs), VALUE] = [weights.get(name, 0.0) for name in costs]
        self._image[[costs.index(name) for name in limited], range(2, 2 + len(limited))] = 1.0
        for column, j in enumerate(shared, 2 + len(limited)):
            self._image[self._memory + j : self._memory + k, column] = 1.0
        if peaked:
            self._image[self._load :, self.loads] = np.eye(bill - self._load)
        self.latency = latency[:, None] * self._image[ADDITIVE.index("latency")]
        """(k-1, width) of a link that is used."""

    def total(self, labels: Floats) -> Floats:
        """(labels,) what is minimised, once all loads are in the peak."""
        return np.asarray(labels[:, VALUE] + self.interval * labels[:, PEAK])

    def ops(self) -> Floats:
        """(n, k, width) each op on each tier, with its results on the way back."""
        a = self.a
        bills = np.zeros((len(a.low), a.tiers, len(self._image)))
        bills[:, :, : len(ADDITIVE)] = np.stack([prices.stay for prices in self._prices], axis=2)
        for i in range(a.tiers):
            bills[:, i, self._memory + i] = a.memory_bytes
            bills[:, i, self._load + i] = a.seconds[:, i]
            for j, link in enumerate(a.problem.links[:i]):
                bills[:, i, self._down + j] = a.returned_bytes / link.back_bytes_per_s
        return np.asarray(bills @ self._image)

    def hop(self, start: int, stops: Sequence[int]) -> Floats:
        """(C, width) each codec: encoded at `start`, carried up, decoded at `stops`."""
        a = self.a
        bills = np.zeros((len(a.nbytes), len(self._image)))
        bills[:, : len(ADDITIVE)] = np.stack([prices.hop(start, stops) for prices in self._prices], axis=1)
        bills[:, self._load + start] = a.encode_s[:, start]
        for i in stops:
            bills[:, self._load + i] = a.decode_s[:, i]
        for j in range(start, max(stops)):
            bills[:, self._up + j] = a.nbytes / a.problem.links[j].bytes_per_s
        return np.asarray(bills @ self._image)

    def pay_latency(self, labels: Floats, direction: Direction, used: Bools, reach: float) -> None:
        """Charge, in place, the links `used` (labels, k-1) by something of this reach for what nobody has paid yet."""
        for j, column in self.paid[direction].items():
            more = np.where(used[:, j], np.maximum(reach + labels[:, column], 0.0), 0.0)
            labels[:, column] -= more
            labels += more[:, None] * self.latency[j]

    def settle(self, labels: Floats, must: Floats, may: Floats) -> Bools:
        """Forget, in place, what can no longer matter; returns which labels can still keep the limits.

        `must` and `may` bound what is still to be added, from below and above. A limited cost that cannot reach its
        limit any more becomes zero, and so does a load that cannot exceed the peak any more: labels that differ in
        nothing else merge.
        """
        least, most = labels + must, labels + may
        labels[:, PEAK] = np.maximum(labels[:, PEAK], least[:, self.loads].max(axis=1, initial=0.0))
        labels[:, self.loads][most[:, self.loads] <= labels[:, [PEAK]]] = 0.0
        labels[:, self.limited][most[:, self.limited] <= self.limit[:-1]] = 0.0
        return np.asarray((np.hstack([least[:, self.limited], labels[:, [PEAK]]]) <= self.limit).all(axis=1))


def undominated(keys: Ints, labels: Floats) -> Ints:
    """Return the labels, sorted by key, that no other one of the same key matches or beats in every column.

    O(labels x those returned per key x columns), a chunk at a time.
    """
    differing = [VALUE, *(1 + np.flatnonzero((labels[:, 1:] != labels[:1, 1:]).any(axis=0))).tolist()]
    order = np.lexsort((*labels.T[differing[::-1]], keys))
    keys = keys[order]
    if differing == [VALUE]:
        return order[np.flatnonzero(np.diff(keys, prepend=-1))]
    # What beats a label comes before it, and its value is no larger.
    rows = labels[order].T[differing[1:]]

    def beaten(by: Ints, which: Ints) -> Bools:
        beats: Bools = np.equal.outer(keys[by], keys[which])
        for row in rows:
            np.logical_and(beats, np.less_equal.outer(row[by], row[which]), out=beats)
        return beats

    front = np.zeros(0, dtype=np.int64)
    found = [front]
    for start in range(0, len(order), CHUNK):
        chunk = np.arange(start, min(start + CHUNK, len(order)))
        front = front[keys[front] == keys[start]]
        if len(front):
            chunk = chunk[~beaten(front, chunk).any(axis=0)]
        chunk = chunk[~(beaten(chunk, chunk) & EARLIER[: len(chunk), : len(chunk)]).any(axis=0)]
        front = np.concatenate([front, chunk])
        found.append(chunk)
    return order[np.concatenate(found)]
