"""A family of plans behind the call of the whole model, which answers as long as the caller's own process lives.

::

    caller's process                                     processes of Ray
    +---------------------------------------+   sockets   +---------+   +-------+   +------+   +-------+
    | call -> machine (pure, supervisor/)   | <---------> | gateway | - | stage | - | stage| - | stage |
    |           `-> the device alone        |             +---------+   +-------+   +------+   +-------+
    +---------------------------------------+

The machine decides, the driver carries out (driver.py). No call into Ray is made in the caller's process.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster import lifecycle, state
from cluster.topology import Topology
from splitinfer import errors, supervisor
from splitinfer.alone import alone
from splitinfer.codecs.packet import Limits
from splitinfer.family import needs
from splitinfer.front import DEFAULT_TIMEOUT_S, Front
from splitinfer.graph import Graph
from splitinfer.pipeline import Pipeline
from splitinfer.plans import Plan
from splitinfer.runtime.child import Access
from splitinfer.runtime.driver import Driver, Switch, latency_s
from splitinfer.runtime.packing import Packer, first_slowdown
from splitinfer.supervisor import Machine, Settings
from splitinfer.tracing import Trace


def resilient(
    graph: Graph,
    plans: Sequence[Plan],
    topology: Topology,
    *,
    cluster: str | Access | None = None,
    offline: bool = True,
    smaller: Callable[..., Any] | None = None,
    settings: Settings = Settings(),  # noqa: B008 - frozen
    timeout_s: float = DEFAULT_TIMEOUT_S,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    paced: bool = True,
) -> ResilientPipeline:
    """A pipeline that keeps answering while machines die and links are cut; a context manager.

    `plans` is a family, best first (``plan_family``): where a machine is gone, the first plan that does without it takes
    over. Where none can, and with `offline`, the device answers alone, in this process: with the whole model, else with
    an early exit, else with `smaller`, a callable that takes the same arguments. Such answers are flagged (``Trace.degraded``).
    Requests are tried again until `timeout_s`, their deadline; tensors given to `submit` must stay as they are until then, because
    each attempt encodes them anew. `cluster` is the name of a cluster that ``splitinfer cluster up`` started, or how one is
    reached; None starts one on this machine, and ends it.

    Raises PlanError or DeployError for what can never work. A cluster that is away is no error: it is used when it comes.
    """
    return ResilientPipeline(graph, plans, topology, cluster, offline, smaller, settings, timeout_s, limits, paced)


class ResilientPipeline(Pipeline):
    """See :func:`resilient`. Calls, `submit` and `traced` are those of every pipeline; the plan is the family's best."""

    def __init__(
        self, graph: Graph, plans: Sequence[Plan], topology: Topology, cluster: str | Access | None, offline: bool,
        smaller: Callable[..., Any] | None, settings: Settings, timeout_s: float, limits: Limits, paced: bool,
    ) -> None:  # fmt: skip
        if not plans:
            raise errors.PlanError("a family needs a plan; plan_family gives one")
        if graph.stateful:
            raise errors.PlanError(f"{graph.name} keeps state between calls, which ends with the machine that holds it; use deploy")
        slowdown = first_slowdown(plans[0], topology)
        super().__init__(graph, plans[0], slowdown=slowdown, timeout_s=timeout_s)
        self.topology, self.limits, self.settings = topology, limits, settings
        on_its_own = alone(graph, plans, topology, slowdown, smaller) if offline else None
        # What the device does better alone is not left to others.
        remote = list(itertools.takewhile(needs, plans)) if offline else list(plans)
        names = _names(remote)
        self.fronts = {name: Front(graph, plan, slowdown=slowdown, timeout_s=timeout_s) for name, plan in zip(names, remote, strict=True)}
        packers = {name: Packer(front, topology, limits, paced=paced) for name, front in self.fronts.items()}
        family = [supervisor.Choice(name, needs(front.plan), latency_s(front.plan)) for name, front in self.fronts.items()]
        self.machine = Machine(family, settings, can_answer_alone=on_its_own is not None, repeatable=True)
        self.driver = Driver(self.machine, self.fronts, packers, on_its_own, settings, limits)
        self._cluster, self._own, self._opened = cluster, "", False

    # -- life

    def __enter__(self) -> ResilientPipeline:
        """Start, once. Requests are answered from now on, alone until the first plan is in place (:meth:`wait_for`)."""
        if self._opened:
            raise errors.Closed("a pipeline is opened once; make another one")
        self._opened = True
        self.driver.start(self._found())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Take no more requests, wait for those under way unless something failed, and end what was started."""
        self.close(0.0 if kind is not None else None)

    def close(self, timeout_s: float | None = None) -> None:
        """Take no more requests, wait up to `timeout_s` (default: their deadlines) for those under way, refuse the rest, and end."""
        if not self.driver.running:
            return
        try:
            self.driver.close(self.timeout_s if timeout_s is None else timeout_s)
        finally:
            if self._own:
                lifecycle.down(self._own)

    def _found(self) -> Access:
        if isinstance(self._cluster, Access):
            return self._cluster
        if self._cluster is None:
            self._own = f"own{secrets.token_hex(4)}"
            record = lifecycle.up_local(self.topology, name=self._own)
        else:
            record = state.load(self._cluster)
        return Access(record.address, Path(record.token), Path(record.tls) if record.tls else None, self._own)

    # -- what users see

    @property
    def current(self) -> str | None:
        """The plan that new requests take; None while the device answers alone, or requests wait."""
        return self.machine.current

    @property
    def switches(self) -> list[Switch]:
        """The changes of plan so far, the last thousand."""
        return list(self.driver.switches)

    def wait_for(self, plan: str | None = "", timeout_s: float = 120.0) -> bool:
        """Wait until new requests take a plan ("": the best; None: no plan, but the device alone); whether they do."""
        wanted = next(iter(self.fronts), None) if plan == "" else plan
        with self.driver.changed:
            return self.driver.changed.wait_for(lambda: self.machine.current == wanted, timeout_s)

    def drain(self, tier: str, timeout_s: float | None = None) -> bool:
        """Send nothing new to a tier's machine; whether nothing is under way there after `timeout_s` (default: a request's)."""
        self.topology.tier(tier)
        self.driver.drained.discard(tier)
        self.driver.tell(supervisor.DrainTier(tier))
        with self.driver.changed:
            return self.driver.changed.wait_for(lambda: tier in self.driver.drained, self.timeout_s if timeout_s is None else timeout_s)

    def undrain(self, tier: str) -> None:
        """Use a drained tier again."""
        self.driver.tell(supervisor.ReturnTier(tier))

    # -- requests

    def _submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[tuple[Any, Trace]]:
        if not self.driver.running:
            raise errors.Closed("the pipeline is not open; use it inside its 'with' block")
        try:
            self.graph.bind(args, kwargs)  # what does not fit is refused here, before it is decided who answers
        except errors.InputError as error:
            future: Future[tuple[Any, Trace]] = Future()
            future.set_exception(error)
            return future
        return self.driver.submit(args, kwargs, self.timeout_s)


def _names(plans: Sequence[Plan]) -> list[str]:
    """A name for each plan: its tiers, and a number where two have the same."""
    found: list[str] = []
    for plan in plans:
        name = "+".join(dict.fromkeys(stage.tier for stage in plan.stages))
        again = sum(other.partition("#")[0] == name for other in found)
        found.append(f"{name}#{again + 1}" if again else name)
    return found
