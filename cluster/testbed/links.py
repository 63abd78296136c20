"""Links between two namespaces: laid, shaped, counted, cut and restored.

Three ways to shape one, of which the first that fits is taken:

- ``netem``, where the kernel has it: a veth pair, rate and delay at both ends;
- ``relay``: a pair of TUN devices and a process between them (relay.py), exact per packet up to some 400 Mbit/s;
- ``tbf``, for links above `RELAY_FASTEST` without latency: a veth pair with a token bucket at both ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ClusterError
from cluster.testbed.namespaces import tool, within
from cluster.testbed.relay import Page
from cluster.topology import LinkSpec

RELAY_FASTEST = 250e6 / 8
"""Bytes per second up to which the relay is preferred: it was measured to carry 90 % of half as much again."""

SHAPINGS = ("netem", "relay", "tbf")
_FASTEST = 12.5e9  # bytes per second: more than any pair of virtual interfaces carries, and what tc can still express
_MTU = 1500
_BUCKET_S = 0.001  # a bucket holds what the link sends in a millisecond, two packets at least
_QUEUE_PACKETS = 10_000
# A program of one instruction, "return 2", which tc takes as: drop. Lost without a sign, as on a cable that was pulled.
_DROP_ALL = "1,6 0 0 2"


@dataclass(frozen=True)
class End:
    """An interface in a namespace."""

    namespace: str
    device: str

    def sent_nbytes(self) -> int:
        """Bytes that the interface has sent: what ``/sys/class/net/DEVICE/statistics/tx_bytes`` holds there."""
        (link,) = json.loads(tool("ip", "-n", self.namespace, "-s", "-json", "link", "show", "dev", self.device))
        return int(link["stats64"]["tx"]["bytes"])


@dataclass(frozen=True)
class Wire:
    """One link of the topology."""

    between: tuple[str, str]
    """Names of the lower and the higher tier."""
    lower: End
    upper: End
    shaping: str
    """One of SHAPINGS."""
    page: Path
    """File of the rates in force (`Page`)."""

    def lay(self, spec: LinkSpec) -> subprocess.Popen[str] | None:
        """Create both interfaces with the declared rates; the relay's process where there is one. Raises ClusterError."""
        page = Page.create(self.page, spec.up_bytes_per_s, spec.down_bytes_per_s, spec.latency_s)
        if self.shaping == "relay":
            process = self._start_relay()
        else:
            process = None
            tool("ip", "-n", self.lower.namespace, "link", "add", "name", self.lower.device, "mtu", str(_MTU), "type", "veth",
                 "peer", "name", self.upper.device, "netns", self.upper.namespace)  # fmt: skip
        # netem serialises a burst of segments that travels as one in one go; the bucket and the TUN device take it apart.
        single = ["gso_max_segs", "1"] if self.shaping == "netem" and _slow(spec) else []
        for end in (self.lower, self.upper):
            tool("ip", "-n", end.namespace, "link", "set", "dev", end.device, "txqueuelen", "1000", *single, "up")
        self._shape(page.rates)
        return process

    @property
    def rates(self) -> tuple[float, float, float]:
        """Bytes per second up and down, and the one-way latency in seconds, in force now."""
        return Page(self.page).rates

    def set_rates(self, values: tuple[float, float, float]) -> None:
        """Put other rates in force."""
        Page(self.page).rates = values
        self._shape(values)

    @property
    def worst_late_s(self) -> float:
        """How late the relay was at worst since this was last reset; 0 where the kernel shapes."""
        return Page(self.page).worst_late_s

    def reset_lateness(self) -> None:
        """Forget how late the relay was."""
        Page(self.page).worst_late_s = 0.0

    def cut(self) -> None:
        """Drop everything that either end would send from now on; what is under way still arrives."""
        for end in (self.lower, self.upper):
            with contextlib.suppress(ClusterError):  # it is cut already
                tool("tc", "-n", end.namespace, "qdisc", "add", "dev", end.device, "clsact")
            tool("tc", "-n", end.namespace, "filter", "replace", "dev", end.device, "egress", "pref", "1", "handle", "1",
                 "bpf", "direct-action", "bytecode", _DROP_ALL)  # fmt: skip

    def restore(self) -> None:
        """End a cut; nothing happens where there is none."""
        for end in (self.lower, self.upper):
            with contextlib.suppress(ClusterError):
                tool("tc", "-n", end.namespace, "qdisc", "del", "dev", end.device, "clsact")

    def _shape(self, rates: tuple[float, float, float]) -> None:
        if self.shaping == "relay":
            return  # it reads the page itself
        up_bytes_per_s, down_bytes_per_s, latency_s = rates
        for end, bytes_per_s in ((self.lower, up_bytes_per_s), (self.upper, down_bytes_per_s)):
            bytes_per_s = min(bytes_per_s, _FASTEST)
            tool("tc", "-n", end.namespace, "qdisc", "replace", "dev", end.device, "root", *_qdisc(self.shaping, bytes_per_s, latency_s))

    def _start_relay(self) -> subprocess.Popen[str]:
        arguments = [self.upper.namespace, self.lower.device, self.upper.device, str(self.page)]
        # In the lower tier's namespace from its first instruction, so that whoever ends that namespace finds it.
        command = within(self.lower.namespace, [sys.executable, "-m", "cluster.testbed", *arguments])
        process = subprocess.Popen(  # noqa: S603 - ours
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            complaint = (process.communicate()[1] or "it ended").strip().splitlines()[-1]
            raise ClusterError(f"the relay of link {' - '.join(self.between)} did not start: {complaint}")
        return process


def shaping_of(spec: LinkSpec, netem: bool) -> str:
    """How a link is shaped, given whether the kernel has netem."""
    if netem:
        return "netem"
    return "relay" if _slow(spec) or spec.latency_s else "tbf"


def _slow(spec: LinkSpec) -> bool:
    return min(spec.up_bytes_per_s, spec.down_bytes_per_s) <= RELAY_FASTEST


def has_netem(namespace: str) -> bool:
    """Whether the kernel can delay packets; tried on the namespace's loopback."""
    try:
        tool("tc", "-n", namespace, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
    except ClusterError:
        return False
    tool("tc", "-n", namespace, "qdisc", "del", "dev", "lo", "root")
    return True


def _qdisc(shaping: str, bytes_per_s: float, latency_s: float) -> list[str]:
    rate = f"{max(8, round(8 * bytes_per_s))}bit"
    if shaping == "netem":
        return ["netem", "delay", f"{round(latency_s * 1e6)}us", "rate", rate, "limit", str(_QUEUE_PACKETS)]
    bucket = max(2 * (_MTU + 14), round(bytes_per_s * _BUCKET_S))
    return ["tbf", "rate", rate, "burst", str(bucket), "limit", str(bucket + round(bytes_per_s))]
