"""Which of a family of plans a request takes: the rule of ``partitioners.switching`` on what each would cost now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from splitinfer.plans import Plan
from splitinfer.simulator.steps import Parallel, Program, Step, Transfer

Carrier = Callable[[str, float], tuple[float, float]]
"""Link and time -> (bytes per second, latency in seconds)."""
_SLOWEST = 1.0  # byte per second that an interrupted link counts as, so that costs stay finite


@dataclass(frozen=True)
class Replanning:
    """Other plans for the same model, and what a change costs."""

    plans: tuple[Plan, ...]
    """Besides the first."""
    migration_cost_s: float
    """Seconds of latency, added up over requests, that a change must have been worth before it is made."""


class Controller:
    """Chooses for each request as it arrives.

    It knows the rate that each link has at that moment, as a probe would tell, and which tiers and links have failed; it
    does not know the future, nor the queues.
    """

    def __init__(self, programs: Sequence[Program], carrier: Carrier, failed: Callable[[float], set[str]], migration_cost_s: float) -> None:
        """`programs`: what each plan does, as expected."""
        from partitioners.switching import Switching  # here: a simulation without re-planning needs nothing of that package

        self.programs, self._carrier, self._failed = programs, carrier, failed
        self._rule: Switching[int] = Switching(migration_cost_s, current=0)
        self.switches: list[tuple[float, int]] = []
        """When, and to which plan."""

    def choose(self, now_s: float) -> int:
        """The plan for a request that arrives now, as a number."""
        failed = self._failed(now_s)
        costs = {
            number: idle_s(program, self._carrier, now_s)
            for number, program in enumerate(self.programs) if not failed.intersection(program.resources)
        }  # fmt: skip
        before = self._rule.current
        if costs and self._rule.observe(costs) != before:
            self.switches.append((now_s, self._rule.current or 0))
        return self._rule.current or 0


def idle_s(program: Program, carrier: Carrier, now_s: float = 0.0) -> float:
    """Seconds of a request that meets no other, at the rates of one moment."""
    return program.delay_s + _sequence_s(program.steps, carrier, now_s)


def _sequence_s(steps: Sequence[Step], carrier: Carrier, now_s: float) -> float:
    return sum(_step_s(step, carrier, now_s) for step in steps)


def _step_s(step: Step, carrier: Carrier, now_s: float) -> float:
    if isinstance(step, Parallel):
        return max((_sequence_s(branch, carrier, now_s) for branch in step.branches), default=0.0)
    if isinstance(step, Transfer):
        rate, latency_s = carrier(step.resource, now_s)
        return step.nbytes / max(rate, _SLOWEST) + step.held_s + step.share * latency_s + step.after_s
    return step.layers_s + step.coding_s + step.wake_s + step.after_s + _sequence_s(step.groups, carrier, now_s)
