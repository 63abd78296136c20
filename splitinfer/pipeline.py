"""A split model as one callable. `Pipeline.local` runs all stages in this process: the reference for every backend."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from splitinfer.codecs.packet import Frame, Limits
from splitinfer.errors import Closed, PlanError
from splitinfer.front import Front
from splitinfer.graph import Graph
from splitinfer.groups import LocalBlock
from splitinfer.plans import Plan
from splitinfer.runner import StageRunner
from splitinfer.stages import Stage, carve
from splitinfer.tracing import Span, Trace


class Pipeline(Front, ABC):
    """A split model with the call of the whole one.

    Calling it blocks; `submit` returns at once, and many requests may be in flight. `traced` also returns the trace.
    """

    @staticmethod
    def local(graph: Graph, plan: Plan) -> LocalPipeline:
        """All stages in this process, one after the other, through the same packets as over a network."""
        return LocalPipeline(graph, plan)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns for this call, in the model's own structure."""
        return self.traced(*args, **kwargs)[0]

    def traced(self, *args: Any, **kwargs: Any) -> tuple[Any, Trace]:
        """The answer and where the time went.

        Raises InputError for a call that does not fit, StageError for a failure inside a stage, RequestTimeout.
        """
        return self.start(*args, **kwargs).result()

    def start(self, *args: Any, **kwargs: Any) -> Future[tuple[Any, Trace]]:
        """A future of the answer and its trace. Its callbacks run on threads that other requests need: they must not block."""
        return self._submit(args, kwargs)

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future of what the model returns for this call; see :meth:`start`."""
        outer: Future[Any] = Future()

        def finish(inner: Future[tuple[Any, Trace]]) -> None:
            if not outer.set_running_or_notify_cancel():
                return  # nobody wants it any more
            if inner.cancelled():
                outer.set_exception(Closed("the request was cancelled, or its pipeline closed before there was an answer"))
            elif (error := inner.exception()) is not None:
                outer.set_exception(error)
            else:
                outer.set_result(inner.result()[0])

        self.start(*args, **kwargs).add_done_callback(finish)
        return outer

    @abstractmethod
    def _submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[tuple[Any, Trace]]:
        """Start one request."""


class LocalPipeline(Pipeline):
    """All stages in this process, on the caller's thread."""

    limits = Limits(packet_nbytes=1 << 40, tensor_nbytes=1 << 38, held_nbytes=1 << 40)  # nothing here comes from outside

    def __init__(self, graph: Graph, plan: Plan, *, slowdown: float = 1.0) -> None:
        """`slowdown` stretches the work, where this process stands for a slower machine."""
        super().__init__(graph, plan, slowdown=slowdown)
        last = len(self.stages) - 1
        self.runners = [
            StageRunner(
                [[part if isinstance(part, Stage) else LocalBlock(part) for part in within] for within in parts],
                route, name=planned.name, tier=planned.tier, last=index == last, limits=self.limits,
                slowdown=slowdown,
            )
            for index, (parts, route, planned) in enumerate(zip(self.stages, self.routes, plan.stages, strict=True))
        ]  # fmt: skip

    def _submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[tuple[Any, Trace]]:
        future: Future[tuple[Any, Trace]] = Future()
        try:
            future.set_result(self._run(args, kwargs, self.runners))
        except Exception as error:  # a future carries whatever went wrong to its owner
            future.set_exception(error)
        return future

    def degraded(self, *args: Any, **kwargs: Any) -> tuple[Any, Trace]:
        """The answer without network: the first tier alone, from its last exit where no exit is sure; and the trace.

        The trace's `degraded` says whether that exit was not sure. Raises PlanError where the first tier can give no
        answer, and what `traced` raises.
        """
        first = self.plan.tiers[0]
        near = list(itertools.takewhile(lambda runner: runner.tier == first, self.runners))
        if len(near) < len(self.runners) and not any(runner.route.exits for runner in near):
            raise PlanError(f"without network '{first}' can give no answer: the plan has no early exit there")
        return self._run(args, kwargs, near)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], runners: Sequence[StageRunner]) -> tuple[Any, Trace]:
        """One request through the first stages; where these are not all, the last exit among them must answer."""
        ends = [place for place, runner in enumerate(runners) if runner.route.exits] if len(runners) < len(self.runners) else []
        alone = ends[-1] if ends else -1
        start = time.perf_counter()
        request = self.request(args, kwargs)
        data, spans, sender = request.data, request.spans, ("source", self.plan.tiers[0])
        results: list[Frame] = []
        pieces = [0] * (len(runners) + 1)  # bytes that went ahead to each stage
        for place, runner in enumerate(runners):
            spans += self._crossed(*sender, runner.tier, len(data) + pieces[place])
            step = runner.run(data, alone=place == alone, emit=partial(_feed, runners, pieces, place + 1))
            sender = (runner.name, runner.tier)
            results += step.results
            spans += step.spans
            if step.onward is None:
                break
            data = step.onward
        answer = self.answer(tuple(results), request, self.limits)
        return answer, Trace(step.request.request_id, time.perf_counter() - start, spans, step.exit, step.degraded)

    def _crossed(self, stage: str, tier: str, following: str, nbytes: int) -> tuple[Span, ...]:
        """What a packet weighs on the links to the next stage's tier; here it takes no time."""
        links = self.plan.tiers.index(following) - self.plan.tiers.index(tier)
        return (Span(stage, tier, "wire", time.perf_counter(), 0.0, nbytes=nbytes * links),) if links else ()


def _feed(runners: Sequence[StageRunner], nbytes: list[int], place: int, piece: bytes) -> None:
    """To the next stage, and on as far as it is passed on."""
    nbytes[place] += len(piece)
    if place < len(runners) and runners[place].feed(piece):
        _feed(runners, nbytes, place + 1, piece)


def whole(graph: Graph) -> Stage:
    """The whole model as one stage."""
    return carve(graph, graph.layers, "whole")
