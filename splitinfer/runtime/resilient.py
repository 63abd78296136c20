"""A family of plans behind the call of the whole model, which answers as long as the caller's own process lives.

::

    caller's process                                     processes of Ray
    +---------------------------------------+   sockets   +---------+   +-------+   +------+   +-------+
    | call -> machine (pure, supervisor/)   | <---------> | gateway | - | stage | - | stage| - | stage |
    |           `-> the device alone        |             +---------+   +-------+   +------+   +-------+
    +---------------------------------------+

The machine decides, this module carries out: it encodes and decodes, keeps what callers wait for, starts and ends the gateway.
No call into Ray is made in the caller's process.
"""

from __future__ import annotations

import itertools
import logging
import queue
import secrets
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster import lifecycle, state
from cluster.topology import Topology
from splitinfer import errors, supervisor
from splitinfer.alone import Alone, alone
from splitinfer.codecs.packet import Limits, Packet
from splitinfer.family import needs
from splitinfer.front import DEFAULT_TIMEOUT_S, Front, Request
from splitinfer.graph import Graph
from splitinfer.pipeline import Pipeline
from splitinfer.plans import Plan
from splitinfer.runtime.child import Child
from splitinfer.runtime.errors import raised
from splitinfer.runtime.packing import Packer, first_slowdown
from splitinfer.supervisor import Machine, Settings
from splitinfer.tracing import Span, Trace

_log = logging.getLogger(__name__)
_KEPT_SWITCHES = 1000
_CLOSE_S = 10.0


@dataclass(frozen=True)
class Access:
    """How a running cluster is reached."""

    address: str
    """Of Ray's head, ``host:port``."""
    token: Path
    """The file of the cluster's token."""
    tls: Path | None = None
    """The directory of certificates, where its channels are encrypted."""


