"""What the commands of ``splitinfer`` do; each imports what it needs when it runs, so that ``--help`` loads nothing."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.topology import Topology
    from splitinfer.calibrations import Calibration
    from splitinfer.graph import Graph
    from splitinfer.models import Model
    from splitinfer.plans import Plan
    from splitinfer.profiles import Profile


def demo(options: argparse.Namespace) -> int:
    """Two models over three tiers: plans, requests, predicted beside measured."""
    from splitinfer.demo import run_demo

    report = run_demo(options.requests, show=_quiet if options.json else print)
    if options.json:
        _emit(report)
    return 0


def profile(options: argparse.Namespace) -> int:
    """Measure layers and codecs."""
    names = _registered(_names(options.codecs)) if options.codecs else None
    profile = _measured(_graph(options)[1], _topology(options), options, names)
    _save(profile.to_json(), options.output)
    _show(profile, options)
    return 0


def calibrate(options: argparse.Namespace) -> int:
    """Measure what codecs do to the answers."""
    from splitinfer.learn.calibrate import calibrate
    from splitinfer.models import load_samples
    from splitinfer.profiles import Profile

    names = _registered(_names(options.codecs)) or None
    profile = Profile.load(options.profile) if options.profile else None
    samples, labels = load_samples(options.samples)
    made = calibrate(
        _graph(options)[1], samples, profile, labels=labels, codec_names=names, metric=options.metric or "auto", budget_s=options.budget,
        progress=_progress(options),
    )  # fmt: skip
    _save(made.to_json(), options.output)
    _show(made, options)
    return 0


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _registered(names: list[str]) -> list[str]:
    """Names of codecs in their full spelling, "suggested" spelt out; raises CodecError for one that is none."""
    from splitinfer import codecs

    return list(dict.fromkeys(full for name in names for full in (codecs.suggested() if name == "suggested" else (codecs.get(name).name,))))


def _tried(calibration: Calibration) -> list[str]:
    return list(dict.fromkeys(name for row in calibration.rows.values() for name in row))


def plan(options: argparse.Namespace) -> int:
    """Choose where each layer runs, and with which codecs."""
    from splitinfer.calibrations import Calibration
    from splitinfer.errors import UsageError
    from splitinfer.planner import check_wishes, plan
    from splitinfer.profiles import Profile

    topology = _topology(options)
    assert topology is not None  # argparse requires it
    calibration = Calibration.load(options.calibration) if options.calibration else None
    names = _names(options.codecs) or (list(_tried(calibration)) if calibration else ["raw", "zstd"])
    within = dict(_limit(text) for text in options.within)
    profile = Profile.load(options.profile) if options.profile else None
    if profile is None and options.model is None:
        raise UsageError("name a MODEL to measure, or give --profile")
    if profile is None:
        names = _registered(names)
    # Before measuring, which takes a while.
    known = [*(profile.codecs if profile else names), *(_tried(calibration) if calibration else ())]
    check_wishes(options.objective, names, options.strategy, known, within)
    graph = None if options.model is None else _graph(options)[1]
    if profile is None:
        assert graph is not None
        # An emulated topology can be measured as it will run; on real nodes that is what 'splitinfer profile' is for.
        profile = _measured(graph, topology if topology.emulated else None, options, names)
    wishes = {"within": within, "keep_on_device": options.keep_on_device, "strategy": options.strategy}
    if options.samples is None or calibration is None or options.max_accuracy_drop is None:
        made = plan(profile, topology, options.objective, names, calibration=calibration,
                    max_accuracy_drop=options.max_accuracy_drop, **wishes)  # fmt: skip
    else:
        from splitinfer.learn.accuracy import accurate_plan
        from splitinfer.models import load_samples

        if graph is None:
            raise UsageError("to measure the accuracy of the plan, name the MODEL too")
        samples, labels = load_samples(options.samples)
        made = accurate_plan(graph, samples, profile, topology, calibration, max_accuracy_drop=options.max_accuracy_drop, labels=labels,
                             metric=options.metric, objective=options.objective, codecs=names, **wishes)  # fmt: skip
    _save(made.to_json(), options.output)
    _show(made, options)
    return 0


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


def run(options: argparse.Namespace) -> int:
    """Run a plan on Ray."""
    from splitinfer.plans import Plan
    from splitinfer.runtime.serve import run_requests

    plan = Plan.load(options.plan)
    topology = _topology(options) or _planned_topology(plan)
    graph = _graph(options)[1]
    report = run_requests(graph, plan, topology, options.requests, options.in_flight, progress=_progress(options))
    _emit(report.to_dict()) if options.json else print(report)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Compare the split model with the whole one; 1 where they differ."""
    from splitinfer.plans import Plan
    from splitinfer.verify import balanced_stages, verify_all_cuts, verify_split

    model, graph = _graph(options)
    if options.all_cuts:
        verdict = verify_all_cuts(graph, model.module, progress=_progress(options))
    else:
        plan = Plan.load(options.plan) if options.plan else Plan.by_hand(graph, balanced_stages(graph, options.stages or 2))
        verdict = verify_split(graph, model.module, plan)
    _show(verdict, options)
    return 0 if verdict.exact else 1


def _graph(options: argparse.Namespace) -> tuple[Model, Graph]:
    from splitinfer.importer import capture
    from splitinfer.models import load_model

    model = load_model(options.model, trust_code=options.trust_code)
    return model, capture(model.module, model.args, model.kwargs, "batch" if options.dynamic_batch else None)


def _topology(options: argparse.Namespace) -> Topology | None:
    if options.topology is None:
        return None
    from cluster.topology import Topology

    return Topology.load(options.topology)


def _planned_topology(plan: Plan) -> Topology:
    from cluster.topology import Topology
    from splitinfer.errors import UsageError

    if plan.topology is None:
        raise UsageError("the plan was made by hand and names no topology; give --topology")
    return Topology.from_dict(plan.topology)


def _measured(graph: Graph, topology: Topology | None, options: argparse.Namespace, codec_names: list[str] | None = None) -> Profile:
    from splitinfer.profiler import profile

    threads = getattr(options, "threads", None)
    return profile(graph, topology, threads=threads, codec_names=codec_names, progress=_progress(options))


def _progress(options: argparse.Namespace) -> bool:
    """Bars are for people who watch."""
    return not options.json and sys.stderr.isatty()


def _show(thing: Any, options: argparse.Namespace) -> None:
    if options.json:
        print(thing.to_json() if hasattr(thing, "to_json") else json.dumps(thing.to_dict()))
    else:
        print(thing)


def _emit(report: Any) -> None:
    print(json.dumps(report))


def _quiet(*_: object) -> None:
    """Nothing but the JSON goes to standard output."""


def _save(text: str, path: Path | None) -> None:
    if path is not None:
        from splitinfer.errors import UsageError

        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
