"""``splitinfer plan``: choose where each layer runs, and with which codecs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitinfer.commands.common import (
    captured,
    command,
    emit,
    learned_argument,
    learned_file,
    measured,
    model_arguments,
    named_topology,
    registered,
    sample_arguments,
    save,
    share,
    show,
    split_names,
)

if TYPE_CHECKING:
    from cluster.topology import Topology
    from splitinfer.calibrations import Calibration
    from splitinfer.family import Loss
    from splitinfer.graph import Graph
    from splitinfer.learn.learned import Learned
    from splitinfer.plans import Plan, PlannedStage
    from splitinfer.profiles import Profile


def add(table: Any) -> None:
    """Declare the command."""
    added = command(table, "plan", run, "choose where each layer runs")
    model_arguments(added, optional=True)
    added.add_argument("--topology", type=Path, required=True, metavar="YAML", help="tiers and links (docs/cluster-yaml.md)")
    added.add_argument("--profile", type=Path, metavar="JSON", help="a profile made before; without it the model is measured here")
    added.add_argument("--objective", default="latency", help="latency, interval, critical_path, energy, money or 'latency + 0.2*energy'")
    added.add_argument("--within", action="append", default=[], metavar="COST=LIMIT", help="keep a cost within a limit: latency=200ms")
    added.add_argument("--keep-on-device", default=0, metavar="N|LAYER", help="the input and all made before layer N stay on the device")
    added.add_argument("--codecs", help="codecs that a cut may use (default raw,zstd; with --calibration all that were tried)")
    added.add_argument("--calibration", type=Path, metavar="JSON", help="what each codec loses, from 'splitinfer calibrate'")
    text = "what codecs, exits and bottlenecks may lose together: 0.5%%; measured if there are --samples"
    added.add_argument("--max-accuracy-drop", type=share, metavar="SHARE", help=text)
    sample_arguments(added)
    learned_argument(added)
    added.add_argument("--no-vertical", dest="vertical", action="store_false", help="do not share layers between a tier and its peers")
    added.add_argument("--strategy", default="auto", help="auto (default), or another name of partitioners.STRATEGIES")
    added.add_argument("-o", "--output", type=Path, metavar="JSON", help="write the plan here")
    text = "also plan for every loss of machines; plan.json and the plans that take its place go here"
    added.add_argument("--family", type=Path, metavar="DIR", help=text)


def run(options: argparse.Namespace) -> int:
    """Choose where each layer runs, and with which codecs."""
    from splitinfer.calibrations import Calibration
    from splitinfer.planner import check_wishes
    from splitinfer.profiles import Profile

    topology = named_topology(options)
    assert topology is not None  # argparse requires it
    _check(options)
    calibration = Calibration.load(options.calibration) if options.calibration else None
    names = split_names(options.codecs) or (list(_tried(calibration)) if calibration else ["raw", "zstd"])
    within = _limits(options.within)
    profile = Profile.load(options.profile) if options.profile else None
    if profile is None:
        names = registered(names)
    # Before measuring, which takes a while.
    known = [*(profile.codecs if profile else names), *(_tried(calibration) if calibration else ())]
    check_wishes(options.objective, names, options.strategy, known, within)
    learned = learned_file(options)
    graph = None if options.model is None else captured(options)[1]
    if profile is None:
        assert graph is not None  # `_check` saw to it
        # An emulated topology can be measured as it will run; on real nodes that is what 'splitinfer profile' is for.
        profile = measured(learned.apply(graph) if learned else graph, topology if topology.emulated else None, options, names)
    wishes = {"codecs": names, "within": within, "objective": options.objective, "keep_on_device": options.keep_on_device}
    wishes |= {"strategy": options.strategy, "vertical": options.vertical}
    wishes |= {"calibration": calibration, "max_accuracy_drop": options.max_accuracy_drop}
    if options.family:
        _plan_family(options, profile, topology, wishes)
        return 0
    made = _planned(options, graph, learned, profile, topology, wishes)
    save(made.to_json(), options.output)
    show(made, options)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse what cannot work, or would be ignored, before anything is loaded."""
    from splitinfer.errors import UsageError

    if options.profile is None and options.model is None:
        raise UsageError("name a MODEL to measure, or give --profile")
    if options.model is None and (options.samples or options.learned):
        raise UsageError("to measure the accuracy of the plan, or to plan with --learned, name the MODEL too")
    if options.samples and options.max_accuracy_drop is None:
        raise UsageError("--samples measure what a plan loses; say how much it may, with --max-accuracy-drop 0.5% for example")
    if options.metric and not options.samples:
        raise UsageError(f"--metric {options.metric} judges the answers to samples; give --samples too")
    if options.family and (options.samples or options.learned):
        raise UsageError("--family plans from the profile alone; leave --samples and --learned out")


