"""What the experiment scripts share: their options, their files, and machines that are declared instead of measured.

With declared machines a script gives the same figures on every computer: the layers, their FLOPs and the bytes of each encoded
tensor are those of the real model and its sample; seconds are FLOPs and bytes over the rates below.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import torch
from tabulate import tabulate

import splitinfer
from cluster.topology import LinkSpec
from splitinfer import Graph, Profile

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

MBPS = 1e6 / 8
FLOPS = 20e9
"""Of the fastest machine: about what one core of a server does in fp32."""
LAYER_S = 20e-6
"""Of any layer: starting an operator."""
CODING = {"raw": 4e9, "zstd": 0.3e9, "fp16": 2e9, "int8": 1e9}
"""Bytes per second, each way."""


def options(doc: str, name: str) -> argparse.Namespace:
    """The command line of a script: where to write, the seed, and a quick mode for tests."""
    parser = argparse.ArgumentParser(prog=f"{name}.py", description=doc.strip().splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for picture and table (default out)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--quick", action="store_true", help="a smaller experiment, in some seconds")
    if name == "mobile_day":
        parser.add_argument("--trace", type=Path, help="a CSV of seconds and bytes/s, or a Mahimahi file, instead of the made-up day")
    found = parser.parse_args()
    found.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(found.seed)
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    return found


def declared(graph: Graph, codecs: Sequence[str] = ("raw", "zstd", "fp16", "int8")) -> Profile:
    """The profile of a model on the declared machine: FLOPs and encoded bytes are real, seconds follow from the rates above."""
    measured = splitinfer.profile(graph, codec_names=codecs, repeats=1, budget_s=1.0)
    seconds = {layer.name: LAYER_S + layer.flops / FLOPS for layer in measured.layers}
    coding = {tensor.name: {codec: (tensor.nbytes / CODING[codec],) * 2 for codec in codecs} for tensor in measured.tensors}
    machine = replace(
        measured.measurements[0], machine="declared", whole_s=sum(seconds.values()), wake_s=0.0, seconds=seconds,
        spread_s=dict.fromkeys(seconds, 0.0), codec_s=coding, pieces={},
    )  # fmt: skip
    return replace(measured, measurements=(machine,))


def link(low: str, high: str, mbps: float, latency_s: float, down_mbps: float | None = None) -> LinkSpec:
    """Rates in Mbps."""
    return LinkSpec((low, high), mbps * MBPS, (down_mbps or mbps) * MBPS, latency_s)


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """One line for each row, under the names of the first."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows)


def finish(figure: Figure, rows: Sequence[Mapping[str, object]], table: Iterable[Sequence[str]], head: Sequence[str], path: Path) -> None:
    """Print the table; write ``path``.png and ``path``.csv."""
    print(tabulate(table, head, disable_numparse=True, colalign=("left", *["right"] * (len(head) - 1))))
    figure.savefig(path.with_suffix(".png"), dpi=150)
    plt.close(figure)
    write_csv(path.with_suffix(".csv"), rows)
    print(f"\nwrote {path.with_suffix('.png')} and {path.with_suffix('.csv')}")
