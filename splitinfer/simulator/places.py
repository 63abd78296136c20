"""Resources in virtual time: the workers of a machine, with a queue and batches, and the wire of a link.

A failure ends what is in service. That is noticed when it should have ended, as by a deadline: then it is lost, or done
again. What waits goes on waiting, and what comes meanwhile waits too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from cluster.link import Link
from splitinfer.simulator.engine import Engine, Request
from splitinfer.simulator.steps import Compute, Transfer

S = TypeVar("S", Compute, Transfer)


class Meter:
    """What the machines of one tier, or the wires of one link and direction, did since the last `reset`."""

    def __init__(self, name: str, servers: int) -> None:
        """`servers`: how many requests all of them together can serve at once."""
        self.name, self.servers = name, servers
        self.busy = self.waiting = 0
        self.nbytes = 0.0
        self.most_waiting = 0
        self._busy_s = self._waiting_s = self._marked_s = 0.0

    def mark(self, now_s: float, busy: int, waiting: int) -> None:
        """From `now_s` on, so many more are served and wait."""
        past_s = now_s - self._marked_s
        self._busy_s += self.busy * past_s
        self._waiting_s += self.waiting * past_s
        self._marked_s = now_s
        self.busy += busy
        self.waiting += waiting
        if self.waiting > self.most_waiting:
            self.most_waiting = self.waiting

    def book(self, busy_s: float, nbytes: float) -> None:
        """Add service whose end is known, or, negative, take it back."""
        self._busy_s += busy_s
        self.nbytes += nbytes

    def reset(self, now_s: float) -> None:
        """Forget what was before."""
        self.mark(now_s, 0, 0)
        self._busy_s = self._waiting_s = self.nbytes = 0.0
        self.most_waiting = self.waiting

    def busy_s(self, now_s: float) -> float:
        """Seconds of service, added up over servers."""
        self.mark(now_s, 0, 0)
        return self._busy_s

    def waiting_s(self, now_s: float) -> float:
        """Seconds of waiting, added up over requests."""
        self.mark(now_s, 0, 0)
        return self._waiting_s


@dataclass(frozen=True)
class Batching:
    """Requests are served together: as many as are there, up to `size`, once the first has waited `wait_s` or all `size` are there.

    A batch takes ``fixed * max + (1 - fixed) * sum`` of its requests' seconds in the layers: `fixed` is what one more
    request does not add, 0 where batches save nothing. Coding is done for each request.
    """

    size: int
    wait_s: float = 0.0
    fixed: float = 0.5

    def seconds(self, steps: list[Compute]) -> float:
        """Of one batch, waking up left out."""
        layers = [step.layers_s for step in steps]
        return self.fixed * max(layers) + (1 - self.fixed) * sum(layers) + sum(step.coding_s for step in steps)


class _Queue(Generic[S]):
    """What waiting rooms have in common."""

    def __init__(self, engine: Engine, meter: Meter, limit: int | None, retry: bool) -> None:
        self.engine, self.meter, self.limit, self.retry = engine, meter, limit, retry
        self.queue: deque[tuple[Request, S, float]] = deque()
        self.era = 0
        """Counts failures; what began in an earlier era was interrupted."""

    def wait(self, request: Request, step: S) -> bool:
        """Queue it, if there is room."""
        if self.limit is not None and len(self.queue) >= self.limit:
            self.engine.fail(request, "dropped", self.meter.name)
            return False
        self.meter.mark(self.engine.now_s, 0, 1)
        self.queue.append((request, step, self.engine.now_s))
        return True

    def enter(self, request: Request, step: S) -> None:
        """As `Place`."""
        raise NotImplementedError

    def interrupted(self, request: Request) -> None:
        """What began before the failure should have ended now."""
        if self.retry:
            step: Any = request.steps[request.position]
            self.enter(request, step)
        else:
            self.engine.fail(request, "lost", self.meter.name)


class Machine(_Queue[Compute]):
    """Equal workers behind one queue, first come, first served."""

    def __init__(
        self, engine: Engine, meter: Meter, workers: int, limit: int | None, retry: bool, vary: Callable[[], float] | None
    ) -> None:
        """`vary`: a random factor on each piece of work; None: none."""
        super().__init__(engine, meter, limit, retry)
        self.workers = self.free = workers
        self.vary = vary
        self._failures = 0  # under way: they may overlap

    def enter(self, request: Request, step: Compute) -> None:
        """Serve at once where a worker is idle, which then has to wake up."""
        if self.free:
            self.free -= 1
            self.meter.mark(self.engine.now_s, 1, 0)
            self._serve(request, step, step.wake_s)
        else:
            self.wait(request, step)

    def fail(self) -> None:
        """Stop; interrupt what is in service."""
        self._failures += 1
        self.era += 1
        if self._failures == 1:
            self.meter.mark(self.engine.now_s, self.free - self.workers, 0)
            self.free = 0

    def repair(self) -> None:
        """Go on."""
        self._failures -= 1
        if not self._failures:
            self.free = self.workers
            self._resume()

    def _resume(self) -> None:
        while self.free and self.queue:
            request, step, _ = self.queue.popleft()
            self.free -= 1
            self.meter.mark(self.engine.now_s, 1, -1)
            self._serve(request, step, step.wake_s)

    def _serve(self, request: Request, step: Compute, wake_s: float) -> None:
        request.after_s = step.after_s
        work_s = step.layers_s + step.coding_s
        if self.vary is not None:
            work_s *= self.vary()
        action = self._share if step.groups else self._done
        self.engine.at(self.engine.now_s + work_s + wake_s, action, request, self.era)

    def _share(self, request: Request, era: int) -> None:
        """Work on with others, while the worker is held."""
        step: Any = request.steps[request.position]
        self.engine.within(request, step.groups, lambda: self._shared(request, era))

    def _shared(self, request: Request, era: int) -> None:
        if request.root.alive:
            self._done(request, era)
            return
        if era == self.era:
            self._take_next()
        self.engine.give_up(request)

    def _done(self, request: Request, era: int) -> None:
        if era != self.era:
            self.interrupted(request)
            return
        self._take_next()
        self.engine.begin(request, request.after_s)

    def _take_next(self) -> None:
        if self.queue:
            following, step, _ = self.queue.popleft()
            self.meter.mark(self.engine.now_s, 0, -1)
            self._serve(following, step, 0.0)
        else:
            self.free += 1
            self.meter.mark(self.engine.now_s, -1, 0)


class Held:
    """A machine's own part of what it shares: the stage holds the machine, so nothing here waits."""

    def __init__(self, engine: Engine, vary: Callable[[], float] | None) -> None:
        self._engine, self._vary = engine, vary

    def enter(self, request: Request, step: Compute) -> None:
        """As `Place`."""
        work_s = step.layers_s * (self._vary() if self._vary else 1.0)
        self._engine.at(self._engine.now_s + work_s + step.after_s, self._engine.advance, request)


