"""Real hosts on one machine: links as declared, counted, cut and restored; nothing left behind, whatever happens."""

import json
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import testbed
from cluster.errors import ClusterError
from cluster.link import Link
from cluster.testbed import hosts, links, namespaces, relay
from cluster.topology import LinkSpec, Topology
from splitinfer import capture, zoo
from splitinfer.plans import Plan
from splitinfer.verify import balanced_stages

needs_root = pytest.mark.skipif(bool(testbed.missing()), reason=f"a testbed needs root and iproute2: {testbed.missing()}")

YAML = """
version: 1
tiers: [{name: device, compute: {factor: 2}}, {name: edge, compute: measured}, {name: cloud, compute: measured}]
links:
  - {between: [device, edge], up: 40 Mbps, down: 10 Mbps, latency: 5 ms}
  - {between: [edge, cloud], up: 20 Mbps, latency: 10 ms}
direct: {up: 8 Mbps, latency: 30 ms}
"""
TOPOLOGY = Topology.loads(YAML)
LINK = ("device", "edge")


def left_behind(name):
    """Whatever of a testbed the machine still has."""
    return [each for each in namespaces.listed() if f"-{name}-" in each], list(hosts.ROOT.glob(name)), processes_naming(name)


def processes_naming(name):
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if f"splitinfer-{name}-".encode() in command or f"{hosts.ROOT}/{name}/".encode() in command:
            found.append(path.name)
    return found


NOTHING = ([], [], [])

# -- what hosts of a testbed do to each other, over sockets made inside their namespaces


def socket_in(bed, tier, kind=socket.SOCK_STREAM):
    node = bed._node(tier)
    with namespaces.entered(node.namespace):
        made = socket.socket(socket.AF_INET, kind)
    made.settimeout(20)
    return made, node.address


@pytest.fixture
def connection(bed):
    """Makes a TCP connection between two tiers: (client, server)."""
    opened = []

    def connect(source, target):
        listener, address = socket_in(bed, target)
        listener.bind((address, 0))
        listener.listen()
        client, _ = socket_in(bed, source)
        client.connect((address, listener.getsockname()[1]))
        server, _ = listener.accept()
        opened.extend([listener, client, server])
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.settimeout(20)
        return client, server

    yield connect
    for each in opened:
        each.close()


def transfer(client, server, nbytes):
    """Seconds from the first byte sent to the last received."""
    sender = threading.Thread(target=client.sendall, args=(bytes(nbytes),))
    start = time.monotonic()
    sender.start()
    got = 0
    while got < nbytes:
        got += len(server.recv(1 << 20))
    elapsed = time.monotonic() - start
    sender.join()
    return elapsed


