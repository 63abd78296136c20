"""A recurrent model on a real time series, split over three machines: does the error change?

    python examples/time_series.py [--out out] [--seed 0] [--quick]

Real: four years of daily prices of one share (Google, August 2004 to October 2008), a sample file that comes with matplotlib. A GRU
reads the last 40 days, returns, ranges between high and low, and volumes, and says tomorrow's range: how rough the day will be. The
first 70 % of the days train it, the next 10 % choose when to stop, and the rest, autumn 2008 among it, tests it, beside two plain
forecasts: as today, and as the mean of the last 20 days. Then it runs cut in three, through the real packets and codecs, in this
process. Synthetic: the machines and links that the plans are made for (experiments.py). Writes time_series.png and time_series.csv.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from experiments import declared, finish, link, options
from matplotlib import cbook
from torch import Tensor, nn

import splitinfer
from cluster.topology import Compute, TierSpec, Topology
from splitinfer import Graph, Plan

DAYS = 40
CODECS = ("raw", "zstd", "fp16", "int8")
TOPOLOGY = Topology(
    (TierSpec("sensor", Compute(factor=40)), TierSpec("gateway", Compute(factor=8)), TierSpec("cloud", Compute())),
    (link("sensor", "gateway", 0.25, 0.005), link("gateway", "cloud", 10, 0.020)),
)


class Forecaster(nn.Module):
    """(batch, days, 3) -> (batch, 1)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.inlet = nn.Linear(3, width)
        self.first = nn.GRU(width, width, batch_first=True)
        self.second = nn.GRU(width, width, batch_first=True)
        self.outlet = nn.Linear(width, 1)

    def forward(self, days: Tensor) -> Tensor:
        state, _ = self.first(torch.tanh(self.inlet(days)))
        state, _ = self.second(state)
        answer: Tensor = self.outlet(state[:, -1])
        return answer


def series() -> tuple[np.ndarray, np.ndarray]:
    """(days, 3) returns, log ranges and log volumes, and the (days,) dates."""
    prices = cbook.get_sample_data("goog.npz")["price_data"]
    close = np.log(prices["adj_close"])
    reach = np.log(np.maximum(prices["high"] / prices["low"], 1.001) - 1)
    return np.stack([np.diff(close, prepend=close[0]), reach, np.log(prices["volume"])], axis=1), prices["date"]


def windows(table: np.ndarray, train: int) -> tuple[Tensor, Tensor]:
    """(n, 40, 3) of days, in units of the training days, and (n, 1) the range of the day behind each."""
    scaled = (table - table[:train].mean(0)) / table[:train].std(0)
    held = np.stack([scaled[end - DAYS : end] for end in range(DAYS, len(scaled))])
    return torch.tensor(held, dtype=torch.float32), torch.tensor(scaled[DAYS:, 1:2], dtype=torch.float32)


def train(model: Forecaster, days: Tensor, wanted: Tensor, parts: tuple[int, int], epochs: int) -> None:
    """In place; keeps the weights of the epoch that is best on the days behind the training days."""
    first, last = parts
    optimiser, best = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2), (float("inf"), model.state_dict())
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(first).split(32):
            optimiser.zero_grad()
            nn.functional.mse_loss(model(days[batch]), wanted[batch]).backward()
            optimiser.step()
        model.eval()
        with torch.no_grad():
            loss = float(nn.functional.mse_loss(model(days[first:last]), wanted[first:last]))
        if loss < best[0]:
            best = loss, {name: weight.clone() for name, weight in model.state_dict().items()}
    model.load_state_dict(best[1])


def three_parts(graph: Graph, codec: str) -> Plan:
    """Cut behind the inlet and behind the first recurrent layer, whatever a plan would say."""
    names = list(graph.layers)
    recurrent = [place for place, name in enumerate(names) if name in ("first", "second")]
    stages = [names[: recurrent[0]], names[recurrent[0] : recurrent[1]], names[recurrent[1] :]]
    return Plan.by_hand(graph, stages, [tier.name for tier in TOPOLOGY.tiers], dict.fromkeys(graph.tensors, codec))


def main() -> None:
    chosen = options(__doc__ or "", "time_series")
    table, dates = series()
    first, last = int(0.7 * len(table)) - DAYS, int(0.8 * len(table)) - DAYS
    days, wanted = windows(table, first + DAYS)
    model = Forecaster()
    train(model, days, wanted, (first, last), 3 if chosen.quick else 40)
    model.eval()
    graph = splitinfer.capture(model, (days[last : last + 1],))
    profile = declared(graph, CODECS)
    tests = range(last, len(days), 8 if chosen.quick else 1)
    truth = wanted[list(tests), 0].numpy()
    with torch.no_grad():
        whole = torch.cat([model(days[day : day + 1]) for day in tests])[:, 0].numpy()
    found = {"as today": days[list(tests), -1, 1].numpy(), "mean of 20 days": days[list(tests), -20:, 1].mean(1).numpy(), "whole": whole}
    plans = {f"in three, {codec}": three_parts(graph, codec) for codec in CODECS}
    plans["best plan"] = splitinfer.plan(profile, TOPOLOGY, codecs=("raw", "zstd"))
    nbytes = {}
    for name, plan in plans.items():
        pipeline = splitinfer.Pipeline.local(graph, plan)
        answers = [pipeline.traced(days[day : day + 1]) for day in tests]
        found[name] = torch.cat([answer for answer, _ in answers])[:, 0].numpy()
        nbytes[name] = float(np.mean([trace.nbytes() for _, trace in answers]))
    rows: list[dict[str, object]] = [
        {
            "forecast": name, "rmse": float(np.sqrt(np.mean((said - truth) ** 2))),
            "largest_difference": float(np.abs(said - whole).max()), "bytes_up": nbytes.get(name, 0.0),
        }
        for name, said in found.items()
    ]  # fmt: skip
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained", width_ratios=(3, 2))
    at = dates[DAYS:][list(tests)]
    left.plot(at, truth, color="#bbbbbb", lw=1, label="what happened")
    left.plot(at, found["whole"], color="#2ca02c", lw=1.8, label="GRU, whole")
    left.plot(at, found["in three, int8"], "--", color="#d62728", lw=1.2, label="GRU in three, int8")
    left.set(ylabel="log range of the day, standard deviations", title="Google, held-out days: how rough the next day will be")
    left.legend(frameon=False)
    left.tick_params(axis="x", rotation=30)
    colors = ["#bbbbbb"] * 2 + ["#2ca02c"] + ["#1f77b4"] * len(plans)
    right.barh([str(row["forecast"]) for row in rows], [row["rmse"] for row in rows], color=colors)
    right.invert_yaxis()
    right.set(xlabel="root mean square error, standard deviations")
    shown = [[str(r["forecast"]), f"{r['rmse']:.4f}", f"{r['largest_difference']:.1e}", f"{r['bytes_up']:,.0f}"] for r in rows]
    print(f"{len(truth)} held-out days; {' -> '.join(tier.name for tier in TOPOLOGY.tiers)}; the best plan is on "
          f"{', '.join(stage.tier for stage in plans['best plan'].stages)}.\n")  # fmt: skip
    finish(figure, rows, shown, ["forecast", "RMSE", "largest difference", "bytes up"], chosen.out / "time_series")


if __name__ == "__main__":
    main()
