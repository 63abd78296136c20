"""Clusters that outlive their command: what is remembered of them, and that exactly what was started is ended."""

import json
import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from cluster import certs, client, lifecycle, raynode, state
from cluster.errors import ClusterError
from cluster.security import write_token
from cluster.topology import Topology

YAML = """
version: 1
tiers: [{name: device, compute: measured}, {name: edge, compute: measured}, {name: cloud, compute: measured}]
links: [{between: [device, edge], preset: LAN}, {between: [edge, cloud], preset: LAN}]
"""
TOPOLOGY = Topology.loads(YAML)
LABELS = {tier.name: {"splitinfer-tier": tier.name} for tier in TOPOLOGY.tiers}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No test meets another's clusters, or the user's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "splitinfer" / "clusters"


def made(name="default", **changes):
    fields = {
        "name": name, "kind": "local", "labels": LABELS, "address": "127.0.0.4:1", "token": "", "tls": None, "mark": state.draw_mark(),
        "hosts": {}, "reach": {}, "cpus": 1,
    }  # fmt: skip
    state.claim(name)
    record = state.Record(**fields | changes)
    record.save()
    return record


class TestRecord:
    def test_is_read_as_it_was_written(self):
        record = made()
        assert state.load() == state.load("default") == record
        assert state.load().tiers == ("device", "edge", "cloud")

    def test_lies_where_nobody_else_can_look(self, home):
        made()
        for path in (home, home / "default"):
            assert path.stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("name", ["../up", "UP", "", "a" * 17, "a/b", "."])
    def test_a_name_is_no_path(self, name):
        with pytest.raises(ClusterError, match="is no name for a cluster"):
            state.claim(name)

    def test_a_name_is_taken_once(self):
        made()
        with pytest.raises(ClusterError, match="a cluster 'default' is up; give another --name, or end it"):
            state.claim("default")

    def test_which_one_is_meant(self):
        with pytest.raises(ClusterError, match="no cluster is up; 'splitinfer cluster up' starts one"):
            state.load()
        made("a")
        made("b")
        with pytest.raises(ClusterError, match="name one cluster of a, b"):
            state.load()
        with pytest.raises(ClusterError, match="no cluster 'c' is up; up: a, b"):
            state.load("c")

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"name": "default"}', "\udcff"])
    def test_a_damaged_one_says_what_to_remove(self, home, text):
        made()
        (home / "default" / "record.json").write_text(text, errors="surrogateescape")
        with pytest.raises(ClusterError, match=r"cannot be used .*; remove "):
            state.load()

    def test_a_mark_that_fits_everything_is_refused(self, home):
        """An empty mark would be that of no node, a forged one perhaps somebody else's."""
        made(mark="")
        with pytest.raises(ClusterError, match="its mark is damaged"):
            state.load()


SLEEP = "import time; time.sleep(600)"


def sleeper(mark, code=SLEEP):
    return subprocess.Popen([sys.executable, "-c", code], env=os.environ | {raynode.MARK: mark} if mark else None)


def alive(process):
    return psutil.pid_exists(process.pid) and psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE


class TestEnd:
    def test_what_bears_the_mark_and_nothing_else(self):
        mark, other = state.draw_mark(), state.draw_mark()
        own, others, unmarked = sleeper(mark), sleeper(other), sleeper("")
        child = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); time.sleep(600)"
        parent = sleeper(mark, child)
        try:
            deadline = time.monotonic() + 20
            while len(raynode.processes(mark)) < 3:
                assert time.monotonic() < deadline
            assert raynode.end(mark) == 3
            assert not alive(own)
            assert not alive(parent)
            assert raynode.processes(mark) == []
            assert others.poll() is None
            assert unmarked.poll() is None
        finally:
            for process in (own, parent, others, unmarked):
                process.kill()
                process.wait()

    def test_never_the_process_that_asks(self, monkeypatch):
        mark = state.draw_mark()
        code = f"from cluster import raynode; print(raynode.end({mark!r}))"
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | {raynode.MARK: mark}, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "0\n")

    def test_down_ends_what_an_interrupted_up_left(self):
        record = made()
        left = sleeper(record.mark)
        sessions = lifecycle._sessions(record)
        sessions.mkdir()
        deadline = time.monotonic() + 20
        while not raynode.processes(record.mark):
            assert time.monotonic() < deadline
        lifecycle.down()
        assert not alive(left)
        assert not sessions.exists()
        assert state.names() == []

    def test_a_cluster_of_somebody_else_is_only_forgotten(self):
        record = made(kind="address")
        theirs = sleeper(record.mark)
        try:
            lifecycle.down()
            assert state.names() == []
            assert theirs.poll() is None
        finally:
            theirs.kill()
            theirs.wait()