def best_rate(client, server, nbytes, latency_s):
    """Bytes per second of the best of a few transfers: TCP may take its time, but nothing makes a link faster than it is."""
    transfer(client, server, nbytes // 4)  # past the slow start
    return nbytes / (min(transfer(client, server, nbytes) for _ in range(3)) - latency_s)


def round_trip(client, server):
    start = time.monotonic()
    client.sendall(b"?")
    server.recv(1)
    server.sendall(b"!")
    client.recv(1)
    return time.monotonic() - start


@pytest.fixture(scope="module")
def module_bed():
    with testbed.Testbed.up(TOPOLOGY, ray=False) as made:
        name = made.name
        yield made
    assert left_behind(name) == NOTHING


@pytest.fixture
def bed(module_bed):
    """With the declared rates, all links whole, and the routes along the line."""
    yield module_bed
    for wire, spec in zip(module_bed.wires, hosts._links(TOPOLOGY), strict=True):
        wire.restore()
        wire.set_rates((spec.up_bytes_per_s, spec.down_bytes_per_s, spec.latency_s))
    module_bed.follow(["device", "edge", "cloud"])


@needs_root
class TestLinks:
    @pytest.mark.parametrize(
        ("source", "target", "bits_per_s"), [("device", "edge", 40e6), ("edge", "device", 10e6), ("edge", "cloud", 20e6)]
    )
    def test_a_transfer_keeps_the_declared_rate(self, connection, source, target, bits_per_s):
        latency_s = 0.010 if target == "cloud" else 0.005
        rate = 8 * best_rate(*connection(source, target), round(bits_per_s / 32), latency_s)  # a quarter of a second each
        assert rate == pytest.approx(bits_per_s, rel=0.1)
        assert rate < bits_per_s  # headers take their part, and nothing passes for free

    @pytest.mark.parametrize(("target", "round_trip_s"), [("edge", 2 * 0.005), ("cloud", 2 * (0.005 + 0.010))])
    def test_the_latency_is_the_declared_one_and_adds_up_over_a_host_between(self, connection, target, round_trip_s):
        pair = connection("device", target)
        measured = statistics.median(round_trip(*pair) for _ in range(15))
        assert round_trip_s <= measured <= 1.1 * round_trip_s + 0.001

    def test_the_direct_link_is_taken_by_a_line_that_skips_the_tiers_between(self, bed, connection):
        bed.follow(["device", "cloud"])
        before = bed.counters()
        pair = connection("device", "cloud")
        measured = statistics.median(round_trip(*pair) for _ in range(5))
        assert 0.060 <= measured <= 1.1 * 0.060 + 0.001
        after = bed.counters()
        assert after["device", "cloud"] > before["device", "cloud"]
        assert after["device", "edge"] == before["device", "edge"]

    def test_the_interfaces_count_what_was_sent(self, bed, connection):
        client, server = connection("device", "cloud")
        before, nbytes = bed.counters(), 300_000
        transfer(client, server, nbytes)
        counted = {way: count - before[way] for way, count in bed.counters().items()}
        packets = -(-nbytes // 1448)  # segments of 1500 bytes less 52 of IP and TCP headers
        for way in [("device", "edge"), ("edge", "cloud")]:
            assert nbytes + 52 * packets <= counted[way] <= 1.02 * (nbytes + 52 * packets)
        assert counted["cloud", "edge"] < 0.1 * nbytes  # acknowledgements
        assert counted["device", "cloud"] == 0

    def test_another_rate_and_latency_hold_at_once(self, bed, connection):
        bed.set_rate(LINK, 1e6)
        bed.set_latency(LINK, 0.020)
        client, server = connection("device", "edge")
        assert best_rate(client, server, 300_000, 0.020) == pytest.approx(1e6, rel=0.1)
        assert statistics.median(round_trip(client, server) for _ in range(5)) == pytest.approx(0.040, rel=0.1, abs=0.001)
        with bed.opened():
            assert min(transfer(client, server, 500_000) for _ in range(3)) < 0.2  # 0.5 at the rate in force
        assert bed.wire(LINK).rates == (1e6, 1e6, 0.020)

    def test_a_cut_loses_everything_without_a_sign_and_tcp_goes_on_when_it_is_restored(self, bed, connection):
        client, server = connection("device", "edge")
        other = connection("edge", "cloud")
        round_trip(client, server)
        bed.cut(LINK)
        bed.cut(LINK)  # a second time nothing more happens
        server.settimeout(0.5)
        client.sendall(b"lost, then sent again")
        with pytest.raises(TimeoutError):
            server.recv(100)
        round_trip(*other)  # the other link is whole
        bed.restore(LINK)
        bed.restore(LINK)
        server.settimeout(20)
        assert server.recv(100) == b"lost, then sent again"

    def test_a_link_that_is_not_there(self, bed):
        with pytest.raises(ClusterError, match="'moon' is no known tier"):
            bed.cut(("device", "moon"))


@needs_root
class TestTokenBucket:
    """The kernel's own shaping, taken for links too fast for the relay."""

    FAST = Topology.loads("""
version: 1
tiers: [{name: device, compute: measured}, {name: cloud, compute: measured}]
links: [{between: [device, cloud], up: 800 Mbps, latency: 0}]
""")

    @pytest.fixture
    def bed(self):
        with testbed.Testbed.up(self.FAST, ray=False) as made:
            yield made

    def test_a_fast_link_keeps_its_rate(self, bed, connection):
        (wire,) = bed.wires
        assert wire.shaping == ("netem" if _netem() else "tbf")
        client, server = connection("device", "cloud")
        assert best_rate(client, server, 20_000_000, 0.0) == pytest.approx(100e6, rel=0.1)
        bed.set_rate(("cloud", "device"), 25e6)
        assert best_rate(client, server, 6_000_000, 0.0) == pytest.approx(25e6, rel=0.1)

    def test_it_cannot_delay(self, bed):
        if bed.wires[0].shaping == "tbf":
            with pytest.raises(ClusterError, match="cannot delay"):
                bed.set_latency(("device", "cloud"), 0.01)


def _netem():
    return hosts._kernel_has_netem("trial")


SLOW = """
import sys, time
from cluster import testbed
from cluster.testbed import links
from cluster.topology import Topology

steps = {"create": 0, "lay": 0}
def reached(step):
    steps[step] += 1
    if f"{step}{steps[step]}" == sys.argv[2]:
        print("here", flush=True)
        time.sleep(60)

for owner, step in ((testbed.hosts.namespaces, "create"), (links.Wire, "lay")):
    def slow(*args, step=step, original=getattr(owner, step)):
        made = original(*args)
        reached(step)
        return made
    setattr(owner, step, slow)
testbed.Testbed.up(Topology.from_dict(__import__("json").loads(sys.argv[3])), sys.argv[1], ray=False)
print("here", flush=True)
time.sleep(60)
"""


@needs_root
class TestCleaningUp:
    @pytest.mark.parametrize("moment", ["create2", "lay2", "up"])
    def test_after_the_process_that_brought_it_up_was_killed(self, moment):
        name = f"killed{moment}"
        command = [sys.executable, "-c", SLOW, name, moment, json.dumps(TOPOLOGY.to_dict())]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout.readline() == "here\n"
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert left_behind(name) != NOTHING
            assert name in testbed.names()
        finally:
            process.kill()
            process.communicate()
            testbed.down(name)
        assert left_behind(name) == NOTHING

    @pytest.mark.parametrize("damage", [b'{"topology": {"ver', b"[]", None])
    def test_with_a_damaged_record(self, damage):
        bed = testbed.Testbed.up(TOPOLOGY, ray=False)
        try:
            record = bed.home / "state.json"
            record.unlink() if damage is None else record.write_bytes(damage)
            with pytest.raises(ClusterError, match=f"'splitinfer testbed down {bed.name}' cleans up"):
                testbed.Testbed.attach(bed.name)
        finally:
            testbed.down(bed.name)
        assert left_behind(bed.name) == NOTHING
        bed.down()  # a second time nothing happens

    def test_a_failure_half_way_leaves_nothing(self, monkeypatch):
        monkeypatch.setattr(links, "_DROP_ALL", "")  # not reached
        monkeypatch.setattr(relay.Page, "create", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            testbed.Testbed.up(TOPOLOGY, "broken", ray=False)
        assert left_behind("broken") == NOTHING

    def test_processes_inside_end_with_it_and_others_do_not(self):
        with testbed.Testbed.up(TOPOLOGY, ray=False) as bed:
            inside = subprocess.Popen(bed.command("cloud", ["sleep", "60"]), start_new_session=True)
            outside = subprocess.Popen(["sleep", "60"])
            time.sleep(0.2)  # for 'ip' to enter
        assert inside.wait(10) == -signal.SIGKILL
        assert outside.poll() is None
        outside.kill()
        outside.wait()

    def test_two_side_by_side(self, monkeypatch):
        with testbed.Testbed.up(TOPOLOGY, ray=False) as one, testbed.Testbed.up(TOPOLOGY, ray=False) as two:
            assert {one.name, two.name} <= set(testbed.names())
            with pytest.raises(ClusterError, match="name one testbed of those that are up"):
                testbed.Testbed.attach()
            two.down()
            assert testbed.Testbed.attach(one.name).counters().keys() == one.counters().keys()
            with pytest.raises(ClusterError, match=f"a testbed '{one.name}' exists"):
                testbed.Testbed.up(TOPOLOGY, one.name, ray=False)
            assert one.name in testbed.names()  # the refusal did not take the first one down


class TestWithoutRoot:
    @pytest.mark.parametrize(
        ("target", "replacement", "reason"),
        [("os.geteuid", lambda: 1000, "this user is not root"), ("shutil.which", lambda name: None, "'ip' of iproute2 is not installed")],
    )
    def test_the_message_names_the_alternative(self, monkeypatch, target, replacement, reason):
        monkeypatch.setattr("os.geteuid", lambda: 0)
        monkeypatch.setattr(target, replacement)
        for action in (lambda: testbed.Testbed.up(TOPOLOGY), testbed.Testbed.attach, testbed.down):
            with pytest.raises(ClusterError, match=f"and {reason}; 'splitinfer run' runs the same plan .* over in-process links") as caught:
                action()
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["", "Upper", "with-hyphen", "../up", "x" * 17])
    def test_names_that_are_none(self, name):
        with pytest.raises(ClusterError, match="is no name for a testbed"):
            hosts._checked(name)

    @needs_root
    def test_the_command_line_refuses_in_one_line(self, tmp_path):
        for arguments, message in [
            (["up", "none.yaml"], "splitinfer: none.yaml: cannot be read: No such file or directory"),
            (["down", "../up"], "splitinfer: no testbed '../up' is up; up: "),
            (["run", "x:y", "--plan", "plan.json", "--name", "nothere"], "splitinfer: no testbed 'nothere' can be used"),
        ]:
            done = splitinfer(*arguments)
            assert done.returncode == 2
            assert done.stderr.startswith(message)
            assert done.stderr.count("\n") == 1


class TestChoice:
    @pytest.mark.parametrize(
        ("mbps", "latency_s", "netem", "shaping"),
        [
            (20, 0.01, True, "netem"),
            (20, 0.01, False, "relay"),
            (20, 0.0, False, "relay"),
            (1000, 0.0, False, "tbf"),
            (1000, 0.01, False, "relay"),
        ],
    )
    def test_of_shaping(self, mbps, latency_s, netem, shaping):
        spec = LinkSpec(("a", "b"), mbps * 1e6 / 8, mbps * 1e6 / 8, latency_s)
        assert links.shaping_of(spec, netem) == shaping

    def test_netem_is_told_rate_and_delay(self):
        assert links._qdisc("netem", 2.5e6, 0.02) == ["netem", "delay", "20000us", "rate", "20000000bit", "limit", "10000"]


class Pipe:
    """A descriptor pair that keeps packets apart, in the place of a TUN device."""

    def __init__(self):
        self.inside, self.outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.inside.setblocking(False)


class TestRelay:
    @given(
        st.lists(st.tuples(st.floats(0, 0.5), st.integers(20, 1500)), max_size=30), st.floats(1e4, 1e8), st.floats(0, 0.2),
        st.sampled_from([5_000, relay.QUEUE_NBYTES]),
    )  # fmt: skip
    def test_packets_fly_as_the_declared_link_says_until_the_queue_is_full(self, sends, bytes_per_s, latency_s, queue_nbytes):
        lower, page = Pipe(), _page(bytes_per_s, 1.0, latency_s)
        way = relay.Direction(lower.inside.fileno(), -1, True, Link(1.0), relay.deque())
        declared, now_s, expected = Link(bytes_per_s, latency_s), 100.0, []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(relay, "QUEUE_NBYTES", queue_nbytes)
            for pause_s, nbytes in sends:
                now_s += pause_s
                patch.setattr(relay.time, "monotonic", lambda now_s=now_s: now_s)
                lower.outside.send(bytes(nbytes))
                relay._accept(way, page)
                if (declared.starts_s(now_s) - now_s) * bytes_per_s < relay.QUEUE_NBYTES:
                    expected.append((declared.reserve(now_s, nbytes)[1], bytes(nbytes)))
        assert list(way.flying) == expected
        lower.inside.close()
        lower.outside.close()

    def test_nothing_is_delivered_early_and_lateness_is_noted(self):
        upper, page = Pipe(), _page(1.0, 1.0, 0.0)
        way = relay.Direction(-1, upper.inside.fileno(), True, Link(1.0), relay.deque([(10.0, b"first"), (11.5, b"second")]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(relay.time, "monotonic", lambda: 10.25)
            assert relay._deliver([way], page) == 1.25
        assert upper.outside.recv(100) == b"first"
        assert [packet for _, packet in way.flying] == [b"second"]
        assert page.worst_late_s == 0.25

    def test_a_page_is_shared(self, tmp_path):
        one = relay.Page.create(tmp_path / "page", 1.0, 2.0, 3.0)
        two = relay.Page(tmp_path / "page")
        two.rates = (4.0, 5.0, 6.0)
        assert one.rates == (4.0, 5.0, 6.0)


def _page(*rates):
    page = relay.Page.__new__(relay.Page)
    page._numbers = memoryview(bytearray(32)).cast("d")
    page.rates = rates
    return page


def splitinfer(*arguments):
    return subprocess.run([sys.executable, "-m", "splitinfer", "testbed", *arguments], capture_output=True, text=True, timeout=200)


DRIVER = """
import contextlib, json, sys
import torch
from cluster.testbed import Testbed
from splitinfer import capture, zoo
from splitinfer.plans import Plan
from splitinfer.verify import balanced_stages

torch.set_num_threads(1)
bed = Testbed.attach(sys.argv[1])
model, args, _ = zoo.digits()
graph = capture(model, args)
plan = Plan.by_hand(graph, balanced_stages(graph, 2), ["device", "cloud"])
with bed.driver():
    import ray
    from splitinfer.runtime.deploy import deploy
    from splitinfer.runtime.hosts import run_on_testbed

    nodes = sorted((node["Labels"]["splitinfer-tier"], node["NodeManagerAddress"]) for node in ray.nodes())
    with contextlib.ExitStack() as stack, torch.no_grad():
        with bed.opened():
            pipeline = stack.enter_context(deploy(graph, plan, bed.topology, paced=False))
        answer, trace = pipeline.traced(*args)
        equal = torch.equal(answer, model(*args))
        tiers = [stage["tier"] for stage in pipeline.info()]
    report = run_on_testbed(graph, plan, bed, 20, idle_s=1.0)
print(json.dumps({"nodes": nodes, "equal": equal, "tiers": tiers, "report": report.to_dict(),
                  "sleeps": [[span.tier, span.kind, span.slept_s] for span in trace.spans]}))
"""


@needs_root
@pytest.mark.slow
class TestRayOnHosts:
    def test_a_model_in_two_stages_equals_the_whole_one_and_its_bytes_cross_the_links(self):
        with testbed.Testbed.up(TOPOLOGY) as bed:
            done = subprocess.run([sys.executable, "-c", DRIVER, bed.name], capture_output=True, text=True, timeout=200)
        assert left_behind(bed.name) == NOTHING
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["nodes"] == [["cloud", "10.77.0.3"], ["device", "10.77.0.1"], ["edge", "10.77.0.2"]]
        assert found["equal"] is True
        assert found["tiers"] == ["device", "cloud"]
        kinds = {(tier, kind): slept for tier, kind, slept in found["sleeps"]}
        assert not {kind for _, kind in kinds} & {"wire", "return"}  # the links are real
        assert kinds["device", "compute"] > 0  # the slower tier still stretches its work
        assert kinds["cloud", "compute"] == 0
        crossed = {(row["source"], row["target"]): row for row in found["report"]["links"]}
        # The line is device, cloud: over the direct link, past the edge.
        direct = crossed["device", "cloud"]
        assert direct["packet_nbytes"] > 8000
        assert direct["packet_nbytes"] < direct["counted_nbytes"] < direct["packet_nbytes"] * 1.1 + 4000  # headers, and what Ray adds
        assert crossed["device", "edge"]["counted_nbytes"] < 2000
        # At least the packet's time on an 8 Mbps link, and its latency there and back.
        assert found["report"]["latency_s"]["p50"] > direct["packet_nbytes"] / 1e6 + 0.060

    def test_on_the_command_line(self, tmp_path):
        (tmp_path / "cluster.yaml").write_text(YAML)
        model, args, _ = zoo.digits()
        graph = capture(model, args)
        Plan.by_hand(graph, balanced_stages(graph, 3), ["device", "edge", "cloud"]).save(tmp_path / "plan.json")
        up = splitinfer("up", str(tmp_path / "cluster.yaml"), "--json")
        assert up.returncode == 0, up.stderr
        name = json.loads(up.stdout)["name"]
        try:
            done = splitinfer(
                "run", "splitinfer.zoo:digits", "--plan", str(tmp_path / "plan.json"), "--requests", "5", "--name", name, "--json"
            )
            assert done.returncode == 0, done.stderr
            crossed = {(row["source"], row["target"]): row for row in json.loads(done.stdout)["links"]}
            for way in [("device", "edge"), ("edge", "cloud")]:
                assert 5000 < crossed[way]["packet_nbytes"] < crossed[way]["counted_nbytes"]
            assert crossed["device", "cloud"]["packet_nbytes"] == 0
        finally:
            down = splitinfer("down", name, "--json")
        assert json.loads(down.stdout) == {"name": name}
        assert left_behind(name) == NOTHING

    def test_down_while_a_plan_runs_ends_it_too(self):
        with testbed.Testbed.up(TOPOLOGY) as bed:
            endless = DRIVER.replace("20, idle_s=1.0", "100000").replace(
                "    import ray\n", "    import ray\n    print('inside', flush=True)\n"
            )
            process = subprocess.Popen([sys.executable, "-c", endless, bed.name], stdout=subprocess.PIPE, text=True)
            assert process.stdout.readline() == "inside\n"
        process.communicate(timeout=20)
        assert process.returncode == -signal.SIGKILL
        assert left_behind(bed.name) == NOTHING
