"""Every line of tiers solved at most once, and the best of them as a Plan: of all machines, or of those that are left."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import partitioners as p
from cluster.topology import Topology
from splitinfer.errors import PlanError
from splitinfer.line_problem import MOST_TIERS, Line, Wishes, lines_of
from splitinfer.lines import LineModel
from splitinfer.plans import Accuracy, Candidate, Cost, Plan, PlannedBlock, PlannedStage
from splitinfer.profiles import Profile

Strategy = str | Callable[..., "p.Solution | Mapping[str, str]"]


@dataclass(frozen=True)
class Solved:
    """An answer to a line's problem, with its price."""

    model: LineModel
    solution: p.Solution
    cost: Cost

    @staticmethod
    def of(model: LineModel, solution: p.Solution) -> Solved:
        """Price an answer."""
        return Solved(model, solution, model.cost(solution))


class LineSearch:
    """The lines of a topology under the same wishes. Answers are kept: to plan again for fewer machines costs little more."""

    def __init__(self, profile: Profile, topology: Topology, wishes: Wishes, goal: p.Objective, strategy: Strategy = "auto") -> None:
        self.profile, self.topology, self.wishes, self.goal, self.strategy = profile, topology, wishes, goal, strategy
        # Whether only the interval counts: then nothing waits, and nothing wakes up.
        self.steady = set(goal.weights) == {"interval"} and set(wishes.within or {}) <= {"interval_s"}
        self._times = {tier.name: profile.times(tier) for tier in topology.tiers}
        self._models: dict[Line, LineModel] = {}
        self._answers: dict[tuple[Line, str], Solved | p.PartitionerError] = {}
        self._priced: dict[Line, dict[str, Solved | p.Infeasible]] = {}

    def best(self, dead: Collection[str] = (), compare: bool = True) -> Plan:
        """The plan of least predicted cost in which the machines `dead`, tiers or peers, compute nothing.

        `compare`: also price the baselines that are left. Raises PlanError where no plan keeps the limits.
        """
        lines = self.lines(dead)
        answers = [self._answer(line, self.strategy) for line in lines]
        solved = [answer for answer in answers if isinstance(answer, Solved)]
        failed = [(line, answer) for line, answer in zip(lines, answers, strict=True) if not isinstance(answer, Solved)]
        if not solved:
            # The longest line has the most room: what it misses is what stands in the way.
            why = max(failed, key=lambda pair: len(pair[0].used))[1]
            raise PlanError(f"no plan fits: {why}" if isinstance(why, p.Infeasible) else str(why))
        best = min(solved, key=self._value)
        proof = self._certificate(best, solved)
        if any(not isinstance(reason, p.Infeasible) for _, reason in failed) or self._unsure(lines):
            proof = {"strategy": best.solution.strategy, "status": "feasible", "bound": None, "gap": None}
        return self._as_plan(best, proof, tuple(self._baselines(lines, dead, solved)) if compare else ())

    def lines(self, dead: Collection[str] = ()) -> list[Line]:
        """Those to solve. A stream of requests skips the dead only: to it a tier without layers, and its links, cost nothing."""
        return [line for line in self._living(dead) if not self.steady or set(line.skipped) <= set(dead)]

    def model(self, line: Line) -> LineModel:
        """A line as a Problem."""
        if line not in self._models:
            self._models[line] = LineModel(self.profile, line, self._times, self.wishes, self.steady)
        return self._models[line]

    def rivals(self, dead: Collection[str] = ()) -> dict[str, Solved | p.Infeasible]:
        """Each tier alone, and a split after the first layer, over the better line where there are two."""
        found: dict[str, Solved | p.Infeasible] = {}
        for line in self._living(dead):
            for name, rival in self._rivals_on(line).items():
                if name not in found or self._value(rival) < self._value(found[name]):
                    found[name] = rival
        return found

    def _living(self, dead: Collection[str]) -> Iterator[Line]:
        """The lines of living tiers, each with its living peers; over a dead tier the network still carries."""
        for line in lines_of(self.topology):
            if not set(line.tiers) & set(dead):
                yield replace(line, peers=tuple(tuple(peer for peer in peers if peer.name not in dead) for peers in line.peers))

    def _answer(self, line: Line, strategy: Strategy) -> Solved | p.PartitionerError:
        key = line, strategy if isinstance(strategy, str) else ""
        if key not in self._answers:
            model = self.model(line)
            try:
                self._answers[key] = Solved.of(model, p.solve(model.problem, strategy, self.goal))
            except p.PartitionerError as reason:  # no plan on this line, or none that this strategy can find
                self._answers[key] = reason
        return self._answers[key]

    def _rivals_on(self, line: Line) -> dict[str, Solved | p.Infeasible]:
        if len(line.used) > 2:
            return {}
        if line not in self._priced:
            model, last = self.model(line), line.tiers[-1]
            first_layer = model.op_of[self.profile.layers[0].name]
            names = {f"{last} only": f"{last} only"}
            if len(line.used) == 2:
                names[f"split after {first_layer}"] = f"first layer here, rest on {last}"
            priced = p.baseline_solutions(model.problem, [first_layer] if len(line.used) == 2 else [], objective=self.goal)
            rivals = {name: priced[key] for key, name in names.items()}
            self._priced[line] = {
                name: Solved.of(model, rival) if isinstance(rival, p.Solution) else rival for name, rival in rivals.items()
            }
        return self._priced[line]

    def _baselines(self, lines: Sequence[Line], dead: Collection[str], solved: Sequence[Solved]) -> Iterator[Candidate]:
        for name, rival in self.rivals(dead).items():
            yield Candidate(name, rival.cost) if isinstance(rival, Solved) else Candidate(name, None, str(rival))
        if any(self.model(line).problem.divisible for line in lines):
            yield from self._undivided(lines, solved)

    def _undivided(self, lines: Sequence[Line], found: Sequence[Solved]) -> Iterator[Candidate]:
        """The best plan without a vertical split, and what a split along each single axis would cost at best."""
        alone = [self._answer(replace(line, peers=((),) * len(line.used)), "auto") for line in lines]
        if solved := [answer for answer in alone if isinstance(answer, Solved)]:
            yield Candidate("no vertical split", min(solved, key=self._value).cost)
        for axis in ("rows", "channels", "heads"):
            prices = [each.solution.baselines.get(f"{axis} only") for each in found]
            if values := [value for value in prices if isinstance(value, float)]:
                yield Candidate(f"vertical split by {axis} only", None, f"{self.goal} {min(values):.4g}")

    def _value(self, answer: Solved | p.PartitionerError) -> float:
        return self.goal.value(answer.cost) if isinstance(answer, Solved) else float("inf")

    def _unsure(self, lines: Sequence[Line]) -> bool:
        """Whether no bound over all lines is known.

        Beside other costs, a Problem adds up the loads of a hop's links, which is above the true interval; and of very
        long lines not every choice of tiers is tried.
        """
        interval = "interval" in self.goal.weights or "interval_s" in (self.wishes.within or {})
        summed = interval and not self.steady and any(line.skipped for line in lines)
        return summed or any(len(line.physical) > MOST_TIERS for line in lines)

    def _certificate(self, best: Solved, solved: Sequence[Solved]) -> dict[str, object]:
        """The proof over all lines: no line has a plan below the least of their bounds."""
        bounds = [each.solution.certificate.bound for each in solved]
        if any(bound is None for bound in bounds):
            return {"strategy": best.solution.strategy, "status": "feasible", "bound": None, "gap": None}
        proof = p.certify(self._value(best), min(bound for bound in bounds if bound is not None))
        return {"strategy": best.solution.strategy, "status": proof.status, "bound": proof.bound, "gap": proof.gap}

    def _as_plan(self, best: Solved, proof: Mapping[str, object], baselines: tuple[Candidate, ...]) -> Plan:
        wishes, budget = self.wishes, self.wishes.max_accuracy_drop
        made = as_plan(best, str(self.goal), proof)
        return replace(
            made, stages=tuple(self._with_everyone(stage) for stage in made.stages), baselines=baselines,
            topology=self.topology.to_dict(), limits=dict(wishes.within or {}), kept_layers=wishes.kept, exits=wishes.exits,
            accuracy=Accuracy(wishes.calibration.metric, budget, best.cost.error)
            if wishes.calibration is not None and budget is not None else None,
        )  # fmt: skip

    def _with_everyone(self, stage: PlannedStage) -> PlannedStage:
        """A block names all machines of its tier: what it was planned without has a share of nothing."""
        names = (stage.tier, *(peer.name for peer in self.topology.peers(stage.tier)))
        return replace(stage, blocks=tuple(_shared_by(names, block) for block in stage.blocks))


def _shared_by(names: tuple[str, ...], block: PlannedBlock) -> PlannedBlock:
    def spread(shares: Sequence[int]) -> tuple[int, ...]:
        given = dict(zip(block.workers, shares, strict=True))
        return tuple(given.get(name, 0) for name in names)

    halos, inner = ({layer: spread(shares) for layer, shares in each.items()} for each in (block.exchange_after, block.inner_shares))
    return replace(block, workers=names, shares=spread(block.shares), exchange_after=halos, inner_shares=inner)


def as_plan(best: Solved, objective: str, certificate: Mapping[str, object]) -> Plan:
    """An answer as a plan that can run; what was wished for is not in it."""
    model, profile, line = best.model, best.model.profile, best.model.line
    return Plan(
        profile.model, profile.fingerprint, line.physical, model.stages(best.solution), model.crossings(best.solution), objective,
        best.cost, certificate=certificate, stateful=profile.stateful,
        times_from={name: times.source for name, times in zip(line.tiers, model.times, strict=True)},
    )  # fmt: skip
