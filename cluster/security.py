"""Ray's token authentication and TLS: the files they need, who may read them, and the settings that turn them on.

Every cluster that this project starts asks for a token; TLS is on where a directory of certificates is given (certs.py).
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import ClusterError

_TOKEN_NBYTES = 32  # 256 bits: not to be guessed
_LONGEST_TOKEN = 4096  # it travels in the headers of each call, of which gRPC takes 16 KiB
_TOKEN = re.compile(rb"[!-~]{1,%d}" % _LONGEST_TOKEN)

AUTHORITY, CERTIFICATE, KEY = "ca.pem", "node.pem", "node.key"
"""What nodes and clients need of a directory of certificates; the authority's own key is not among it."""


def write_token(path: Path) -> None:
    """Write a new secret that only this user can read. Raises FileExistsError rather than replace one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(_TOKEN_NBYTES))


def check_secret(path: Path) -> None:
    """Raise ClusterError unless this is a file of this user that nobody else can read or write."""
    try:
        info = path.stat()
    except OSError as error:
        raise ClusterError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(info.st_mode):
        raise ClusterError(f"{path} is not a file; name the file that holds the secret")
    if info.st_uid != os.geteuid():
        raise ClusterError(f"{path} belongs to user {info.st_uid}, not to you ({os.geteuid()}); make a copy of your own, with mode 600")
    if info.st_mode & 0o077:
        raise ClusterError(f"{path} has mode {stat.S_IMODE(info.st_mode):o}: others can use the secret; chmod 600 it, and make a new one")


def check_token(path: Path) -> None:
    """Raise ClusterError unless the file is as `check_secret` wants it, and holds what can be a token: Ray aborts on some that cannot."""
    check_secret(path)
    try:
        with path.open("rb") as file:
            token = file.read(2 * _LONGEST_TOKEN).strip()
    except OSError as error:
        raise ClusterError(f"{path}: cannot be read: {error.strerror}") from error
    if not _TOKEN.fullmatch(token):
        raise ClusterError(f"{path} holds no token: one is a line of up to {_LONGEST_TOKEN:,} letters, digits and signs")


def private_directory(path: Path) -> Path:
    """Make a directory that only this user can use, where it is missing. Raises ClusterError where others can."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        raise ClusterError(f"{path} is not a directory of yours alone (mode 700); mend it, or remove it")
    return path


def token_environment(path: Path) -> dict[str, str]:
    """The settings with which Ray asks for, and gives, the token of this file."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


def tls_environment(directory: Path | None) -> dict[str, str]:
    """The settings with which Ray encrypts, and asks for a certificate; off for None. Raises ClusterError."""
    if directory is None:
        return {"RAY_USE_TLS": "0"}
    for name in (AUTHORITY, CERTIFICATE):
        if not (directory / name).is_file():
            raise ClusterError(f"{directory} has no {name}; make certificates with 'splitinfer cluster certs {directory}'")
    check_secret(directory / KEY)
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(directory / CERTIFICATE),
        "RAY_TLS_SERVER_KEY": str(directory / KEY),
        "RAY_TLS_CA_CERT": str(directory / AUTHORITY),
    }


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
