"""Profile + Topology + codecs -> Problem -> Plan: where each layer runs, in the least time, with the proof beside it.

Tensors are encoded once and forwarded. Each subset of the tiers, and the direct link where there is one, is a line of
its own in which a skipped tier is only a longer link; each line is solved exactly and the best of all is the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import partitioners as p
from cluster.topology import LinkSpec, Topology
from cluster.units import format_bytes
from splitinfer.errors import PlanError
from splitinfer.plans import INPUT, Candidate, Cost, Crossing, Plan, PlannedStage
from splitinfer.profiles import Profile, TensorProfile, TierTimes

_ENTRY = "<entry>"
KNOWN_CODECS = ("raw", "zstd", "fp16", "int8")
"""What a profile measures unless told otherwise; the registry itself needs torch (a test holds the two together)."""
_MOST_SUBSETS = 64  # of 7 tiers; a longer line is solved whole

Strategy = str | Callable[[p.Problem], "p.Solution | Mapping[str, str]"]


@dataclass(frozen=True)
class Line:
    """Tiers in use, and what joins each to the next: one link, or several behind each other where a tier is skipped."""

    physical: tuple[str, ...]
    """All tiers of the line, the skipped ones too."""
    used: tuple[int, ...]
    """Places in `physical`."""
    hops: tuple[tuple[LinkSpec, ...], ...]
    """Links between one used tier and the next, in the order of travel."""

    @property
    def tiers(self) -> tuple[str, ...]:
        """Names of the tiers in use."""
        return tuple(self.physical[place] for place in self.used)


def plan(
    profile: Profile,
    topology: Topology,
    objective: str = "latency",
    codecs: Sequence[str] = ("raw", "zstd"),
    *,
    strategy: Strategy = "auto",
) -> Plan:
    """The plan of least predicted latency.

    `codecs` are those that a cut may use: lossless by default; add "fp16" or "int8" where a loss is accepted.
    `strategy` names one of ``partitioners.STRATEGIES`` or is a function of your own from a Problem to a mapping op ->
    tier; a function is asked once for each choice of tiers, and the best of its answers becomes the plan. Raises PlanError
    for an unknown objective, a codec that was not profiled, or where no plan fits the memory.
    """
    check_wishes(objective, codecs, strategy, profile.codecs)
    times = {tier.name: profile.times(tier) for tier in topology.tiers}
    solved: list[tuple[_Model, p.Solution]] = []
    dropped: list[str] = []
    for line in _lines(topology):
        model = _Model(profile, line, times, codecs)
        solution = p.solve(model.problem, strategy)
        too_big = _over_memory(profile, topology, model.tier_of(solution))
        if too_big:
            dropped.append(too_big)
        else:
            solved.append((model, solution))
    rivals = _rivals(profile, topology, times, codecs)
    if dropped:  # the best plan does not fit, but a plainer one may
        solved += [pair for pair in rivals.values() if _fits(profile, topology, *pair)]  # type: ignore[misc]
    if not solved:
        raise PlanError(f"no plan fits: {dropped[0]}. Raise the memory of that tier, or add one.")
    model, best = min(solved, key=lambda item: item[1].cost.latency_s)
    bounds = [solution.certificate.bound for _, solution in solved]
    baselines = tuple(_candidate(name, solution, rival, topology) for name, (rival, solution) in rivals.items())
    made = _as_plan(model, best, objective, _certificate(best, bounds, dropped))
    return replace(made, baselines=baselines, topology=topology.to_dict())


def check_wishes(objective: str, codecs: Sequence[str], strategy: Strategy, known_codecs: Sequence[str] = KNOWN_CODECS) -> None:
    """Raise PlanError for an objective, codec or strategy that does not exist."""
    if objective != "latency":
        raise PlanError(f"objective '{objective}' is not known; this version plans for 'latency'")
    if not codecs:
        raise PlanError(f"no codec is allowed; choose from {', '.join(known_codecs)}")
    for name in codecs:
        if name not in known_codecs:
            raise PlanError(f"codec '{name}' is not there to choose; measured are {', '.join(known_codecs)}")
    if isinstance(strategy, str) and strategy not in p.STRATEGIES:
        raise PlanError(f"there is no strategy '{strategy}'; choose one of {', '.join(p.STRATEGIES)}")


def _lines(topology: Topology) -> Iterator[Line]:
    """Every line of tiers that starts where the data is born."""
    for whole in topology.lines():
        names = tuple(tier.name for tier in whole.tiers)
        rest = range(1, len(names))
        if 2 ** len(rest) > _MOST_SUBSETS:
            yield Line(names, tuple(range(len(names))), tuple((link,) for link in whole.links))
            continue
        for count in range(len(names)):
            for chosen in combinations(rest, count):
                used = (0, *chosen)
                yield Line(names, used, tuple(whole.path(a, b) for a, b in pairwise(used)))


class _Model:
    """One line as a Problem, and its solutions as parts of a Plan."""

    def __init__(self, profile: Profile, line: Line, times: Mapping[str, TierTimes], codecs: Sequence[str]) -> None:
        self.profile, self.line, self.codecs = profile, line, codecs
        self.times = [times[name] for name in line.tiers]
        self.op_of = _grouped(profile)
        self.problem = p.Problem(
            tiers=tuple(p.Tier(name) for name in line.tiers), links=tuple(self._link(place, hop) for place, hop in enumerate(line.hops)),
            ops=tuple(self._ops()), tensors=tuple(self._tensors()), relay="forward",
        )  # fmt: skip

    def _link(self, place: int, hop: Sequence[LinkSpec]) -> p.Link:
        """Store and forward over the links of a hop; what the stage behind it costs by itself is booked half on each way."""
        up, down = (_seconds_per_byte(hop, direction) + self.profile.framework.s_per_byte for direction in ("up", "down"))
        latency = sum(link.latency_s for link in hop) + self._stage_s(place + 1) / 2 + self.profile.packet_nbytes * up
        return p.Link(1 / up, latency, 1 / down)

    def _stage_s(self, place: int) -> float:
        """What a stage costs on a tier before it computes anything: a call, and waking up."""
        return self.profile.framework.call_s + self._wake_s(place)

    def _wake_s(self, place: int) -> float:
        return self.times[place].scale * self.times[place].base.wake_s

    @property
    def _inputs(self) -> list[TensorProfile]:
        return [tensor for tensor in self.profile.tensors if tensor.producer == INPUT]

    def _raw_s(self, tensor: str, place: int, decode: bool) -> float:
        pairs = self.times[place].base.codec_s[tensor]
        return self.times[place].scale * pairs["raw"][decode] if "raw" in pairs else 0.0

    def _received_s(self) -> float:
        """Decoding the raw inputs, where the first tier computes."""
        return sum(self._raw_s(tensor.name, 0, decode=True) for tensor in self._inputs)

    def _results_s(self, layer: str, place: int) -> float:
        """Encoding the results of a layer, which return raw."""
        return sum(self._raw_s(t.name, place, decode=False) for t in self.profile.tensors if t.returned and t.producer == layer)

    def _ops(self) -> Iterator[p.Op]:
        first, zeros = self.line.tiers[0], (0.0,) * len(self.times)
        yield p.Op(INPUT, zeros, pinned=first)
        # Every layer descends from the entry: it is on the first tier, and its call is paid, iff some layer is there.
        entry = self._stage_s(0) + self._received_s() + self.profile.framework.s_per_byte * sum(t.nbytes for t in self._inputs)
        yield p.Op(_ENTRY, (entry, *zeros[1:]))
        seconds: dict[str, list[float]] = {}
        for layer in self.profile.layers:
            held = seconds.setdefault(self.op_of[layer.name], [0.0] * len(self.times))
            for place, tier in enumerate(self.times):
                held[place] += tier.seconds[layer.name] + self._results_s(layer.name, place)
        for name, total in seconds.items():
            yield p.Op(name, tuple(total))

    def _tensors(self) -> Iterator[p.Tensor]:
        roots: dict[str, None] = {}
        for tensor in self.profile.tensors:
            producer = self.op_of[tensor.producer]
            consumers = tuple(dict.fromkeys(self.op_of[name] for name in tensor.consumers if self.op_of[name] != producer))
            if tensor.producer == INPUT:
                roots |= dict.fromkeys(consumers)
            if consumers or (tensor.returned and tensor.producer != INPUT):
                raw = tensor.sent_nbytes.get("raw", tensor.nbytes)
                options = tuple(self._codec(tensor, name) for name in self.codecs)
                yield p.Tensor(producer, consumers, raw, tensor.returned and tensor.producer != INPUT, options, tensor.name)
        yield p.Tensor(INPUT, (_ENTRY,), 0.0, name="<call>")
        yield p.Tensor(_ENTRY, tuple(roots), 0.0, name="<start>")

    def _codec(self, tensor: TensorProfile, name: str) -> p.Codec:
        pairs = [(tier.scale, *tier.base.codec_s[tensor.name][name]) for tier in self.times]
        encode, decode = tuple(scale * enc for scale, enc, _ in pairs), tuple(scale * dec for scale, _, dec in pairs)
        return p.Codec(name, tensor.sent_nbytes[name], encode, decode)

    # -- back

    def tier_of(self, solution: p.Solution) -> dict[str, str]:
        """Layer -> tier."""
        return {layer.name: solution.placement[self.op_of[layer.name]] for layer in self.profile.layers}

    def stages(self, solution: p.Solution) -> tuple[PlannedStage, ...]:
        """One stage for each tier that has layers."""
        tier_of = self.tier_of(solution)
        used = [tier for tier in self.line.tiers if tier in tier_of.values()]
        made = []
        for number, tier in enumerate(used):
            layers = [layer for layer in self.profile.layers if tier_of[layer.name] == tier]
            place = self.line.tiers.index(tier)
            seconds = self.times[place].seconds
            made.append(
                PlannedStage(
                    f"stage{number}", tier, tuple(layer.name for layer in layers),
                    sum(seconds[layer.name] for layer in layers) + self._wake_s(place), sum(layer.weight_nbytes for layer in layers),
                )
            )
        return tuple(made)

    def crossings(self, solution: p.Solution) -> tuple[Crossing, ...]:
        """What leaves its tier, with physical links."""
        specs = {tensor.name: tensor for tensor in self.profile.tensors}
        return tuple(
            Crossing(c.tensor, specs[c.tensor].producer, c.codec, self._physical(c.links), specs[c.tensor].nbytes, c.nbytes)
            for c in solution.codecs
            if c.tensor in specs
        )

    def _physical(self, hops: Sequence[int]) -> tuple[int, ...]:
        return tuple(range(self.line.used[hops[0]], self.line.used[hops[-1] + 1]))

    def cost(self, solution: p.Solution) -> Cost:
        """The predicted cost with the framework's share taken out of compute and links."""
        cost = solution.cost
        hops = sorted({hop for crossing in solution.codecs for hop in crossing.links})
        sent = {hop: sum(c.nbytes for c in solution.codecs if hop in c.links) + self.profile.packet_nbytes for hop in hops}
        wire = sum(self._wire(hop, sent[hop], "up") for hop in hops)
        back = self._returned(solution)
        home = sum(self._wire(hop, nbytes, "down") for hop, nbytes in back.items())
        compute = sum(stage.seconds for stage in self.stages(solution))
        places = {layer: self.line.tiers.index(tier) for layer, tier in self.tier_of(solution).items()}
        encode = cost.encode_s + sum(self._results_s(layer, place) for layer, place in places.items())
        decode = cost.decode_s + (self._received_s() if 0 in places.values() else 0.0)
        framework = cost.latency_s - compute - encode - decode - wire - home
        return Cost(
            cost.latency_s, compute, encode, wire, decode, home, framework,
            up_nbytes=sum(nbytes * len(self.line.hops[hop]) for hop, nbytes in sent.items()),
            return_nbytes=sum(nbytes * len(self.line.hops[hop]) for hop, nbytes in back.items()),
        )  # fmt: skip

    def _wire(self, hop: int, nbytes: float, direction: str) -> float:
        links = self.line.hops[hop]
        return nbytes * _seconds_per_byte(links, direction) + sum(link.latency_s for link in links)

    def _returned(self, solution: p.Solution) -> dict[int, float]:
        """Bytes on each hop on the way back."""
        tier_of = self.tier_of(solution)
        back: dict[int, float] = {}
        for tensor in self.profile.tensors:
            if tensor.returned and tensor.producer != INPUT:
                for hop in range(self.line.tiers.index(tier_of[tensor.producer])):
                    back[hop] = back.get(hop, 0.0) + tensor.sent_nbytes.get("raw", tensor.nbytes)
        return {hop: nbytes + self.profile.packet_nbytes for hop, nbytes in back.items()}


