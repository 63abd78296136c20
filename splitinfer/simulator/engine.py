"""Events in virtual time, and requests that go through their programs.

An event is (time, order, action, two arguments) on a heap: equal times happen in the order in which they were planned,
so that a run depends on its seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from itertools import count
from typing import Any, Protocol

from splitinfer.simulator.steps import Parallel, Program, Step


class Place(Protocol):
    """A resource, as a request meets it."""

    def enter(self, request: Request, step: Any) -> None:
        """Take the step here; when it is done, ``engine.advance`` goes on."""


class Request:
    """A request on its way; or a branch of one, which has a `parent`."""

    __slots__ = (
        "after_s", "alive", "arrived_s", "client", "index", "parent", "pending", "places", "plan", "position", "program", "steps", "then",
    )  # fmt: skip

    def __init__(
        self, steps: tuple[Step, ...], places: Mapping[str, Place], program: Program | None, arrived_s: float, client: int, plan: int,
        index: int, parent: Request | None = None,
    ) -> None:  # fmt: skip
        self.steps, self.places, self.program = steps, places, program
        self.arrived_s, self.client, self.plan, self.index, self.parent = arrived_s, client, plan, index, parent
        self.position = -1
        self.after_s = 0.0  # of the step under way
        self.pending = 0
        self.then: Callable[[], None] | None = None  # what comes when the branches have ended, instead of the next step
        self.alive = True

    @property
    def root(self) -> Request:
        """The whole request."""
        return self if self.parent is None else self.parent.root


class Engine:
    """The clock, the heap, and what becomes of requests: `ended` is told of each, whether it was answered, and else where it failed."""

    def __init__(self, ended: Callable[[Request, str, str], None]) -> None:
        """`ended` takes a request, "done", "dropped" or "lost", and the resource."""
        self.now_s = 0.0
        self.events = 0
        """Happened so far."""
        self._ended = ended
        self._heap: list[tuple[float, int, Callable[[Any, Any], None], Any, Any]] = []
        self._order = count()

    def at(self, t_s: float, action: Callable[[Any, Any], None], one: Any = None, two: Any = None) -> None:
        """Plan an event."""
        heappush(self._heap, (t_s, next(self._order), action, one, two))

    def run(self) -> None:
        """Until nothing is planned any more."""
        heap = self._heap
        while heap:
            self.now_s, _, action, one, two = heappop(heap)
            self.events += 1
            action(one, two)

    def stop(self) -> None:
        """Forget what is planned."""
        self._heap.clear()

    def begin(self, request: Request, delay_s: float = 0.0) -> None:
        """Start a request, or after a delay."""
        if delay_s:
            self.at(self.now_s + delay_s, self.advance, request)
        else:
            self.advance(request)

    def advance(self, request: Request, _: Any = None) -> None:
        """Take the next step, or end."""
        request.position += 1
        if request.position < len(request.steps):
            step = request.steps[request.position]
            request.places[step.resource].enter(request, step)
        elif request.parent is None:
            self._ended(request, "done", "")
        else:
            self._join(request.parent)

    def within(self, request: Request, steps: tuple[Step, ...], then: Callable[[], None]) -> None:
        """Take other steps inside the one under way, and then do `then`, also where the request has failed meanwhile."""
        request.pending, request.then = 1, then
        self.advance(self.branch(request, steps))

    def branch(self, request: Request, steps: tuple[Step, ...]) -> Request:
        """A part of a request that goes its own way."""
        return Request(steps, request.places, None, self.now_s, request.client, request.plan, request.index, request)

    def give_up(self, request: Request) -> None:
        """Do not go on with what has failed elsewhere."""
        if request.parent is not None:
            self._join(request.parent)

    def fail(self, request: Request, outcome: str, resource: str) -> None:
        """End a request, "dropped" or "lost", at a resource. Its other branches run out; what they do there was under way."""
        root = request.root
        if root.alive:
            root.alive = False
            self._ended(root, outcome, resource)
        self.give_up(request)

    def _join(self, parent: Request) -> None:
        parent.pending -= 1
        if parent.pending:
            return
        if parent.then is not None:
            then, parent.then = parent.then, None
            then()
        elif parent.root.alive:
            self.advance(parent)
        else:
            self.give_up(parent)


class Fork:
    """The place of Parallel steps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def enter(self, request: Request, step: Parallel) -> None:
        """Start all branches; the request goes on when the last has ended."""
        request.pending = len(step.branches)
        if not request.pending:
            self._engine.advance(request)
        for branch in step.branches:
            self._engine.advance(self._engine.branch(request, branch))
