"""What the supervisor's machine decides, carried out: requests encoded, sent, decoded; the gateway started and ended.

One thread hands events to the machine, and its instructions to those that may wait: two encode and decode, one packs deployments,
one answers alone.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any

from splitinfer import errors, supervisor
from splitinfer.alone import Alone
from splitinfer.codecs.packet import Limits, Packet
from splitinfer.front import Front, Request
from splitinfer.plans import Plan
from splitinfer.runtime.child import Access, Child
from splitinfer.runtime.errors import raised
from splitinfer.runtime.packing import Packer
from splitinfer.supervisor import Machine, Settings
from splitinfer.tracing import Span, Trace

_log = logging.getLogger(__name__)
_KEPT_SWITCHES = 1000
_CLOSE_S = 10.0


@dataclass(frozen=True)
class Switch:
    """A change of the plan that new requests take."""

    at_s: float
    """On the monotonic clock."""
    plan: str | None
    """None: the device answers alone, or requests wait."""
    why: str


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


class Driver:
    """Drives a machine. `start` it once; `close` ends it."""

    def __init__(
        self, machine: Machine, fronts: Mapping[str, Front], packers: Mapping[str, Packer], alone: Alone | None, settings: Settings,
        limits: Limits,
    ) -> None:  # fmt: skip
        self.machine, self.fronts, self.packers, self.alone = machine, fronts, packers, alone
        self.settings, self.limits = settings, limits
        self.switches: deque[Switch] = deque(maxlen=_KEPT_SWITCHES)
        self.changed = threading.Condition()
        """Notified when the plan has changed, or a tier is drained."""
        self.drained: set[str] = set()
        self.running = False
        self._events: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._requests: dict[str, _Open] = {}  # each until its future is done
        self._child: Child | None = None
        self._closed = threading.Event()

    # -- life

    def start(self, access: Access) -> None:
        """Start the threads, and with the machine's first instructions the gateway."""
        self._access = access
        self._work = ThreadPoolExecutor(2, "coding")
        self._packing = ThreadPoolExecutor(1, "packing")
        self._single = ThreadPoolExecutor(1, "alone")
        self._thread = threading.Thread(target=self._decide, name="supervisor", daemon=True)
        self.running = True
        self._thread.start()
        self.tell(supervisor.Start())

    def tell(self, event: Any) -> None:
        """Hand an event to the machine."""
        self._events.put((event, None))

    def close(self, wait_s: float) -> None:
        """Take no more requests, wait so long for those under way, refuse the rest, and end."""
        self.tell(supervisor.Close(time.monotonic() + wait_s))
        try:
            self._closed.wait(wait_s + _CLOSE_S)
        finally:  # also for who loses patience
            self._end()

    def _end(self) -> None:
        with self.changed:
            running, self.running = self.running, False
        if not running:  # another thread is at it
            return
        self.tell(supervisor.Close(time.monotonic()))
        self.tell(None)
        self._thread.join(_CLOSE_S)
        self._stop_gateway()
        left = [opened.future for opened in list(self._requests.values())]
        for future in wait(left, _CLOSE_S).not_done:  # the others were just being decoded
            _fail(future, errors.Closed("the pipeline was closed before there was an answer"))
        self._closed.set()
        for pool in (self._work, self._packing, self._single):
            pool.shutdown(wait=False)

    @property
    def gateway_pid(self) -> int | None:
        """The process that is the client of Ray; None while there is none."""
        child = self._child
        return child.pid if child is not None else None

    # -- requests

    def submit(self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout_s: float) -> Future[tuple[Any, Trace]]:
        """A future of the answer, or the error, which comes within `timeout_s`."""
        future: Future[tuple[Any, Trace]] = Future()
        future.set_running_or_notify_cancel()  # it cannot be cancelled: nobody would take back what is under way
        request, now_s = uuid.uuid4().hex, time.monotonic()
        self._requests[request] = _Open(args, kwargs, future, now_s, now_s + timeout_s)
        future.add_done_callback(lambda _: self._requests.pop(request, None))
        self.tell(supervisor.Arrived(request, now_s + timeout_s))
        if not self.running:  # it was closed just now, and nobody hears of events any more
            _fail(future, errors.Closed("the pipeline is being closed and takes no new requests; open another"))
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
            with _survived(event):
                for instruction in self.machine.handle(event, time.monotonic()):
                    with _survived(instruction):
                        self._carry_out(instruction, payload)

    def _carry_out(self, what: Any, payload: Any) -> None:
        match what:
            case supervisor.Send():
                self._work.submit(self._send, what, self._child)
            case supervisor.AnswerAlone(request, attempt):
                self._single.submit(self._answer_alone, request, attempt)
            case supervisor.Accept(request):
                self._work.submit(self._accept, what, self._requests[request], payload)
            case supervisor.Refuse(request):
                if (opened := self._requests.get(request)) is not None:
                    _fail(opened.future, self._refused(what, payload))
            case supervisor.Deploy(plan):
                self._packing.submit(self._deploy, what, self.packers[plan], self._child)
            case supervisor.Ping(plan):
                self._tell(what, self.settings.silence_s + 2 * latency_s(self.fronts[plan].plan))
            case supervisor.Undeploy():
                if self._child is not None:
                    self._packing.submit(self._child.tell, what)  # not before a Deploy that is still being packed
            case supervisor.Mend() | supervisor.Abandon():
                self._tell(what)
            case supervisor.StartGateway():
                self._start_gateway()
            case supervisor.StopGateway():
                self._stop_gateway()
            case supervisor.Switched(plan, why):
                _log.info("%s: %s", f"plan '{plan}'" if plan else "the device answers alone", why)
                with self.changed:
                    self.switches.append(Switch(time.monotonic(), plan, why))
                    self.changed.notify_all()
            case supervisor.Drained(tier):
                with self.changed:
                    self.drained.add(tier)
                    self.changed.notify_all()
            case supervisor.Closed():
                self._closed.set()

    def _tell(self, what: Any, payload: Any = None) -> None:
        if self._child is not None:
            self._child.tell(what, payload)

    def _start_gateway(self) -> None:
        self._stop_gateway()
        self._child = Child(self._access, self._events.put)

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
        if opened is None or self.alone is None:
            return
        try:
            found = self.alone(opened.args, opened.kwargs)
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
            _fail(opened.future, error)

    def _remote(self, what: supervisor.Accept, opened: _Open, data: bytes, spans: tuple[Span, ...]) -> tuple[Any, Trace]:
        plan, made = opened.sent[what.attempt]
        packet = Packet.unpack(data, self.limits)
        trace = Trace(what.request, 0.0, made.spans + spans, str(packet.meta.get("exit", "")), answered_by=plan)
        return self.fronts[plan].answer(packet.frames, made, self.limits), trace

    def _refused(self, what: supervisor.Refuse, payload: Any) -> Exception:
        match what.reason:
            case supervisor.Reason.FAILED:
                if payload is None:
                    return errors.StageError("of the plan", "framework", what.why)
                try:
                    return payload if isinstance(payload, Exception) else raised(Packet.unpack(payload, self.limits))
                except errors.PacketError as error:
                    return error
            case supervisor.Reason.OVERLOADED:
                return errors.Overloaded(what.why)
            case supervisor.Reason.LOST:
                return errors.StageLost("of the plan", "process", what.why)
            case supervisor.Reason.CLOSED:
                return errors.Closed(what.why)
        return errors.RequestTimeout(what.why)


@contextlib.contextmanager
def _survived(what: object) -> Iterator[None]:
    """Whoever waits must not wait for a thread that is gone, nor because something else went wrong."""
    try:
        yield
    except Exception:
        _log.exception("the supervisor failed at %s", what)


def _fail(future: Future[Any], error: Exception) -> None:
    with contextlib.suppress(InvalidStateError):  # it has its answer
        future.set_exception(error)


def latency_s(plan: Plan) -> float:
    """As predicted; 0 for a plan made by hand."""
    return plan.cost.latency_s if plan.cost else 0.0
