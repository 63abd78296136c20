"""Simulated requests per second of wall time, for 1 to 10,000 clients, beside plain SimPy on the same model in the same run.

    python benchmarks/simulator.py                    speed
    python benchmarks/simulator.py --section load     the mean under Poisson load beside Friedman's formula, over many seeds

The model: each client a device with a link of its own, ten clients an edge machine with one link to the cloud, whose
workers grow with the fleet; results return. Both see the same arrivals, and their mean latencies must agree.
"""

import argparse
import sys
import time
from itertools import islice
from pathlib import Path
from random import Random

from tabulate import tabulate

from splitinfer.simulator import Given, Poisson, System, simulate
from splitinfer.simulator.work import Work

sys.path.append(str(Path(__file__).parents[1] / "tests" / "simulator"))
from simpy_model import SimpyModel
from test_queueing import PROFILE, SLOWEST_S, TANDEM, a_tandem, friedman_s

PER_CLIENT = 3.0  # requests per second: devices work 5 % of the time, edges 60 %
CLIENTS = (1, 10, 100, 1_000, 10_000)


def speed(requests: int, rounds: int):
    made = a_tandem()
    program = Work(made, PROFILE, TANDEM).programs()[0]
    rows = []
    for clients in CLIENTS:
        edges, workers = max(1, clients // 10), {"t2": max(1, clients // 20)}
        arrivals = list(islice(Poisson(PER_CLIENT * clients).times(clients, Random(1)), requests))
        system = System(clients=clients, machines={"t1": edges}, workers=workers)
        ours, theirs = [], []
        for _ in range(rounds):  # in turns, so that a busy moment of the machine meets both
            start = time.perf_counter()
            found = simulate(made, PROFILE, TANDEM, Given(tuple(arrivals)), requests=requests, system=system)
            ours.append(time.perf_counter() - start)
            start = time.perf_counter()
            oracle = SimpyModel(program, TANDEM, clients, {"t1": edges}, workers).run(arrivals)
            theirs.append(time.perf_counter() - start)
            assert found.latency_s is not None
            assert abs(found.latency_s.mean / (sum(oracle) / requests) - 1) < 1e-9
        one, other = min(ours), min(theirs)
        rows.append([clients, f"{requests / one:,.0f}", f"{found.events / one:,.0f}", f"{requests / other:,.0f}", f"{other / one:.1f}"])
    head = ["clients", "requests per s", "events per s", "SimPy's requests per s", "times faster"]
    print(tabulate(rows, head, disable_numparse=True, colalign=("right",) * 5))


def load(requests: int, seeds: int):
    rows = []
    for share in (0.3, 0.6, 0.9):
        rate = share / SLOWEST_S
        expected, held, errors, widths = friedman_s(rate), 0, [], []
        for seed in range(seeds):
            found = simulate(a_tandem(), PROFILE, TANDEM, Poisson(rate), requests=requests, warmup=requests // 20, seed=seed).latency_s
            assert found is not None and found.mean_low is not None and found.mean_high is not None
            held += found.mean_low <= expected <= found.mean_high
            errors.append(found.mean / expected - 1)
            widths.append((found.mean_high - found.mean_low) / found.mean)
        mean, width = sum(errors) / seeds, sum(widths) / seeds
        rows.append([f"{share:.1f}", f"{expected * 1e3:.3f}", f"{mean:+.2%}", f"{width:.2%}", f"{held} of {seeds}"])
    head = ["utilisation", "formula ms", "mean of the runs", "width of the interval", "intervals that hold the formula"]
    print(tabulate(rows, head, disable_numparse=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", choices=["speed", "load"], default="speed")
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3, help="for speed")
    parser.add_argument("--seeds", type=int, default=40, help="for load")
    options = parser.parse_args()
    speed(options.requests, options.rounds) if options.section == "speed" else load(options.requests, options.seeds)


if __name__ == "__main__":
    main()
