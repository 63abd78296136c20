"""Reads the JSON form, version 1 or 2, of a problem: shapes and keys here, the meaning of values in `validation`.

A key this version does not know is refused, never skipped: it may be a limit the caller counts on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, NoReturn, TypeVar

from partitioners.errors import ProblemError
from partitioners.problem import Codec, Layout, Link, Op, Problem, Tensor, Tier, Worker

T = TypeVar("T")
VERSIONS = (1, 2)


def read(source: str | Mapping[str, Any]) -> Problem:
    """Build a problem from JSON text or from what `json.loads` makes of it."""
    if isinstance(source, str):
        try:
            source = json.loads(source)
        except (ValueError, RecursionError) as error:
            raise ProblemError("$", f"is not JSON: {error}") from None
    version = source.get("version") if isinstance(source, Mapping) else None
    if isinstance(source, Mapping) and (version not in VERSIONS or isinstance(version, bool)):
        raise ProblemError("version", f"is {version!r}; this release reads versions {' and '.join(map(str, VERSIONS))}")
    body = {key: value for key, value in source.items() if key != "version"} if isinstance(source, Mapping) else source
    tier = _each(Tier, workers=_each(Worker) if version == 2 else _unknown)
    layouts = _each(Layout, seconds_per_unit=_list, fixed_s=_list) if version == 2 else _unknown
    return _record(Problem, "", body, tiers=tier, links=_each(Link), ops=_each(Op, seconds=_list, layouts=layouts),
                   tensors=_each(Tensor, consumers=_list, codecs=_each(Codec, encode_s=_list, decode_s=_list, transfer_s=_list)))


def _record(cls: Callable[..., T], path: str, value: object, **nested: Callable[[str, object], object]) -> T:
    """Build `cls` from an object whose keys are its fields; `nested` reads the fields that are not plain values."""
    if not isinstance(value, Mapping):
        raise ProblemError(path or "$", f"is {value!r:.60}; must be an object")
    dot = f"{path}." if path else ""
    specs = fields(cls)  # type: ignore[arg-type]
    known = {spec.name: spec.default is MISSING and spec.default_factory is MISSING for spec in specs}
    for key in value:
        if key not in known:
            _unknown(f"{dot}{key}", value)
    for key, needed in known.items():
        if needed and value.get(key) is None:
            raise ProblemError(f"{dot}{key}", "is missing")
    given = {key: item for key, item in value.items() if item is not None}
    return cls(**{key: nested[key](f"{dot}{key}", item) if key in nested else item for key, item in given.items()})


def _each(cls: Callable[..., T], **nested: Callable[[str, object], object]) -> Callable[[str, object], tuple[T, ...]]:
    """Return a reader of lists of `cls`."""

    def reader(path: str, value: object) -> tuple[T, ...]:
        return tuple(_record(cls, f"{path}[{i}]", item, **nested) for i, item in enumerate(_list(path, value)))

    return reader


def _list(path: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ProblemError(path, f"is {value!r:.60}; must be a list")
    return tuple(value)


def _unknown(path: str, _value: object) -> NoReturn:
    raise ProblemError(path, "is not supported by this version of the format")