class BatchMachine(Machine):
    """Workers that serve batches of work of one key."""

    def __init__(
        self, engine: Engine, meter: Meter, workers: int, limit: int | None, retry: bool, vary: Callable[[], float] | None,
        batching: Batching,
    ) -> None:  # fmt: skip
        super().__init__(engine, meter, workers, limit, retry, vary)
        self.batching = batching

    def enter(self, request: Request, step: Compute) -> None:
        """Wait for the rest of a batch."""
        if self.wait(request, step):
            self._try(True)
            if self.batching.wait_s and self.queue and self.queue[-1][0] is request:
                self.engine.at(self.engine.now_s + self.batching.wait_s, self._try, True)

    def _resume(self) -> None:
        self._try(True)

    def _try(self, idle: bool, _: object = None) -> None:
        """Start what batches are ready, the oldest first; `idle`: the worker has to wake up."""
        now_s = self.engine.now_s
        while self.free and self.queue:
            _, first, since_s = self.queue[0]
            batch = list(islice((item for item in self.queue if item[1].key == first.key), self.batching.size))
            if len(batch) < self.batching.size and now_s < since_s + self.batching.wait_s:
                return
            for item in batch:
                self.queue.remove(item)
                item[0].after_s = item[1].after_s
            self.free -= 1
            self.meter.mark(now_s, 1, -len(batch))
            work_s = self.batching.seconds([step for _, step, _ in batch]) * (self.vary() if self.vary else 1.0)
            self.engine.at(now_s + work_s + (first.wake_s if idle else 0.0), self._end, [request for request, _, _ in batch], self.era)

    def _end(self, batch: list[Request], era: int) -> None:
        if era != self.era:
            for request in batch:
                self.interrupted(request)
            return
        self.free += 1
        self.meter.mark(self.engine.now_s, -1, 0)
        self._try(False)
        for request in batch:
            self.engine.begin(request, request.after_s)


class Wire(_Queue[Transfer]):
    """One direction of a link: times come from `cluster.link.Link`, which is free again when the last packet has departed."""

    def __init__(self, engine: Engine, meter: Meter, link: Link, limit: int | None, retry: bool) -> None:
        super().__init__(engine, meter, limit, retry)
        self.link = link
        self._departs_s = self._blocked_s = 0.0

    def enter(self, request: Request, step: Transfer) -> None:
        """Send at once where the wire is free."""
        if not self.queue and self.link.free_at_s <= self.engine.now_s:
            self._send(request, step)
        elif self.wait(request, step) and len(self.queue) == 1:
            self.engine.at(self.link.free_at_s, self._next)

    def fail(self, until_s: float) -> None:
        """Interrupt what is on the wire and in flight; nothing is sent before `until_s`."""
        self.era += 1
        self.meter.book(-self.under_way_s, 0.0)
        self._departs_s = self.engine.now_s
        self._blocked_s = self.link.free_at_s = max(self._blocked_s, until_s)

    @property
    def under_way_s(self) -> float:
        """Seconds until what is on the wire has departed."""
        return max(0.0, self._departs_s - self.engine.now_s)

    def _send(self, request: Request, step: Transfer) -> None:
        now_s = self.engine.now_s
        departs_s, arrives_s = self.link.reserve(now_s, step.nbytes)
        if step.held_s:
            departs_s, arrives_s = departs_s + step.held_s, arrives_s + step.held_s
            self.link.free_at_s = departs_s
        self._departs_s = departs_s
        self.meter.book(departs_s - now_s, step.nbytes)
        arrives_s = departs_s + step.share * (arrives_s - departs_s)
        self.engine.at(arrives_s + step.after_s, self._arrived, request, self.era)

    def _next(self, _: object, __: object) -> None:
        if self.link.free_at_s > self.engine.now_s:  # the link failed while this waited
            self.engine.at(self.link.free_at_s, self._next)
            return
        request, step, _since = self.queue.popleft()
        self.meter.mark(self.engine.now_s, 0, -1)
        self._send(request, step)
        if self.queue:
            self.engine.at(self.link.free_at_s, self._next)

    def _arrived(self, request: Request, era: int) -> None:
        if era != self.era:
            self.interrupted(request)
        else:
            self.engine.advance(request)
