"""What is remembered of a cluster between commands: a record and its secrets, in a directory of this user's alone."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from cluster.errors import ClusterError
from cluster.security import private_directory

_NAME = re.compile(r"[a-z0-9]{1,16}")
_LARGEST = 1 << 20  # a record takes about a KiB
_MARK = re.compile(r"[0-9a-f]{32}")
_TYPES = {"labels": dict, "hosts": dict, "reach": dict, "cpus": int, "tls": str | None}  # the others are texts


@dataclass(frozen=True)
class Record:
    """A cluster that was brought up. It is written before anything is started, so that `down` knows what to end."""

    name: str
    kind: Literal["local", "ssh", "address"]
    """Nodes on this machine; on hosts reached by SSH; or a cluster that somebody else started."""
    labels: Mapping[str, Mapping[str, str]]
    """By which Ray's node of each tier is told; tiers in order, the data's birthplace first."""
    address: str
    """Of Ray's head, "host:port"."""
    token: str
    """The file."""
    tls: str | None
    """The directory of certificates."""
    mark: str
    """What the nodes' processes bear in their environment, drawn by lot."""
    hosts: Mapping[str, str]
    """The address of each tier's node; empty for a cluster that somebody else started."""
    reach: Mapping[str, str]
    """How hosts are reached by SSH (ssh.Hosts); empty otherwise."""
    cpus: int
    """What each node on this machine offers to its actors; 0 where nodes run elsewhere."""

    @property
    def tiers(self) -> tuple[str, ...]:
        """In order."""
        return tuple(self.labels)

    @property
    def home(self) -> Path:
        """Its directory."""
        return root() / self.name

    def save(self) -> None:
        """All or nothing: a reader never sees half a record."""
        part = self.home / "record.part"
        part.write_text(json.dumps(asdict(self)), encoding="utf-8")
        part.replace(self.home / "record.json")

    def forget(self) -> None:
        """Remove the directory, its secrets with it."""
        shutil.rmtree(self.home, ignore_errors=True)


def root() -> Path:
    """Where clusters are remembered (``XDG_STATE_HOME``)."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base, "splitinfer", "clusters")


def names() -> list[str]:
    """The clusters that are remembered."""
    return sorted(path.name for path in root().iterdir() if _NAME.fullmatch(path.name)) if root().is_dir() else []


def claim(name: str) -> Path:
    """A new directory for a cluster's record. Raises ClusterError where the name is taken or none."""
    if not _NAME.fullmatch(name):
        raise ClusterError(f"{name!r:.80} is no name for a cluster; use 1 to 16 lower-case letters and digits")
    try:
        private_directory(root())
        (root() / name).mkdir(mode=0o700)
    except FileExistsError:
        raise ClusterError(f"a cluster {name!r} is up; give another --name, or end it with 'splitinfer cluster down {name}'") from None
    return root() / name


def load(name: str | None = None) -> Record:
    """The record of a cluster; without a name the only one there is. Raises ClusterError."""
    there = names()
    if name is None and len(there) != 1:
        raise ClusterError(f"name one cluster of {', '.join(there)}" if there else "no cluster is up; 'splitinfer cluster up' starts one")
    name = name or there[0]
    if name not in there:
        raise ClusterError(f"no cluster {name!r:.40} is up; up: {', '.join(there) or 'none'}")
    try:
        with (root() / name / "record.json").open("rb") as file:
            data = json.loads(file.read(_LARGEST))
        record = Record(**{each.name: data[each.name] for each in fields(Record)})
        wrong = [key for key, value in asdict(record).items() if not isinstance(value, _TYPES.get(key, str))]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is {data[wrong[0]]!r:.60}")
        if not _MARK.fullmatch(record.mark):
            raise ValueError("its mark is damaged")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ClusterError(f"the record of cluster {name!r} cannot be used ({error}); remove {root() / name}") from error
    return record


def draw_mark() -> str:
    """A text that no process bears by chance."""
    return secrets.token_hex(16)
