"""How likely a request gets to each layer of a model with early exits. Plain arithmetic on a Profile: needs no torch.

A head hangs at a tensor through which everything behind it passes (``learn.exits`` sees to that), so the layers divide
into what runs before the decision and what runs only where the head is not sure::

    reach 1      stem -- exit 1 -- body -- exit 2 -- rest
    on the way:        1        0.4       0.4      0.1
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from splitinfer.errors import PlanError
from splitinfer.plans import INPUT, PlannedExit
from splitinfer.profiles import Profile, TensorProfile

if TYPE_CHECKING:
    from splitinfer.graph import Graph

V = TypeVar("V")


def fitted(profile: Profile, graph: Graph) -> Profile:
    """The profile of a graph that has some of the layers of the one profiled, and no others."""
    part = reduced(profile, graph.layers)
    tensors = tuple(replace(tensor, consumers=graph.tensors[tensor.name].consumers) for tensor in part.tensors)
    return replace(part, tensors=tensors, fingerprint=graph.fingerprint)


def reduced(profile: Profile, layers: Collection[str]) -> Profile:
    """The profile of these layers alone; its fingerprint stays."""
    tensors = tuple(
        replace(tensor, consumers=tuple(name for name in tensor.consumers if name in layers))
        for tensor in profile.tensors if tensor.producer == INPUT or tensor.producer in layers
    )  # fmt: skip

    def kept(row: Mapping[str, V]) -> dict[str, V]:
        return {name: value for name, value in row.items() if name in layers}

    groups = [(tuple(name for name in names if name in layers), reason) for names, reason in profile.together]

    return replace(
        profile, tensors=tensors, layers=tuple(layer for layer in profile.layers if layer.name in layers),
        exits=tuple(name for name in profile.exits if name in layers),
        together=tuple((names, reason) for names, reason in groups if len(names) > 1),
        measurements=tuple(replace(m, seconds=kept(m.seconds), spread_s=kept(m.spread_s)) for m in profile.measurements),
    )  # fmt: skip


class Passing:
    """Probabilities of a profile's layers and tensors under some exits; without exits all are 1."""

    def __init__(self, profile: Profile, exits: Sequence[PlannedExit] = ()) -> None:
        """`exits` in the order in which a request meets them. Raises PlanError for one that does not fit the profile."""
        self._reach = {layer.name: 1.0 for layer in profile.layers}
        self._back: dict[str, float] = {}
        consumers: dict[str, set[str]] = {layer.name: set() for layer in profile.layers}
        for tensor in profile.tensors:
            consumers.setdefault(tensor.producer, set()).update(tensor.consumers)
        heads = {exit_.layer for exit_ in exits}
        for exit_ in exits:
            source = next((tensor for tensor in profile.tensors if exit_.layer in tensor.consumers), None)
            if source is None or {exit_.answer, exit_.confidence} - {t.name for t in profile.tensors if t.producer == exit_.layer}:
                raise PlanError(f"the profile has no exit '{exit_.layer}'; apply the exits to the graph before it is profiled")
            before = self._reach[exit_.layer]
            if not 0 <= exit_.reach <= before:
                raise PlanError(f"{exit_.reach:g} of the requests go on behind '{exit_.layer}'; {before:g} get there: exits go in order")
            self._back |= {exit_.answer: (before - exit_.reach) / before if before else 0.0, exit_.confidence: 0.0}
            pending = [name for name in source.consumers if name not in heads]
            behind: set[str] = set()
            while pending:
                name = pending.pop()
                if name not in behind:
                    behind.add(name)
                    pending += consumers[name]
            self._reach |= dict.fromkeys(behind, exit_.reach)

    def layer(self, name: str) -> float:
        """Share of the requests for which the layer runs."""
        return self._reach.get(name, 1.0)

    def tensor(self, consumers: Sequence[str], producer: str) -> float:
        """Share of the requests for which a tensor is sent to these layers, or, with none, made.

        A head stays with the layer whose tensor it reads, so where that tensor leaves its tier the decision has been made.
        """
        return max((self.layer(name) for name in consumers), default=self.layer(producer))

    def returned(self, tensor: TensorProfile) -> float:
        """Share of the requests that get to a result's producer in which the result goes back to the caller."""
        return self._back.get(tensor.name, 1.0) if tensor.returned else 0.0
