"""``splitinfer simulate``: a plan in virtual time."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from splitinfer.commands.common import command, named_topology, positive, save, share, show

if TYPE_CHECKING:
    from splitinfer.simulator import Batching, Failure, System
    from splitinfer.simulator.arrivals import Arrivals, ClosedLoop

T = TypeVar("T")


def add(table: Any) -> None:
    """Declare the command."""
    added = command(table, "simulate", run, "run a plan in virtual time: queues, batches, fleets, links that vary, failures")
    added.add_argument("plan", type=Path, metavar="PLAN", help="from 'splitinfer plan -o'")
    added.add_argument("--profile", type=Path, required=True, metavar="JSON")
    added.add_argument("--topology", type=Path, metavar="YAML", help="other tiers and links than those that the plan was made for")
    added.add_argument("--calibration", type=Path, metavar="JSON", help="where times of codecs come from that the profile lacks")
    arrivals = added.add_mutually_exclusive_group()
    arrivals.add_argument("--closed-loop", type=positive, default=1, metavar="N", help="requests under way at any time (default 1)")
    arrivals.add_argument("--rate", type=float, metavar="R", help="requests per second, at random moments (Poisson)")
    arrivals.add_argument("--period", metavar="TIME", help="each client sends one in every TIME, such as 40ms")
    arrivals.add_argument("--bursts", metavar="R,ON,OFF", help="at random moments, R per second for about ON, nothing for about OFF")
    arrivals.add_argument("--arrivals", type=Path, metavar="CSV", help="seconds and, where there are several clients, the client")
    added.add_argument("--requests", type=positive, default=1000, metavar="N", help="requests that count (default 1000)")
    added.add_argument("--warmup", type=int, default=0, metavar="N", help="requests before them that do not (default 0)")
    added.add_argument("--seed", type=int, default=0, metavar="S", help="equal seeds give equal results (default 0)")
    added.add_argument("--expected", action="store_true", help="every request does the mean work over early exits; else chance ends it")
    fleet = added.add_argument_group("fleet; TIER= may be left out where it means all")
    fleet.add_argument("--clients", type=positive, default=1, metavar="N", help="each with a first tier and a link of its own (default 1)")
    _repeated(fleet, "--machines", "TIER=N", "machines of a tier above the first (default 1)")
    _repeated(fleet, "--workers", "TIER=N", "requests that a machine serves at once (default 1)")
    _repeated(fleet, "--queue-limit", "[NAME=]N", "how many may wait at a tier's machine or a link FROM:TO; more are dropped")
    _repeated(fleet, "--batch", "TIER=SIZE,WAIT[,FIXED]", "serve up to SIZE together, waiting WAIT for them; FIXED: share of the time that"
              " one more does not add (default 0.5)")  # fmt: skip
    fleet.add_argument("--variation", type=float, default=0.0, metavar="CV", help="coefficient of variation of work on tiers (default 0)")
    links = added.add_argument_group("links, as FROM:TO in the direction of travel, such as device:edge")
    _repeated(links, "--trace", "LINK=FILE", "bandwidth over time: CSV of seconds and bytes/s, or a Mahimahi packet-delivery trace")
    _repeated(links, "--jitter", "LINK=TIME", "the latency varies by so much either way")
    _repeated(links, "--loss", "LINK=SHARE", "share of the segments that is lost and sent again")
    _repeated(links, "--fail", "NAME=FROM,TO", "a tier or a link does not work between two moments")
    links.add_argument("--lose", action="store_true", help="what a failure interrupts is lost; else it is done again")
    switching = added.add_argument_group("re-planning")
    _repeated(switching, "--or-plan", "PLAN", "another plan that requests may take, by what each would cost at the moment")
    switching.add_argument("--migration-cost", default="0", metavar="TIME", help="what a change must have been worth, over requests")
    out = added.add_argument_group("results")
    out.add_argument("--csv", type=Path, metavar="CSV", help="one line for each request")
    out.add_argument("--parquet", type=Path, metavar="FILE", help="the same in Parquet")
    out.add_argument("--picture", type=Path, metavar="PNG", help="latencies, queues over time, utilisation")
    out.add_argument("-o", "--output", type=Path, metavar="JSON", help="write the results here")


def run(options: argparse.Namespace) -> int:
    """Run a plan in virtual time."""
    from splitinfer.calibrations import Calibration
    from splitinfer.plans import Plan
    from splitinfer.profiles import Profile
    from splitinfer.simulator import Replanning, simulate

    others = tuple(Plan.load(Path(path)) for path in options.or_plan)
    found = simulate(
        Plan.load(options.plan), Profile.load(options.profile), named_topology(options), _arrivals(options),
        requests=options.requests, warmup=options.warmup, seed=options.seed, system=_system(options), expected=options.expected,
        replanning=Replanning(others, _seconds(options.migration_cost)) if others else None,
        calibration=Calibration.load(options.calibration) if options.calibration else None,
    )  # fmt: skip
    save(found.to_json(), options.output)
    if options.csv:
        found.to_csv(options.csv)
    if options.parquet:
        found.to_parquet(options.parquet)
    if options.picture:
        found.save_picture(options.picture)
    show(found, options)
    return 0


def _repeated(group: Any, name: str, metavar: str, text: str) -> None:
    group.add_argument(name, action="append", default=[], metavar=metavar, help=text)


def _arrivals(options: argparse.Namespace) -> Arrivals | ClosedLoop:
    from splitinfer.simulator import Bursts, ClosedLoop, Given, Periodic, Poisson

    if options.arrivals:
        return Given.from_csv(options.arrivals)
    if options.rate is not None:
        return Poisson(options.rate)
    if options.period is not None:
        return Periodic(_seconds(options.period))
    if options.bursts is not None:
        rate, on, off = _parts("--bursts", options.bursts, 3, 3)
        return Bursts(_number("--bursts", rate), _seconds(on), _seconds(off))
    return ClosedLoop(options.closed_loop)


def _system(options: argparse.Namespace) -> System:
    from cluster.traces import load_trace
    from splitinfer.simulator import Conditions, System

    traces = {name: load_trace(path) for name, path in _pairs("--trace", options.trace)}
    jitter = {name: _seconds(text) for name, text in _pairs("--jitter", options.jitter)}
    loss = {name: _share(text) for name, text in _pairs("--loss", options.loss)}
    return System(
        clients=options.clients, machines=_counts("--machines", options.machines), workers=_counts("--workers", options.workers),
        queue_limit=_limits(options.queue_limit), batching={name: _batching(text) for name, text in _pairs("--batch", options.batch)},
        links={name: Conditions(jitter.get(name, 0.0), loss.get(name, 0.0), traces.get(name)) for name in {**traces, **jitter, **loss}},
        failures=tuple(_failure(name, text) for name, text in _pairs("--fail", options.fail)), retry=not options.lose,
        variation=options.variation,
    )  # fmt: skip


def _limits(texts: Sequence[str]) -> int | dict[str, int] | None:
    if len(texts) == 1 and "=" not in texts[0]:
        return int(_number("--queue-limit", texts[0], int))
    return _counts("--queue-limit", texts) or None


def _batching(text: str) -> Batching:
    from splitinfer.simulator import Batching

    size, wait, *fixed = _parts("--batch", text, 2, 3)
    count = _number("--batch", size, int)
    return Batching(count, _seconds(wait), _number("--batch", fixed[0])) if fixed else Batching(count, _seconds(wait))


def _failure(name: str, text: str) -> Failure:
    from splitinfer.simulator import Failure

    start, end = _parts("--fail", text, 2, 2)
    return Failure(name, _seconds(start), _seconds(end))


def _pairs(option: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    from splitinfer.errors import UsageError

    for text in texts:
        if "=" not in text:
            raise UsageError(f"{option} {text}: write NAME=VALUE")
    return [(name, value) for name, _, value in (text.partition("=") for text in texts)]


def _counts(option: str, texts: Sequence[str]) -> dict[str, int]:
    return {name: _number(option, value, int) for name, value in _pairs(option, texts)}


def _parts(option: str, text: str, fewest: int, most: int) -> list[str]:
    from splitinfer.errors import UsageError

    parts = [part.strip() for part in text.split(",")]
    if not fewest <= len(parts) <= most:
        needed = f"{fewest} to {most}" if most > fewest else f"{fewest}"
        raise UsageError(f"{option} {text}: {len(parts)} values between commas, {needed} are needed")
    return parts


def _number(option: str, text: str, kind: Callable[[str], T] = float) -> T:  # type: ignore[assignment]
    from splitinfer.errors import UsageError

    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"{option}: '{text}' is not a {'whole ' if kind is int else ''}number") from None


def _share(text: str) -> float:
    from splitinfer.errors import UsageError

    try:
        return share(text)
    except (ValueError, argparse.ArgumentTypeError):
        raise UsageError(f"--loss: '{text}' is not a share, such as 0.5% or 0.005") from None


def _seconds(text: str) -> float:
    from cluster.units import parse_duration

    return parse_duration(text)
