"""Hosts reached by SSH: the description of them, Ray's own launcher configuration made from it, and how nodes are ended.

``ray up`` starts the head from here, and the head's autoscaler starts the workers. Ray's defaults call ``ray stop``, which
ends every Ray process of a host, also those of others; here each host ends what bears the cluster's mark (remote.py).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import yaml

from cluster.checks import check_text
from cluster.errors import ClusterError, TopologyError, not_one_of, under
from cluster.raynode import MARK
from cluster.reader import LARGEST_FILE, known, mapping, place, plain_yaml
from cluster.security import AUTHORITY, CERTIFICATE, KEY, check_secret
from cluster.state import Record

DISTRIBUTION = "splitinfer"
_KEYS = ("hosts", "user", "key", "python", "proxy", "setup")
_UP_TIMEOUT_S = 900.0  # a first `pip install` on a small board
_STOP_TIMEOUT_S = 60.0
_CHECK_TIMEOUT_S = 600.0  # it waits for nodes that are being installed


@dataclass(frozen=True)
class Hosts:
    """A machine for each tier, and how they are reached; raises TopologyError when built wrong."""

    addresses: Mapping[str, str]
    """IP address of each tier's host: what its node listens at, and where SSH goes."""
    user: str
    key: str = ""
    """The file of the private key. It is copied to the head, which reaches the others with it."""
    python: str = "python3"
    """The Python of every host that has Ray and torch."""
    proxy: str = ""
    """ssh's ProxyCommand."""
    setup: tuple[str, ...] = ()
    """Commands that each host runs first."""

    @classmethod
    def load(cls, path: Path) -> Hosts:
        """Hosts of a YAML file; raises TopologyError with file and line."""
        lines: dict[str, int] = {}
        try:
            with path.open("rb") as stream:
                return cls.from_dict(plain_yaml(stream.read(LARGEST_FILE + 1).decode(), lines))
        except OSError as error:
            raise TopologyError(f"cannot be read: {error.strerror}", file=str(path)) from error
        except UnicodeDecodeError as error:
            raise TopologyError("is not UTF-8 text", file=str(path)) from error
        except TopologyError as error:
            key, line = place(error.key, lines)
            raise TopologyError(error.problem, key=key, file=str(path), line=error.line or line) from None

    @classmethod
    def from_dict(cls, data: object) -> Hosts:
        """Hosts of plain values; raises TopologyError."""
        given = known(data, _KEYS, required=("hosts", "user"))
        with under("hosts"):
            addresses = mapping(given.pop("hosts"))
            for tier, address in addresses.items():
                with under(tier):
                    check_text(address)
        with under("setup"):
            setup = given.pop("setup", [])
            if not isinstance(setup, list):
                raise TopologyError("is not a list; begin each command with '- '")
            setup = tuple(check_text(command) for command in setup)
        for key, value in given.items():
            with under(key):
                check_text(value)
        return cls(addresses, setup=setup, **given)

    def check(self, tiers: Sequence[str]) -> None:
        """Raise TopologyError unless each tier has a host of its own, and the key is there for nobody else."""
        for tier in tiers:
            if tier not in self.addresses:
                raise TopologyError(f"tier '{tier}' has no host", key="hosts")
        for tier, address in self.addresses.items():
            if tier not in tiers:
                raise TopologyError(not_one_of(tier, tiers, "tier"), key=f"hosts.{tier}")
            if list(self.addresses.values()).count(address) > 1:
                raise TopologyError(f"{address} is another tier's, too; one host runs one node", key=f"hosts.{tier}")
        if self.key:
            check_secret(Path(self.key).expanduser())

    def reach(self) -> dict[str, str]:
        """What `stop` needs to get there again."""
        return {"user": self.user, "key": self.key, "python": self.python, "proxy": self.proxy}


def launcher_name(mark: str) -> str:
    """Under what name Ray's launcher knows a cluster."""
    return f"{DISTRIBUTION}-{mark[:12]}"


def forget_launch(mark: str) -> None:
    """Remove what Ray's local provider remembers on this machine, here and on the head."""
    from ray.autoscaler._private.local.config import get_lock_path, get_state_path

    for path in (get_state_path(launcher_name(mark)), get_lock_path(launcher_name(mark))):
        Path(path).unlink(missing_ok=True)


def launcher(record: Record, hosts: Hosts, shipped: Path, wheel: str) -> dict[str, Any]:
    """The configuration for ``ray up``, local provider; `shipped` is the directory that every host gets a copy of."""
    home, head, workers = _home(record), record.hosts[record.tiers[-1]], [record.hosts[tier] for tier in record.tiers[:-1]]
    python = hosts.python
    install = f"{python} -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target {home}/site {home}/shipped/{wheel}"
    node = _remote(record, "start")
    auth = {"ssh_user": hosts.user, "ssh_private_key": str(Path(hosts.key).expanduser()), "ssh_proxy_command": hosts.proxy}
    return {
        "cluster_name": launcher_name(record.mark),
        "provider": {"type": "local", "head_ip": head, "worker_ips": workers},
        "auth": {key: value for key, value in auth.items() if value and value != "."},
        "min_workers": len(workers),
        "max_workers": len(workers),
        "file_mounts": {f"{home}/shipped": str(shipped)},
        "setup_commands": [*hosts.setup, f"chmod -R go= {home}", install],
        "head_start_ray_commands": [node],
        "worker_start_ray_commands": [node],
    }