def _planned(
    options: argparse.Namespace, graph: Graph | None, learned: Learned | None, profile: Profile, topology: Topology,
    wishes: dict[str, Any],
) -> Plan:  # fmt: skip
    """The plan: measured on samples, with what was learned, or from the profile alone."""
    if options.samples:
        from splitinfer.learn.accuracy import accurate_plan
        from splitinfer.models import load_samples

        assert graph is not None  # `_check` saw to it
        samples, labels = load_samples(options.samples)
        return accurate_plan(graph, samples, profile, topology, labels=labels, metric=options.metric, learned=learned, **wishes)
    if learned:
        from splitinfer.learn.variants import learned_plan

        assert graph is not None
        return learned_plan(graph, learned, profile, topology, **wishes)
    from splitinfer.planner import plan

    return plan(profile, topology, **wishes)


def _plan_family(options: argparse.Namespace, profile: Profile, topology: Topology, wishes: dict[str, Any]) -> None:
    """Plan for every loss, write the plans and show which of them answers when."""
    from splitinfer.family import losses, save_family

    found = losses(profile, topology, **wishes)
    best = found[0].plan
    assert best is not None  # else it raises
    files = save_family(found, options.family)
    save(best.to_json(), options.output)
    rows = [_row(loss, best, files) for loss in found]
    if options.json:
        emit({"plan": json.loads(best.to_json()), "family": rows})
    else:
        print(f"{best}\n\n{_loss_table(found, rows)}")


def _row(loss: Loss, best: Plan, files: dict[str, Plan]) -> dict[str, Any]:
    """What answers after a loss, as plain values."""
    from splitinfer.plan_tables import goal_of

    row: dict[str, Any] = {"lost": list(loss.machines)}
    if loss.plan is None or loss.plan.cost is None:
        return row | {"file": None, "why_not": loss.why_not}
    value, least = (goal_of(best).value(plan.cost) for plan in (loss.plan, best))
    file = next(name for name, plan in files.items() if plan is loss.plan)
    ratio = value / least if least else 1.0
    return row | {"file": file, "latency_s": loss.plan.cost.latency_s, "value": value, "times_best": ratio, "why_not": ""}


def _loss_table(found: list[Loss], rows: list[dict[str, Any]]) -> str:
    from tabulate import tabulate

    table = []
    for loss, row in zip(found, rows, strict=True):
        lost = ", ".join(loss.machines) or "nothing"
        if loss.plan is None:
            table.append([lost, loss.why_not.splitlines()[0], "-", "-", ""])
        else:
            where = " -> ".join(map(_stage, loss.plan.stages))
            table.append([lost, where, f"{row['latency_s'] * 1e3:.2f}", f"{row['times_best']:.2f}", row["file"]])
    head = ["lost", "then", "latency ms", "times the best", "file"]
    shown = tabulate(table, head, disable_numparse=True, colalign=("left", "left", "right", "right", "left"))
    return f"{shown}\n\nA loss that is not listed takes nothing that the plan needs."


def _stage(stage: PlannedStage) -> str:
    helpers = dict.fromkeys(
        name for block in stage.blocks for name, share in zip(block.workers, block.shares, strict=True) if share and name != stage.tier
    )
    return f"{' + '.join([stage.tier, *helpers])} ({len(stage.layers)} layers)"


def _tried(calibration: Calibration) -> list[str]:
    return list(dict.fromkeys(name for row in calibration.rows.values() for name in row))


def _limits(texts: list[str]) -> dict[str, float]:
    """Name -> number in the SI unit; each cost once."""
    from splitinfer.errors import UsageError

    found: dict[str, float] = {}
    for name, number in map(_limit, texts):
        if name in found:
            raise UsageError(f"--within {name} is given twice, {found[name]:g} and {number:g}; keep one")
        found[name] = number
    return found


def _limit(text: str) -> tuple[str, float]:
    """`latency=200ms` as a name and a number in the SI unit."""
    from cluster.errors import UnitError
    from cluster.units import parse_duration
    from splitinfer.errors import UsageError

    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--within {text}: write COST=LIMIT, for example latency=200ms or energy=1.5")
    try:
        number = parse_duration(value) if name in ("latency", "interval", "period", "critical_path") else float(value)
    except (UnitError, ValueError) as error:
        raise UsageError(f"--within {text}: {error}") from None
    return {"period": "interval"}.get(name, name), number
