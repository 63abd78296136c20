"""Ray nodes that are killed or cut off, and come back: real ones, on this machine and in namespaces."""

import json
import subprocess
import sys
import time

import pytest

from cluster import lifecycle, raynode, testbed
from cluster.errors import ClusterError
from cluster.topology import Topology

TOPOLOGY = Topology.loads("""
version: 1
tiers: [{name: device, compute: measured}, {name: edge, compute: measured}, {name: cloud, compute: measured}]
links: [{between: [device, edge], up: 40 Mbps, latency: 2 ms}, {between: [edge, cloud], up: 40 Mbps, latency: 2 ms}]
""")
TIERS = ["device", "edge", "cloud"]
pytestmark = pytest.mark.slow


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made = lifecycle.up_local(TOPOLOGY, name="faults")
    yield made
    lifecycle.down("faults")
    assert raynode.processes(made.mark) == []


def until(holds, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def lives(record, tier):
    """The numbers of the lives of a tier's node of which processes are left."""
    marks = set(raynode._bearers(f"{record.mark}/{tier}").values())
    return sorted(int(mark.split("/")[2]) for mark in marks if mark.count("/") == 2)


def tiers(record):
    try:
        return sorted(member.tier for member in lifecycle.live(record))
    except ClusterError:
        return []


class Counter:
    """What stands for a stage."""

    def who(self):
        import os

        return os.environ["SPLITINFER_NODE"].rpartition("/")[2]


SERVICE = """
import os, sys, time
from pathlib import Path
from cluster import connect, lifecycle, raynode, state

shell, record = int(sys.argv[1]), state.load("faults")
while os.getppid() == shell:
    time.sleep(0.05)
for life in (1, 2):
    with connect(record.address, token=Path(record.token)):
        import ray
        there = ray.remote(lambda: os.getpid()).options(num_cpus=0, label_selector={"splitinfer-tier": "edge"}).remote()
        assert ray.get(there, timeout=60) != os.getpid()
        if life == 1:
            lifecycle.kill(record, "device")
            while not raynode.named(f"{record.mark}/device/2", ["raylet"]) or len(lifecycle.live(record)) != 3:
                time.sleep(0.2)
Path(sys.argv[2]).write_text("outlived it")
"""


class TestOnThisMachine:
    def test_a_service_outlives_the_node_that_it_is_connected_to(self, record, tmp_path):
        """Ray took its parent, init, for a node that had died, and ended the service when it disconnected."""
        said = tmp_path / "said"
        subprocess.run(["sh", "-c", 'exec "$0" -c "$1" $$ "$2" &', sys.executable, SERVICE, str(said)], check=True)
        until(said.exists)

    def test_a_node_that_is_killed_comes_back_and_so_do_its_actors(self, record):
        with lifecycle.connected(record):
            import ray

            where = {"splitinfer-tier": "edge"}
            actor = ray.remote(Counter).options(num_cpus=0, max_restarts=-1, label_selector=where).remote()
            assert ray.get(actor.who.remote(), timeout=60) == "1"
            assert lifecycle.kill(record, "edge") >= 3

            def answers():
                try:
                    return ray.get(actor.who.remote(), timeout=2) == "2"
                except ray.exceptions.RayError:
                    return False

            until(answers)
            assert lives(record, "edge") == [2]
        assert lives(record, "device") == lives(record, "cloud") == [1]

    def test_without_its_keeper_it_stays_away_until_it_is_revived(self, record):
        lifecycle.kill(record, "edge", keeper=True)
        assert raynode.processes(f"{record.mark}/edge") == []
        until(lambda: tiers(record) == ["cloud", "device"])
        lifecycle.revive(record, "edge")
        assert tiers(record) == sorted(TIERS)

    def test_a_head_that_is_killed_comes_back_and_the_others_find_it(self, record):
        before = lifecycle.live(record)
        assert len(before) == 3
        lifecycle.kill(record, "cloud")
        until(lambda: [lives(record, tier) for tier in TIERS] == [[2], [2], [2]])
        until(lambda: tiers(record) == sorted(TIERS))
        lifecycle.kill(record, "cloud", keeper=True)
        lifecycle.revive(record, "cloud")
        until(lambda: [lives(record, tier) for tier in TIERS] == [[3], [3], [1]])
        until(lambda: tiers(record) == sorted(TIERS))

    def test_down_ends_a_cluster_in_the_middle_of_its_recovery(self, record):
        """A keeper that starts its node again must not outrun the end of the cluster."""
        for tier in TIERS:
            lifecycle.kill(record, tier)
        until(lambda: lives(record, "cloud") == [2])  # 'ray start' is at work, the others wait or start, too


DRIVER = """
import json, sys, time
from pathlib import Path
from cluster import connect

address, token = sys.argv[1], Path(sys.argv[2])

class Counter:
    def who(self):
        return 1

def ask(actor):
    try:
        return ray.get(actor.who.remote(), timeout=2)
    except Exception as error:
        return type(error).__name__

def say(what):
    print(json.dumps(what), flush=True)

def command():
    return sys.stdin.readline().strip()

for attempt in range(2):
    with connect(address, token=token):
        import ray

        made = ray.remote(Counter)
        actors = {tier: made.options(num_cpus=0, label_selector={"splitinfer-tier": tier}).remote() for tier in ("device", "edge")}
        say({tier: ask(actor) for tier, actor in actors.items()})
        while command() == "ask":
            say({tier: ask(actor) for tier, actor in actors.items()})
"""


@pytest.mark.skipif(bool(testbed.missing()), reason=f"a testbed needs root and iproute2: {testbed.missing()}")
class TestOnHosts:
    def test_a_device_that_is_cut_off_until_ray_gives_it_up_and_comes_back(self, monkeypatch):
        """Its application lives on, reaches the actors of its own node all the while, and connects again afterwards."""
        monkeypatch.setenv("RAY_health_check_timeout_ms", "1000")  # 5 s until Ray gives it up rather than 50
        link = ("device", "edge")
        with testbed.Testbed.up(TOPOLOGY) as bed:
            log = bed.nodes[0].home / raynode.KEEPER_LOG
            command = bed.command("device", [sys.executable, "-c", DRIVER, bed.address, str(bed.token)])
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:

                def ask(what="ask"):
                    print(what, file=driver.stdin, flush=True)
                    return json.loads(driver.stdout.readline())

                assert json.loads(driver.stdout.readline()) == {"device": 1, "edge": 1}
                bed.cut(link)
                start = time.monotonic()
                while time.monotonic() - start < 15:
                    found = ask()
                    assert found["device"] == 1
                    assert found["edge"] in ("GetTimeoutError", "ActorUnavailableError", "ActorDiedError")
                assert "ended" not in log.read_text()
                bed.restore(link)
                until(lambda: "node 2 runs" in log.read_text())
                assert ask()["device"] == "ActorDiedError"  # Ray ends the actors of a node that it has given up
                assert ask("again") == {"device": 1, "edge": 1}
                print("end", file=driver.stdin, flush=True)
                assert driver.wait(30) == 0

    def test_nodes_are_killed_and_revived(self):
        with testbed.Testbed.up(TOPOLOGY) as bed:
            again = testbed.Testbed.attach(bed.name)
            assert again.address == bed.address == "10.77.0.3:6379"
            assert bed.kill("edge") >= 3
            until(lambda: "node 2 runs" in (bed.nodes[1].home / raynode.KEEPER_LOG).read_text())
            assert again.kill("edge", keeper=True) >= 3
            assert raynode.processes(bed.nodes[1].mark) == []
            again.revive("edge")
            assert raynode.named(bed.nodes[1].mark, ["raylet"])
            mark = bed.nodes[0].mark.rpartition("/")[0]
        assert raynode.processes(mark) == []