def launch(record: Record, hosts: Hosts, wheel: Path) -> None:
    """Write what is shipped and the configuration, and run ``ray up``. Raises ClusterError with what it said last."""
    shipped = record.home / "shipped"
    shipped.mkdir(mode=0o700)
    shutil.copy(wheel, shipped)
    shutil.copy(record.token, shipped / "token")
    if record.tls:
        for name in (AUTHORITY, CERTIFICATE, KEY):
            shutil.copy(Path(record.tls, name), shipped / name)
    node = {
        "hosts": dict(record.hosts),
        "tiers": list(record.tiers),
        "address": record.address,
        "mark": record.mark,
        "tls": bool(record.tls),
    }
    (shipped / "node.json").write_text(json.dumps(node), encoding="utf-8")
    config = record.home / "ray-up.yaml"
    config.write_text(yaml.safe_dump(launcher(record, hosts, shipped, wheel.name), sort_keys=False), encoding="utf-8")
    log = record.home / "ray-up.log"
    command = [sys.executable, "-m", "ray.scripts.scripts", "up", str(config), "--yes", "--no-config-cache", "--disable-usage-stats"]
    with log.open("w", encoding="utf-8") as said:  # a file: connections that ssh shares outlive the command
        done = subprocess.run(  # noqa: S603 - ours
            command, env=os.environ | {MARK: f"{record.mark}/launcher"}, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
            timeout=_UP_TIMEOUT_S, check=False,
        )  # fmt: skip
    if done.returncode:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        raise ClusterError(f"'ray up' failed: {' | '.join(lines[-4:])}")


def stop(record: Record) -> None:
    """End the nodes of every host, and remove what was shipped. Raises ClusterError that names the hosts that remain."""
    home, failed = _home(record), {}
    command = f"if [ -d {home}/site ]; then {_remote(record, 'stop')}; fi && rm -rf {home}"
    # The head first: its autoscaler would start the others again.
    for tier in reversed(record.tiers):
        if why := _failure(record, tier, command, _STOP_TIMEOUT_S):
            failed[tier] = why
    forget_launch(record.mark)
    if failed:
        told = "; ".join(f"{tier} ({record.hosts[tier]}): {why}" for tier, why in failed.items())
        raise ClusterError(f"not all hosts were cleaned up: {told}. Repeat 'splitinfer cluster down {record.name}' when they answer")


def check(record: Record) -> None:
    """From the head: wait until all nodes have joined. Raises ClusterError where some do not, or their versions differ."""
    head = record.tiers[-1]
    if why := _failure(record, head, _remote(record, "check"), _CHECK_TIMEOUT_S):
        raise ClusterError(f"'{head}' ({record.hosts[head]}) says: {why.removeprefix('cluster.remote: ')}")


def make_wheel(directory: Path) -> Path:
    """This project's wheel, from the source tree that is installed. Raises ClusterError where there is none."""
    try:
        installed = distribution(DISTRIBUTION).read_text("direct_url.json") or "{}"
    except PackageNotFoundError:
        installed = "{}"
    source = json.loads(installed).get("url", "").removeprefix("file://")
    if not Path(source, "pyproject.toml").is_file() or not source:
        raise ClusterError(f"the source of {DISTRIBUTION} is not on this machine; give --wheel FILE")
    scratch = directory / "source"
    # Building leaves folders beside the source: a copy keeps the tree clean.
    shutil.copytree(source, scratch, ignore=lambda here, names: [] if here != source else [each for each in names if each not in _PARTS])
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(directory),
        str(scratch),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    shutil.rmtree(scratch)
    if done.returncode:
        raise ClusterError(f"the wheel cannot be made: {(done.stderr.strip().splitlines() or ['?'])[-1]}; give --wheel FILE")
    return next(directory.glob("*.whl"))


_PARTS = ("pyproject.toml", "README.md", "LICENSE", "splitinfer", "partitioners", "cluster")


def _home(record: Record) -> str:
    return f"~/.{DISTRIBUTION}/{record.name}"


def _remote(record: Record, action: str) -> str:
    return f"PYTHONPATH={_home(record)}/site {record.reach['python']} -m cluster.remote {action} {_home(record)}"


def _failure(record: Record, tier: str, command: str, timeout_s: float) -> str:
    """Run a command on a tier's host; what it said last where it failed, else nothing."""
    try:
        done = subprocess.run(  # noqa: S603 - ours
            _ssh(record, record.hosts[tier], command), capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s:g} s"
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1] if done.returncode else ""


def _ssh(record: Record, host: str, command: str) -> list[str]:
    reach = record.reach
    options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={os.devnull}"]
    options += ["-i", str(Path(reach["key"]).expanduser()), "-o", "IdentitiesOnly=yes"] if reach["key"] else []
    options += ["-o", f"ProxyCommand={reach['proxy']}"] if reach["proxy"] else []
    return ["ssh", *options, f"{reach['user']}@{host}", f"bash -c {shlex.quote(command)}"]