def _seconds_per_byte(hop: Sequence[LinkSpec], direction: str) -> float:
    return sum(1 / (link.up_bytes_per_s if direction == "up" else link.down_bytes_per_s) for link in hop)


def _grouped(profile: Profile) -> dict[str, str]:
    """Layer -> op: layers that must stay together are one op, named after the first of them."""
    op_of = {INPUT: INPUT} | {layer.name: layer.name for layer in profile.layers}
    for layers, _ in profile.together:
        merged = {op_of[name] for name in layers}
        first = next(layer.name for layer in profile.layers if op_of[layer.name] in merged)
        op_of |= {name: op_of[first] for name, op in op_of.items() if op in merged}
    return op_of


def _over_memory(profile: Profile, topology: Topology, tier_of: Mapping[str, str]) -> str:
    """Which tier cannot hold its weights, with both numbers; empty where all can."""
    for tier in topology.tiers:
        needed = sum(layer.weight_nbytes for layer in profile.layers if tier_of[layer.name] == tier.name)
        if tier.memory_bytes is not None and needed > tier.memory_bytes:
            return f"{format_bytes(needed)} of weights on '{tier.name}', which allows {format_bytes(tier.memory_bytes)}"
    return ""


def _fits(profile: Profile, topology: Topology, model: _Model, solution: p.Solution | p.Infeasible) -> bool:
    return isinstance(solution, p.Solution) and not _over_memory(profile, topology, model.tier_of(solution))


