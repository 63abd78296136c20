"""Profile + Topology + codecs -> Problem -> Plan: where each layer runs, at the least cost, with the proof beside it.

Each subset of the tiers, and the direct link where there is one, is a line of its own (`lines.py`); each line is solved
by a strategy of `partitioners`, exactly where one can, and the best of all is the plan (`line_search.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import partitioners as p
from cluster.topology import Topology
from splitinfer.calibrations import Calibration
from splitinfer.errors import PlanError
from splitinfer.learn.reach import reduced
from splitinfer.line_problem import Wishes, kept_layers
from splitinfer.line_search import LineSearch, Solved, as_plan
from splitinfer.line_search import Strategy as Strategy
from splitinfer.plans import Plan, PlannedExit
from splitinfer.profiles import Profile


def plan(
    profile: Profile,
    topology: Topology,
    objective: str = "latency",
    codecs: Sequence[str] = ("raw", "zstd"),
    *,
    within: Mapping[str, float] | None = None,
    keep_on_device: int | str = 0,
    strategy: Strategy = "auto",
    calibration: Calibration | None = None,
    max_accuracy_drop: float | None = None,
    exits: Sequence[PlannedExit] = (),
    vertical: bool = True,
    compare: bool = True,
) -> Plan:
    """The plan of least predicted cost.

    `objective` is latency, interval (seconds between results in steady state), critical_path, energy, money, or a
    weighted sum such as "latency + 0.2*energy"; energy and money are modelled from the watts, joules and prices that
    the topology declares. `codecs` are those that a cut may use: lossless by default; add "fp16" or "int8" where a loss
    is accepted. `within` limits costs, {"latency": 0.2} in seconds, joules or money; memory limits come from the
    topology. `keep_on_device` names layers by number or up to a name: the model's input and everything made before the
    last of them never leave the first tier. A `calibration` says what each codec loses on each tensor: the sum over
    the codecs used stays within `max_accuracy_drop`, in its metric's units; ``learn.accurate_plan`` also measures it.
    With `exits`, as ``learn.choose_thresholds`` makes them, costs are expectations over requests that may end early;
    heads in the profile that are not among them are neither planned nor run. Where a
    tier has peers, layers may be shared with them, unless `vertical` is false. `compare`: also price the baselines.

    `strategy` names one of ``partitioners.STRATEGIES`` or is a function of your own from a Problem (and, if it takes
    two arguments, an Objective) to a mapping op -> tier; a function is asked once for each choice of tiers, and the best
    of its answers becomes the plan. Raises PlanError for a wish that is not understood, a codec that was not profiled,
    or where no plan keeps the limits.
    """
    search = search_of(
        profile, topology, objective, codecs, within=within, keep_on_device=keep_on_device, strategy=strategy,
        calibration=calibration, max_accuracy_drop=max_accuracy_drop, exits=exits, vertical=vertical,
    )  # fmt: skip
    return search.best(compare=compare)


def search_of(
    profile: Profile,
    topology: Topology,
    objective: str = "latency",
    codecs: Sequence[str] = ("raw", "zstd"),
    *,
    within: Mapping[str, float] | None = None,
    keep_on_device: int | str = 0,
    strategy: Strategy = "auto",
    calibration: Calibration | None = None,
    max_accuracy_drop: float | None = None,
    exits: Sequence[PlannedExit] = (),
    vertical: bool = True,
) -> LineSearch:
    """The search behind `plan`, its wishes checked: it also finds the best plan without some of the machines. Raises PlanError."""
    tried = [name for row in calibration.rows.values() for name in row] if calibration else []
    check_wishes(objective, codecs, strategy, tuple(dict.fromkeys([*profile.codecs, *tried])), within)
    profile = _without_unused(profile, exits)
    wishes = replace(
        _wishes(profile, codecs, within, keep_on_device),
        calibration=_fitting(profile, calibration, max_accuracy_drop), max_accuracy_drop=max_accuracy_drop,
        exits=tuple(exits), vertical=vertical,
    )  # fmt: skip
    return LineSearch(profile, topology, wishes, p.Objective.of(objective), strategy)


def problems(
    profile: Profile,
    topology: Topology,
    codecs: Sequence[str] = ("raw", "zstd"),
    *,
    within: Mapping[str, float] | None = None,
    keep_on_device: int | str = 0,
) -> dict[tuple[str, ...], p.Problem]:
    """The tiers in use -> the Problem over them, for studies with ``partitioners``; `plan` takes the best of their answers.

    Where a direct link joins the same tiers as a longer way, its problem is given as the tiers and "direct".
    """
    check_wishes("latency", codecs, "auto", profile.codecs, within)
    profile = _without_unused(profile)
    made: dict[tuple[str, ...], p.Problem] = {}
    search = LineSearch(profile, topology, _wishes(profile, codecs, within, keep_on_device), p.LATENCY)
    for line in search.lines():
        tiers = line.tiers
        made.setdefault(tiers if tiers not in made or len(tiers) == 1 else (*tiers, "direct"), search.model(line).problem)
    return made


def check_wishes(
    objective: str,
    codecs: Sequence[str],
    strategy: Strategy,
    known_codecs: Sequence[str],
    within: Mapping[str, float] | None = None,
) -> None:
    """Raise PlanError for an objective, codec, strategy or limit that does not exist."""
    try:
        p.Objective.of(objective)
    except p.PartitionerError as error:
        raise PlanError(str(error)) from None
    for name, limit in (within or {}).items():
        if name not in p.FIELDS:
            raise PlanError(f"cannot plan within '{name}'; choose from {', '.join(p.FIELDS)}")
        if not 0 <= limit < float("inf"):
            raise PlanError(f"cannot plan within {name} = {limit}; a limit is a finite number, zero or more")
    if not codecs:
        raise PlanError(f"no codec is allowed; choose from {', '.join(known_codecs)}")
    for name in codecs:
        if name not in known_codecs:
            raise PlanError(f"codec '{name}' is not there to choose; measured are {', '.join(known_codecs)}")
    if isinstance(strategy, str) and strategy not in p.STRATEGIES:
        raise PlanError(f"there is no strategy '{strategy}'; choose one of {', '.join(p.STRATEGIES)}")


def baseline_plans(profile: Profile, topology: Topology, codecs: Sequence[str] = ("raw", "zstd")) -> dict[str, Plan]:
    """The plans that a split must beat, ready to run: each tier alone, with its input compressed by the best codec."""
    check_wishes("latency", codecs, "auto", profile.codecs)
    rivals = LineSearch(_without_unused(profile), topology, Wishes(tuple(codecs)), p.LATENCY).rivals()
    alone = {name: rival for name, rival in rivals.items() if name.endswith(" only")}
    return {name: as_plan(rival, "baseline", {}) for name, rival in alone.items() if isinstance(rival, Solved)}


def _fitting(profile: Profile, calibration: Calibration | None, max_accuracy_drop: float | None) -> Calibration | None:
    """The calibration, if it is of the same model and serves the wish; raises PlanError."""
    if max_accuracy_drop is not None and calibration is None:
        raise PlanError("an accuracy budget needs a calibration on your samples; make one with 'splitinfer calibrate'")
    if max_accuracy_drop is not None and not 0 <= max_accuracy_drop < float("inf"):
        raise PlanError(f"an accuracy budget of {max_accuracy_drop}; it must be a number, zero or more")
    if calibration is not None and calibration.fingerprint != profile.fingerprint:
        raise PlanError(f"the calibration is of another model ({calibration.fingerprint}; profile {profile.fingerprint}); calibrate again")
    return calibration


def _without_unused(profile: Profile, exits: Sequence[PlannedExit] = ()) -> Profile:
    """The profile without the heads of exits that the plan does not use: they do not run."""
    unused = set(profile.exits) - {each.layer for each in exits}
    return reduced(profile, {layer.name for layer in profile.layers} - unused) if unused else profile


def _wishes(profile: Profile, codecs: Sequence[str], within: Mapping[str, float] | None, keep_on_device: int | str) -> Wishes:
    limits = {p.FIELDS[name]: limit for name, limit in (within or {}).items()}
    return Wishes(tuple(codecs), limits, kept=kept_layers(profile, keep_on_device))