@dataclass(frozen=True)
class Switch:
    """A change of the plan that new requests take."""

    at_s: float
    """On the monotonic clock."""
    plan: str | None
    """None: the device answers alone, or requests wait."""
    why: str


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
    Requests are tried again until `timeout_s`, their deadline. `cluster` is the name of a
    cluster that ``splitinfer cluster up`` started, or how one is reached; None starts one on this machine, and ends it.

    Raises PlanError or DeployError for what can never work. A cluster that is away is no error: it is used when it comes.
    """
    return ResilientPipeline(graph, plans, topology, cluster, offline, smaller, settings, timeout_s, limits, paced)


@dataclass
class _Open:
    """What a caller waits for."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    future: Future[tuple[Any, Trace]]
    start_s: float
    deadline_s: float
    sent: dict[int, tuple[str, Request]] = field(default_factory=dict)
    """Attempt -> the plan that it went to, and what was made of the call for it."""


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
        self._alone: Alone | None = alone(graph, plans, topology, slowdown, smaller) if offline else None
        # What the device does better alone is not left to others.
        remote = list(itertools.takewhile(needs, plans)) if offline else list(plans)
        names = _names(remote)
        self.fronts = {name: Front(graph, plan, slowdown=slowdown, timeout_s=timeout_s) for name, plan in zip(names, remote, strict=True)}
        self._packers = {name: Packer(front, topology, limits, paced=paced) for name, front in self.fronts.items()}
        family = [supervisor.Choice(name, needs(front.plan), _latency_s(front.plan)) for name, front in self.fronts.items()]
        self.machine = Machine(family, settings, can_answer_alone=self._alone is not None, repeatable=True)
        self.switches: deque[Switch] = deque(maxlen=_KEPT_SWITCHES)
        """The changes of plan so far, the last thousand."""
        self._cluster, self._own = cluster, ""
        self._events: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._requests: dict[str, _Open] = {}
        self._child: Child | None = None
        self._changed = threading.Condition()
        self._drained: set[str] = set()
        self._closed = threading.Event()
        self._running = False

    # -- life

    def __enter__(self) -> ResilientPipeline:
        """Start. Requests are answered from now on, alone until the first plan is in place (:meth:`wait_for`)."""
        self._access = self._found()
        self._work = ThreadPoolExecutor(2, "coding")
        self._packing = ThreadPoolExecutor(1, "packing")
        self._single = ThreadPoolExecutor(1, "alone")
        self._thread = threading.Thread(target=self._decide, name="supervisor", daemon=True)
        self._running = True
        self._thread.start()
        self._events.put((supervisor.Start(), None))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Take no more requests, wait for those under way unless something failed, and end what was started."""
        self.close(0.0 if kind is not None else None)

    def close(self, timeout_s: float | None = None) -> None:
        """Take no more requests, wait up to `timeout_s` (default: their deadlines) for those under way, refuse the rest, and end."""
        if not self._running:
            return
        wait_s = self.timeout_s if timeout_s is None else timeout_s
        self._events.put((supervisor.Close(time.monotonic() + wait_s), None))
        self._closed.wait(wait_s + _CLOSE_S)
        self._running = False
        self._events.put((None, None))
        self._thread.join(_CLOSE_S)
        self._stop_gateway()
        for pool in (self._work, self._packing, self._single):
            pool.shutdown(wait=False)
        if self._own:
            lifecycle.down(self._own)

    def _found(self) -> Access:
        if isinstance(self._cluster, Access):
            return self._cluster
        if self._cluster is None:
            self._own = f"own{secrets.token_hex(4)}"
            lifecycle.up_local(self.topology, name=self._own)
        record = state.load(self._cluster or self._own)
        return Access(record.address, Path(record.token), Path(record.tls) if record.tls else None)

    # -- what users see

    @property
    def current(self) -> str | None:
        """The plan that new requests take; None while the device answers alone, or requests wait."""
        return self.machine.current

    @property
    def gateway_pid(self) -> int | None:
        """The process that is the client of Ray; None while there is none."""
        return self._child.pid if self._child is not None else None

    def wait_for(self, plan: str | None = "", timeout_s: float = 120.0) -> bool:
        """Wait until new requests take a plan ("": the best; None: no plan, but the device alone); whether they do."""
        wanted = next(iter(self.fronts), None) if plan == "" else plan
        with self._changed:
            return self._changed.wait_for(lambda: self.machine.current == wanted, timeout_s)

    def drain(self, tier: str, timeout_s: float | None = None) -> bool:
        """Send nothing new to a tier's machine; whether nothing is under way there after `timeout_s` (default: a request's)."""
        self.topology.tier(tier)
        self._drained.discard(tier)
        self._events.put((supervisor.DrainTier(tier), None))
        with self._changed:
            return self._changed.wait_for(lambda: tier in self._drained, self.timeout_s if timeout_s is None else timeout_s)

    def undrain(self, tier: str) -> None:
        """Use a drained tier again."""
        self._events.put((supervisor.ReturnTier(tier), None))

    # -- requests

    def _submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[tuple[Any, Trace]]:
        if not self._running:
            raise errors.Closed("the pipeline is not open; use it inside its 'with' block")
        future: Future[tuple[Any, Trace]] = Future()
        try:
            self.graph.bind(args, kwargs)  # what does not fit is refused here, before it is decided who answers
        except errors.InputError as error:
            future.set_exception(error)
            return future
        request, now_s = uuid.uuid4().hex, time.monotonic()
        self._requests[request] = _Open(args, kwargs, future, now_s, now_s + self.timeout_s)
        self._events.put((supervisor.Arrived(request, now_s + self.timeout_s), None))
        return future

    # -- the thread that decides

    def _decide(self) -> None:
        while True:
            wake_s = self.machine.wake_s()
            try:
                event, payload = self._events.get(timeout=None if wake_s is None else max(0.0, wake_s - time.monotonic()))
            except queue.Empty:
                event, payload = supervisor.Tick(), None
            if event is None:
                return
            try:
                for instruction in self.machine.handle(event, time.monotonic()):
                    self._carry_out(instruction, payload)
            except Exception:  # whoever waits must not wait for a thread that is gone
                _log.exception("the supervisor failed at %s", event)

    def _carry_out(self, what: Any, payload: Any) -> None:
        match what:
            case supervisor.Send():
                self._work.submit(self._send, what, self._child)
            case supervisor.AnswerAlone(request, attempt):
                self._single.submit(self._answer_alone, request, attempt)
            case supervisor.Accept(request):
                self._work.submit(self._accept, what, self._requests.pop(request), payload)
            case supervisor.Refuse(request):
                self._requests.pop(request).future.set_exception(self._refused(what, payload))
            case supervisor.Deploy(plan):
                self._packing.submit(self._deploy, what, self._packers[plan], self._child)
            case supervisor.Ping(plan):
                self._tell(what, self.settings.silence_s + 2 * _latency_s(self.fronts[plan].plan))
            case supervisor.Mend() | supervisor.Undeploy() | supervisor.Abandon():
                self._tell(what)
            case supervisor.StartGateway():
                self._start_gateway()
            case supervisor.StopGateway():
                self._stop_gateway()
            case supervisor.Switched(plan, why):
                _log.info("%s: %s", f"plan '{plan}'" if plan else "the device answers alone", why)
                with self._changed:
                    self.switches.append(Switch(time.monotonic(), plan, why))
                    self._changed.notify_all()
            case supervisor.Drained(tier):
                with self._changed:
                    self._drained.add(tier)
                    self._changed.notify_all()
            case supervisor.Closed():
                self._closed.set()

    def _tell(self, what: Any, payload: Any = None) -> None:
        if self._child is not None:
            self._child.tell(what, payload)

    def _start_gateway(self) -> None:
        self._stop_gateway()
        self._child = Child((self._access.address, self._access.token, self._access.tls), self._events.put)

    def _stop_gateway(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.stop()

    # -- work for other threads

    def _deploy(self, what: Any, packer: Packer, child: Child | None) -> None:
        try:
            shipment = packer.shipment()
        except Exception as error:  # it is told as any other deployment that failed
            self._events.put((supervisor.DeployFailed(what.plan, str(error)), None))
            return
        if child is not None:
            child.tell(what, shipment)

    def _send(self, what: supervisor.Send, child: Child | None) -> None:
        opened = self._requests.get(what.request)
        if opened is None or child is None:  # answered, or refused, meanwhile; or the gateway is gone, which the machine knows
            return
        try:
            left_s = max(0.0, opened.deadline_s - time.monotonic())
            made = self.fronts[what.plan].request(opened.args, opened.kwargs, what.request, what.attempt, left_s)
        except Exception as error:
            self._events.put((supervisor.Failed(what.request, what.attempt, False, str(error)), error))
            return
        opened.sent[what.attempt] = what.plan, made
        child.tell(what, (made.data, opened.deadline_s))

    def _answer_alone(self, request: str, attempt: int) -> None:
        opened = self._requests.get(request)
        if opened is None or self._alone is None:
            return
        try:
            found = self._alone(opened.args, opened.kwargs)
        except Exception as error:
            self._events.put((supervisor.Failed(request, attempt, False, str(error)), error))
            return
        self._events.put((supervisor.Answered(request, attempt), found))

    def _accept(self, what: supervisor.Accept, opened: _Open, payload: Any) -> None:
        try:
            answer, trace = self._remote(what, opened, *payload) if what.attempt in opened.sent else payload
            took_s, degraded = time.monotonic() - opened.start_s, trace.degraded and bool(self.fronts)
            opened.future.set_result((answer, replace(trace, request_id=what.request, total_s=took_s, degraded=degraded)))
        except Exception as error:  # an answer that cannot be read is an error, never a hang
            opened.future.set_exception(error)

    def _remote(self, what: supervisor.Accept, opened: _Open, data: bytes, spans: tuple[Span, ...]) -> tuple[Any, Trace]:
        plan, made = opened.sent[what.attempt]
        packet = Packet.unpack(data, self.limits)
        trace = Trace(what.request, 0.0, made.spans + spans, str(packet.meta.get("exit", "")), answered_by=plan)
        return self.fronts[plan].answer(packet.frames, made, self.limits), trace

    def _refused(self, what: supervisor.Refuse, payload: Any) -> Exception:
        match what.reason:
            case supervisor.Reason.FAILED:
                if isinstance(payload, Exception):
                    return payload
                return raised(Packet.unpack(payload, self.limits)) if payload else errors.StageError("of the plan", "framework", what.why)
            case supervisor.Reason.OVERLOADED:
                return errors.Overloaded(what.why)
            case supervisor.Reason.LOST:
                return errors.StageLost("of the plan", "process", what.why)
            case supervisor.Reason.CLOSED:
                return errors.Closed(what.why)
        return errors.RequestTimeout(what.why)


def _names(plans: Sequence[Plan]) -> list[str]:
    """A name for each plan: its tiers, and a number where two have the same."""
    found: list[str] = []
    for plan in plans:
        name = "+".join(dict.fromkeys(stage.tier for stage in plan.stages))
        again = sum(other.partition("#")[0] == name for other in found)
        found.append(f"{name}#{again + 1}" if again else name)
    return found


def _latency_s(plan: Plan) -> float:
    return plan.cost.latency_s if plan.cost else 0.0
