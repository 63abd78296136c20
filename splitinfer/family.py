"""The plan family: the best plan for whatever machines are left, made before any fails, so that re-planning is a look-up.

    device -- edge -- cloud        nothing lost    device -> edge -> cloud
                                   edge            device ---------> cloud      (the network still carries)
                                   cloud           device -> edge
                                   edge, cloud     device

A dead machine computes nothing, and that is all. Data still passes the place where it was, over the same links at the
same price, as it passes any tier to which a plan gives no layers: links belong to the network, not to the machine. Where
a machine is the network to those behind it, they are lost with it; a look-up names only machines that can be reached.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitinfer.errors import PlanError
from splitinfer.plans import Plan

if TYPE_CHECKING:
    from cluster.topology import Topology
    from splitinfer.line_search import LineSearch
    from splitinfer.profiles import Profile

BEST = "plan.json"
"""The file of a family's first plan; the others' names begin with "plan-"."""


@dataclass(frozen=True)
class Loss:
    """Machines that are lost together, and what answers then."""

    machines: tuple[str, ...]
    """Tiers, lowest first, then peers; () for none."""
    plan: Plan | None
    """The best that needs none of them; None: there is no such plan."""
    why_not: str = ""
    """Where there is none: what stands in the way."""


def plan_family(
    profile: Profile, topology: Topology, objective: str = "latency", codecs: Sequence[str] = ("raw", "zstd"), **wishes: Any
) -> list[Plan]:
    """Best first: the plan that :func:`splitinfer.plan` makes, then those that take its place as machines are lost.

    `wishes` are the other keywords of ``plan``. The first tier is never lost, the data and the caller are there. For every
    set of other tiers, :func:`first_possible` finds the optimum of what is left, with the proof in its certificate, as
    ``plan`` would. Peers that are no tiers are lost together: one plan shares layers with all of them, one with none. Each
    plan is listed once; a loss that no plan survives has none (:func:`losses` says why). Raises what ``plan`` raises.
    """
    return _distinct(losses(profile, topology, objective, codecs, **wishes))


def losses(
    profile: Profile, topology: Topology, objective: str = "latency", codecs: Sequence[str] = ("raw", "zstd"), *,
    compare: bool = True, **wishes: Any,
) -> list[Loss]:  # fmt: skip
    """What to run for each loss that makes a difference, the loss of nothing first; see :func:`plan_family`.

    Losses of machines that the plan does not need are not listed, nor are those on top of one that no plan survives.
    At most one plan is made for each set of the tiers but the first and of the peers as one, out of lines solved once.
    """
    from splitinfer.planner import search_of  # here: a look-up needs no planner

    search = search_of(profile, topology, objective, codecs, **wishes)
    units = [(tier.name,) for tier in topology.tiers[1:]] + _beside(topology)
    found: dict[frozenset[str], Loss] = {}
    waiting = deque([frozenset[str]()])
    while waiting:
        dead = waiting.popleft()
        if dead in found:
            continue
        found[dead] = _planned(search, tuple(name for name in chain(*units) if name in dead), compare)
        if (made := found[dead].plan) is not None:
            # Whatever else is lost, the plan stays the best as long as what it needs is there.
            waiting += [dead | set(unit) for unit in units if needs(made) & set(unit)]
    family, everything = _distinct(found.values()), set(chain(*units))
    return [replace(loss, plan=first_possible(family, everything - dead)) for dead, loss in found.items()]


def needs(plan: Plan) -> frozenset[str]:
    """The machines without which a plan cannot run, the first tier's own aside: tiers with a stage, and peers with a share."""
    used = {stage.tier for stage in plan.stages}
    for block in chain.from_iterable(stage.blocks for stage in plan.stages):
        for shares in (block.shares, *block.exchange_after.values(), *block.inner_shares.values()):
            used |= {worker for worker, share in zip(block.workers, shares, strict=True) if share}
    return frozenset(used - {plan.tiers[0]})


def first_possible(family: Iterable[Plan], alive: Collection[str]) -> Plan | None:
    """The first plan of a family, and so the best, that needs only machines that are `alive`; None where there is none."""
    return next((plan for plan in family if needs(plan) <= set(alive)), None)


def save_family(found: Sequence[Loss], folder: str | Path) -> dict[str, Plan]:
    """Write each plan of these losses to a file of its own; file name -> plan.

    The names say what is lost: ``plan.json``, ``plan-without-edge.json``, ``plan-device-only.json``. Raises PlanError where
    the folder holds plans of another family, which would be read with these, or where it cannot be written.
    """
    named: dict[str, Plan] = {}
    for loss in found:
        if loss.plan is not None and loss.plan not in named.values():
            alone = f"plan-{loss.plan.tiers[0]}-only.json" if not needs(loss.plan) else f"plan-without-{'+'.join(loss.machines)}.json"
            named[alone if loss.machines else BEST] = loss.plan
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if strangers := sorted(path.name for path in Path(folder).glob("plan*.json") if path.name not in named):
            raise PlanError(f"{folder} holds {strangers[0]}, which is no plan of this family; remove it, or name another folder")
        for name, plan in named.items():
            plan.save(Path(folder, name))
    except OSError as error:
        raise PlanError(f"cannot write plans to {folder}: {error.strerror}") from error
    return named


def load_family(folder: str | Path) -> list[Plan]:
    """The plans that :func:`save_family` wrote, best first. Raises PlanError where one is malformed or of another model."""
    first = Plan.load(Path(folder, BEST))
    others = [Plan.load(path) for path in sorted(Path(folder).glob("plan-*.json"))]
    for plan in others:
        if (plan.fingerprint, plan.objective) != (first.fingerprint, first.objective):
            raise PlanError(
                f"{folder} mixes plans: {first.model} {first.fingerprint} for {first.objective} and "
                f"{plan.model} {plan.fingerprint} for {plan.objective}; plan again into an empty folder"
            )
    return _ordered([first, *others])


def _planned(search: LineSearch, dead: tuple[str, ...], compare: bool) -> Loss:
    try:
        return Loss(dead, search.best(dead, compare))
    except PlanError as reason:
        if not dead:
            raise
        return Loss(dead, None, str(reason))


def _beside(topology: Topology) -> list[tuple[str, ...]]:
    """The peers that are machines of their own, all together; a peer that is another tier's machine is lost with it."""
    found = dict.fromkeys(peer.machine.name for tier in topology.tiers for peer in tier.peers if peer.machine is not None)
    return [tuple(found)] if found else []


def _distinct(found: Iterable[Loss]) -> list[Plan]:
    """The plans in order, without those that a better one makes idle because it needs no other machine."""
    kept: list[Plan] = []
    for plan in _ordered([loss.plan for loss in found if loss.plan is not None]):
        if first_possible(kept, needs(plan)) is None:
            kept.append(plan)
    return kept


def _ordered(plans: Sequence[Plan]) -> list[Plan]:
    """The first, then the others by the value of their objective."""
    from splitinfer.plan_tables import goal_of

    goal = goal_of(plans[0])
    return [plans[0], *sorted(plans[1:], key=lambda plan: goal.value(plan.cost))]
