"""Secrets that only their user can read, and certificates that Ray accepts; no Ray node is needed for these."""

import socket
import ssl
import subprocess
import threading
import time

import pytest

from cluster import certs, client, security
from cluster.errors import ClusterError


@pytest.fixture
def token(tmp_path):
    security.write_token(tmp_path / "token")
    return tmp_path / "token"


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls") / "certs"
    certs.make(directory, ["10.0.0.5", "edge.lan"])
    return directory


class TestSecrets:
    def test_a_token_is_long_private_and_never_replaced(self, token):
        assert token.stat().st_mode & 0o777 == 0o600
        assert len(token.read_text()) == 64
        with pytest.raises(FileExistsError):
            security.write_token(token)

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o660, 0o666, 0o644, 0o610])
    def test_one_that_others_can_use_is_refused(self, token, mode):
        token.chmod(mode)
        with pytest.raises(ClusterError, match=f"has mode {mode:o}: others can use the secret"):
            client.settings(token, None)

    def test_a_private_one_is_taken(self, token):
        assert client.settings(token, None)["RAY_AUTH_TOKEN_PATH"] == str(token)
        assert client.settings(token, None)["RAY_USE_TLS"] == "0"  # whatever the caller's environment says

    def test_what_is_no_file_is_refused(self, tmp_path):
        with pytest.raises(ClusterError, match="No such file"):
            security.check_secret(tmp_path / "none")
        with pytest.raises(ClusterError, match="is not a file"):
            security.check_secret(tmp_path)

    def test_a_directory_that_others_can_write_is_refused(self, tmp_path):
        made = security.private_directory(tmp_path / "a" / "b")
        assert made.stat().st_mode & 0o777 == 0o700
        made.chmod(0o750)
        with pytest.raises(ClusterError, match="yours alone"):
            security.private_directory(made)


class TestCertificates:
    def test_openssl_verifies_them(self, tls):
        for purpose in ("sslserver", "sslclient"):
            command = ["openssl", "verify", "-purpose", purpose, "-CAfile", tls / "ca.pem", tls / "node.pem"]
            assert subprocess.run(command, capture_output=True, check=False).returncode == 0

    def test_keys_are_private(self, tls):
        for name in ("ca.key", "node.key"):
            assert (tls / name).stat().st_mode & 0o777 == 0o600

    def test_they_are_valid_for_the_hosts_and_no_others(self, tls):
        certs.check_hosts(tls, ["127.0.0.1", "127.0.0.4", "localhost", "10.0.0.5", "edge.lan"])
        for host in ("10.0.0.6", "other.lan"):
            with pytest.raises(ClusterError, match=f"is not valid for {host}; make one with"):
                certs.check_hosts(tls, [host])

    def test_one_about_to_expire_is_refused(self, tmp_path):
        certs.make(tmp_path / "short", days=1)
        with pytest.raises(ClusterError, match="has expired, or will within a day"):
            certs.check_hosts(tmp_path / "short", ["127.0.0.1"])

    def test_a_second_time_keeps_the_authority(self, tmp_path):
        certs.make(tmp_path / "c")
        before = (tmp_path / "c/ca.pem").read_bytes(), (tmp_path / "c/node.pem").read_bytes()
        certs.make(tmp_path / "c", ["10.0.0.9"])
        after = (tmp_path / "c/ca.pem").read_bytes(), (tmp_path / "c/node.pem").read_bytes()
        assert before[0] == after[0]
        assert before[1] != after[1]

    @pytest.mark.parametrize("host", ["a,DNS:evil", "a\nsubjectAltName=IP:1.2.3.4", "", "-x", "a b", "x" * 300])
    def test_what_is_no_host_never_reaches_openssl(self, tmp_path, host):
        with pytest.raises(ClusterError, match="neither an address nor a host's name"):
            certs.make(tmp_path / "c", [host])

    def test_a_directory_without_them_is_refused(self, tmp_path):
        with pytest.raises(ClusterError, match=r"has no ca\.pem; make certificates with"):
            security.tls_environment(tmp_path)

    def test_so_is_an_open_key(self, tmp_path):
        certs.make(tmp_path / "c")
        (tmp_path / "c/node.key").chmod(0o644)
        with pytest.raises(ClusterError, match="has mode 644"):
            security.tls_environment(tmp_path / "c")


@pytest.fixture
def listener():
    """A server that does to each connection what it is told: (address, tell)."""
    server = socket.create_server(("127.0.0.1", 0))
    doing = []

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            doing[0](connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.getsockname()[1]}", doing.append
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(5)


def with_tls(directory):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=directory / "ca.pem")
    context.load_cert_chain(directory / "node.pem", directory / "node.key")
    context.verify_mode = ssl.CERT_REQUIRED

    def handle(connection):
        try:
            with context.wrap_socket(connection, server_side=True) as encrypted:
                encrypted.recv(100)
                encrypted.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
                encrypted.recv(100)
        except OSError:
            connection.close()

    return handle


class TestStrangeServers:
    """Each is told apart within the timeout, before Ray is let loose."""

    @pytest.mark.parametrize("address", ["nothing", "host:", ":123", "host:x", "host:1:x"])
    def test_no_address(self, token, address):
        with pytest.raises(ClusterError, match="no address of a head; write host:port"):
            client.members(address, token)

    def test_nobody_there(self, token):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match="cannot be reached: Connection refused"):
            client.members(f"127.0.0.1:{port}", token)

    def test_one_that_never_answers(self, listener, token):
        address, tell = listener
        kept = []
        tell(kept.append)
        start = time.monotonic()
        with pytest.raises(ClusterError, match=r"nothing at .* answers within 0\.5 s"):
            client.members(address, token, timeout_s=0.5)
        assert time.monotonic() - start < 3

    @pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x16", b"", b"\0\0"])
    def test_one_that_is_no_head(self, listener, token, said):
        address, tell = listener

        def answer(connection):
            with connection:
                connection.recv(100)
                connection.sendall(said)

        tell(answer)
        with pytest.raises(ClusterError, match="speaks no plain gRPC: the cluster uses TLS"):
            client.members(address, token, timeout_s=2)

    def test_tls_where_none_is_given(self, listener, token, tls):
        address, tell = listener
        tell(with_tls(tls))
        with pytest.raises(ClusterError, match="the cluster uses TLS \\(give --tls DIR\\)"):
            client.members(address, token, timeout_s=2)

    def test_none_where_tls_is_given(self, listener, token, tls):
        address, tell = listener
        tell(lambda connection: (connection.sendall(b"hello, not TLS"), connection.close()))
        with pytest.raises(ClusterError, match="speaks no TLS; the cluster runs without: leave --tls out, or it is an impostor"):
            client.members(address, token, tls, timeout_s=2)

    def test_an_impostor_with_another_authority(self, listener, token, tls, tmp_path):
        address, tell = listener
        certs.make(tmp_path / "other")
        tell(with_tls(tmp_path / "other"))
        with pytest.raises(ClusterError, match="is not to be trusted by"):
            client.members(address, token, tls, timeout_s=2)

    def test_a_client_of_another_authority(self, listener, token, tls, tmp_path):
        """It trusts the cluster, but shows a certificate that the cluster did not sign."""
        address, tell = listener
        certs.make(tmp_path / "other")
        (tmp_path / "other/ca.pem").write_bytes((tls / "ca.pem").read_bytes())
        tell(with_tls(tls))
        with pytest.raises(ClusterError, match="refuses the certificate in"):
            client.members(address, token, tmp_path / "other", timeout_s=2)
