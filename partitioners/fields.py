"""What one field of the JSON form must be; a complaint carries its path."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from numbers import Real

from partitioners.errors import ProblemError


def number(path: str, value: object) -> float:
    """Finite, zero or more; returned as it is."""
    try:
        # The exact types first: asking the abstract class takes most of the time on a large problem.
        real = type(value) in (float, int) or (isinstance(value, Real) and not isinstance(value, bool))
        good = real and 0 <= float(value) < math.inf  # type: ignore[arg-type]
    except OverflowError:  # an integer beyond the range of a float
        good = False
    if not good:
        raise ProblemError(path, f"is {value!r}; must be a finite number, zero or more")
    return value  # type: ignore[return-value]


def positive(path: str, value: object) -> None:
    """A rate: finite and above zero."""
    if number(path, value) == 0:
        raise ProblemError(path, "is 0; a link needs a rate above zero (a very small one keeps everything off it)")


def numbers(path: str, **values: object) -> None:
    """Each a number, by the name of its field."""
    for name, value in values.items():
        number(f"{path}.{name}", value)


def reach(path: str, value: object) -> None:
    """A probability."""
    if number(path, value) > 1:
        raise ProblemError(path, f"is {value!r}; a probability is at most 1")


def whole(path: str, value: object, least: int = 1) -> None:
    """Check for an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ProblemError(path, f"is {value!r}; must be a whole number, {least} or more")


def one_of(path: str, value: object, choices: Collection[str]) -> None:
    """Check for one of the texts to choose from."""
    if not isinstance(value, str) or value not in choices:
        raise ProblemError(path, f"is {value!r}; choose from {', '.join(choices)}")


def boolean(path: str, value: object) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise ProblemError(path, f"is {value!r}; must be true or false")


def per(path: str, values: Sequence[object], count: int, kind: str) -> None:
    """A list of `count` numbers, one for each of a `kind`."""
    if len(values) != count:
        raise ProblemError(path, f"has {len(values)} numbers; one for each of the {count} {kind}s is needed")
    for i, value in enumerate(values):
        number(f"{path}[{i}]", value)


def known(path: str, name: object, names: Collection[str], kind: str) -> None:
    """A text among the names of a `kind`."""
    if not isinstance(name, str) or name not in names:
        raise ProblemError(path, f"there is no {kind} {name!r}")


def unique(path: str, names: Iterable[object]) -> None:
    """Names: non-empty texts, none of them twice."""
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise ProblemError(f"{path}[{i}].name", f"is {name!r}; must be a non-empty text")
        if name in seen:
            raise ProblemError(f"{path}[{i}].name", f"{name!r} is also the name of {path}[{seen[name]}]")
        seen[name] = i
