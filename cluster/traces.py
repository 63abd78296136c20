"""Bandwidth over time, as measured somewhere: from a CSV of times and rates, or from a Mahimahi packet-delivery trace.

A `Trace` is a rate that changes in steps. What a link carries between two moments is the area under it, so when a packet
departs is found by two look-ups in the cumulated bytes::

    bytes/s   3 3 3 . . 6 6 6        rates 3, 0, 6 from seconds 0, 3, 5; ends at 8
    second    0 1 2 3 4 5 6 7        12 bytes ready at second 2 depart at 2 + 1 + 2 + 1.5 = 6.5
"""

import csv
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path

from cluster.errors import TraceError

_PACKET_NBYTES = 1500  # what one line of a Mahimahi trace delivers
_MILLISECOND = 0.001


@dataclass(frozen=True)
class Trace:
    """A rate in steps; it begins again when it ends, and runs before its start too, so that every moment has a rate.

    Raises TraceError unless times increase, rates are finite and not negative, and some rate is positive.
    """

    times_s: tuple[float, ...]
    """When each rate begins; the first is where the trace begins."""
    bytes_per_s: tuple[float, ...]
    ends_s: float
    """When the last rate ends, and the trace begins again."""
    origin_s: float = 0.0
    """The moment on the user's clock that is the trace's time 0."""
    _sums: tuple[float, ...] = field(init=False, repr=False, compare=False)
    """Bytes carried from the start to the beginning of each rate, and to the end."""

    def __post_init__(self) -> None:
        """Check, and add up."""
        edges = (*self.times_s, self.ends_s)
        if not self.times_s or len(self.times_s) != len(self.bytes_per_s):
            raise TraceError(f"a trace has one rate for each time; got {len(self.times_s)} times and {len(self.bytes_per_s)} rates")
        if not all(math.isfinite(edge) for edge in edges):
            raise TraceError("a trace has a time that is not finite")
        for row, (one, two) in enumerate(pairwise(edges), 1):
            if two <= one:
                raise TraceError(f"the times of a trace increase; row {row + 1} is at {two:g} s and follows {one:g} s")
        for row, rate in enumerate(self.bytes_per_s, 1):
            if not (math.isfinite(rate) and rate >= 0):
                raise TraceError(f"row {row} of a trace has the rate {rate:g} bytes/s; a rate is finite and not negative")
        if not any(self.bytes_per_s):
            raise TraceError("a trace has no rate above 0, so nothing would ever arrive; give at least one")
        carried = (rate * (two - one) for rate, (one, two) in zip(self.bytes_per_s, pairwise(edges), strict=True))
        object.__setattr__(self, "_sums", tuple(accumulate(carried, initial=0.0)))

    @property
    def mean_bytes_per_s(self) -> float:
        """Averaged over the whole trace."""
        return self._sums[-1] / self._length_s

    @property
    def _length_s(self) -> float:
        return self.ends_s - self.times_s[0]

    def rate_at(self, t_s: float) -> float:
        """Bytes per second at `t_s` of the user's clock."""
        return self.bytes_per_s[bisect_right(self.times_s, self._within(t_s)[1]) - 1]

    def departs_s(self, start_s: float, nbytes: float) -> float:
        """When the last of `nbytes` leaves, if the first may leave at `start_s`; O(log of the number of rates)."""
        if nbytes <= 0:
            return start_s
        round_, here = self._within(start_s)
        more, left = divmod(self._carried(here) + nbytes, self._sums[-1])
        if left == 0:  # at the end of a round rather than at the beginning of the next
            more, left = more - 1, self._sums[-1]
        place = bisect_left(self._sums, left) - 1
        reached = self.times_s[place] + (left - self._sums[place]) / self.bytes_per_s[place]
        return max(start_s, self.origin_s + (round_ + more) * self._length_s + reached)

    def _within(self, t_s: float) -> tuple[float, float]:
        """How many whole traces have passed at `t_s`, and the time within the present one."""
        rounds, rest = divmod(t_s - self.origin_s - self.times_s[0], self._length_s)
        return rounds, min(self.times_s[0] + rest, math.nextafter(self.ends_s, -math.inf))

    def _carried(self, t_s: float) -> float:
        place = bisect_right(self.times_s, t_s) - 1
        return self._sums[place] + (t_s - self.times_s[place]) * self.bytes_per_s[place]

    @staticmethod
    def of_rows(rows: Iterable[tuple[float, float]]) -> "Trace":
        """A trace from (time in s, bytes/s); the last rate lasts as long as the one before, a single one for a second."""
        pairs = list(rows)
        times = tuple(time for time, _ in pairs)
        last = times[-1] - times[-2] if len(times) > 1 else 1.0
        return Trace(times, tuple(rate for _, rate in pairs), (times[-1] if times else 0.0) + last)

    @staticmethod
    def from_csv(path: str | Path) -> "Trace":
        """A trace from a CSV file of time in seconds and bytes per second; a first line of names is passed over."""
        rows: list[tuple[float, float]] = []
        try:
            for number, row in enumerate(csv.reader(_lines(path)), 1):
                try:
                    rows.append((float(row[0]), float(row[1])))
                except (ValueError, IndexError):
                    if number > 1 and row:
                        raise TraceError(f"{path}:{number}: {','.join(row)!r:.80} is not a time in s and a rate in bytes/s") from None
        except csv.Error as error:
            raise TraceError(f"{path} is no CSV: {error}") from error
        if not rows:
            raise TraceError(f"{path} holds no row; write for example 0.0,250000 (seconds, bytes per second)")
        with _naming(path):
            return Trace.of_rows(rows)

    @staticmethod
    def from_mahimahi(path: str | Path) -> "Trace":
        """A trace from a packet-delivery file: each line a millisecond, counted from 0, at which 1500 bytes can be delivered.

        (Netravali et al.: Mahimahi, USENIX ATC 2015.) The 1500 bytes are spread over the millisecond that ends there,
        so that a message departs less than 1 ms earlier than there. As there, the trace repeats from its last millisecond.
        """
        delivered: dict[int, int] = {}
        for number, line in enumerate(_lines(path), 1):
            text = line.strip()
            if text and not text.isdecimal():
                raise TraceError(f"{path}:{number}: {text!r:.80} is not a whole number of milliseconds")
            if text:
                millisecond = max(1, int(text))  # what can be delivered at 0 shares the first millisecond
                delivered[millisecond] = delivered.get(millisecond, 0) + _PACKET_NBYTES
        if not delivered:
            raise TraceError(f"{path} holds no line; each is a millisecond at which 1500 bytes can be delivered")
        return _of_bins(delivered)


def load_trace(path: str | Path) -> Trace:
    """A trace from a file: Mahimahi's format where its first line is one whole number, else CSV."""
    first = next((line.strip() for line in _lines(path) if line.strip()), "")
    return Trace.from_mahimahi(path) if first.isdecimal() else Trace.from_csv(path)


def _of_bins(delivered: dict[int, int]) -> Trace:
    """Rates of the milliseconds that end at the keys, and nothing between them."""
    times, rates, until = [], [], 0
    for millisecond in sorted(delivered):
        if millisecond - 1 > until:
            times.append(until * _MILLISECOND)
            rates.append(0.0)
        times.append((millisecond - 1) * _MILLISECOND)
        rates.append(delivered[millisecond] / _MILLISECOND)
        until = millisecond
    return Trace(tuple(times), tuple(rates), until * _MILLISECOND)


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Put the file's name before the message of a TraceError."""
    try:
        yield
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None


def _lines(path: str | Path) -> Sequence[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"cannot read the trace {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from error
