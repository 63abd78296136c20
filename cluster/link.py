"""Links that carry whole packets one after the other.

`Link` is pure arithmetic on the times it is given, so a simulator and a real sender share it. `PacedPath` and
`PacedLink` add a clock: they hold each packet back until the declared link would have delivered it, and say so when
the machine is too slow or too busy to keep that schedule.
"""

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.clock import Clock
from cluster.traces import Trace
from cluster.units import format_bandwidth, format_bytes, format_seconds

_log = logging.getLogger(__name__)

# asyncio timers of an idle machine wake within a millisecond; a packet is late beyond that or beyond 5 % of its own
# time on the wire, whichever is more, so that long packets may be late by what nobody would notice in a result.
_LATE_S = 0.001
_LATE_SHARE = 0.05
_SEGMENT_NBYTES = 1460  # what one TCP segment carries over Ethernet: the unit that is lost


class Link:
    """One direction of a link: a serial resource (first come, first served) and then a latency.

    A packet starts when the wire is free, departs when its last byte has left, arrives one latency later; while it is
    in flight the wire serves the next one. A packet of zero bytes keeps its place in the queue and costs the latency
    only. At 1 byte/s and 2 s of latency, with A = reserve(0, 3), B = reserve(1, 2), C = reserve(7, 1)::

        seconds  0 1 2 3 4 5 6 7 8 9
        queue    . B B . . . . . . .
        wire     A A A B B . . C . .
        flight   . . . A A B B . C C

    *Jitter* moves each arrival by up to `jitter_s` either way, uniformly, as netem does; the mean stays `latency_s`. But
    packets stay in order, as in one connection: none arrives before the one sent ahead of it. *Loss* delays: a packet is
    ceil(nbytes / 1460) segments, each lost with probability `loss` at every attempt; the wire carries the lost ones too,
    nbytes / (1 - loss) in the mean, and each round of repair takes one round trip. A *trace* gives the rate at each time.

    Not safe for use from several threads.
    """

    def __init__(
        self,
        bytes_per_s: float,
        latency_s: float = 0.0,
        *,
        jitter_s: float = 0.0,
        loss: float = 0.0,
        trace: Trace | None = None,
        seed: int = 0,
    ) -> None:
        """`trace` takes the place of `bytes_per_s`, which stays the declared rate. Equal seeds draw equal jitter and losses.

        Raises ValueError unless the rate is positive and finite, the latency finite and not negative, the jitter at most
        the latency, and the loss at least 0 and below 1.
        """
        if not (math.isfinite(bytes_per_s) and bytes_per_s > 0):
            raise ValueError(f"bytes_per_s is {bytes_per_s}; a link needs a positive, finite rate")
        if not (math.isfinite(latency_s) and latency_s >= 0):
            raise ValueError(f"latency_s is {latency_s}; a latency is finite and not negative")
        if not 0 <= jitter_s <= latency_s:
            raise ValueError(f"jitter_s is {jitter_s}; a jitter is at least 0 and at most the latency, here {latency_s}")
        if not 0 <= loss < 1:
            raise ValueError(f"loss is {loss}; a loss is a share of 0 or more and below 1")
        self.bytes_per_s = float(bytes_per_s)
        self.latency_s = float(latency_s)
        self.jitter_s = float(jitter_s)
        self.loss = float(loss)
        self.trace = trace
        self.free_at_s = -math.inf
        """When the wire has sent all it has accepted."""
        self._arrived_s = -math.inf
        self._random = random.Random(seed) if jitter_s or loss else None  # noqa: S311 - a simulation, no secret

    def __repr__(self) -> str:
        """Rate and latency, in the units people use."""
        traced = ", traced" if self.trace else ""
        varied = (f", jitter {format_seconds(self.jitter_s)}" if self.jitter_s else "") + (f", loss {self.loss:.3g}" if self.loss else "")
        return f"Link({format_bandwidth(self.bytes_per_s)}{traced}, {format_seconds(self.latency_s)}{varied})"

    def starts_s(self, now_s: float) -> float:
        """When a packet that is ready at `now_s` would get the wire."""
        return max(now_s, self.free_at_s)

    def reserve(self, now_s: float, nbytes: float) -> tuple[float, float]:
        """(departs_s, arrives_s) of a packet of `nbytes` that is ready at `now_s`; the wire is taken until it departs.

        Raises ValueError for a time that is not finite or a negative size.
        """
        if not math.isfinite(now_s):
            raise ValueError(f"now_s is {now_s}; the time must be finite")
        _check_size(nbytes)
        starts_s = max(now_s, self.free_at_s)
        carried = nbytes / (1 - self.loss)
        departs_s = starts_s + carried / self.bytes_per_s if self.trace is None else self.trace.departs_s(starts_s, carried)
        self.free_at_s = departs_s
        if self._random is None:
            return departs_s, departs_s + self.latency_s
        arrives_s = departs_s + self.latency_s + self._varied_s(nbytes, self._random)
        self._arrived_s = max(self._arrived_s, arrives_s)
        return departs_s, self._arrived_s

    def _varied_s(self, nbytes: float, chance: random.Random) -> float:
        """Jitter, and one round trip for each round of repair: as many as the unluckiest of the segments needs."""
        jitter_s = chance.uniform(-self.jitter_s, self.jitter_s)
        if not self.loss:
            return jitter_s
        segments = max(1, math.ceil(nbytes / _SEGMENT_NBYTES))
        # P(at most r rounds) = (1 - loss^(r + 1))^segments, inverted.
        lost = -math.expm1(math.log1p(-chance.random()) / segments)
        rounds = max(0, math.ceil(math.log(lost) / math.log(self.loss)) - 1) if lost > 0 else 0
        return jitter_s + rounds * 2 * self.latency_s


