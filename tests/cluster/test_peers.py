"""Machines beside a tier's own: read, written, checked, and reached over the links of other tiers."""

import pytest

from cluster.errors import TopologyError
from cluster.topology import Topology

TEXT = """
version: 2
tiers:
  - name: phone
    compute: {factor: 4}
    peers:
      - {name: tablet, compute: {factor: 2}, up: 80 Mbps, latency: 1 ms, memory: 2 GiB}
      - {name: watch, compute: {factor: 9}, up: 8 Mbps, down: 16 Mbps, latency: 3 ms}
      - {tier: cloud}
  - {name: edge, compute: {factor: 2}}
  - name: cloud
    compute: {factor: 1}
    peers:
      - {tier: phone}
links:
  - {between: [phone, edge], up: 20 Mbps, down: 40 Mbps, latency: 2 ms}
  - {between: [edge, cloud], up: 80 Mbps, down: 120 Mbps, latency: 5 ms}
"""


def test_a_peer_is_a_machine_and_a_link() -> None:
    tablet, watch, _ = Topology.loads(TEXT).peers("phone")
    assert (tablet.name, tablet.machine.compute.factor, tablet.machine.memory_bytes) == ("tablet", 2, 2 << 30)
    assert (tablet.up_bytes_per_s, tablet.down_bytes_per_s, tablet.latency_s) == (1e7, 1e7, 0.001)
    assert (watch.up_bytes_per_s, watch.down_bytes_per_s) == (1e6, 2e6)
    assert Topology.loads(TEXT).peers("edge") == ()


def test_another_tier_is_reached_over_the_links_between() -> None:
    topology = Topology.loads(TEXT)
    cloud = topology.peers("phone")[2]
    # A byte crosses both links, one after the other: 1/2.5e6 + 1/1e7 s up, 1/5e6 + 1/1.5e7 s down.
    assert cloud.machine is topology.tier("cloud")
    assert cloud.up_bytes_per_s == pytest.approx(2e6)
    assert cloud.down_bytes_per_s == pytest.approx(3.75e6)
    assert cloud.latency_s == pytest.approx(0.007)
    (phone,) = topology.peers("cloud")
    assert (phone.up_bytes_per_s, phone.down_bytes_per_s) == (cloud.down_bytes_per_s, cloud.up_bytes_per_s)


def test_round_trip_and_version() -> None:
    topology = Topology.loads(TEXT)
    assert Topology.from_dict(topology.to_dict()) == topology
    assert topology.to_dict()["version"] == 2
    plain = Topology.loads("version: 2\ntiers: [{name: a, compute: measured}]")
    assert plain.to_dict()["version"] == 1  # older releases read what uses nothing new


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{tier: phone}", "{tier: pohne}", "did you mean 'phone'"),
        ("{tier: phone}", "{tier: cloud}", "other tier"),
        ("{tier: phone}", "{tier: phone, up: 3 Mbps}", r"peers\[0\].up: is reached over the links between the tiers"),
        ("{tier: phone}", "{tier: phone, threads: 3}", "keep tier alone"),
        ("name: watch", "name: tablet", r"peers\[1\].name: 'tablet' names tiers\[0\].peers\[0\] too"),
        ("name: watch", "name: edge", r"'edge' names tiers\[1\] too"),
        ("up: 80 Mbps, latency: 1 ms, memory", "latency: 1 ms, memory", r"peers\[0\].up: is missing; write for example 100 Mbps"),
        ("up: 80 Mbps, latency: 1 ms, memory", "up: 80 Mbps, memory", r"peers\[0\].latency: is missing"),
        ("up: 8 Mbps", "up: 0 Mbps", r"peers\[1\].up"),
        ("compute: {factor: 9}", "peers: [], compute: {factor: -9}", r"peers\[1\].compute.factor|peers"),
        ("{tier: phone}", "3", r"peers\[0\]: 3 is not a mapping"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, message: str) -> None:
    assert TEXT.count(old) == 1
    with pytest.raises(TopologyError, match=message):
        Topology.loads(TEXT.replace(old, new))
