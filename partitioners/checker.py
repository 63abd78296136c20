"""Confirms or refutes every claim of an answer, by a walk that shares nothing with `cost` or a solver.

    problem, answer --read--> placement, codecs --walk--> every cost --compare--> confirmed | refuted, claim by claim
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any

from partitioners.check_blocks import read_blocks
from partitioners.errors import PartitionerError
from partitioners.objective import FIELDS, Objective
from partitioners.placement import OPTIMAL_GAP, Block, Solution
from partitioners.problem import Codec, Problem, Tensor
from partitioners.verdict import Refutation, Verdict
from partitioners.walk import TOLERANCE, Key, crossings, recompute, stops_of, walk

__all__ = ["Refutation", "Verdict", "check", "recompute"]


def check(problem: Problem | Mapping[str, Any] | str, answer: Solution | Mapping[str, Any] | str) -> Verdict:
    """Examine every claim of an answer: a `Solution`, or what `solve --json` prints, as text or as containers.

    A malformed answer is refuted, never raised; a malformed problem raises `ProblemError`. Whether the bound is below
    every placement is not decided here: only whether it contradicts the value or a baseline.
    """
    audit = _Audit(problem if isinstance(problem, Problem) else Problem.from_json(problem))
    audit.answer(answer)
    return Verdict(tuple(audit.confirmed), tuple(audit.refuted))


class _Audit:
    """Collects the verdict, claim by claim."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.confirmed: list[str] = []
        self.refuted: list[Refutation] = []

    def hold(self, good: bool, field: str, claimed: Any, recomputed: Any) -> bool:
        if good:
            self.confirmed.append(field)
        else:
            self.refuted.append(Refutation(field, claimed, recomputed))
        return good

    def same(self, field: str, claimed: Any, true: Any) -> None:
        """Compare numbers, and containers of them."""
        if isinstance(true, Mapping):
            if not isinstance(claimed, Mapping):
                self.hold(False, field, claimed, true)
                return
            for key in claimed:
                if key not in true:
                    self.hold(False, f"{field}.{key}", claimed[key], "there is no such cost")
            for key, value in true.items():
                self.same(f"{field}.{key}", claimed.get(key), value)
        elif isinstance(true, tuple):
            if not isinstance(claimed, list | tuple) or len(claimed) != len(true):
                self.hold(False, field, claimed, true)
                return
            for i, value in enumerate(true):
                self.same(f"{field}[{i}]", claimed[i], value)
        else:
            number = _number(claimed)
            self.hold(number is not None and math.isclose(number, true, rel_tol=TOLERANCE), field, claimed, true)

    def answer(self, answer: Any) -> None:
        """Examine all of it, as far as what stands in the earlier parts allows to recompute the later ones."""
        read = _plain(answer)
        if read is None:
            self.hold(False, "$", answer, "must be a Solution, a mapping or the JSON text of an object")
            return
        strategy = read.get("strategy")
        self.hold(isinstance(strategy, str) and bool(strategy), "strategy", strategy, "must be a name")
        objective = self.objective(read.get("objective"))
        at = self.placement(read.get("placement"))
        chosen = None if at is None else self.codecs(read.get("codecs"), at)
        blocks = None if at is None else self.blocks(read.get("blocks"), at)
        if at is None or chosen is None or blocks is None:
            return
        cost = walk(self.problem, at, chosen, blocks)
        self.same("cost", read.get("cost"), cost)
        self.limits(cost)
        if objective is not None:
            value = _value(objective, cost)
            if "value" in read:
                self.same("value", read["value"], value)
            bound = self.certificate(read.get("certificate"), value)
            self.baselines(read.get("baselines"), objective, bound)

    def objective(self, text: Any) -> Objective | None:
        why = "must be a text"
        try:
            objective = Objective.of(text) if isinstance(text, str) else None
        except PartitionerError as error:
            objective, why = None, str(error)
        self.hold(objective is not None, "objective", text, why)
        return objective

    def placement(self, given: Any) -> dict[str, int] | None:
        """Return op -> position of its tier, or None if that is not known for every op."""
        if not isinstance(given, Mapping):
            self.hold(False, "placement", given, "must be an object of op -> tier")
            return None
        before, tiers = len(self.refuted), self.problem.tier_index
        at = {}
        for op in self.problem.ops:
            tier = given.get(op.name)
            if not isinstance(tier, str) or tier not in tiers:
                self.hold(False, f"placement.{op.name}", tier, f"the tiers are {', '.join(tiers)}")
                continue
            at[op.name] = tiers[tier]
            if op.pinned not in (None, tier):
                self.hold(False, f"placement.{op.name}", tier, f"pinned to {op.pinned!r}")
        for name in given:
            if name not in self.problem.op_index:
                self.hold(False, f"placement.{name}", given[name], "there is no such op")
        if len(at) < len(self.problem.ops):
            return None
        self.direction(at)
        if len(self.refuted) == before:
            self.confirmed.append("placement")
        return at

    def direction(self, at: Mapping[str, int]) -> None:
        for tensor in () if self.problem.two_way else self.problem.tensors:
            for user in tensor.consumers:
                if at[user] < at[tensor.producer]:
                    why = f"its input {tensor.name!r} is made further down the line, and data does not flow back"
                    self.hold(False, f"placement.{user}", self.problem.tiers[at[user]].name, why)

    def cut(self, at: Mapping[str, int]) -> Iterator[tuple[Tensor, str, int]]:
        for tensor in self.problem.tensors:
            for direction, link in crossings(at[tensor.producer], stops_of(tensor, at)):
                yield tensor, direction, link

    def codecs(self, given: Any, at: Mapping[str, int]) -> dict[Key, Codec] | None:
        """Return the codec of every crossing, or None if one of them has none."""
        if not isinstance(given, list | tuple):
            self.hold(False, "codecs", given, "must be a list")
            return None
        before = len(self.refuted)
        needed: dict[Key, Tensor] = {(t.name, j, up): t for t, up, j in self.cut(at)}
        chosen: dict[Key, Codec] = {}
        for i, entry in enumerate(given):
            self.crossing(f"codecs[{i}]", entry, needed, chosen)
        first: dict[str, Codec] = {}
        for key in needed:
            if key not in chosen:
                self.hold(False, "codecs", None, "{!r} crosses link {} {}, and no codec is listed for it".format(*key))
            elif self.problem.relay == "forward" and first.setdefault(key[0], chosen[key]).name != chosen[key].name:
                self.hold(False, "codecs", chosen[key].name, f"{key[0]!r} is forwarded: {first[key[0]].name!r} all the way")
        if len(self.refuted) == before:
            self.confirmed.append("codecs")
        return chosen if needed.keys() == chosen.keys() else None

    def crossing(self, path: str, entry: Any, needed: Mapping[Key, Tensor], chosen: dict[Key, Codec]) -> None:
        """Examine one entry of the codecs and add it to those chosen."""
        if not isinstance(entry, Mapping):
            self.hold(False, path, entry, "must be an object")
            return
        name, link, direction = entry.get("tensor"), entry.get("link"), entry.get("direction", "up")
        plain = isinstance(name, str) and isinstance(link, Integral) and not isinstance(link, bool) and isinstance(direction, str)
        key: Any = (name, link, direction)
        if not plain or key not in needed:
            self.hold(False, path, key, "no tensor of this name crosses this link in this direction")
            return
        ways = needed[key].ways
        codec = next((c for c in ways if c.name == entry.get("codec")), None)
        if key in chosen:
            self.hold(False, path, key, "listed twice")
        elif codec is None:
            self.hold(False, f"{path}.codec", entry.get("codec"), f"choose from {', '.join(c.name for c in ways)}")
        else:
            chosen[key] = codec
            self.same(f"{path}.nbytes", entry.get("nbytes"), codec.nbytes)

    def blocks(self, given: Any, at: Mapping[str, int]) -> list[Block] | None:
        """Return the blocks, or None if one of them breaks a rule."""
        blocks, bad = read_blocks(self.problem, given, at)
        for field, claimed, why in bad:
            self.hold(False, field, claimed, why)
        self.confirmed += [] if bad else [f"blocks[{i}]" for i in range(len(blocks))]
        return None if bad else blocks

    def limits(self, cost: Mapping[str, Any]) -> None:
        """Examine what the problem bounds; the field of a refutation stands in the problem."""
        bounded = {f"within.{name}": (limit, cost[name]) for name, limit in self.problem.within.items()}
        if self.problem.error_budget is not None:
            bounded["error_budget"] = self.problem.error_budget, cost["error"]
        for i, tier in enumerate(self.problem.tiers):
            if tier.memory_bytes is not None:
                bounded[f"tiers[{i}].memory_bytes"] = tier.memory_bytes, cost["tier_memory_bytes"][tier.name]
            for w, worker in enumerate(tier.workers):
                if worker.memory_bytes is not None:
                    bounded[f"tiers[{i}].workers[{w}].memory_bytes"] = worker.memory_bytes, cost["worker_memory_bytes"][tier.name][w]
        for field, (limit, used) in bounded.items():
            self.hold(used <= limit * (1 + TOLERANCE), field, limit, used)

    def certificate(self, given: Any, value: float) -> float | None:
        """Examine the proof's arithmetic and return the bound."""
        if not isinstance(given, Mapping):
            self.hold(False, "certificate", given, "must be an object")
            return None
        status, bound, gap = given.get("status"), given.get("bound"), given.get("gap")
        if bound is None:
            self.hold(gap is None, "certificate.gap", gap, "there is no bound to have a gap to")
            self.hold(status == "feasible", "certificate.status", status, "without a bound it is 'feasible'")
            return None
        low, part = _number(bound), _number(gap)
        if not self.hold(low is not None and low <= value * (1 + TOLERANCE), "certificate.bound", bound, value) or low is None:
            return None
        true = (value - low) / value if value else 0.0
        right = part is not None and abs(part - true) <= 4 * TOLERANCE  # value and bound are each off by one tolerance
        self.hold(right, "certificate.gap", gap, true)
        if part is not None:
            due = "optimal" if part <= OPTIMAL_GAP else "within"
            self.hold(status == due, "certificate.status", status, f"with this gap it is {due!r}")
        return low

    def baselines(self, given: Any, objective: Objective, bound: float | None) -> None:
        """No plainer plan may beat the bound; each tier alone is recomputed where no codec is to be chosen."""
        if not isinstance(given, Mapping):
            self.hold(False, "baselines", given, "must be an object")
            return
        alone = {f"{tier.name} only": i for i, tier in enumerate(self.problem.tiers)}
        for name, claimed in given.items():
            field = f"baselines.{name}"
            number = _number(claimed)
            true = self.alone(alone[name], objective) if name in alone else None
            if number is None and not (isinstance(claimed, str) and claimed):
                self.hold(False, field, claimed, "must be a finite number, or a text that says why there is none")
            elif isinstance(true, float):
                self.same(field, claimed, true)
            elif isinstance(true, str):
                self.hold(number is None, field, claimed, true)
            else:
                low = number is None or bound is None or number >= bound * (1 - TOLERANCE)
                self.hold(low, field, claimed, f"below the bound, {bound}")

    def alone(self, tier: int, objective: Objective) -> float | str | None:
        """Return the value of all ops on one tier, pinned ones excepted; why not; or None where codecs are to be chosen."""
        index = self.problem.tier_index
        at = {op.name: tier if op.pinned is None else index[op.pinned] for op in self.problem.ops}
        cut = list(self.cut(at))
        trial = _Audit(self.problem)
        trial.direction(at)
        if not trial.refuted and any(len(t.ways) > 1 for t, _, _ in cut):
            return None
        cost = walk(self.problem, at, {(t.name, j, up): t.ways[0] for t, up, j in cut})
        trial.limits(cost)
        return str(trial.refuted[0]) if trial.refuted else _value(objective, cost)


def _value(objective: Objective, cost: Mapping[str, Any]) -> float:
    return float(sum(weight * cost[FIELDS[name]] for name, weight in objective.weights.items()))


def _number(value: Any) -> float | None:
    """None for what is no finite number."""
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer beyond the range of a float
        return None
    return number if math.isfinite(number) else None


def _plain(answer: Any) -> Mapping[str, Any] | None:
    """Containers of an answer; None for what is none."""
    try:
        if isinstance(answer, str):
            answer = json.loads(answer)
        elif isinstance(answer, Solution):
            answer = answer.to_dict()
    except Exception:  # no JSON, nested too deep for Python, or a Solution filled with anything: refuted, whatever it is
        return None
    return answer if isinstance(answer, Mapping) else None
