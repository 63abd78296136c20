"""Dataclasses from JSON files, each field by its annotation: what is malformed is refused by name before anything uses it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from splitinfer.errors import SplitinferError

T = TypeVar("T")
LARGEST_NBYTES = 1 << 28
"""Of a file: 256 MiB; the largest profile takes some."""
_HUGE = 1e18  # bytes and FLOPs of a request are far below, and whole numbers above 1e308 cannot be divided


class Malformed(ValueError):
    """A value is not what its field takes; the message names the field."""


def text_of(path: str | Path, what: str, error: type[SplitinferError]) -> str:
    """The text of a file; raises `error` where it cannot be read, or is too large."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(LARGEST_NBYTES + 1)
        if len(data) > LARGEST_NBYTES:
            raise error(f"the {what} {path} is larger than {LARGEST_NBYTES >> 20} MiB: it is something else")
        return data.decode()
    except (OSError, UnicodeDecodeError) as reason:
        raise error(f"cannot read the {what} {path}: {getattr(reason, 'strerror', None) or 'it is not UTF-8 text'}") from reason


def document(kind: type[T], text: str, what: str, versions: tuple[int, ...], error: type[SplitinferError]) -> T:
    """The dataclass that a file's text holds beside its `version`; raises `error`, which names the field."""
    try:
        data = json.loads(text)
        if "\\ud" in text.lower():  # half a character, which can be neither printed nor sent
            json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as reason:
        raise error(f"a {what} is JSON: {reason}") from reason
    version = data.pop("version", None) if isinstance(data, dict) else None
    if type(version) is not int or version not in versions:
        known = " to ".join(map(str, dict.fromkeys((versions[0], versions[-1]))))
        maker = {"calibration": "calibrate"}.get(what, what)
        raise error(f"not a {what} of version {known}; make it again with 'splitinfer {maker}'")
    try:
        return read(kind, data, "")
    except Malformed as reason:
        raise error(f"malformed {what}: {reason}") from reason


def read(kind: type[T], value: Any, path: str) -> T:
    """A `kind` from plain JSON values. Raises Malformed.

    Understands dataclasses, tuples, mappings by text, unions, numbers, text and truth values. Numbers are finite.
    """
    made: T = _read(kind, value, path)
    return made


def _read(kind: Any, value: Any, path: str) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _object(kind, value, path)
    if origin in (Union, UnionType):
        return _either(get_args(kind), value, path)
    if origin is tuple:
        return _row(get_args(kind), value, path)
    if origin is not None and issubclass(origin, Mapping):
        _check(isinstance(value, dict), "an object", value, path)
        return {key: _read(get_args(kind)[1], each, f"{path}.{key}") for key, each in value.items()}
    return _plain(kind, value, path)


def _object(kind: Any, value: Any, path: str) -> Any:
    _check(isinstance(value, dict), "an object", value, path)
    specs = {spec.name: spec for spec in fields(kind)}
    unknown = sorted(set(value) - set(specs))
    if unknown:
        raise Malformed(f"'{path or 'it'}' has an unknown key '{unknown[0]}'")
    start = f"{path}." if path else ""
    missing = [name for name, spec in specs.items() if name not in value and spec.default is spec.default_factory is MISSING]
    if missing:
        raise Malformed(f"'{start}{missing[0]}' is missing")
    types = _types(kind)
    return kind(**{name: _read(types[name], each, f"{start}{name}") for name, each in value.items()})


@cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _either(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    rest = [kind for kind in kinds if kind is not type(None)]
    for kind in rest[:-1]:
        try:
            return _read(kind, value, path)
        except Malformed:
            continue
    return _read(rest[-1], value, path)


def _row(kinds: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    _check(isinstance(value, list), "a list", value, path)
    if kinds[-1] is not Ellipsis:
        _check(len(value) == len(kinds), f"a list of {len(kinds)}", value, path)
    each = [kinds[0]] * len(value) if kinds[-1] is Ellipsis else kinds
    return tuple(_read(kind, one, f"{path}[{place}]") for place, (kind, one) in enumerate(zip(each, value, strict=True)))


def _plain(kind: type, value: Any, path: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _HUGE  # NaN is not less
    if kind is float:
        _check(number, "a finite number", value, path)
    else:
        names = {int: "a whole number", str: "text", bool: "true or false"}
        _check(type(value) is kind and (kind is not int or number), names[kind], value, path)
    return value


def _check(fits: bool, wanted: str, value: Any, path: str) -> None:
    if not fits:
        raise Malformed(f"'{path or 'it'}' is {value!r:.60}; it must be {wanted}")
