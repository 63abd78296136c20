"""Real hosts on one machine: what their links do, what crosses them, and how well plans predict them. Needs root.

    python benchmarks/testbed.py [--section shaping|bytes|grid] [--requests N] [--rows out/testbed.jsonl] [--json]

shaping: messages over raw TCP through a token bucket and through the relay, beside bytes / rate + latency: why the
relay is preferred on slow links.

bytes: requests through deployed plans; bytes on the counters of the interfaces, what they count while idle subtracted,
beside the packets and the plan's bytes.

grid: three models, four links between device and edge, three plans: predicted, measured on Ray nodes of this
machine over paced links ("in-process"), and measured on the testbed. Each row is written when it is done, and a run with
the same file goes on where the last one ended. Profiles are kept beside the rows.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tabulate import tabulate

from cluster.testbed import Testbed, namespaces
from cluster.topology import Topology

LINKS = {
    "3G": "up: 1.1 Mbps, latency: 40 ms", "4G": "up: 5.85 Mbps, latency: 20 ms", "Wi-Fi": "up: 18.88 Mbps, latency: 2 ms",
    "5G": "up: 50 Mbps, down: 100 Mbps, latency: 4 ms",
}  # fmt: skip
MODELS = ("digits", "mobilenet_v2", "resnet18")
PLANS = ("edge only", "cloud only", "chosen plan")
CODECS = ["raw", "zstd", "fp16", "int8"]
CLUSTER = """
version: 1
tiers:
  - {{name: device, compute: {{factor: 6}}}}
  - {{name: edge, compute: {{factor: 2}}}}
  - {{name: cloud, compute: measured}}
links:
  - {{between: [device, edge], {}}}
  - {{between: [edge, cloud], up: 100 Mbps, latency: 10 ms}}
"""
Row = dict[str, Any]


def topology(link: str) -> Topology:
    return Topology.loads(CLUSTER.format(LINKS[link]))


# -- shaping

SHAPES = [("1.1 Mbps", 0.0), ("20 Mbps", 0.0), ("100 Mbps", 0.0), ("400 Mbps", 0.0), ("20 Mbps", 0.02), ("1.1 Mbps", 0.04)]
MESSAGES = (1_000, 10_000, 100_000)


@contextmanager
def connected(testbed: Testbed) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection from the first host to the last: (client, server)."""
    first, last = testbed.nodes[0], testbed.nodes[-1]
    with namespaces.entered(last.namespace):
        listener = socket.create_server((last.address, 0))
    with namespaces.entered(first.namespace):
        client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    with listener, client, server:
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client, server


def one_way_s(client: socket.socket, server: socket.socket, nbytes: int) -> float:
    sender = threading.Thread(target=client.sendall, args=(bytes(nbytes),))
    start, got = time.monotonic(), 0
    sender.start()
    while got < nbytes:
        got += len(server.recv(1 << 20))
    elapsed = time.monotonic() - start
    sender.join()
    return elapsed


def shaping_rows() -> list[Row]:
    rows = []
    for rate, latency_s in SHAPES:
        for shaping in ("tbf", "relay"):
            if shaping == "tbf" and latency_s:
                continue  # it cannot delay
            spec = Topology.loads(f"""
version: 1
tiers: [{{name: device, compute: measured}}, {{name: cloud, compute: measured}}]
links: [{{between: [device, cloud], up: {rate}, latency: {latency_s * 1e3:g} ms}}]
""")
            bytes_per_s = spec.links[0].up_bytes_per_s
            with Testbed.up(spec, ray=False, shaping=shaping) as testbed, connected(testbed) as pair:
                for nbytes in (*MESSAGES, round(bytes_per_s)):
                    one_way_s(*pair, nbytes)
                    times = []
                    for _ in range(5):
                        time.sleep(0.05)
                        times.append(one_way_s(*pair, nbytes))
                    rows.append({"rate": rate, "latency_s": latency_s, "shaping": shaping, "nbytes": nbytes,
                                 "declared_s": nbytes / bytes_per_s + latency_s, "measured_s": statistics.median(times)})  # fmt: skip
    return rows


def shaping_table(rows: list[Row]) -> str:
    body = [
        [row["rate"], f"{row['latency_s'] * 1e3:g} ms", row["shaping"], f"{row['nbytes']:,}", ms(row["declared_s"]), ms(row["measured_s"]),
         f"{row['measured_s'] / row['declared_s'] - 1:+.1%}"]
        for row in rows
    ]  # fmt: skip
    return table(body, ["rate", "latency", "shaped by", "bytes", "declared ms", "measured ms", "difference"])


