"""Profile + Topology + codecs -> Problem -> Plan: where each layer runs, at the least cost, with the proof beside it.

Each subset of the tiers, and the direct link where there is one, is a line of its own (`lines.py`); each line is solved
by a strategy of `partitioners`, exactly where one can, and the best of all is the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import partitioners as p
from cluster.topology import Topology
from splitinfer.calibrations import Calibration
from splitinfer.errors import PlanError
from splitinfer.learn.reach import reduced
from splitinfer.line_problem import MOST_TIERS, Wishes, kept_layers, lines_of
from splitinfer.lines import LineModel
from splitinfer.plans import Accuracy, Candidate, Plan, PlannedExit
from splitinfer.profiles import Profile

Strategy = str | Callable[..., "p.Solution | Mapping[str, str]"]
_Priced = tuple[LineModel, "p.Solution | p.Infeasible"]


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
    tried = [name for row in calibration.rows.values() for name in row] if calibration else []
    check_wishes(objective, codecs, strategy, tuple(dict.fromkeys([*profile.codecs, *tried])), within)
    goal = p.Objective.of(objective)
    profile = _without_unused(profile, exits)
    wishes = replace(
        _wishes(profile, codecs, within, keep_on_device),
        calibration=_fitting(profile, calibration, max_accuracy_drop), max_accuracy_drop=max_accuracy_drop,
        exits=tuple(exits), vertical=vertical,
    )  # fmt: skip
    solved: list[tuple[LineModel, p.Solution]] = []
    failed: list[tuple[int, p.PartitionerError]] = []
    models = _models(profile, topology, wishes, goal)
    for model in models:
        try:
            solved.append((model, p.solve(model.problem, strategy, goal)))
        except p.PartitionerError as reason:  # no plan on this line, or none that this strategy can find
            failed.append((len(model.line.used), reason))
    if not solved:
        # The longest line has the most room: what it misses is what stands in the way.
        why = max(failed, key=lambda pair: pair[0])[1]
        raise PlanError(f"no plan fits: {why}" if isinstance(why, p.Infeasible) else str(why))
    model, best = min(solved, key=lambda item: goal.value(item[0].cost(item[1])))
    proof = _certificate(goal, model.cost(best), solved, best.strategy)
    if any(not isinstance(reason, p.Infeasible) for _, reason in failed) or _unsure(goal, wishes, models):
        proof = {"strategy": best.strategy, "status": "feasible", "bound": None, "gap": None}
    rivals = _rivals(profile, topology, wishes, goal) if compare else {}
    baselines = tuple(_candidate(name, solution, rival) for name, (rival, solution) in rivals.items())
    if compare and any(each.problem.divisible for each in models):
        baselines += tuple(_undivided(profile, topology, wishes, goal, [solution for _, solution in solved]))
    made = _as_plan(model, best, str(goal), proof)
    return replace(
        made, baselines=baselines, topology=topology.to_dict(), limits=dict(wishes.within or {}), kept_layers=wishes.kept,
        exits=wishes.exits,
        accuracy=Accuracy(calibration.metric, max_accuracy_drop, made.cost.error if made.cost else 0.0)
        if calibration is not None and max_accuracy_drop is not None else None,
    )  # fmt: skip


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
    for model in _models(profile, topology, _wishes(profile, codecs, within, keep_on_device), p.LATENCY):
        tiers = model.line.tiers
        made.setdefault(tiers if tiers not in made or len(tiers) == 1 else (*tiers, "direct"), model.problem)
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
    made, profile = {}, _without_unused(profile)
    for name, (model, solution) in _rivals(profile, topology, Wishes(tuple(codecs)), p.LATENCY).items():
        if isinstance(solution, p.Solution) and name.endswith(" only"):
            made[name] = _as_plan(model, solution, "baseline", {})
    return made


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


def _models(profile: Profile, topology: Topology, wishes: Wishes, goal: p.Objective) -> list[LineModel]:
    """One model for each line; a stream of requests uses whole lines, where a skipped tier and its links cost nothing."""
    times = {tier.name: profile.times(tier) for tier in topology.tiers}
    steady = _streams(goal, wishes)
    lines = [line for line in lines_of(topology) if not (steady and line.skips)]
    return [LineModel(profile, line, times, wishes, steady) for line in lines]


def _streams(goal: p.Objective, wishes: Wishes) -> bool:
    """Whether only the interval counts: then nothing waits, and nothing wakes up."""
    return set(goal.weights) == {"interval"} and set(wishes.within or {}) <= {"interval_s"}


def _unsure(goal: p.Objective, wishes: Wishes, models: Sequence[LineModel]) -> bool:
    """Whether no bound over all lines is known.

    Over a hop that skips a tier a Problem adds up its links' loads, which is above the true interval; and of very long
    lines not every choice of tiers is tried.
    """
    interval = "interval" in goal.weights or "interval_s" in (wishes.within or {})
    return (interval and any(model.line.skips for model in models)) or any(len(model.line.physical) > MOST_TIERS for model in models)


def _certificate(goal: p.Objective, cost: object, solved: Sequence[tuple[LineModel, p.Solution]], strategy: str) -> dict[str, object]:
    """The proof over all lines: no line has a plan below the least of their bounds."""
    bounds = [solution.certificate.bound for _, solution in solved]
    if any(bound is None for bound in bounds):
        return {"strategy": strategy, "status": "feasible", "bound": None, "gap": None}
    bound, value = min(bound for bound in bounds if bound is not None), goal.value(cost)
    proof = p.certify(value, bound)
    return {"strategy": strategy, "status": proof.status, "bound": proof.bound, "gap": proof.gap}


def _as_plan(model: LineModel, solution: p.Solution, objective: str, certificate: Mapping[str, object]) -> Plan:
    profile, line = model.profile, model.line
    return Plan(
        profile.model, profile.fingerprint, line.physical, model.stages(solution), model.crossings(solution), objective,
        model.cost(solution), certificate=certificate, stateful=profile.stateful,
        times_from={name: times.source for name, times in zip(line.tiers, model.times, strict=True)},
    )  # fmt: skip


def _rivals(profile: Profile, topology: Topology, wishes: Wishes, goal: p.Objective) -> dict[str, _Priced]:
    """Each tier alone, and a split after the first layer, over the better line where there are two."""
    found: dict[str, _Priced] = {}
    times = {tier.name: profile.times(tier) for tier in topology.tiers}
    for line in lines_of(topology):
        if len(line.used) > 2:
            continue
        model = LineModel(profile, line, times, wishes, _streams(goal, wishes))
        last, first_layer = line.tiers[-1], model.op_of[profile.layers[0].name]
        names = {f"{last} only": f"{last} only"}
        if len(line.used) == 2:
            names[f"split after {first_layer}"] = f"first layer here, rest on {last}"
        priced = p.baseline_solutions(model.problem, [first_layer] if len(line.used) == 2 else [], objective=goal)
        for key, name in names.items():
            rival = found.get(name)
            if rival is None or _value(model, priced[key], goal) < _value(*rival, goal):
                found[name] = model, priced[key]
    return found


def _undivided(profile: Profile, topology: Topology, wishes: Wishes, goal: p.Objective, found: Sequence[p.Solution]) -> Iterator[Candidate]:
    """The best plan without a vertical split, and what a split along each single axis would cost at best."""
    solved = []
    for model in _models(profile, topology, replace(wishes, vertical=False), goal):
        with suppress(p.PartitionerError):
            solved.append(model.cost(p.solve(model.problem, "auto", goal)))
    if solved:
        yield Candidate("no vertical split", min(solved, key=goal.value))
    for axis in ("rows", "channels", "heads"):
        values = [value for solution in found if isinstance(value := solution.baselines.get(f"{axis} only"), float)]
        if values:
            yield Candidate(f"vertical split by {axis} only", None, f"{goal} {min(values):.4g}")


def _value(model: LineModel, solution: p.Solution | p.Infeasible, goal: p.Objective) -> float:
    return goal.value(model.cost(solution)) if isinstance(solution, p.Solution) else float("inf")


def _candidate(name: str, solution: p.Solution | p.Infeasible, model: LineModel) -> Candidate:
    if isinstance(solution, p.Infeasible):
        return Candidate(name, None, str(solution))
    return Candidate(name, model.cost(solution))
