"""Writes what `reader` reads: the JSON form of a problem, as plain containers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

# What a reader of the JSON form expects to see even where it equals the default.
_ALWAYS = {"name", "relay", "returned", "consumers", "links", "ops", "tensors"}


def plain(value: Any) -> Any:
    """Containers of a dataclass, fields at their default left out."""
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    if not hasattr(value, "__dataclass_fields__"):
        return value
    held = {spec.name: (spec, getattr(value, spec.name)) for spec in fields(value)}
    return {name: plain(item) for name, (spec, item) in held.items() if name in _ALWAYS or (item != spec.default and item not in ((), {}))}