# -- plans


def captured(model: str) -> Any:
    import torch

    from splitinfer import capture, zoo

    torch.set_num_threads(1)
    module, args, kwargs = getattr(zoo, model)()
    return capture(module, args, kwargs)


def profiled(model: str, graph: Any, home: Path) -> Any:
    """The profile kept in `home`, or one made now."""
    from splitinfer import profile
    from splitinfer.profiles import Profile

    path = home / f"testbed-profile-{model}.json"
    if path.exists():
        return Profile.load(path)
    made = profile(graph, topology("Wi-Fi"), codec_names=CODECS)
    made.save(path)
    return made


def planned(profile: Any, link: str) -> dict[str, Any]:
    from splitinfer import plan
    from splitinfer.planner import baseline_plans

    made = baseline_plans(profile, topology(link), CODECS)
    made["chosen plan"] = plan(profile, topology(link), codecs=CODECS)
    return {name: made[name] for name in PLANS}


def on_testbed(testbed: Testbed, graph: Any, plan: Any, link: str, requests: int, idle_s: float) -> Any:
    """Measured with the testbed's first link as declared."""
    from splitinfer.runtime.hosts import run_on_testbed

    spec = topology(link).links[0]
    testbed.set_rate(spec.between, spec.up_bytes_per_s, spec.down_bytes_per_s)
    testbed.set_latency(spec.between, spec.latency_s)
    return run_on_testbed(graph, plan, testbed, requests, idle_s=idle_s)


def bytes_rows(home: Path, requests: int) -> list[Row]:
    """Each model's longest way, to the cloud, and its chosen plan, over Wi-Fi."""
    graphs = {model: captured(model) for model in MODELS}
    profiles = {model: profiled(model, graph, home) for model, graph in graphs.items()}
    rows = []
    with Testbed.up(topology("Wi-Fi")) as testbed, testbed.driver():
        for model, graph in graphs.items():
            for name, plan in planned(profiles[model], "Wi-Fi").items():
                report = on_testbed(testbed, graph, plan, "Wi-Fi", requests, idle_s=5.0)
                links = [link for link in report.links if link.packet_nbytes]
                rows.append({
                    "model": model, "plan": name, "requests": requests, "planned_nbytes": plan.cost.up_nbytes,
                    "packet_nbytes": sum(link.packet_nbytes for link in links), "links": len(links),
                    "counted_nbytes": sum(link.counted_nbytes for link in links),
                    "idle_bytes_per_s": sum(link.idle_bytes_per_s for link in report.links) / len(report.links),
                })  # fmt: skip
    return rows


def bytes_table(rows: list[Row]) -> str:
    body = []
    for row in rows:
        planned, packets, counted = row["planned_nbytes"], row["packet_nbytes"], row["counted_nbytes"]
        share = f"{counted / packets - 1:+.1%}" if packets else "-"
        shown = [f"{nbytes:,.0f}" for nbytes in (planned, packets, counted, counted - packets)]
        body.append([row["model"], row["plan"], row["links"], *shown, share])
    return table(body, ["model", "plan", "links", "plan's bytes", "in packets", "on the interfaces", "more", "share"])


# -- grid


def key(row: Row) -> tuple[str, ...]:
    return row["model"], row["link"], row["plan"], row["where"]


def kept(path: Path) -> dict[tuple[str, ...], Row]:
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {key(row): row for row in rows}


def missing(path: Path, where: str) -> Iterator[tuple[str, str, str]]:
    """Model, link and plan of the rows still to be measured."""
    have = kept(path)
    for model in MODELS:
        for link in LINKS:
            for plan in PLANS:
                if (model, link, plan, where) not in have:
                    yield model, link, plan


def add(path: Path, row: Row) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{' '.join(key(row)):45} predicted {ms(row['predicted_s']):>9}, measured {ms(row['measured_s']):>9} ms", flush=True)


