"""The picture of a simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from splitinfer.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from splitinfer.simulator.results import Simulation


def overview(found: Simulation) -> Figure:
    """Three panels: how many requests were answered within a time, queues over time, utilisation. Raises MissingExtra."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", extra="demo") from error
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _latencies(left, found)
    _queues(middle, found)
    _utilisation(right, found)
    return figure


def _latencies(axes: Axes, found: Simulation) -> None:
    seconds = np.sort(found.requests.latency_s)
    axes.step(seconds * 1e3, np.arange(1, len(seconds) + 1) / max(1, len(seconds)), where="post")
    if found.latency_s is not None:
        for name in ("p50", "p95", "p99"):
            value = getattr(found.latency_s, name) * 1e3
            axes.axvline(value, linestyle=":", color="grey")
            axes.text(value, 0.02, f" {name}", rotation=90, color="grey")
    axes.set(xlabel="latency, ms", ylabel="share of the requests answered", ylim=(0, 1.01))


def _queues(axes: Axes, found: Simulation) -> None:
    waited = {name: series for name, series in found.samples.waiting.items() if any(series)}
    for name, series in waited.items():
        axes.step(found.samples.times_s, series, where="post", label=name)
    axes.set(xlabel="time, s", ylabel="requests that wait")
    if waited:
        axes.legend()
    else:
        axes.text(0.5, 0.5, "nothing waits", ha="center", transform=axes.transAxes)


def _utilisation(axes: Axes, found: Simulation) -> None:
    uses = {**found.tiers, **found.links}
    colours = ["C0"] * len(found.tiers) + ["C1"] * len(found.links)
    axes.barh(list(uses), [use.utilisation for use in uses.values()], color=colours)
    axes.invert_yaxis()
    axes.set(xlabel="utilisation: tiers blue, links orange", xlim=(0, 1))
