"""The open requests: where each one is, and which attempt of it; each ends with exactly one `Accept` or `Refuse`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from splitinfer.supervisor.events import Abandon, Accept, AnswerAlone, Instruction, Reason, Refuse, Send


@dataclass(slots=True)
class _Request:
    arrived_s: float
    deadline_s: float
    places: list[str | None] = field(default_factory=list)
    """The plan of each attempt; None: alone."""
    under_way: bool = False
    """The last attempt is; otherwise the request waits for a place."""
    alone_lost: bool = False
    """The device itself has failed to answer it."""
    why: str = "no plan is up"
    """Why it waits."""


class Requests:
    """All that are open; nothing stays of one that has ended."""

    def __init__(self, say: Callable[[Instruction], None], most: int, can_answer_alone: bool, repeatable: bool) -> None:
        self._say = say
        self._most = most
        self._can_answer_alone, self._repeatable = can_answer_alone, repeatable
        self._open: dict[str, _Request] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def deadline_s(self) -> float:
        """The earliest; infinite if there is none."""
        return min((request.deadline_s for request in self._open.values()), default=math.inf)

    def under_way(self, plan: str) -> int:
        """How many attempts are under way on the plan, those that were abandoned not counted."""
        # A copy: people look at this from other threads than the one that drives the machine.
        return sum(request.under_way and request.places[-1] == plan for request in list(self._open.values()))

    def arrive(self, name: str, deadline_s: float, now_s: float) -> None:
        """A new request, which waits for a place, or is refused. A name that is open already is not new."""
        if name in self._open:
            return
        if len(self._open) >= self._most:
            why = f"{len(self._open)} requests are open and {self._most} are allowed; send fewer at a time or raise most_in_flight"
            self._say(Refuse(name, Reason.OVERLOADED, why))
        elif not now_s < deadline_s:
            self._say(Refuse(name, Reason.DEADLINE, f"it arrived {now_s - deadline_s:.3g} s after its deadline; allow more time"))
        else:
            self._open[name] = _Request(now_s, deadline_s)

    def settle(self, current: str | None, gone: Mapping[str, str]) -> None:
        """Give each request its place: `current` is the plan to take, `gone` are the plans that are not up, and why."""
        for name, request in list(self._open.items()):
            if request.under_way and (place := request.places[-1]) in gone and place is not None:
                self._say(Abandon(name, len(request.places) - 1))
                self._lose(name, request, gone[place])
            if not request.under_way and name in self._open:
                self._place(name, request, current)

    def _place(self, name: str, request: _Request, current: str | None) -> None:
        attempt = len(request.places)
        if current is not None:
            self._say(Send(name, attempt, current))
        elif self._can_answer_alone and not request.alone_lost:
            self._say(AnswerAlone(name, attempt))
        else:
            return
        request.places.append(current)
        request.under_way = True

    def answered(self, name: str, attempt: int) -> str | None:
        """The first answer wins, abandoned attempt or not. The plan that gave it, if the request was open."""
        request = self._open.get(name)
        if request is None or not 0 <= attempt < len(request.places):
            return None
        if request.under_way and attempt != (last := len(request.places) - 1):
            self._say(Abandon(name, last))
        del self._open[name]
        self._say(Accept(name, attempt))
        return request.places[attempt]

    def failed(self, name: str, attempt: int, lost: bool, why: str) -> str | None:
        """An attempt that nobody waits for may fail as it likes. The plan that lost it, if it was lost by one."""
        request = self._open.get(name)
        if request is None or not request.under_way or attempt != len(request.places) - 1:
            return None
        if not lost:
            request.under_way = False
            self._refuse(name, Reason.FAILED, why)
            return None
        place = request.places[-1]
        request.alone_lost |= place is None
        self._lose(name, request, why)
        return place

    def _lose(self, name: str, request: _Request, why: str) -> None:
        request.under_way, request.why = False, why
        if not self._repeatable:
            self._refuse(name, Reason.LOST, f"{why}; a stateful model cannot be asked again: begin a new sequence")

    def expire(self, now_s: float) -> None:
        """Refuse those that are due."""
        for name, request in list(self._open.items()):
            if now_s >= request.deadline_s:
                if request.under_way:
                    place = request.places[-1]
                    what = f"plan '{place}' did not answer" if place is not None else "the device did not answer"
                else:
                    what = f"nobody could answer ({request.why})"
                self._refuse(name, Reason.DEADLINE, f"{what} within the {request.deadline_s - request.arrived_s:.3g} s that were allowed")

    def close(self, why: str) -> None:
        """Refuse all."""
        for name in list(self._open):
            self._refuse(name, Reason.CLOSED, why)

    def _refuse(self, name: str, reason: Reason, why: str) -> None:
        request = self._open.pop(name)
        if request.under_way:
            self._say(Abandon(name, len(request.places) - 1))
        self._say(Refuse(name, reason, why))
