"""What a simulation found: numbers, a table of requests, queues over time."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tabulate import tabulate

from splitinfer.errors import MissingExtra, UsageError
from splitinfer.simulator.statistics import Latency

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Use:
    """Of one tier, or of one direction of one link, while requests were counted."""

    utilisation: float
    """Share of the time in which its workers, or its wires, were busy; the mean over all of them."""
    mean_waiting: float
    """Requests in its queues, averaged over time."""
    most_waiting: int
    busy_s: float
    """Added up over workers, or wires."""
    nbytes: float
    """Carried; 0 for a tier."""
    energy_j: float
    money: float


@dataclass(frozen=True)
class Requests:
    """One row for each request that was answered, in the order of the answers; arrays of equal length."""

    arrival_s: npt.NDArray[np.float64]
    latency_s: npt.NDArray[np.float64]
    client: npt.NDArray[np.int64]
    plan: npt.NDArray[np.int64]
    """0, or the number of the plan that re-planning chose."""
    exit: npt.NDArray[np.str_]
    """The head that answered; empty for the whole model."""

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """By name."""
        return {name: getattr(self, name) for name in ("arrival_s", "latency_s", "client", "plan", "exit")}


@dataclass(frozen=True)
class Samples:
    """Queue lengths over time, at about equal distances."""

    times_s: tuple[float, ...]
    waiting: Mapping[str, tuple[int, ...]]
    """Tier or link -> requests that wait, added up over its machines or wires."""


@dataclass(frozen=True)
class Simulation:
    """The requests after the warm-up, and the time from the arrival of the first of them to the last answer."""

    latency_s: Latency | None
    """None where no request was answered."""
    throughput_per_s: float
    """Answers in that time, those to requests of the warm-up too."""
    completed: int
    dropped: Mapping[str, int]
    """Tier or link -> requests that found its queue full."""
    lost: Mapping[str, int]
    """Tier or link -> requests that a failure there ended."""
    tiers: Mapping[str, Use]
    links: Mapping[str, Use]
    exits: Mapping[str, int]
    """Head -> requests that it answered."""
    switches: tuple[tuple[float, int], ...]
    """Changes of the plan: when, and to which."""
    duration_s: float
    events: int
    seed: int
    requests: Requests
    samples: Samples

    @property
    def energy_j(self) -> float:
        """Of all tiers and links; what the topology does not declare counts as 0."""
        return sum(use.energy_j for use in (*self.tiers.values(), *self.links.values()))

    @property
    def money(self) -> float:
        """Of all tiers and links, in dollars."""
        return sum(use.money for use in (*self.tiers.values(), *self.links.values()))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the table of requests is left to `to_csv`."""
        each = max(1, self.completed)
        return {
            "latency_s": self.latency_s and asdict(self.latency_s),
            "throughput_per_s": self.throughput_per_s,
            "utilisation": {kind: {name: use.utilisation for name, use in uses.items()} for kind, uses in self._kinds},
            "dropped": sum(self.dropped.values()),
            "lost": sum(self.lost.values()),
            "completed": self.completed,
            "energy_j_per_request": self.energy_j / each,
            "money_per_request": self.money / each,
            "tiers": {name: asdict(use) for name, use in self.tiers.items()},
            "links": {name: asdict(use) for name, use in self.links.items()},
            "dropped_at": dict(self.dropped),
            "lost_at": dict(self.lost),
            "exits": dict(self.exits),
            "switches": [list(switch) for switch in self.switches],
            "duration_s": self.duration_s,
            "events": self.events,
            "seed": self.seed,
            "queues": asdict(self.samples),
        }

    def to_json(self) -> str:
        """One JSON object (docs/simulation.md)."""
        return json.dumps(self.to_dict())

    def to_csv(self, path: str | Path) -> None:
        """One line for each answered request: arrival_s, latency_s, client, plan, exit."""
        columns = self.requests.columns()
        try:
            with Path(path).open("w", encoding="utf-8", newline="") as lines:
                rows = csv.writer(lines)
                rows.writerow(columns)
                rows.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error

    def to_parquet(self, path: str | Path) -> None:
        """The same table as `to_csv` in Parquet. Raises MissingExtra where pyarrow is not installed."""
        try:
            import pyarrow as pa  # type: ignore[import-not-found, unused-ignore]
            from pyarrow import parquet  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise MissingExtra("pyarrow", extra="parquet") from error
        try:
            parquet.write_table(pa.table(self.requests.columns()), path)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error}") from error

    def figure(self) -> Figure:
        """Latencies, queues over time and utilisation, side by side. Raises MissingExtra where matplotlib is not installed."""
        from splitinfer.simulator.pictures import overview

        return overview(self)

    def save_picture(self, path: str | Path) -> None:
        """Write the figure, in the format that the file's name ends in."""
        try:
            self.figure().savefig(path)
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot write {path}: {error}") from error

    @property
    def _kinds(self) -> tuple[tuple[str, Mapping[str, Use]], ...]:
        return ("tiers", self.tiers), ("links", self.links)

    def __str__(self) -> str:
        failed = [f"{sum(counts.values())} {what}" for what, counts in (("dropped", self.dropped), ("lost", self.lost)) if counts]
        done = f"{self.completed} requests in {self.duration_s:.4g} s: {self.throughput_per_s:.4g} per second"
        lines = [", ".join([done, *failed]), "", *self._latency_lines()]
        rows = [
            [name, f"{use.utilisation:.1%}", f"{use.mean_waiting:.3g}", use.most_waiting, f"{use.nbytes:,.0f}" if kind == "links" else ""]
            for kind, uses in self._kinds for name, use in uses.items()
        ]  # fmt: skip
        lines.append(tabulate(rows, ["tier or link", "busy", "wait, mean", "most", "bytes"], disable_numparse=True))
        if self.energy_j or self.money:
            each = max(1, self.completed)
            lines += ["", f"per request {self.energy_j / each:.4g} J and {self.money / each:.4g} $, as the topology declares them"]
        for name, count in self.exits.items():
            lines.append(f"exit {name} answered {count}")
        lines += [f"plan {plan} from {t_s:.4g} s on" for t_s, plan in self.switches[:10]]
        return "\n".join(lines)

    def _latency_lines(self) -> list[str]:
        found = self.latency_s
        if found is None:
            return ["no request was answered", ""]
        low, high = found.mean_low, found.mean_high
        sure = "" if low is None or high is None else f" (95 % sure: {low * 1e3:.2f} to {high * 1e3:.2f})"
        return [
            f"latency ms: mean {found.mean * 1e3:.2f}{sure}, p50 {found.p50 * 1e3:.2f}, p95 {found.p95 * 1e3:.2f}, "
            f"p99 {found.p99 * 1e3:.2f}",
            "",
        ]