def _certificate(best: p.Solution, bounds: Sequence[float | None], dropped: Sequence[str]) -> dict[str, object]:
    """The proof over all lines: no line has a plan below the least of their bounds."""
    if dropped or any(bound is None for bound in bounds):
        return {"strategy": best.strategy, "status": "feasible", "bound": None, "gap": None}
    bound = min(bound for bound in bounds if bound is not None)
    gap = max(0.0, 1 - bound / best.cost.latency_s) if best.cost.latency_s else 0.0
    status = "optimal" if gap <= 1e-6 else "within"
    return {"strategy": best.strategy, "status": status, "bound": float(bound), "gap": float(gap)}


def baseline_plans(profile: Profile, topology: Topology, codecs: Sequence[str] = ("raw", "zstd")) -> dict[str, Plan]:
    """The plans that a split must beat, ready to run: each tier alone, with its input compressed by the best codec."""
    times = {tier.name: profile.times(tier) for tier in topology.tiers}
    made = {}
    for name, (model, solution) in _rivals(profile, topology, times, codecs).items():
        if isinstance(solution, p.Solution) and name.endswith(" only"):
            made[name] = _as_plan(model, solution, "baseline", {})
    return made


def _as_plan(model: _Model, solution: p.Solution, objective: str, certificate: Mapping[str, object]) -> Plan:
    profile, line = model.profile, model.line
    return Plan(
        profile.model, profile.fingerprint, line.physical, model.stages(solution), model.crossings(solution), objective,
        model.cost(solution), certificate=certificate, stateful=profile.stateful,
        times_from={name: times.source for name, times in zip(line.tiers, model.times, strict=True)},
    )  # fmt: skip


