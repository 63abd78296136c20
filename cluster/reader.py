"""The text of ``cluster.yaml``: YAML to plain values with the line of each key, people's keys and units to fields and SI."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import yaml

from cluster import units
from cluster.errors import TopologyError, not_one_of, under

LARGEST_FILE = 2**18  # a topology takes a few KiB; more is a mistake, or an attack on the parser, which may take a second for 60 KiB
_MOST_VALUES = 100_000  # aliases let a small text stand for a large one
_LONGEST_KEY = 100  # every value has a path of keys
_LONGEST_NUMBER = 64  # base 60 ("1:30") takes time that grows with the square of the length
_DEEPEST = 10  # the format nests six levels; an alias inside its own anchor nests without end

# Key as people write it -> (field, parser of its unit).
_Keys = Mapping[str, tuple[str, Callable[[str | float], float] | None]]
_TIER_KEYS: _Keys = {
    **{key: (key, None) for key in ("name", "compute", "device", "threads", "node")},
    "memory": ("memory_bytes", units.parse_size),
    "power": ("watts", units.parse_power),
    "price": ("price_per_s", units.parse_price),
}
_DIRECT_KEYS: _Keys = {
    **{key: (key, None) for key in ("preset", "source")},
    "up": ("up_bytes_per_s", units.parse_bandwidth),
    "down": ("down_bytes_per_s", units.parse_bandwidth),
    "latency": ("latency_s", units.parse_duration),
    "energy": ("joules_per_byte", units.parse_energy_per_byte),
    "price": ("price_per_byte", units.parse_price_per_byte),
}
_PEER_KEYS: _Keys = {"tier": ("tier", None), **_TIER_KEYS, **{key: _DIRECT_KEYS[key] for key in ("up", "down", "latency")}}
_TIER_KEYS = {**_TIER_KEYS, "peers": ("peers", None)}
_LINK_KEYS: _Keys = {"between": ("between", None), **_DIRECT_KEYS}
WRITTEN = {name: key for table in (_TIER_KEYS, _LINK_KEYS) for key, (name, _) in table.items()}


def mapping(data: object) -> dict[str, Any]:
    """A copy of a mapping; raises TopologyError for anything else."""
    if not isinstance(data, Mapping):
        raise TopologyError(f"{data!r:.80} is not a mapping; write keys and values")
    return dict(data)


def listed(data: Mapping[str, Any], key: str) -> list[Any]:
    """The list under a key, empty where the key is missing; raises TopologyError for anything else."""
    value = data.get(key, [])
    if not isinstance(value, list | tuple):
        raise TopologyError(f"{value!r:.80} is not a list; begin each entry with '- '", key=key)
    return list(value)


def known(data: object, keys: Collection[str], required: Collection[str] = ()) -> dict[str, Any]:
    """A mapping with these keys only and the required ones; raises TopologyError, which suggests the nearest key."""
    given = mapping(data)
    for key in given:
        if key not in keys:
            raise TopologyError(not_one_of(key, keys, "key"), key=str(key))
    for key in required:
        if key not in given:
            raise TopologyError("is missing", key=key)
    return given


def plain_yaml(text: str, lines: dict[str, int]) -> object:
    """Plain values of a YAML text; `lines` receives the line of every key path. Raises TopologyError."""
    if len(text.encode(errors="replace")) > LARGEST_FILE:
        raise TopologyError(f"is larger than {units.format_bytes(LARGEST_FILE)}; is this a cluster.yaml?")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise TopologyError(f"is not YAML: {problem}", line=mark.line + 1 if mark else None) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise TopologyError(f"is not YAML: {str(error).splitlines()[0]}") from None
    if root is None:
        raise TopologyError("is empty; begin with version: 1 and tiers")
    return _plain(root, "", lines, 0)


def _plain(node: yaml.Node, key: str, lines: dict[str, int], depth: int) -> object:
    line = node.start_mark.line + 1
    lines.setdefault(key, line)
    if depth > _DEEPEST or len(lines) > _MOST_VALUES:
        raise TopologyError("nests too deeply or repeats aliases too often; write it out", key=key, line=line)
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_plain(entry, f"{key}[{i}]", lines, depth + 1) for i, entry in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode) and kind == "map":
        found: dict[str, object] = {}
        for key_node, value in node.value:
            line, name = key_node.start_mark.line + 1, key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or name == "<<":
                raise TopologyError("a key is a plain word; merge keys (<<) are not read", key=key, line=line)
            if len(name) > _LONGEST_KEY:
                raise TopologyError(f"{name!r:.40} is a key of {len(name)} characters; at most {_LONGEST_KEY}", key=key, line=line)
            path = f"{key}.{name}" if key else name
            if name in found:
                raise TopologyError(f"is given twice, first on line {lines[path]}; keep one", key=path, line=line)
            lines[path] = line
            found[name] = _plain(value, path, lines, depth + 1)
        return found
    if isinstance(node, yaml.ScalarNode) and (kind in ("str", "timestamp") or len(node.value) > _LONGEST_NUMBER):
        return node.value
    if isinstance(node, yaml.ScalarNode) and kind in ("int", "float", "bool", "null"):
        try:
            return yaml.constructor.SafeConstructor().construct_object(node)
        except (ValueError, KeyError):  # an explicit tag on a text that is none ("!!int x"), or too many digits
            return node.value
    raise TopologyError(f"has the tag {node.tag!r}; tags are not read, remove it", key=key, line=line)


def with_si_units(data: object) -> dict[str, Any]:
    """Fields and SI numbers for the keys and units that people write."""
    given = known(data, ("version", "tiers", "links", "direct"))
    for key, table in (("tiers", _TIER_KEYS), ("links", _LINK_KEYS)):
        if key in given:
            entries = listed(given, key)
            given[key] = [_si(entry, table, f"{key}[{i}]") for i, entry in enumerate(entries)]
    for i, tier in enumerate(given.get("tiers", ())):
        if "peers" in tier:
            tier["peers"] = [_si(peer, _PEER_KEYS, f"tiers[{i}].peers[{j}]") for j, peer in enumerate(listed(tier, "peers"))]
    if given.get("direct") is not None:
        given["direct"] = _si(given["direct"], _DIRECT_KEYS, "direct")
    return given


def _si(data: object, table: _Keys, key: str) -> dict[str, Any]:
    with under(key):
        fields_of: dict[str, Any] = {}
        for name, value in known(data, table).items():
            field_name, parse = table[name]
            with under(name):
                fields_of[field_name] = parse(value) if parse else value
        return fields_of


def place(key: str, lines: Mapping[str, int]) -> tuple[str, int | None]:
    """A key path as it is written in the text, and the line of the nearest part of it that is there."""
    head, dot, last = key.rpartition(".")
    if key not in lines:
        key = f"{head}{dot}{WRITTEN.get(last, last)}"
    there = key
    while there and there not in lines:
        there = re.sub(r"(^|\.)[^.\[\]]*$|\[\d+\]$", "", there)
    return key, lines.get(there)
