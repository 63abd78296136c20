"""Certificates for Ray's TLS, made with the ``openssl`` program: an authority, and one certificate that all nodes show.

One for all, because whoever holds a node's files holds the token too, and with it may run code on every node. Ray checks
both ends: a client must show a certificate of the same authority.
"""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import ClusterError
from cluster.security import AUTHORITY, CERTIFICATE, KEY, private_directory

AUTHORITY_KEY = "ca.key"
"""Signs further certificates; needed on no node."""
LOOPBACK = ("localhost", *(f"127.0.0.{number}" for number in range(1, 10)))
"""What every certificate is valid for: the nodes of a cluster on this machine."""

_EC = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")


def make(directory: Path, hosts: Sequence[str] = (), *, days: int = 365) -> None:
    """Write authority and node certificate, valid for `hosts` (addresses or names) and this machine's loopback.

    An authority that is there is kept, so that nodes with its older certificates still talk to new ones; the node's
    certificate is replaced. Raises ClusterError.
    """
    names = ",".join(_alternative(host) for host in dict.fromkeys([*LOOPBACK, *hosts]))
    private_directory(directory)
    authority, authority_key = directory / AUTHORITY, directory / AUTHORITY_KEY
    if not authority_key.exists():
        _openssl("req", "-x509", *_EC, "-keyout", authority_key, "-out", authority, "-subj", "/CN=splitinfer cluster authority",
                 "-days", days, "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        request, extensions = Path(scratch, "request"), Path(scratch, "extensions")
        extensions.write_text(f"basicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\nsubjectAltName={names}\n")
        _openssl("req", *_EC, "-keyout", directory / KEY, "-out", request, "-subj", "/CN=splitinfer node")
        _openssl("x509", "-req", "-in", request, "-CA", authority, "-CAkey", authority_key, "-CAcreateserial",
                 "-out", directory / CERTIFICATE, "-days", days, "-extfile", extensions)  # fmt: skip
    for key in (authority_key, directory / KEY):
        key.chmod(0o600)


def check_hosts(directory: Path, hosts: Sequence[str]) -> None:
    """Raise ClusterError where the certificate is not valid for a host, or expires within a day: Ray would wait in silence."""
    certificate = directory / CERTIFICATE
    for host in hosts:
        option = "-checkip" if _is_address(host) else "-checkhost"
        if "does match" not in _openssl("x509", "-in", certificate, "-noout", option, host):
            raise ClusterError(f"{certificate} is not valid for {host}; make one with 'splitinfer cluster certs {directory} --host {host}'")
    if "will not expire" not in _openssl("x509", "-in", certificate, "-noout", "-checkend", 86400, check=False):
        raise ClusterError(f"{certificate} has expired, or will within a day; 'splitinfer cluster certs {directory}' makes a new one")


def _alternative(host: str) -> str:
    if not (_is_address(host) or _HOST.fullmatch(host)):  # it is written into a file that openssl reads
        raise ClusterError(f"{host!r:.80} is neither an address nor a host's name")
    return f"IP:{host}" if _is_address(host) else f"DNS:{host}"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _openssl(*arguments: object, check: bool = True) -> str:
    program = shutil.which("openssl")
    if program is None:
        raise ClusterError("'openssl' is not installed; install it, or give certificates of your own (docs/cluster.md)")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)  # noqa: S603 - hosts are checked
    if check and done.returncode:
        complaint = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ClusterError(f"openssl {arguments[0]} failed: {complaint}")
    return done.stdout