def _rivals(
    profile: Profile, topology: Topology, times: Mapping[str, TierTimes], codecs: Sequence[str]
) -> dict[str, tuple[_Model, p.Solution | p.Infeasible]]:
    """Each tier alone, and a split after the first layer, over the better line where there are two."""
    found: dict[str, tuple[_Model, p.Solution | p.Infeasible]] = {}
    for line in _lines(topology):
        if len(line.used) > 2:
            continue
        model = _Model(profile, line, times, codecs)
        last, first_layer = line.tiers[-1], model.op_of[profile.layers[0].name]
        names = {f"{last} only": f"{last} only"}
        if len(line.used) == 2:
            names[f"split after {first_layer}"] = f"first layer here, rest on {last}"
        priced = p.baseline_solutions(model.problem, [first_layer] if len(line.used) == 2 else [])
        for key, name in names.items():
            rival = found.get(name)
            if rival is None or _seconds(priced[key]) < _seconds(rival[1]):
                found[name] = model, priced[key]
    return found


def _seconds(solution: p.Solution | p.Infeasible) -> float:
    return solution.cost.latency_s if isinstance(solution, p.Solution) else float("inf")


def _candidate(name: str, solution: p.Solution | p.Infeasible, model: _Model, topology: Topology) -> Candidate:
    if isinstance(solution, p.Infeasible):
        return Candidate(name, None, str(solution))
    too_big = _over_memory(model.profile, topology, model.tier_of(solution))
    return Candidate(name, None, too_big) if too_big else Candidate(name, model.cost(solution))
