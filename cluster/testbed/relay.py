"""A link in user space: IP packets from one TUN device to another, held back as the declared link would.

    python -m cluster.testbed NAMESPACE DEVICE DEVICE PAGE

runs inside the lower tier's namespace, and creates the first device there, the second in NAMESPACE. Each direction is a
`cluster.link.Link`, so each packet is serialised at the rate and then delayed, which a token bucket does not do: it lets
a bucket's worth pass at once, and on 1 Mbit/s one packet of 1500 bytes is 12 ms.

The rates lie in a page that this process maps (`Page`), so that they can be changed while packets flow.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import struct
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

from cluster.link import Link
from cluster.testbed.namespaces import entered

QUEUE_NBYTES = 1_500_000
"""What finds as much as this waiting is dropped: a thousand full packets, as Linux lets wait before an interface."""

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_BURST = 64  # packets read in one go: few enough that nobody in the other direction waits a millisecond
_PRIORITY = 10


class Page:
    """Four numbers in a file that two processes map: bytes per second up and down, latency, and how late the relay was."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._numbers = memoryview(mmap.mmap(file.fileno(), 32)).cast("d")

    @staticmethod
    def create(path: Path, up_bytes_per_s: float, down_bytes_per_s: float, latency_s: float) -> Page:
        """A new page."""
        path.write_bytes(struct.pack("4d", up_bytes_per_s, down_bytes_per_s, latency_s, 0.0))
        return Page(path)

    @property
    def rates(self) -> tuple[float, float, float]:
        """Bytes per second up and down, one-way latency in seconds."""
        return self._numbers[0], self._numbers[1], self._numbers[2]

    @rates.setter
    def rates(self, values: tuple[float, float, float]) -> None:
        self._numbers[0], self._numbers[1], self._numbers[2] = values

    @property
    def worst_late_s(self) -> float:
        """The latest that a packet was delivered after its declared time since this was last set."""
        return self._numbers[3]

    @worst_late_s.setter
    def worst_late_s(self, value: float) -> None:
        self._numbers[3] = value


class Direction(NamedTuple):
    """One way across."""

    source: int
    target: int
    up: bool
    link: Link
    flying: deque[tuple[float, bytes]]
    """When each packet arrives, and the packet."""


def carry(lower: int, upper: int, page: Page) -> None:
    """Carry packets between two non-blocking descriptors, for ever."""
    directions = [Direction(source, target, up, Link(1.0), deque()) for source, target, up in ((lower, upper, True), (upper, lower, False))]
    while True:
        timeout_s = _deliver(directions, page)
        ready, _, _ = select.select([lower, upper], (), (), timeout_s)
        for way in directions:
            if way.source in ready:
                _accept(way, page)


def _deliver(directions: list[Direction], page: Page) -> float | None:
    """Hand over what is due; seconds until the next packet is, None where none flies."""
    due_s: list[float] = []
    for way in directions:
        while way.flying and way.flying[0][0] <= (now_s := time.monotonic()):
            arrives_s, packet = way.flying.popleft()
            with contextlib.suppress(OSError):  # the other end is down or its queue full: lost, as on a wire
                os.write(way.target, packet)
            page.worst_late_s = max(page.worst_late_s, now_s - arrives_s)
        if way.flying:
            due_s.append(way.flying[0][0])
    return max(0.0, min(due_s) - time.monotonic()) if due_s else None


def _accept(way: Direction, page: Page) -> None:
    up_bytes_per_s, down_bytes_per_s, way.link.latency_s = page.rates
    way.link.bytes_per_s = up_bytes_per_s if way.up else down_bytes_per_s
    now_s = time.monotonic()
    with contextlib.suppress(OSError):  # no more packets for now, or the device is down
        for _ in range(_BURST):
            packet = os.read(way.source, 65536)
            if (way.link.starts_s(now_s) - now_s) * way.link.bytes_per_s < QUEUE_NBYTES:
                way.flying.append((way.link.reserve(now_s, len(packet))[1], packet))


def _tun(device: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


def main(namespace: str, lower_device: str, upper_device: str, page: str) -> None:
    """Create both ends, say so, and carry."""
    lower = _tun(lower_device)
    with entered(namespace):
        upper = _tun(upper_device)
    with contextlib.suppress(OSError):  # to wake on time beside processes that compute; without it a little later
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    print("ready", flush=True)
    carry(lower, upper, Page(Path(page)))
