"""Clients that must not get in, servers that are no head of a cluster, and connections that only hold things up.

`STRANGERS` are servers that a client meets by mistake; they need no cluster. `CLIENTS` and `PORTS` need a running one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bad_packets import PICKLE, Bad

from cluster import certs, client
from cluster.errors import ClusterError
from cluster.security import write_token

TIMEOUT_S, PATIENT_S = 1.0, 10.0
"""Of a client among strangers, and of one of a real cluster: each of its looks takes so long at most."""
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
Port = tuple[str, int]


@dataclass(frozen=True)
class Site:
    """A cluster with TLS and one without, as a client finds them."""

    address: str
    token: Path
    tls: Path
    plain_address: str
    plain_token: Path
    scratch: Path
    """For files that a client makes up."""
    ports: Sequence[Port]
    """All that the processes of the first one listen at."""
    ask: Callable[[], float]
    """A good request while something goes on: its seconds. Raises where the answer is wrong."""


def told(address: str, token: Path, tls: Path | None = None, timeout_s: float = PATIENT_S) -> str:
    """What a client is told."""
    try:
        return f"joined: {client.members(address, token, tls, timeout_s=timeout_s)}"
    except ClusterError as error:
        return str(error)


# -- servers that are no head

Serve = Callable[[socket.socket], None]


@contextlib.contextmanager
def served(serve: Serve) -> Iterator[str]:
    """The address of a server that does this with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=_served, args=(serve, server.accept()[0]), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def _served(serve: Serve, connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        serve(connection)


def silent(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


def saying(data: bytes, connection: socket.socket) -> None:
    connection.sendall(data)
    silent(connection)


def dribbling(connection: socket.socket) -> None:
    """The beginning of a TLS record, a byte at a time."""
    for byte in bytes([0x16, 3, 3, 0x40, 0]) + bytes(10_000):
        connection.sendall(bytes([byte]))
        time.sleep(0.1)


def endless(connection: socket.socket) -> None:
    while True:
        connection.sendall(bytes(1 << 16))


NOT_PLAIN, NOT_TLS = "speaks no plain gRPC", "speaks no TLS"
STRANGERS: dict[str, tuple[Serve, bool, str]] = {
    "a port that never answers": (silent, False, f"answers within {TIMEOUT_S:g} s"),
    "a port that never answers, by TLS": (silent, True, f"answers within {TIMEOUT_S:g} s"),
    "one byte at a time": (dribbling, False, NOT_PLAIN),
    "one byte at a time, by TLS": (dribbling, True, f"answers within {TIMEOUT_S:g} s"),
    "a port that hangs up": (lambda _: None, False, NOT_PLAIN),
    "bytes without end": (endless, False, NOT_PLAIN),
    "bytes without end, by TLS": (endless, True, NOT_TLS),
    "a web server": (partial(saying, b"HTTP/1.1 400 Bad Request\r\n\r\n"), False, NOT_PLAIN),
    "a pickle": (partial(saying, PICKLE), False, NOT_PLAIN),
    "a greeting, then nothing": (partial(saying, SETTINGS), False, f"did not answer within {TIMEOUT_S:g} s"),
    "a greeting, then random bytes": (partial(saying, SETTINGS + os.urandom(5000)), False, "did not answer within|cannot be asked"),
}


def met(serve: Serve, encrypted: bool, _: object = None) -> str:
    """What a client says to such a server; its token and certificates are good."""
    with served(serve) as address, private_files() as (token, tls):
        return told(address, token, tls if encrypted else None, TIMEOUT_S)


@contextlib.contextmanager
def private_files() -> Iterator[tuple[Path, Path]]:
    """A token and certificates."""
    scratch = Path("/tmp", f"splitinfer-refused-{secrets.token_hex(6)}")
    scratch.mkdir(mode=0o700)
    try:
        write_token(scratch / "token")
        certs.make(scratch / "tls")
        yield scratch / "token", scratch / "tls"
    finally:
        shutil.rmtree(scratch)


# -- clients that must not get in


def token_of(content: bytes | None, mode: int, site: Site) -> Path:
    """A file in the place of the token; None: none."""
    path = site.scratch / secrets.token_hex(4)
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    return path


def with_token(content: bytes | None, mode: int, site: Site) -> str:
    return told(site.address, token_of(content, mode, site), site.tls)


def own_token(mode: int, site: Site) -> str:
    return with_token(site.token.read_bytes(), mode, site)


def certificates(site: Site, change: Callable[[Path], object]) -> str:
    """A client with other certificates, made from those of the cluster."""
    tls = site.scratch / secrets.token_hex(4)
    shutil.copytree(site.tls, tls)
    change(tls)
    return told(site.address, site.token, tls)


def foreign(tls: Path, keep: bool = False) -> None:
    """Those of another authority; `keep`: which trusts the cluster all the same."""
    authority = (tls / "ca.pem").read_bytes()
    for path in list(tls.iterdir()):
        path.unlink()
    certs.make(tls)
    if keep:
        (tls / "ca.pem").write_bytes(authority)


def locked(tls: Path) -> None:
    """A key that wants a password."""
    command = ["openssl", "ec", "-in", str(tls / "node.key"), "-aes128", "-passout", "pass:secret", "-out", str(tls / "locked")]
    subprocess.run(command, check=True, capture_output=True)
    (tls / "node.key").write_bytes((tls / "locked").read_bytes())


def unlocked(tls: Path) -> None:
    (tls / "node.key").chmod(0o644)


TLS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a certificate of another authority": (foreign, "is not to be trusted by"),
    "another authority's, which trusts this one": (partial(foreign, keep=True), "refuses the certificate in"),
    "an expired certificate": (lambda tls: certs.make(tls, days=-1), "refuses the certificate in"),
    "a key for others to read": (unlocked, "mode 644: others can use the secret"),
    "a key that wants a password": (locked, "the certificates in .* cannot be used"),
    "a pickle for a certificate": (lambda tls: (tls / "node.pem").write_bytes(PICKLE), "the certificates in .* cannot be used"),
    "a pickle for an authority": (lambda tls: (tls / "ca.pem").write_bytes(PICKLE), "the certificates in .* cannot be used"),
    "no certificate": (lambda tls: (tls / "node.pem").unlink(), "has no node.pem; make certificates"),
}
CLIENTS: dict[str, tuple[Callable[[Site], str], str]] = {
    "no token": (partial(with_token, None, 0o600), "cannot be read: No such file"),
    "a wrong token": (partial(with_token, b"0" * 64, 0o600), "refuses the token in"),
    "an empty token": (partial(with_token, b"", 0o600), "holds no token"),
    "a megabyte of token": (partial(with_token, b"x" * (1 << 20), 0o600), "holds no token"),
    "a pickle for a token": (partial(with_token, PICKLE, 0o600), "holds no token"),
    "a token for others to read": (partial(own_token, 0o644), "mode 644: others can use the secret"),
    "a token for others to write": (partial(own_token, 0o602), "mode 602: others can use the secret"),
    "no TLS against TLS": (lambda site: told(site.address, site.token), "the cluster uses TLS"),
    "TLS against none": (lambda site: told(site.plain_address, site.plain_token, site.tls), NOT_TLS),
    "the other cluster's token": (lambda site: told(site.plain_address, site.token), "refuses the token in"),
    "a port where nothing listens": (lambda site: told("127.0.0.9:9", site.token, site.tls), "Connection refused"),
    "port 99999": (lambda site: told("127.0.0.4:99999", site.token, site.tls), "is no address of a head"),
    "a host's name of 300 letters": (lambda site: told(f"{'x' * 300}:6379", site.token, site.tls), "is no name of a host"),
    **{name: (partial(certificates, change=change), answer) for name, (change, answer) in TLS.items()},
}


# -- connections that hold things up, while requests go on


@contextlib.contextmanager
def connected(ports: Sequence[Port], each: int, *, deaf: bool = False) -> Iterator[list[socket.socket]]:
    """So many connections to each port. `deaf`: they take hardly anything."""
    with contextlib.ExitStack() as stack:
        found = []
        for port in list(ports) * each:
            connection = socket.socket()
            stack.callback(connection.close)
            if deaf:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            connection.settimeout(2.0)
            with contextlib.suppress(OSError):  # it may have had enough
                connection.connect(port)
                found.append(connection)
        yield found


def thrown(data: bytes, site: Site) -> str:
    """These bytes at every port, and what came back."""
    with connected(site.ports, 1) as connections:
        answers = [_answer(connection, data) for connection in connections]
        took_s = site.ask()
    assert not any(b" 200 " in answer[:20] for answer in answers), answers
    refused = sum(answer.startswith((b"HTTP/1.1 401", b"HTTP/1.1 400", b"HTTP/1.0 400", b"HTTP/1.1 403")) for answer in answers)
    closed = sum(not answer for answer in answers)
    rest = len(answers) - closed - refused
    return f"{len(answers)} ports: {closed} hang up, {refused} say 400 or 401, {rest} greet; {took_s:.2f} s"


def _answer(connection: socket.socket, data: bytes) -> bytes:
    with contextlib.suppress(OSError):
        connection.sendall(data)
        connection.settimeout(0.3)
        return connection.recv(1 << 16)
    return b""


def held(data: bytes, each: int, site: Site, *, deaf: bool = False) -> str:
    """Many connections that begin with these bytes and go no further."""
    with connected(site.ports, each, deaf=deaf) as connections:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(data)
        return f"{len(connections)} connections held; {max(site.ask() for _ in range(5)):.2f} s"


def dribbled(data: bytes, each: int, seconds: float, site: Site) -> str:
    """Many connections that send a byte now and then."""
    took_s, end_s = [], time.monotonic() + seconds
    with connected(site.ports, each) as connections:
        for byte in data:
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.sendall(bytes([byte]))
            took_s.append(site.ask())
            if time.monotonic() > end_s:
                break
    return f"{len(connections)} connections, {len(took_s)} requests meanwhile; {max(took_s):.2f} s"


def hung_up(times: int, site: Site) -> str:
    """Connections that are reset as soon as they stand."""
    for _ in range(times):
        with connected(site.ports, 1) as connections:
            for connection in connections:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return f"{times * len(site.ports)} resets; {site.ask():.2f} s"


def half_hello() -> bytes:
    """The first half of what a TLS client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        hello.do_handshake()
    data = outgoing.read()
    return data[: len(data) // 2]


HTTP = b"POST /get_or_create_runtime_env HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n"
SERVER, CLIENT, RAY = WHERE = ("server", "client", "Ray's ports")
SERVED = r"; [0-9.]+ s$"
PORTS: dict[str, Callable[[Site], str]] = {
    "random bytes": partial(thrown, os.urandom(20_000)),
    "HTTP": partial(thrown, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a pickle": partial(thrown, PICKLE),
    "gRPC without TLS or token": partial(thrown, GREETING),
    "a request for a job environment": partial(thrown, HTTP),
    "40 silent connections to each port": partial(held, b"", 40),
    "20 halves of a TLS greeting to each": partial(held, half_hello(), 20),
    "20 HTTP bodies that never come": partial(held, HTTP, 20),
    "20 deaf connections to each": partial(held, GREETING, 20, deaf=True),
    "10 that dribble a TLS greeting": partial(dribbled, half_hello(), 10, 6.0),
    "10 that dribble HTTP": partial(dribbled, HTTP, 10, 6.0),
    "50 resets of each port": partial(hung_up, 50),
}


def strangers() -> list[Bad]:
    """Those that need no cluster."""
    return [Bad(name, SERVER, partial(met, serve, encrypted), answer) for name, (serve, encrypted, answer) in STRANGERS.items()]


def kinds() -> list[Bad]:
    """All of them."""
    clients = [Bad(name, CLIENT, throw, answer) for name, (throw, answer) in CLIENTS.items()]
    return strangers() + clients + [Bad(name, RAY, throw, SERVED) for name, throw in PORTS.items()]