def measure_in_process(path: Path, requests: int) -> None:
    from cluster.launch import LocalCluster
    from splitinfer import deploy
    from splitinfer.demo import _without_sleep
    from splitinfer.runtime.hosts import WARM_UP, one_by_one
    from splitinfer.simulator import ClosedLoop, simulate

    with LocalCluster(["device", "edge", "cloud"]) as cluster:
        for model, link, name in missing(path, "in-process"):
            graph = captured(model)
            profile, place = profiled(model, graph, path.parent), topology(link)
            plan = planned(profile, link)[name]
            with deploy(graph, plan, place, cluster=cluster) as pipeline:
                traces = one_by_one(pipeline, WARM_UP + requests)[WARM_UP:]
            rest = statistics.median(trace.total_s - trace.slept_s for trace in traces)
            add(path, {
                "model": model, "link": link, "plan": name, "where": "in-process", "predicted_s": plan.cost.latency_s,
                "measured_s": statistics.median(trace.total_s for trace in traces), "nbytes": plan.cost.up_nbytes,
                "simulated_s": simulate(plan, profile, place, ClosedLoop(1), requests=requests).latency_s.p50,
                "slept_share": statistics.median(trace.slept_s / trace.total_s for trace in traces),
                "rest_error": _without_sleep(plan, place) / rest - 1,
            })  # fmt: skip


def measure_on_hosts(path: Path, requests: int) -> None:
    """In a process of its own: a driver stays in the namespace that it entered."""
    todo = list(missing(path, "namespaces"))
    if not todo:
        return
    with Testbed.up(topology("Wi-Fi")) as testbed, testbed.driver():
        for model, link, name in todo:
            graph = captured(model)
            plan = planned(profiled(model, graph, path.parent), link)[name]
            report = on_testbed(testbed, graph, plan, link, requests, idle_s=0.5)
            add(path, {
                "model": model, "link": link, "plan": name, "where": "namespaces", "predicted_s": plan.cost.latency_s,
                "measured_s": report.latency_s["p50"], "nbytes": plan.cost.up_nbytes, "between_s": report.measured_s["wire, return, calls"],
                "predicted_between_s": report.predicted_s["wire, return, calls"],
            })  # fmt: skip


def grid_table(rows: dict[tuple[str, ...], Row]) -> str:
    body, errors = [], {"in-process": [], "namespaces": []}
    for model, link, plan, _ in (each for each in rows if each[3] == "in-process"):
        found = {where: rows.get((model, link, plan, where)) for where in errors}
        cells = [
            model,
            link,
            plan,
            f"{found['in-process']['nbytes']:,.0f}",
            ms(found["in-process"]["predicted_s"]),
            ms(found["in-process"]["simulated_s"]),
        ]
        for where, row in found.items():
            if row:
                errors[where].append(row["predicted_s"] / row["measured_s"] - 1)
            cells += [ms(row["measured_s"]), f"{errors[where][-1]:+.1%}"] if row else ["-", "-"]
        body.append([*cells, f"{found['in-process']['slept_share']:.0%}", f"{found['in-process']['rest_error']:+.0%}"])
    head = ["model", "link", "plan", "bytes up", "predicted ms", "simulated ms", "in-process ms", "error", "namespaces ms", "error",
            "in-process: declared sleep", "error of rest"]  # fmt: skip
    lines = [table(body, head), ""]
    for where, found in errors.items():
        if found:
            sizes = [abs(error) for error in found]
            lines.append(f"{where}: median error {statistics.median(sizes):.1%}, worst {max(sizes):.1%}, over {len(sizes)} rows")
    rests = [abs(row["rest_error"]) for row in rows.values() if "rest_error" in row]
    lines.append(f"in-process, rest alone: median error {statistics.median(rests):.1%}, worst {max(rests):.1%}")
    return "\n".join(lines)


def table(body: list[list[Any]], head: list[str]) -> str:
    return tabulate(body, head, disable_numparse=True, colalign=("left", "left", *["right"] * (len(head) - 2)))


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def apart(function: Any, *arguments: Any) -> None:
    """Call in a fresh process. Raises RuntimeError where it fails."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--section", choices=("shaping", "bytes", "grid"), default="grid")
    parser.add_argument("--requests", type=int, help="of each row (default: 100 for bytes, 10 for grid)")
    parser.add_argument("--rows", type=Path, default=Path("out/testbed.jsonl"), help="where the grid keeps its rows")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    namespaces.check()
    if options.section == "shaping":
        rows = shaping_rows()
        print(json.dumps(rows) if options.json else shaping_table(rows))
    elif options.section == "bytes":
        rows = bytes_rows(options.rows.parent, options.requests or 100)
        print(json.dumps(rows) if options.json else bytes_table(rows))
    else:
        apart(measure_in_process, options.rows, options.requests or 10)
        apart(measure_on_hosts, options.rows, options.requests or 10)
        rows = kept(options.rows)
        print(json.dumps(list(rows.values())) if options.json else grid_table(rows))


if __name__ == "__main__":
    main()
