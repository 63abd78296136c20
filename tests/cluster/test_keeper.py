"""A node that is started again whenever it ends: with a stand-in for Ray here, with Ray in test_faults.py."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import keeper, raynode, state
from cluster.errors import ClusterError

# What stands for 'ray start': leaves a raylet and a worker behind, and ends. The worker is deaf to its parent's death.
RAY_START = """
import os, subprocess, sys
here = {scratch!r}
with open(here + "/starts", "a") as file:
    file.write(os.environ["SPLITINFER_NODE"].rpartition("/")[2] + "\\n")
if os.path.exists(here + "/broken"):
    sys.exit("no, thank you")
for name in {names!r}:
    subprocess.Popen([here + "/" + name, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
os.makedirs(here + "/home/session_" + str(len(open(here + "/starts").readlines())))
"""


class Standin:
    """A keeper with a stand-in for ``ray start``."""

    def __init__(self, scratch, names=("raylet", "gcs_server", "worker"), head=""):
        self.home, self.mark = scratch / "home", state.draw_mark()
        self.home.mkdir()
        for name in ("raylet", "gcs_server", "worker"):
            (scratch / name).symlink_to(Path(sys.executable).resolve())  # a process is called like its file
        self.node = raynode.Node("edge", "127.0.0.1", self.home, self.mark, 1, "")
        command = [sys.executable, "-S", "-c", RAY_START.format(scratch=str(scratch), names=names)]
        with (self.home / raynode.KEEPER_LOG).open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cluster.keeper", str(self.home), head, *command],
                env=os.environ | {raynode.MARK: self.mark}, stdout=log, stderr=log, text=True,
            )  # fmt: skip

    def finish(self):
        raynode.finish(self.node, self.process)

    def pids(self, name, life=None):
        return list(raynode.named(f"{self.mark}/{life}" if life else self.mark, [name]))

    def log(self):
        return (self.home / raynode.KEEPER_LOG).read_text()


@pytest.fixture
def standin(tmp_path):
    made = []

    def make(*args, **kwargs):
        made.append(Standin(tmp_path, *args, **kwargs))
        return made[-1]

    yield make
    for each in made:
        raynode.end(each.mark)
        each.process.wait()


def until(holds, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class TestKeeper:
    def test_the_node_comes_back_and_nothing_of_its_former_life_stays(self, standin):
        kept = standin()
        kept.finish()
        (raylet,) = kept.pids("raylet", 1)
        assert kept.pids("worker", 1)
        psutil.Process(raylet).kill()
        until(lambda: kept.pids("raylet", 2))
        assert raynode.processes(f"{kept.mark}/1") == []
        assert len(kept.pids("raylet")) == 1
        until(lambda: "node 2 runs" in kept.log())
        assert re.search(r"^\S+ \S+ node 1 ended: raylet was killed by SIGKILL; starting it again in 0\.5 s$", kept.log(), re.MULTILINE)
        assert sorted(path.name for path in kept.home.glob("**/session_*")) == ["session_1", "session_2"]
        assert (kept.home / "previous" / "session_1").is_dir()

    def test_end_ends_it_with_its_keeper_and_it_stays_ended(self, standin, tmp_path):
        kept = standin()
        kept.finish()
        assert raynode.end(kept.mark) == 4
        assert raynode.processes(kept.mark) == []
        assert (tmp_path / "starts").read_text() == "1\n"

    def test_a_kill_spares_the_keeper_or_not(self, standin):
        kept = standin()
        kept.finish()
        assert raynode.kill(kept.node) == 3
        until(lambda: kept.pids("raylet", 2))
        assert raynode.kill(kept.node, keeper=True) >= 2
        assert raynode.processes(kept.mark) == []

    def test_the_end_of_a_worker_is_not_that_of_the_node(self, standin):
        kept = standin()
        kept.finish()
        psutil.Process(*kept.pids("worker")).kill()
        until(lambda: not kept.pids("worker"))
        psutil.Process(*kept.pids("raylet")).kill()
        until(lambda: kept.pids("raylet", 2))
        assert kept.log().count("ended") == 1

    def test_a_head_has_ended_when_its_gcs_has(self, standin):
        kept = standin()
        kept.finish()
        psutil.Process(*kept.pids("gcs_server")).terminate()
        until(lambda: kept.pids("gcs_server", 2))
        assert "node 1 ended: gcs_server was killed by SIGTERM" in kept.log()
        assert len(kept.pids("raylet")) == 1

    def test_other_nodes_wait_until_the_head_opens(self, standin, tmp_path):
        with socket.socket() as door:
            door.bind(("127.0.0.1", 0))
            host, port = door.getsockname()
            kept = standin(head=f"{host}:{port}", names=("raylet",))
            until(lambda: f"waiting for the head at {host}:{port}: Connection refused" in kept.log())
            assert not (tmp_path / "starts").exists()
            door.listen()
            kept.finish()
        assert kept.pids("raylet", 1)

    def test_a_first_start_that_fails_is_told_and_not_repeated(self, standin, tmp_path):
        (tmp_path / "broken").touch()
        kept = standin()
        with pytest.raises(ClusterError, match="tier 'edge' did not start: no, thank you"):
            kept.finish()
        assert raynode.processes(kept.mark) == []
        assert "'ray start' ended with exit code 1" in kept.log()

    def test_a_later_one_is_repeated_after_longer_and_longer_pauses(self, standin, tmp_path):
        kept = standin()
        kept.finish()
        (tmp_path / "broken").touch()
        psutil.Process(*kept.pids("raylet")).kill()
        until(lambda: "in 2 s" in kept.log())
        pauses = re.findall(r"again in (\S+) s", kept.log())
        assert pauses == ["0.5", "1", "2"]
        (tmp_path / "broken").unlink()
        until(lambda: kept.pids("raylet", 4))

    def test_a_start_without_a_raylet_is_none(self, standin):
        kept = standin(names=("gcs_server", "worker"))
        with pytest.raises(ClusterError, match=r"did not start: .* raylet ended at once"):
            kept.finish()
        assert raynode.processes(kept.mark) == []


class TestPause:
    @given(st.lists(st.floats(0, 1000), min_size=1, max_size=40))
    def test_doubles_from_the_shortest_to_the_longest_and_begins_anew_after_a_steady_life(self, lives_s):
        before_s = 0.0
        for lived_s in lives_s:
            now_s = keeper.pause_s(before_s, lived_s)
            assert keeper.SHORTEST_S <= now_s <= keeper.LONGEST_S
            assert now_s == keeper.SHORTEST_S if lived_s >= keeper.STEADY_S else now_s >= min(2 * before_s, keeper.LONGEST_S)
            before_s = now_s