def test_up_that_fails_leaves_nothing(monkeypatch, tmp_path):
    marks = []

    def fail(node, settings):
        marks.append(node.mark)
        raise ClusterError("no")

    monkeypatch.setattr(raynode, "start", fail)
    with pytest.raises(ClusterError, match=r"^no$"):
        lifecycle.up_local(TOPOLOGY)
    assert state.names() == []
    assert not Path("/tmp", f"splitinfer-{marks[0][:12]}").exists()


class TestFaultsOnPurpose:
    def test_only_where_the_nodes_were_started_here(self):
        for action in (lifecycle.kill, lifecycle.revive):
            with pytest.raises(ClusterError, match="the nodes of cluster 'theirs' were not started on this machine"):
                action(made("theirs", kind="address") if not state.names() else state.load("theirs"), "edge")

    def test_only_a_tier_that_is_there(self):
        record = made(hosts=dict.fromkeys(LABELS, "127.0.0.2"))
        with pytest.raises(ClusterError, match="'egde' is no known tier; did you mean 'edge'"):
            lifecycle.kill(record, "egde")


def test_up_and_its_clean_up_that_fail_tell_both(monkeypatch):
    def fail(*_):
        raise ClusterError("one")

    def fail_too(_):
        raise ClusterError("another")

    with monkeypatch.context() as patch:
        patch.setattr(raynode, "start", fail)
        patch.setattr(raynode, "end", fail_too)
        with pytest.raises(ClusterError, match=r"^one; and then another$"):
            lifecycle.up_local(TOPOLOGY)
    assert state.names() == ["default"]
    lifecycle.down()  # to try again is possible


def test_up_with_a_certificate_for_others_is_refused_before_anything_starts(monkeypatch, tmp_path):
    certs.make(tmp_path / "tls")
    monkeypatch.setattr(raynode, "start", lambda *_: pytest.fail("started"))
    names = [f"t{place}" for place in range(10)]
    tiers = [{"name": name, "compute": {"factor": 1}} for name in names]
    links = [{"between": pair, "preset": "LAN"} for pair in pairwise(names)]
    topology = Topology.from_dict({"version": 1, "tiers": tiers, "links": links})
    with pytest.raises(ClusterError, match=r"is not valid for 127\.0\.0\.10; make one with"):
        lifecycle.up_local(topology, tls=tmp_path / "tls")
    assert state.names() == []


def test_a_directory_that_somebody_else_made_is_never_taken_over(monkeypatch):
    """Somebody who made our directory in /tmp first could read our sockets: the name is drawn by lot, and must be new."""
    mark = state.draw_mark()
    monkeypatch.setattr(state, "draw_mark", lambda: mark)
    squatted = Path("/tmp", f"splitinfer-{mark[:12]}")
    squatted.mkdir()
    try:
        with pytest.raises(FileExistsError):
            lifecycle.up_local(TOPOLOGY)
    finally:
        shutil.rmtree(squatted, ignore_errors=True)


