"""Everything that the page shows, as numbers: the plan, three clocks, a sweep of bandwidth, trade-offs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from cluster.topology import Topology
from splitinfer.errors import PlanError, UsageError
from splitinfer.planner import check_wishes
from splitinfer.plans import Plan
from splitinfer.profiles import Profile
from splitinfer.report.compare import Comparison, compare
from splitinfer.report.figures import counted, difference, mbps, ms
from splitinfer.report.fronts import TradeOff, trade_offs
from splitinfer.report.sweep import Sweep, link_named, sweep, usable_codecs
from splitinfer.report.traces import Traces

VERSION = 1


@dataclass(frozen=True)
class Findings:
    """What a report is made of; `splitinfer.report.page` writes it as a page."""

    plan: Plan
    topology: Topology
    comparison: Comparison
    sweep: Sweep | None
    """None for a single tier."""
    trade_offs: tuple[TradeOff, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what `splitinfer report --json` prints and the page holds (docs/report.md)."""
        found = self.comparison
        return {
            "version": VERSION,
            "plan": {"model": self.plan.model, "fingerprint": self.plan.fingerprint,
                     "stages": [asdict(stage) for stage in self.plan.stages],
                     "crossings": [asdict(crossing) for crossing in self.plan.crossings]},
            "clocks": [asdict(column) for column in found.columns],
            "differences": [{"of": of, "against": against, "share": share} for of, against, share in found.differences],
            "slept_share": found.slept_share,
            "notes": list(found.notes),
            "requests": {name: [asdict(bar) for bar in request.bars]
                         for name, request in (("simulated", found.simulated), ("measured", found.measured)) if request},
            "sweep": self.sweep and asdict(self.sweep),
            "trade_offs": [asdict(each) for each in self.trade_offs],
        }  # fmt: skip

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Write the page. Raises UsageError where that is not possible."""
        from splitinfer.report.page import page

        try:
            Path(path).write_text(page(self), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error

    def __str__(self) -> str:
        rows = [[column.name, ms(column.latency_s), f"{column.up_nbytes:,.0f}"] for column in self.comparison.columns]
        lines = [tabulate(rows, ["", "latency", "bytes up"], disable_numparse=True, colalign=("left", "right", "right")), ""]
        seconds = {column.name: column.latency_s for column in self.comparison.columns}
        lines += [f"{of} against {against}: {difference(seconds[of], seconds[against])}" for of, against, _ in self.comparison.differences]
        if self.sweep:
            plans = len({regime.name for regime in self.sweep.regimes})
            lines.append(f"{counted(plans, 'plan')} best between {mbps(min(self.sweep.rates))} and {mbps(max(self.sweep.rates))}")
        lines += [f"{counted(len(each.points), 'plan')} on the front of latency and {each.cost}" for each in self.trade_offs]
        return "\n".join([*lines, *self.comparison.notes])


def examine(
    plan: Plan,
    profile: Profile,
    topology: Topology | None = None,
    traces: Traces | None = None,
    *,
    codecs: Sequence[str] = (),
    link: str | None = None,
    points: int = 25,
    progress: bool = False,
) -> Findings:
    """Compare the three clocks, plan again over a range of bandwidths, and search the trade-offs.

    `topology` defaults to the one that the plan was made for. `codecs` are those that other plans may use: by default raw,
    zstd and what this plan uses. `link`, as ``device:edge``, is the one whose rate varies, by default the first tier's;
    `points` rates are tried at least. Raises PlanError where plan, profile and topology do not fit each other, and
    UsageError for a wish that makes no sense.
    """
    if plan.fingerprint != profile.fingerprint:
        raise PlanError(
            f"the plan was made for {plan.model} {plan.fingerprint}, the profile is of {profile.model} {profile.fingerprint}; "
            f"profile and plan again"
        )
    if topology is None and plan.topology is None:
        raise UsageError("the plan was made by hand and names no topology; give one")
    if points < 2:
        raise UsageError(f"{points} rates; a curve needs 2")
    place = topology or Topology.from_dict(plan.topology or {})
    names = usable_codecs(plan, profile, codecs)
    check_wishes("latency", names, "auto", profile.codecs)
    several = len(place.tiers) > 1
    spec = link_named(place, link) if several or link else None
    with tqdm(desc="plans", unit="", disable=not progress, leave=False) as bar:
        found = compare(plan, profile, place, traces)
        swept = sweep(plan, profile, place, names, spec, points, bar.update) if spec else None
        fronts = trade_offs(plan, profile, place, names, bar.update) if several else ()
    return Findings(plan, place, found, swept, fronts)
