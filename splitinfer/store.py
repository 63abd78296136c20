"""Files on this machine by the hash of their content, so that what a stage needs reaches each machine once.

The hash is the file's name and is checked each time the file is read: what was cut short or altered is never handed out.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from cluster.errors import ClusterError
from cluster.security import private_directory
from cluster.units import format_bytes
from splitinfer.errors import SplitinferError

_log = logging.getLogger(__name__)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PART = "part-"
"""Begins the name of a file that is being written, or whose writer died."""
_IN_USE_S = 600.0  # a process that was told that a file is here reads it well within that


class StoreError(SplitinferError):
    """A file cannot be kept on this machine, or is named by something that is no hash."""


def digest_of(data: bytes | bytearray | memoryview) -> str:
    """The SHA-256 of the content, in hex.

    One hash for all machines, because the name travels. 100 MB take 56 ms with the processor's SHA instructions, which most
    have, and 189 ms without; BLAKE2b takes 107 to 120 ms on either.
    """
    return hashlib.sha256(data).hexdigest()


def default_directory() -> Path:
    """``$SPLITINFER_CACHE/stages``; without that variable ``$XDG_CACHE_HOME/splitinfer/stages``, by default in ``~/.cache``."""
    base = os.environ.get("SPLITINFER_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "splitinfer")
    return Path(base, "stages")


class FileStore:
    """Files by the hash of their content, in a directory that only this user can use; many processes may share it.

    `most_nbytes` and the free space of the disk bound their sum: where a new file needs room, those go first that were not
    used for longest, and never one used within the last 10 minutes. (Processes that write at the same moment may exceed
    the bound together, until the next `put`.)

    A machine whose disk is full, or whose directory cannot be used, has no store: then nothing is found here, and `put`
    raises StoreError. Whoever calls `put` has the content in hand and goes on with that.
    """

    def __init__(self, directory: Path | None = None, *, most_nbytes: int = 8 << 30) -> None:
        self._directory, self.most_nbytes = directory, most_nbytes

    def put(self, data: bytes | bytearray | memoryview) -> str:
        """Keep a file; its hash. Nothing is written where it is there. Raises StoreError where it cannot be kept."""
        digest, nbytes = digest_of(data), memoryview(data).nbytes
        if nbytes > self.most_nbytes:
            raise StoreError(f"a file of {format_bytes(nbytes)}; the store keeps {format_bytes(self.most_nbytes)}: raise most_nbytes")
        if self.get(digest) is not None:
            return digest
        home = self._home()
        try:
            self._make_room(home, nbytes)
            _write(home, digest, data)
        except OSError as error:
            raise StoreError(f"a file of {format_bytes(nbytes)} cannot be kept in {home}: {error.strerror}") from error
        return digest

    def get(self, digest: str) -> memoryview | None:
        """The content, read-only, in pages that processes share; None where it is missing.

        A file whose content no longer has the hash is removed, and None. Raises StoreError for what is no hash.
        """
        path = self._path(digest)
        if path is None:
            return None
        _touch(path)
        try:
            content = _mapped(path)
            if digest_of(content) == digest:
                return content
            problem = f"its {len(content)} bytes have another hash"
        except FileNotFoundError:
            return None
        except OSError as error:  # a link in the place of the file, a disk that fails
            problem = str(error.strerror)
        _log.warning("%s is not what was kept there: %s; it is removed", path, problem)
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def has(self, digest: str) -> bool:
        """Whether the file is there; it stays for the next 10 minutes. Only `get` reads it. Raises StoreError for what is no hash."""
        path = self._path(digest)
        if path is None:
            return False
        _touch(path)
        return path.is_file()

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those that are not there, each once, in order."""
        return [digest for digest in dict.fromkeys(digests) if not self.has(digest)]

    def _home(self) -> Path:
        try:
            return private_directory(self._directory or default_directory())
        except (ClusterError, OSError, RuntimeError) as error:  # RuntimeError: this user has no home
            raise StoreError(f"no directory for stage files: {error}; name another in SPLITINFER_CACHE") from error

    def _path(self, digest: str) -> Path | None:
        """Where the file belongs; None where this machine has no store."""
        if not _DIGEST.fullmatch(digest):
            raise StoreError(f"{digest!r:.80} is no SHA-256 in hex")
        try:
            return self._home() / digest
        except StoreError:
            return None

    def _make_room(self, home: Path, nbytes: int) -> None:
        files = sorted(_files(home))
        held = sum(size for _, size, _ in files)
        most = min(self.most_nbytes, held + shutil.disk_usage(home).free)
        for used_s, size, path in files:
            if held + nbytes <= most:
                return
            if abs(time.time() - used_s) > _IN_USE_S:  # the clock may have been ahead once
                path.unlink(missing_ok=True)
                held -= size
        if held + nbytes > most:
            raise StoreError(
                f"a file of {format_bytes(nbytes)} beside {format_bytes(held)} that are in use in {home}; the store keeps "
                f"{format_bytes(most)}: raise most_nbytes, or make room on the disk"
            )


def _files(home: Path) -> Iterable[tuple[float, int, Path]]:
    """When it was last used, bytes and path of each file of the store."""
    with os.scandir(home) as entries:
        for entry in entries:
            if (_DIGEST.fullmatch(entry.name) or entry.name.startswith(_PART)) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # another process made room
                    info = entry.stat(follow_symlinks=False)
                    yield info.st_mtime, info.st_size, home / entry.name


def _touch(path: Path) -> None:
    """Used now."""
    with contextlib.suppress(OSError):  # it is missing, or on a disk that is only read
        os.utime(path, follow_symlinks=False)


def _write(home: Path, digest: str, data: bytes | bytearray | memoryview) -> None:
    """The file appears whole, or not at all; `mkstemp` gives it mode 600."""
    descriptor, part = tempfile.mkstemp(prefix=_PART, dir=home)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(part).replace(home / digest)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _mapped(path: Path) -> memoryview:
    """A file's content. The mapping outlives the file's name, and the store never writes to a file that has one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(0, "it is no file")
        return memoryview(mmap.mmap(descriptor, info.st_size, access=mmap.ACCESS_READ) if info.st_size else b"")
    finally:
        os.close(descriptor)
