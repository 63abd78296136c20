"""What a request does, as a small program of steps: compute on a resource, transfer on a link, several at once.

::

    device  DDCCCE                          D decode, C layers, E encode: one Compute
    link          UUUU~~                    U bytes on the wire, ~ latency: one Transfer
    edge                DCCC
    link                    BBB~~           the results' way back

A `Parallel` step is several at once: its branches start together, and the next step starts when the last has ended. Layers that
a tier shares with its peers are such groups inside its Compute::

    device  CCC|CCCC~~~~~~~|                C layers, ~ waiting for the others: the device is held until the last has ended
    link       |UU         |                U scatter, B gather
    tablet     |  CCCC     |
    link       |      BB   |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest

FORK = "<fork>"
"""The resource of a Parallel step: none, so it takes no place in any queue."""
HELD = "<held>"
"""The resource of what a machine does that is held by the stage already, beside its peers."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Work on a tier, by one of its workers, in one go."""

    resource: str
    """The tier's name."""
    key: str
    """Work of equal keys may share a batch."""
    layers_s: float = 0.0
    """What a batch may save on."""
    coding_s: float = 0.0
    """Decoding and encoding, once for each request, in a batch too."""
    wake_s: float = 0.0
    """Paid on top where the worker was idle."""
    after_s: float = 0.0
    """A delay, on no resource, before the next step: the framework's work."""
    groups: tuple[Parallel, ...] = ()
    """Layers that are shared with peers, one group behind the other and behind the rest of the work, while the worker is held."""

    def scaled(self, share: float) -> Compute:
        """This for a share of the requests."""
        return replace(
            self, layers_s=share * self.layers_s, coding_s=share * self.coding_s, wake_s=share * self.wake_s, after_s=share * self.after_s,
            groups=tuple(group.scaled(share) for group in self.groups),
        )  # fmt: skip

    def joined(self, other: Compute) -> Compute:
        """The same work with another's added."""
        return replace(
            self, layers_s=self.layers_s + other.layers_s, coding_s=self.coding_s + other.coding_s, wake_s=self.wake_s + other.wake_s,
            after_s=self.after_s + other.after_s, groups=tuple(_either(a, b) for a, b in zip_longest(self.groups, other.groups)),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Transfer:
    """A packet on one link, one way."""

    resource: str
    """``from:to``."""
    nbytes: float
    share: float = 1.0
    """How much of the latency counts: below 1 where only a share of the requests sends the packet, see `Work.expected`."""
    after_s: float = 0.0
    held_s: float = 0.0
    """How much longer the wire is held, because the other end takes the next one only then."""

    def scaled(self, share: float) -> Transfer:
        """This for a share of the requests."""
        return replace(self, nbytes=share * self.nbytes, share=share * self.share, after_s=share * self.after_s, held_s=share * self.held_s)

    def joined(self, other: Transfer) -> Transfer:
        """The same packet with another's bytes added."""
        return replace(
            self, nbytes=self.nbytes + other.nbytes, share=self.share + other.share, after_s=self.after_s + other.after_s,
            held_s=self.held_s + other.held_s,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Parallel:
    """Several sequences at once, on resources of their own; it ends when the last of them ends."""

    branches: tuple[tuple[Step, ...], ...]
    resource: str = FORK

    def scaled(self, share: float) -> Parallel:
        """This for a share of the requests."""
        return Parallel(tuple(tuple(step.scaled(share) for step in branch) for branch in self.branches))

    def joined(self, other: Parallel) -> Parallel:
        """The same group with another's work added, step by step."""
        pairs = zip(self.branches, other.branches, strict=True)
        return Parallel(tuple(tuple(a.joined(b) for a, b in zip(one, two, strict=True)) for one, two in pairs))  # type: ignore[arg-type]


Step = Compute | Transfer | Parallel


@dataclass(frozen=True, slots=True)
class Program:
    """All that one request does."""

    steps: tuple[Step, ...]
    delay_s: float = 0.0
    """Before the first step, on no resource."""
    share: float = 1.0
    """Of the requests that do this."""
    exit: str = ""
    """The head whose answer ends the request; empty where it runs to the end."""

    @property
    def resources(self) -> tuple[str, ...]:
        """All that it uses, each once, in the order of use."""
        return tuple(dict.fromkeys(name for step in self.steps for name in _resources(step)))


def _resources(step: Step) -> tuple[str, ...]:
    if isinstance(step, Parallel):
        return tuple(name for branch in step.branches for inner in branch for name in _resources(inner))
    groups = step.groups if isinstance(step, Compute) else ()
    return (step.resource, *(name for group in groups for name in _resources(group) if name != HELD))


def _either(one: Parallel | None, two: Parallel | None) -> Parallel:
    """Both joined; a request that ends early does not get to the last groups."""
    if one is not None and two is not None:
        return one.joined(two)
    found = one or two
    assert found is not None
    return found
