"""Network namespaces by their names, through ``ip``: created, entered, emptied of processes, deleted."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.errors import ClusterError

_NAMES = Path("/run/netns")  # where ip binds the namespaces that it names
_CLONE_NEWNET = 0x40000000
# Forward; take packets from wherever they come; and no chatter of IPv6, which the counters would count.
_SETTINGS = """
cd /proc/sys/net
echo 1 >ipv4/ip_forward
for each in ipv4/conf/*/rp_filter; do echo 0 >$each; done
for each in ipv6/conf/*/disable_ipv6; do if [ -e $each ]; then echo 1 >$each; fi; done
"""
_TIMEOUT_S = 10.0


def missing() -> str:
    """What this machine lacks for a testbed, as a clause; empty where it lacks nothing."""
    if not hasattr(os, "pidfd_open") or not Path("/proc/self/ns/net").exists():
        return "this system has no network namespaces, which are Linux'"
    if os.geteuid() != 0:
        return "this user is not root"
    absent = [name for name in ("ip", "tc") if shutil.which(name) is None]
    return f"'{absent[0]}' of iproute2 is not installed" if absent else ""


def check() -> None:
    """Raise ClusterError where a testbed is not possible, with what to do instead."""
    lack = missing()
    if lack:
        raise ClusterError(
            f"a testbed of real hosts needs Linux, root and iproute2, and {lack}; "
            "'splitinfer run' runs the same plan on this machine over in-process links"
        )


def tool(*arguments: str) -> str:
    """Output of ``ip`` or ``tc``. Raises ClusterError with the first line that it complained in."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)  # noqa: S603 - ip and tc, names are checked
    if done.returncode:
        complaint = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[0]
        raise ClusterError(f"'{' '.join(arguments)}' failed: {complaint}")
    return done.stdout


def listed() -> list[str]:
    """Names of all namespaces of this machine."""
    return sorted(path.name for path in _NAMES.iterdir()) if _NAMES.is_dir() else []


def create(namespace: str) -> None:
    """A new namespace with its loopback up, that forwards packets. Raises ClusterError where the name is taken."""
    tool("ip", "netns", "add", namespace)
    tool(*within(namespace, ["sh", "-c", _SETTINGS]))
    tool("ip", "-n", namespace, "link", "set", "lo", "up")


def within(namespace: str, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` inside a namespace."""
    return ["ip", "netns", "exec", namespace, *command]


@contextlib.contextmanager
def entered(namespace: str) -> Iterator[None]:
    """Move the calling thread, and those that it starts from now on, into a namespace; and the thread back again."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _set_namespace(_open(namespace), close=True)
        try:
            yield
        finally:
            _set_namespace(home)
    finally:
        os.close(home)


def delete(namespace: str) -> None:
    """End every process inside, then the namespace, and with it its interfaces; nothing happens where there is none."""
    _end_processes(namespace)
    with contextlib.suppress(ClusterError):  # another 'down' was quicker
        tool("ip", "netns", "delete", namespace)


def _open(namespace: str) -> int:
    try:
        return os.open(_NAMES / namespace, os.O_RDONLY)
    except OSError as error:
        raise ClusterError(f"there is no namespace {namespace!r}: {error.strerror}") from error


def _set_namespace(descriptor: int, *, close: bool = False) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns comes with Python 3.12
    failed = libc.setns(descriptor, _CLONE_NEWNET)
    if close:
        os.close(descriptor)
    if failed:
        raise ClusterError(f"cannot enter the network namespace: {os.strerror(ctypes.get_errno())}")


def _end_processes(namespace: str) -> None:
    """Kill, until none is left: new processes may appear while old ones still start some."""
    start = time.monotonic()
    while _kill_all(namespace):
        if time.monotonic() - start > _TIMEOUT_S:
            raise ClusterError(f"processes in the namespace {namespace!r} do not end; see 'ip netns pids {namespace}'")
        time.sleep(0.05)


def _kill_all(namespace: str) -> int:
    """How many processes there were. By descriptor, and looked at once more: a pid that was reused meanwhile is spared."""
    try:
        inode = (_NAMES / namespace).stat().st_ino
        found = {int(pid) for pid in tool("ip", "netns", "pids", namespace).split()} - {os.getpid()}
    except (OSError, ClusterError):
        return 0
    for pid in found:
        with contextlib.suppress(OSError):  # it has ended by itself
            descriptor = os.pidfd_open(pid)
            try:
                if Path(f"/proc/{pid}/ns/net").stat().st_ino == inode:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)
    return len(found)