def splitinfer(*arguments, code=0):
    done = subprocess.run([sys.executable, "-m", "splitinfer", "cluster", *arguments], capture_output=True, text=True, timeout=200)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["up", "none.yaml"], "splitinfer: none.yaml: cannot be read: No such file or directory"),
        (["up", "{yaml}", "--address", "10.0.0.1:6379"], "splitinfer: --address needs --token FILE"),
        (["up", "{yaml}", "--hosts", "none.yaml"], "splitinfer: none.yaml: cannot be read"),
        (["down"], "splitinfer: no cluster is up"),
        (["status", "x"], "splitinfer: no cluster 'x' is up; up: none"),
        (["doctor", "x"], "splitinfer: no cluster 'x' is up; up: none"),
        (["certs", "d", "--host", "a b"], "splitinfer: 'a b' is neither an address nor a host's name"),
    ],
)
def test_the_command_line_refuses_in_one_line(tmp_path, arguments, message):
    (tmp_path / "c.yaml").write_text(YAML)
    done = splitinfer(*(each.format(yaml=tmp_path / "c.yaml") for each in arguments), code=2)
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


REFUSED = """
import sys, time
from pathlib import Path
from cluster import client
from cluster.errors import ClusterError
address, token, tls = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]) if sys.argv[3] else None
import ray
start = time.monotonic()
try:
    with client.connect(address, token=token, tls=tls):
        print("connected")
except ClusterError as error:
    print(f"{time.monotonic() - start:.2f} {error}")
"""


