"""What to minimise: one of the costs, or a weighted sum of them, as in "latency + 0.2*energy"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from partitioners.errors import PartitionerError

FIELDS = {
    "latency": "latency_s",
    "interval": "interval_s",
    "critical_path": "critical_path_s",
    "energy": "energy_j",
    "money": "money",
    "error": "error",
}
"""The name of a cost in an objective -> its field in a `Cost` and its key in `Problem.within`."""

ALIASES = {"period": "interval"}
ADDITIVE = ("latency", "energy", "money", "error")
"""Costs that are sums over ops, tensors and links; the other two are maxima."""

_TERM = re.compile(r"(?:(?P<weight>[0-9.]+(?:e[+-]?[0-9]+)?)\*)?(?P<name>[a-z_]+)(?:\*(?P<after>[0-9.]+(?:e[+-]?[0-9]+)?))?")


@dataclass(frozen=True)
class Objective:
    """A weighted sum of costs; weights are above zero, in 1/s, 1/J and so on."""

    weights: Mapping[str, float]

    @classmethod
    def of(cls, text: str | Objective) -> Objective:
        """Parse; raises `PartitionerError` naming the term that is not understood."""
        if isinstance(text, Objective):
            return text
        weights: dict[str, float] = {}
        for term in re.split(r"(?<![0-9]e)\+", text.replace(" ", "")):
            match = _TERM.fullmatch(term)
            name = match and ALIASES.get(match["name"], match["name"])
            if match is None or name not in FIELDS or (match["weight"] and match["after"]):
                raise PartitionerError(
                    f"objective {text!r}: {term!r} is not understood; choose from {', '.join(FIELDS)}"
                    " or a weighted sum such as 'latency + 0.2*energy'"
                )
            try:
                weight = float(match["weight"] or match["after"] or 1)
            except ValueError:
                raise PartitionerError(f"objective {text!r}: {term!r} does not begin with a number") from None
            if not 0 < weight < float("inf"):
                raise PartitionerError(f"objective {text!r}: the weight of {name} is {weight:g}; it must be above zero")
            weights[name] = weights.get(name, 0.0) + weight  # a plain float, which prints as it parses
        return cls(weights)

    @property
    def additive(self) -> bool:
        """Whether it is a sum over ops, tensors and links: what a minimum cut can price."""
        return all(name in ADDITIVE for name in self.weights)

    def weight(self, name: str) -> float:
        """The weight of a cost, 0 where it does not occur."""
        return self.weights.get(name, 0.0)

    def value(self, cost: object) -> float:
        """What a placement costs under this objective; `cost` is a `Cost`, or has fields of the same names."""
        return float(sum(weight * getattr(cost, FIELDS[name]) for name, weight in self.weights.items()))

    def __str__(self) -> str:
        """The text that parses to this."""
        return " + ".join(name if weight == 1 else f"{weight!r}*{name}" for name, weight in self.weights.items())


LATENCY = Objective({"latency": 1.0})