@dataclass(frozen=True)
class Delivery:
    """Where the time of one packet went; the three parts add up to the time that `send` took."""

    queued_s: float
    """Waiting for wires to become free."""
    wire_s: float
    """Declared time on the wires and in flight."""
    late_s: float
    """How much later than declared the sender woke: what the emulation added by itself."""


class PacedPath:
    """Links in a row with store and forward: a packet enters a link when it has arrived whole from the one before.

    Paths of one event loop may share a link. It is reserved only when the packet is there, so nobody waits behind a
    packet that is still on its way; the *declared* arrival counts as the time the packet is ready, so waking late on
    one link does not delay the next.
    """

    def __init__(self, links: Sequence[Link], clock: Clock, name: str = "link") -> None:
        """No links at all means one machine: every packet arrives at once."""
        self.links = tuple(links)
        self.clock = clock
        self.name = name
        self.packets = 0
        self.nbytes = 0
        self.late_packets = 0
        """Packets later than the larger of 1 ms and 5 % of their time on the wire."""
        self.worst_late_s = 0.0
        self.wire_s = 0.0
        """Declared time on the wire, summed over packets."""
        self.late_s = 0.0
        """Lateness, summed over packets."""

    async def send(self, nbytes: int) -> Delivery:
        """Return when a packet of `nbytes` has arrived; raises ValueError for a negative size."""
        _check_size(nbytes)
        ready_s = self.clock.now_s()
        queued_s = wire_s = 0.0
        for link in self.links:
            starts_s = link.starts_s(ready_s)
            _, arrives_s = link.reserve(ready_s, nbytes)
            queued_s += starts_s - ready_s
            wire_s += arrives_s - starts_s
            ready_s = arrives_s
            await self.clock.sleep_until(arrives_s)
        late_s = max(0.0, self.clock.now_s() - ready_s) if self.links else 0.0
        delivery = Delivery(queued_s, wire_s, late_s)
        self._count(nbytes, delivery)
        return delivery

    def report(self) -> str:
        """One sentence: whether the path kept its declared rate, and by how much not."""
        if not self.packets:
            return f"{self.name}: no packets sent."
        sent = f"{self.packets} packet{'s' * (self.packets > 1)}, {format_bytes(self.nbytes)}"
        worst = f"the worst by {format_seconds(self.worst_late_s, 3)}"
        if not self.late_packets:
            return f"{self.name}: kept its declared rate over {sent} ({worst})."
        longer = f", {100 * self.late_s / self.wire_s:.1f} % over the declared time in all" if self.wire_s else ""
        return f"{self.name}: did not keep its declared rate: {self.late_packets} of {sent} late, {worst}{longer}."

    def _count(self, nbytes: int, delivery: Delivery) -> None:
        self.packets += 1
        self.nbytes += nbytes
        self.wire_s += delivery.wire_s
        self.late_s += delivery.late_s
        self.worst_late_s = max(self.worst_late_s, delivery.late_s)
        if delivery.late_s <= max(_LATE_S, _LATE_SHARE * delivery.wire_s):
            return
        self.late_packets += 1
        if self.late_packets == 1:  # once: a machine that is too slow would fill the log otherwise
            _log.warning(
                "%s cannot keep its declared rate: a packet of %s is %s late on %s of declared time. "
                "Free the machine of other work, or declare a slower link.",
                self.name,
                format_bytes(nbytes),
                format_seconds(delivery.late_s, 3),
                format_seconds(delivery.wire_s, 3),
            )


class PacedLink(PacedPath):
    """One link with a clock: see PacedPath."""

    def __init__(self, link: Link, clock: Clock, name: str = "link") -> None:
        """`name` stands for the link in the log and in `report`."""
        super().__init__((link,), clock, name)
        self.link = link


def _check_size(nbytes: float) -> None:
    if nbytes < 0:
        raise ValueError(f"nbytes is {nbytes}; a packet has zero bytes or more")
