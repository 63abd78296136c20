"""The gateway's process as its parent sees it: told without waiting, heard on a thread, ended by force."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import splitinfer
from splitinfer.supervisor import GatewayLost

_END_S = 5.0


@dataclass(frozen=True)
class Access:
    """How a running cluster is reached."""

    address: str
    """Of Ray's head, ``host:port``."""
    token: Path
    """The file of the cluster's token."""
    tls: Path | None = None
    """The directory of certificates, where its channels are encrypted."""
    own: str = ""
    """The name under which it was started for one pipeline, whose gateway ends it if its caller is killed."""


class Child:
    """One gateway (gateway.py). `hear` gets ``(event, payload)`` until `stop`, the last one being GatewayLost where it ends by itself."""

    def __init__(self, access: Access, hear: Callable[[tuple[Any, Any]], None]) -> None:
        here, there = socket.socketpair()
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed at its end
        with there:
            self._process = subprocess.Popen(  # noqa: S603 - ours
                [sys.executable, "-P", "-m", "splitinfer.runtime.gateway", str(there.fileno())], env=_environment(),
                pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, stdout=self._said, stderr=self._said,
                start_new_session=True,  # Ctrl-C is for the caller, who may want to wait for what is under way
            )  # fmt: skip
        self._connection = Connection(here.detach())
        self._hear = hear
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._waiting.put(access)
        self._threads = [threading.Thread(target=work, name="gateway", daemon=True) for work in (self._tell, self._listen)]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int | None:
        """Of the process; None once it has ended, and its number may be another's."""
        return self._process.pid if self._process.poll() is None else None

    def tell(self, what: object, payload: object = None) -> None:
        """Send an instruction, in the order of calls; a gateway that hangs holds up nobody."""
        self._waiting.put((what, payload))

    def stop(self) -> None:
        """End the process. Nothing is heard of it any more."""
        self._stopped.set()
        self._waiting.put(None)
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel may hold on to it; the caller goes on
            self._process.wait(_END_S)
        for thread in self._threads:
            thread.join(_END_S)
        self._connection.close()
        self._said.close()

    def _tell(self) -> None:
        with contextlib.suppress(OSError):
            while (message := self._waiting.get()) is not None:
                self._connection.send(message)

    def _listen(self) -> None:
        told = False
        with contextlib.suppress(EOFError, OSError):
            while True:
                event, payload = self._connection.recv()
                told = told or isinstance(event, GatewayLost)
                if not self._stopped.is_set():
                    self._hear((event, payload))
        if not told and not self._stopped.is_set():
            self._hear((GatewayLost(self._last_words()), None))

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        self._said.seek(0)
        lines = self._said.read().strip().splitlines()
        return f"the gateway's process ended with {self._process.returncode}" + (f": {lines[-1]:.300}" if lines else "")


def _environment() -> dict[str, str]:
    """The gateway runs this very package, wherever the caller found it, and nothing that lies in the working directory."""
    path = [str(Path(splitinfer.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}
