"""Keeps one Ray node alive: starts it, and starts it again whenever it ends (``python -m cluster.keeper HOME HEAD COMMAND...``).

Ray's own processes give up: a raylet that the head has declared dead exits, and so does one that finds another cluster at the
head's address. Nobody starts it again, except Ray's autoscaler over SSH. So each node has a keeper beside it:

    wait until HEAD opens -> COMMAND ('ray start') -> wait until raylet or GCS ends -> kill what is left -> pause -> from the start

The keeper bears the node's mark (raynode.py), each incarnation of the node that mark and a number: what is left of one is
told from the next. It adopts the orphans that ``ray start`` leaves behind, so it learns the exit code of each.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from cluster import raynode
from cluster.errors import ClusterError

SHORTEST_S, LONGEST_S = 0.5, 30.0
"""Pauses between two starts: the first, and what doubling it ends at."""
STEADY_S = 10.0
"""A node that lived so long is started again after the shortest pause."""
_PARTS = ("raylet", "gcs_server")  # the second on the head only; without one of them a node is none
_KNOCK_S = 2.0  # a wait for an answer of the head, and between two attempts
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def pause_s(before_s: float, lived_s: float) -> float:
    """How long to wait before the next start: twice as long as before, unless the node had been steady."""
    return SHORTEST_S if lived_s >= STEADY_S else min(max(SHORTEST_S, 2 * before_s), LONGEST_S)


def main(home: Path, head: str, command: Sequence[str]) -> int:
    """Start the node as ``ray start`` does, 0 once it runs and 1 where it does not start; go on in the background.

    `head` is where the head listens ("host:port"); empty for the head itself.
    """
    ready, tell = os.pipe()
    if os.fork():
        os.close(tell)
        return 0 if os.read(ready, 1) else 1  # nothing to read where the other one has ended
    os.close(ready)
    _adopt_orphans()
    _keep(home, head, command, tell)
    return 1


def _keep(home: Path, head: str, command: Sequence[str], tell: int) -> None:
    """Never ends, unless the very first start fails: that is for a person to look at."""
    own, waited_s = os.environ[raynode.MARK], 0.0
    for number in itertools.count(1):
        _await_head(head)
        _put_aside(home)
        mark, start_s = f"{own}/{number}", time.monotonic()
        parts, why = _start(home, command, mark, _PARTS[:1] if head else _PARTS)
        if parts:
            _say(f"node {number} runs, after {time.monotonic() - start_s:.1f} s")
            if number == 1:
                os.write(tell, b"1")
                os.close(tell)
            why = _end_of(parts)
        try:
            raynode.end(mark)
        except ClusterError as error:  # one that hangs in the kernel must not keep the others from coming back
            _say(str(error))
        if number == 1 and not parts:
            _say(why)
            return
        waited_s = pause_s(waited_s, time.monotonic() - start_s if parts else 0.0)
        _say(f"node {number} ended: {why}; starting it again in {waited_s:g} s")
        time.sleep(waited_s)


def _await_head(head: str) -> None:
    """Return when the head's address takes a connection; at once for the head itself."""
    host, _, port = head.rpartition(":")
    for attempt in itertools.count() if head else ():
        try:
            socket.create_connection((host, int(port)), _KNOCK_S).close()
            return
        except OSError as error:
            if attempt == 0:
                _say(f"waiting for the head at {head}: {error.strerror or error}")
            time.sleep(_KNOCK_S)


def _start(home: Path, command: Sequence[str], mark: str, names: Sequence[str]) -> tuple[dict[int, str], str]:
    """Call ``ray start``: the parts that run then, by their pids; or none, and why."""
    with (home / raynode.START_LOG).open("w", encoding="utf-8") as log:  # a file, not a pipe: the node's processes keep it open
        process = subprocess.Popen(  # noqa: S603 - ours
            command, env=os.environ | {raynode.MARK: mark}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        code = process.wait(raynode.START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {}, f"'ray start' did not return within {raynode.START_TIMEOUT_S:g} s"
    if code:
        return {}, f"'ray start' {_told(code)}"
    parts = raynode.named(mark, names)
    missing = sorted({*names} - {*parts.values()})
    return ({}, f"{', '.join(missing)} ended at once") if missing else (parts, "")


def _end_of(parts: Mapping[int, str]) -> str:
    """Wait until the first part of a node ends; which it was, and how it ended."""
    with contextlib.suppress(ChildProcessError):  # all have ended already
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid in parts:
                return f"{parts[pid]} {_told(os.waitstatus_to_exitcode(status))}"
    return "all its processes ended"


def _told(code: int) -> str:
    return f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


def _put_aside(home: Path) -> None:
    """Keep what Ray left of the life before, and of none before that.

    A head would not start beside the note of its own address that it left, as long as other nodes of this machine name it.
    """
    previous = home / "previous"
    left = [path for path in home.iterdir() if path.name not in (raynode.START_LOG, raynode.KEEPER_LOG, previous.name)]
    if left:
        shutil.rmtree(previous, ignore_errors=True)
        previous.mkdir()
    for path in left:
        path.rename(previous / path.name)


def _adopt_orphans() -> None:
    """Whose parent ends becomes a child of this process rather than of init."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")


def _say(text: str) -> None:
    print(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
