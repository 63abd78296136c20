"""Ray's token authentication: on for every cluster that this project starts."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_TOKEN_NBYTES = 32  # 256 bits: not to be guessed


def write_token(path: Path) -> None:
    """Write a new secret that only this user can read. Raises FileExistsError rather than replace one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(_TOKEN_NBYTES))


def token_environment(path: Path) -> dict[str, str]:
    """The settings with which Ray asks for, and gives, the token of this file."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set variables for this process and the ones it starts; put the old values back at the end."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