def attempt(address, token, tls=""):
    """(seconds, error) of a client in a process of its own; the error is empty where it was let in."""
    done = subprocess.run([sys.executable, "-c", REFUSED, address, str(token), str(tls)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-1]
    return (0.0, "") if said == "connected" else (float(said.split()[0]), said.partition(" ")[2])


def holds(directory, secret):
    return [path for path in directory.rglob("*") if path.is_file() and secret in path.read_bytes()]


@pytest.mark.slow
class TestOnThisMachine:
    def test_up_looked_at_used_refused_and_down(self, tmp_path, home):
        (tmp_path / "c.yaml").write_text(YAML)
        tls = tmp_path / "tls"
        splitinfer("certs", str(tls))
        up = json.loads(splitinfer("up", str(tmp_path / "c.yaml"), "--tls", str(tls), "--json").stdout)
        record = state.load()
        try:
            token = Path(up["token"])
            secret = token.read_bytes()
            assert [member.tier for member in sorted(lifecycle.live(record), key=lambda each: each.address)] == list(LABELS)
            assert "a cluster 'default' is up" in splitinfer("up", str(tmp_path / "c.yaml"), code=2).stderr

            with client.connect(up["address"], token=token, tls=tls):
                import ray

                assert ray.get_runtime_context().get_node_id() in {
                    node["NodeID"] for node in ray.nodes() if node["Labels"]["splitinfer-tier"] == "device"
                }
                stage = ray.remote(Stage).options(name="splitinfer:net/stage0#0f3a91", num_cpus=0, label_selector=LABELS["edge"]).remote()
                other = ray.remote(Stage).options(num_cpus=0, label_selector=LABELS["device"]).remote()
                assert ray.get(other.mark.remote()) == f"{record.mark}/device/1"
                assert ray.get(stage.mark.remote()) == f"{record.mark}/edge/1"
                status = json.loads(splitinfer("status", "--json").stdout)
            assert status["actors"] == [{"tier": "device", "name": "Stage"}, {"tier": "edge", "name": "splitinfer:net/stage0"}]
            assert [node["tier"] for node in status["nodes"]] == list(LABELS)
            assert [(rate["source"], rate["target"]) for rate in status["links"]] == [
                ("device", "edge"), ("edge", "device"), ("edge", "cloud"), ("cloud", "edge"),
            ]  # fmt: skip
            assert all(rate["bytes_per_s"] > 1e6 and 0 < rate["round_trip_s"] < 1 for rate in status["links"])
            doctor = json.loads(splitinfer("doctor", "--json").stdout)
            assert doctor["ok"] is True
            assert {finding["tier"] for finding in doctor["findings"]} == set(LABELS)

            write_token(tmp_path / "wrong")
            certs.make(tmp_path / "foreign")
            refused = {
                "wrong token": (attempt(up["address"], tmp_path / "wrong", tls), "refuses the token in"),
                "no token": (attempt(up["address"], tmp_path / "none", tls), "cannot be read: No such file"),
                "no TLS": (attempt(up["address"], token), "the cluster uses TLS"),
                "other authority": (attempt(up["address"], token, tmp_path / "foreign"), "is not to be trusted"),
            }
            for what, ((seconds, error), expected) in refused.items():
                assert expected in error, what
                assert seconds < 10, what
            assert attempt(up["address"], token, tls) == (0.0, "")

            assert holds(lifecycle._sessions(record), secret) == []
            assert holds(home, secret) == [token]
            for process in raynode.processes(record.mark):
                assert secret.decode() not in " ".join(process.cmdline())
        finally:
            splitinfer("down")
        assert raynode.processes(record.mark) == []
        assert not lifecycle._sessions(record).exists()
        assert not home.exists() or list(home.iterdir()) == []

    def test_killed_half_way_up_it_is_still_ended(self, tmp_path):
        (tmp_path / "c.yaml").write_text(YAML)
        up = subprocess.Popen([sys.executable, "-m", "splitinfer", "cluster", "up", str(tmp_path / "c.yaml")])
        deadline = time.monotonic() + 60
        while not (state.names() and (state.root() / "default/record.json").exists() and gcs_runs(state.load())):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        up.kill()
        up.wait()
        record = state.load()
        assert raynode.processes(record.mark)
        splitinfer("down")
        assert raynode.processes(record.mark) == []
        assert not lifecycle._sessions(record).exists()

    def test_a_running_cluster_is_adopted_by_its_address_and_left_running(self, tmp_path):
        record = lifecycle.up_local(TOPOLOGY, name="theirs")
        try:
            (tmp_path / "c.yaml").write_text(YAML)
            splitinfer("up", str(tmp_path / "c.yaml"), "--name", "ours", "--address", record.address, "--token", record.token)
            assert json.loads(splitinfer("doctor", "ours", "--json").stdout)["ok"] is True
            assert "forgotten; it still runs" in splitinfer("down", "ours").stdout
            assert len(lifecycle.live(record)) == 3
            stranger = Topology.loads(YAML.replace("edge", "roof"))
            with pytest.raises(ClusterError, match=r"has the labels \{'splitinfer-tier': 'roof'\} of tier 'roof'"):
                lifecycle.adopt(stranger, record.address, Path(record.token), name="ours")
            assert lifecycle.kill(record, "edge", keeper=True) > 2
            deadline = time.monotonic() + 60
            while len(lifecycle.live(record)) == 3:
                assert time.monotonic() < deadline
                time.sleep(0.5)
            doctor = splitinfer("doctor", "theirs", "--json", code=1)
            wrong = [each for each in json.loads(doctor.stdout)["findings"] if not each["ok"]]
            assert [(each["tier"], each["check"]) for each in wrong] == [("edge", "node")]
        finally:
            lifecycle.down("theirs")
        assert raynode.processes(record.mark) == []

    @pytest.mark.skipif(not raynode.has_dashboard(), reason="jobs need Ray's dashboard: pip install 'splitinfer[jobs]'")
    def test_a_job_is_submitted_by_whoever_has_the_token(self, tmp_path):
        record = lifecycle.up_local(TOPOLOGY)
        try:
            head = f"http://127.0.0.1:{raynode.DASHBOARD_PORT}"
            script = "import ray; ray.init(); print('tiers', sorted(n['Labels']['splitinfer-tier'] for n in ray.nodes()))"
            command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head, "--", sys.executable, "-c", script]

            def submit(token):
                environment = os.environ | client.settings(token, None)
                return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)

            done = submit(Path(record.token))
            assert done.returncode == 0, done.stderr
            assert "tiers ['cloud', 'device', 'edge']" in done.stdout
            write_token(tmp_path / "wrong")
            refused = submit(tmp_path / "wrong")
            assert refused.returncode != 0
            assert "tiers" not in refused.stdout
        finally:
            lifecycle.down()


class Stage:
    """What stands for a stage."""

    def mark(self):
        return os.environ.get("SPLITINFER_NODE")


def gcs_runs(record):
    return any("gcs_server" in process.name() for process in raynode.processes(record.mark))
