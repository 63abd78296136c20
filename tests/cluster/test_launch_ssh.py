"""Hosts reached by SSH: the launcher's configuration, and real nodes behind real SSH servers in network namespaces."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cluster import raynode, ssh, state, testbed
from cluster.errors import ClusterError, TopologyError
from cluster.topology import Topology

SSHD = "/usr/sbin/sshd"
YAML = """
version: 1
tiers: [{name: device, compute: measured}, {name: edge, compute: measured}, {name: cloud, compute: measured}]
links: [{between: [device, edge], preset: LAN}, {between: [edge, cloud], preset: LAN}]
"""
ADDRESSES = {"device": "10.77.0.1", "edge": "10.77.0.2", "cloud": "10.77.0.3"}


def record(tmp_path, **changes):
    labels = {tier: {"splitinfer-tier": tier} for tier in ADDRESSES}
    fields = {
        "name": "lab", "kind": "ssh", "labels": labels, "address": "10.77.0.3:6379", "token": str(tmp_path / "token"), "tls": None,
        "mark": "0" * 32, "hosts": ADDRESSES, "reach": ssh.Hosts(ADDRESSES, "pi").reach(),
        "cpus": 0,
    }  # fmt: skip
    return state.Record(**fields | changes)


class TestHosts:
    def test_a_file(self, tmp_path):
        path = tmp_path / "hosts.yaml"
        path.write_text("user: pi\npython: ~/env/bin/python\nsetup: ['date']\nhosts: {device: 10.0.0.1, cloud: 10.0.0.2}\n")
        hosts = ssh.Hosts.load(path)
        assert hosts == ssh.Hosts({"device": "10.0.0.1", "cloud": "10.0.0.2"}, "pi", python="~/env/bin/python", setup=("date",))
        hosts.check(["device", "cloud"])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("user: pi", "hosts: is missing"),
            ("user: pi\nhots: {}", "hosts.yaml:2: hots: 'hots' is no known key; did you mean 'hosts'"),
            ("user: pi\nhosts: {device: 3}", r"hosts.yaml:2: hosts.device: 3 is not a text"),
            ("user: pi\nhosts: {}\nsetup: date", "hosts.yaml:3: setup: is not a list"),
            ("user: [1]\nhosts: {}", "hosts.yaml:1: user: "),
        ],
    )
    def test_what_is_refused(self, tmp_path, text, message):
        (tmp_path / "hosts.yaml").write_text(text)
        with pytest.raises(TopologyError, match=message):
            ssh.Hosts.load(tmp_path / "hosts.yaml")

    @pytest.mark.parametrize(
        ("addresses", "message"),
        [
            ({"device": "10.0.0.1"}, "tier 'cloud' has no host"),
            ({"device": "10.0.0.1", "cloud": "10.0.0.2", "clod": "10.0.0.3"}, "did you mean 'cloud'"),
            ({"device": "10.0.0.1", "cloud": "10.0.0.1"}, "10.0.0.1 is another tier's, too"),
        ],
    )
    def test_each_tier_has_a_host_of_its_own(self, addresses, message):
        with pytest.raises(TopologyError, match=message):
            ssh.Hosts(addresses, "pi").check(["device", "cloud"])

    def test_an_open_key_is_refused(self, tmp_path):
        key = tmp_path / "key"
        key.write_text("secret")
        key.chmod(0o644)
        with pytest.raises(ClusterError, match="has mode 644"):
            ssh.Hosts(ADDRESSES, "pi", str(key)).check(list(ADDRESSES))


class TestLauncher:
    def test_ray_takes_the_configuration(self, tmp_path):
        from ray.autoscaler._private.util import prepare_config, validate_config

        hosts = ssh.Hosts(ADDRESSES, "pi", key="/home/pi/key", proxy="nc %h 2222", python="~/env/bin/python", setup=("date",))
        config = yaml.safe_load(yaml.safe_dump(ssh.launcher(record(tmp_path, reach=hosts.reach()), hosts, tmp_path, "x.whl")))
        validate_config(prepare_config(config))
        assert config["provider"] == {"type": "local", "head_ip": "10.77.0.3", "worker_ips": ["10.77.0.1", "10.77.0.2"]}
        assert config["auth"] == {"ssh_user": "pi", "ssh_private_key": "/home/pi/key", "ssh_proxy_command": "nc %h 2222"}
        assert config["file_mounts"] == {"~/.splitinfer/lab/shipped": str(tmp_path)}
        assert config["setup_commands"][0] == "date"
        assert config["setup_commands"][-1].startswith("~/env/bin/python -m pip install")
        assert config["setup_commands"][-1].endswith("~/.splitinfer/lab/shipped/x.whl")

    def test_no_command_ends_what_is_not_ours(self, tmp_path):
        config = ssh.launcher(record(tmp_path), ssh.Hosts(ADDRESSES, "pi"), tmp_path, "x.whl")
        for role in ("head", "worker"):  # Ray's defaults would call 'ray stop'
            assert config[f"{role}_start_ray_commands"] == [
                "PYTHONPATH=~/.splitinfer/lab/site python3 -m cluster.remote start ~/.splitinfer/lab"
            ]

    def test_no_secret_is_in_it(self, tmp_path):
        (tmp_path / "token").write_text("5ec2e7")
        text = yaml.safe_dump(ssh.launcher(record(tmp_path), ssh.Hosts(ADDRESSES, "pi"), tmp_path, "x.whl"))
        assert "5ec2e7" not in text

    def test_the_wheel_holds_the_three_packages(self, tmp_path):
        import zipfile

        names = zipfile.ZipFile(ssh.make_wheel(tmp_path)).namelist()
        assert {"cluster/remote.py", "splitinfer/cli.py", "partitioners/problem.py"} <= set(names)
        assert not [name for name in names if name.startswith(("tests", "benchmarks"))]
        assert [path.suffix for path in tmp_path.iterdir()] == [".whl"]


def own_tiers(hosts):
    from cluster.remote import own_tier

    return own_tier(hosts)


class TestHost:
    def test_finds_its_tier_by_its_address(self):
        assert own_tiers({"device": "192.0.2.77", "edge": "127.0.0.1"}) == "edge"

    def test_says_when_it_has_none(self):
        with pytest.raises(ClusterError, match=r"none of 192\.0\.2\.77 is an address of"):
            own_tiers({"device": "192.0.2.77"})


def sshd(bed, tier, key, scratch):
    """An SSH server on a tier's host, where the user's home is another than on the other hosts."""
    home, real = scratch / f"home-{tier}", Path.home()
    home.mkdir()
    (home / ".bashrc").write_text(f"export PATH={scratch}/bin:$PATH\n")
    options = {
        "Port": "22", "ListenAddress": ADDRESSES[tier], "HostKey": str(key), "AuthorizedKeysFile": f"{key}.pub", "PidFile": "none",
        "StrictModes": "no", "UsePAM": "no", "PasswordAuthentication": "no", "PermitRootLogin": "prohibit-password",
    }  # fmt: skip
    config = scratch / f"sshd-{tier}"
    config.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    python = Path(sys.base_prefix)
    kept = python.relative_to(real) if python.is_relative_to(real) else None  # an interpreter in the home stays visible
    mounts = [f"mkdir -p {home / kept}", f"mount --bind {python} {home / kept}"] if kept else []
    # 'ip netns exec' gives the command a mount namespace of its own.
    script = " && ".join(["mount --make-rprivate /", *mounts, f"mount --rbind {home} {real}", f"exec {SSHD} -D -e -f {config}"])
    with (scratch / f"sshd-{tier}.log").open("w") as log:
        return subprocess.Popen(bed.command(tier, ["sh", "-c", script]), stderr=log)


@pytest.fixture
def lab(tmp_path):
    """Three hosts with SSH servers, and a way to call ``splitinfer cluster`` on the first: (call, scratch)."""
    bed = testbed.Testbed.up(Topology.loads(YAML), ray=False)
    Path("/run/sshd").mkdir(exist_ok=True)  # where the server parks itself
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    (tmp_path / "bin").mkdir()
    if shutil.which("rsync") is None:
        standin = tmp_path / "bin" / "rsync"
        shutil.copy(Path(__file__).with_name("standin_rsync.py"), standin)
        standin.chmod(0o755)
    servers = [sshd(bed, tier, key, tmp_path) for tier in ADDRESSES]
    (tmp_path / "cluster.yaml").write_text(YAML)
    (tmp_path / "hosts.yaml").write_text(yaml.safe_dump({"user": "root", "key": str(key), "python": sys.executable, "hosts": ADDRESSES}))
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {
        "HOME": str(home), "XDG_STATE_HOME": str(home), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "RAY_TMPDIR": str(home)
    }  # fmt: skip

    def call(*arguments, tier="device"):
        command = bed.command(tier, [sys.executable, "-m", "splitinfer", "cluster", *arguments])
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)

    try:
        yield call, tmp_path
    finally:
        bed.down()
        for server in servers:
            server.wait()


def marked(mark):
    return raynode.processes(mark)


def tiers(status):
    return [node["tier"] for node in json.loads(status)["nodes"]] if status else []


def until(holds, timeout_s):
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.slow
@pytest.mark.skipif(bool(testbed.missing()) or not Path(SSHD).exists(), reason="needs root, iproute2 and an SSH server")
class TestOverSsh:
    def test_three_hosts_up_looked_at_and_down_again(self, lab):
        call, scratch = lab
        hosts = [option for address in ADDRESSES.values() for option in ("--host", address)]
        assert call("certs", str(scratch / "tls"), *hosts).returncode == 0
        start = time.perf_counter()
        files = ("--hosts", str(scratch / "hosts.yaml"), "--tls", str(scratch / "tls"))
        up = call("up", str(scratch / "cluster.yaml"), *files, "--json")
        up_s = time.perf_counter() - start
        home = scratch / "home" / "splitinfer" / "clusters" / "default"
        assert up.returncode == 0, up.stderr
        mark = json.loads((home / "record.json").read_text())["mark"]
        token = (home / "token").read_text()
        doctor = call("doctor", "--json")
        assert doctor.returncode == 0, doctor.stdout + doctor.stderr
        assert {each["found"] for each in json.loads(doctor.stdout)["findings"] if each["check"] == "TLS"} == {"on"}
        status = json.loads(call("status", "--json").stdout)
        assert {node["tier"]: node["address"] for node in status["nodes"]} == ADDRESSES
        assert (scratch / "home-edge/.splitinfer/default/shipped/token").stat().st_mode & 0o777 == 0o600
        for log in [home / "ray-up.log", home / "ray-up.yaml"]:
            assert token not in log.read_text()
        assert [path.stat().st_mode & 0o777 for path in Path("/tmp").glob(f"splitinfer-{mark[:12]}-*")] == [0o700] * 3
        raynode.kill(raynode.Node("cloud", ADDRESSES["cloud"], scratch, f"{mark}/cloud", 1, ""))
        start = time.perf_counter()
        until(lambda: tiers(call("status", "--json").stdout) == list(ADDRESSES), 120)
        print(f"over SSH: all back {time.perf_counter() - start:.1f} s after the head was killed")
        start = time.perf_counter()
        down = call("down", "--json")
        print(f"over SSH: up {up_s:.1f} s, down {time.perf_counter() - start:.1f} s")
        assert down.returncode == 0, down.stderr
        assert marked(mark) == []
        for tier in ADDRESSES:
            left = [path for path in (scratch / f"home-{tier}").rglob("*") if path.is_file()]
            assert not [path for path in left if "splitinfer" in str(path.relative_to(scratch)) or path.name.startswith("ray_bootstrap")]

    def test_a_host_that_does_not_answer_ends_the_rest(self, lab):
        call, scratch = lab
        hosts = yaml.safe_load((scratch / "hosts.yaml").read_text()) | {"python": "/nowhere/python"}
        (scratch / "hosts.yaml").write_text(yaml.safe_dump(hosts))
        up = call("up", str(scratch / "cluster.yaml"), "--hosts", str(scratch / "hosts.yaml"))
        assert up.returncode == 2
        assert "'ray up' failed" in up.stderr
        assert up.stderr.count("\n") == 1
        assert call("status").stderr.startswith("splitinfer: no cluster is up")
