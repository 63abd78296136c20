"""This process as a client of a cluster: refused within seconds, with the reason, where Ray alone would retry in silence.

Three looks before Ray is let loose: does the head's port open; does it speak TLS as we do; does it take our token.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ClusterError
from cluster.launch import TIER_LABEL, node_environment, reread_settings, tame
from cluster.security import AUTHORITY, CERTIFICATE, KEY, check_token, environment, tls_environment

TIMEOUT_S = 10.0
# The first words of HTTP/2, which gRPC speaks (RFC 9113, 3.4): a fixed text and an empty frame of settings. A server answers with its own.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS_FRAME = 4
_PORT, _LAST_PORT = re.compile(r"[0-9]{1,5}"), 65535

# In a process of its own, because Ray's client cannot be interrupted, and ends the process where it gives up.
_ASK = """
import json, sys
from ray.exceptions import AuthenticationError
from ray._raylet import GcsClient, GcsClientOptions, GlobalStateAccessor
try:
    GcsClient(address=sys.argv[1])
except AuthenticationError:
    sys.exit(3)
accessor = GlobalStateAccessor(GcsClientOptions.create(sys.argv[1], None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=True))
accessor.connect()
print(json.dumps([
    {"address": node["NodeManagerAddress"], "labels": node["Labels"]} for node in accessor.get_node_table() if node["Alive"]
]))
"""
_REFUSED = 3


@dataclass(frozen=True)
class Member:
    """A live Ray node."""

    address: str
    labels: Mapping[str, str]

    @property
    def tier(self) -> str:
        """Its tier's name; empty for a node without."""
        return self.labels.get(TIER_LABEL, "")


def settings(token: Path, tls: Path | None) -> dict[str, str]:
    """What nodes and clients of a cluster set in their environment. Raises ClusterError where a secret lies open, or is none."""
    check_token(token)
    return node_environment(token) | tls_environment(tls)


def members(address: str, token: Path, tls: Path | None = None, *, timeout_s: float = TIMEOUT_S) -> list[Member]:
    """The live nodes of the cluster whose head listens at `address` ("host:port").

    Raises ClusterError where this client is refused, or nothing answers within `timeout_s` at each look.
    """
    wanted = settings(token, tls)
    _greet(address, tls, timeout_s)
    own = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    try:
        asked = subprocess.run(  # noqa: S603 - ours
            [sys.executable, "-c", _ASK, address], env=own | wanted, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"Ray's head at {address} did not answer within {timeout_s:g} s") from None
    if asked.returncode == _REFUSED:
        raise ClusterError(f"the cluster at {address} refuses the token in {token}; copy the one that its head was started with")
    if asked.returncode:
        said = (asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"])[-1]
        raise ClusterError(f"Ray's head at {address} cannot be asked: {said}")
    return [Member(each["address"], each["labels"]) for each in json.loads(asked.stdout.splitlines()[-1])]


@contextlib.contextmanager
def connect(address: str, *, token: Path, tls: Path | None = None, timeout_s: float = TIMEOUT_S) -> Iterator[None]:
    """Connect this process to Ray, on the lowest tier's node that runs on this machine; disconnected at the end.

    `token` is the file of the cluster's token, `tls` the directory of certificates where its channels are encrypted. A process
    that is to outlive its node should not have imported Ray before.
    Raises ClusterError within seconds where the cluster refuses this client, does not answer, or has no node here.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        raise ClusterError("this process is already connected to Ray; call ray.shutdown() first")
    here = _here(address, members(address, token, tls, timeout_s=timeout_s))
    # Ray ends a driver whose node has died if the driver's parent is init, as that of every daemon is: it takes that for a dead
    # node. Told that the driver itself is the node, it looks at that instead; it listens only when it is imported first.
    with environment(settings(token, tls) | {"RAY_RAYLET_PID": str(os.getpid())}):
        import ray

        reread_settings()
        tame()
        try:
            ray.init(address=address, _node_ip_address=here, logging_level=logging.ERROR, log_to_driver=False)
        except Exception as error:  # Ray raises many kinds
            raise ClusterError(f"cannot join the cluster at {address}: {str(error).strip().splitlines()[-1]}") from error
        try:
            yield
        finally:
            ray.shutdown()
    reread_settings()


def _here(address: str, nodes: list[Member]) -> str:
    """The address of a node on this machine: a driver needs one. That of the head last, which is the highest tier's."""
    head = address.rpartition(":")[0]
    own = [node.address for node in nodes if _is_own(node.address)]
    if not own:
        there = ", ".join(sorted(node.address for node in nodes)) or "none"
        raise ClusterError(f"this machine is no node of the cluster at {address} (live nodes: {there}); run this on one of them")
    return min(own, key=lambda each: (each == head, each))


def _is_own(address: str) -> bool:
    with socket.socket() as trial:
        try:
            trial.bind((address, 0))
        except OSError:
            return False
    return True


def _greet(address: str, tls: Path | None, timeout_s: float) -> None:
    """Say hello as gRPC does, with or without TLS. Raises ClusterError that tells the one from the other."""
    host, _, port = address.rpartition(":")
    if not host or not _PORT.fullmatch(port) or int(port) > _LAST_PORT:
        raise ClusterError(f"{address!r:.80} is no address of a head; write host:port")
    context = _context(tls) if tls else None
    try:
        with socket.create_connection((host, int(port)), timeout=timeout_s) as plain:
            if context is None or tls is None:
                if not _answers(plain):
                    raise ClusterError(
                        f"what listens at {address} speaks no plain gRPC: the cluster uses TLS (give --tls DIR), or it is no Ray head"
                    )
                return
            _greet_with_tls(plain, address, context, tls)
    except UnicodeError:
        raise ClusterError(f"{host!r:.80} is no name of a host") from None
    except TimeoutError:
        raise ClusterError(f"nothing at {address} answers within {timeout_s:g} s; is the head up, and the way to it open?") from None
    except OSError as error:
        raise ClusterError(f"{address} cannot be reached: {error.strerror or error}; is the head up, and the way to it open?") from error


def _context(tls: Path) -> ssl.SSLContext:
    """Raises ClusterError for files that are no certificates, and for a key that wants a password: nobody is there to give it."""
    try:
        context = ssl.create_default_context(cafile=str(tls / AUTHORITY))
        context.load_cert_chain(tls / CERTIFICATE, tls / KEY, password="")
    except OSError as error:  # those of ssl are such, too
        raise ClusterError(f"the certificates in {tls} cannot be used: {error}") from error
    context.set_alpn_protocols(["h2"])
    return context


def _greet_with_tls(plain: socket.socket, address: str, context: ssl.SSLContext, tls: Path) -> None:
    try:
        encrypted = context.wrap_socket(plain, server_hostname=address.rpartition(":")[0])
    except ssl.SSLCertVerificationError as error:
        raise ClusterError(f"the certificate of {address} is not to be trusted by {tls}: {error.verify_message}") from error
    except (ssl.SSLError, ConnectionError) as error:
        raise ClusterError(
            f"what listens at {address} speaks no TLS; the cluster runs without: leave --tls out, or it is an impostor"
        ) from error
    with encrypted:  # TLS 1.3 refuses a client's certificate only after the handshake
        if not _answers(encrypted):
            raise ClusterError(f"the cluster at {address} refuses the certificate in {tls}; take those that its nodes were started with")


def _answers(connection: socket.socket) -> bool:
    try:
        connection.sendall(_GREETING)
        answer = connection.recv(9)
    except (ssl.SSLError, ConnectionError):
        return False
    return len(answer) > 3 and answer[3] == _SETTINGS_FRAME
