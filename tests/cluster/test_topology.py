"""cluster.yaml: what it gives, what it refuses and where, and that nothing is lost on the way to JSON and back."""

import json
import pickle
from pathlib import Path

import pytest

from cluster.errors import TopologyError
from cluster.presets import LINKS, MACHINES
from cluster.topology import Compute, LinkSpec, TierSpec, Topology

ROOT = Path(__file__).parents[2]
TEXT = """\
version: 1
tiers:
  - name: device
    compute: {factor: 8}
    threads: 2
    device: cpu
    memory: 2 GiB
    power: 5 W
    price: 0 $/h
    node: {tier: device}
  - name: edge
    compute: {preset: jetson-nano}
    device: cuda:0
  - name: cloud
    compute: measured
links:
  - between: [edge, cloud]
    up: 5.85 Mbps
    down: 20 Mbps
    latency: 20 ms
    energy: 1 uJ/B
    price: 0.09 $/GB
  - between: [device, edge]
    preset: Wi-Fi
    latency: 2 ms
direct:
  up: 1.1 Mbps
  latency: 60 ms
"""
LINE = {line.strip(): number for number, line in enumerate(TEXT.splitlines(), 1)}


def test_reads_every_key():
    topology = Topology.loads(TEXT)
    device, edge, cloud = topology.tiers
    assert device == TierSpec(
        "device", Compute(factor=8), "cpu", 2, 2 * 2**30, watts=5.0, price_per_s=0.0, node={"tier": "device"}
    )
    assert (edge.compute, edge.device) == (Compute(preset="jetson-nano"), "cuda:0")
    assert cloud == TierSpec("cloud", Compute())
    assert cloud.compute.measured
    wifi, wan = topology.links  # sorted into the order of the tiers
    assert (wifi.between, wifi.preset) == (("device", "edge"), "Wi-Fi")
    assert (wifi.up_bytes_per_s, wifi.down_bytes_per_s, wifi.latency_s) == (2.36e6, 2.36e6, 0.002)
    assert wifi.source == LINKS["Wi-Fi"].source + "; overridden: latency"
    assert wan == LinkSpec(("edge", "cloud"), 731250.0, 2.5e6, 0.02, 1e-6, 0.09e-9)
    assert topology.direct == LinkSpec(("device", "cloud"), 137500.0, 137500.0, 0.06)
    assert not topology.emulated


def test_one_tier_needs_no_links():
    topology = Topology.loads("version: 1\ntiers: [{name: only, compute: measured}]")
    assert topology.links == ()
    assert topology.emulated
    assert topology.lines() == [topology]
    assert "link" not in str(topology)


def link(text):
    head = "version: 1\ntiers: [{name: a, compute: measured}, {name: b, compute: measured}]\n"
    return Topology.loads(f"{head}links: [{{between: [a, b], {text}}}]").links[0]


@pytest.mark.parametrize("name", LINKS)
def test_link_presets_fill_what_is_not_written(name):
    preset, filled = LINKS[name], link(f"preset: {name}")
    assert filled.up_bytes_per_s == preset.up_bytes_per_s
    assert filled.down_bytes_per_s == (preset.down_bytes_per_s or preset.up_bytes_per_s)
    assert (filled.latency_s, filled.source) == (preset.latency_s, preset.source)


@pytest.mark.parametrize(
    ("text", "up", "down"),
    [
        ("preset: 5G, up: 8 Mbps", 1e6, 12.5e6),  # the preset gives a downlink of its own
        ("preset: 4G, up: 8 Mbps", 1e6, 1e6),  # this one gives none
        ("preset: 5G, down: 8 Mbps", 6.25e6, 1e6),
        ("up: 8 Mbps, latency: 0", 1e6, 1e6),
    ],
)
def test_downlink_defaults(text, up, down):
    assert (link(text).up_bytes_per_s, link(text).down_bytes_per_s) == (up, down)


def test_own_source_is_kept():
    assert link("preset: 4G, up: 8 Mbps, source: my notebook").source == "my notebook"


@pytest.mark.parametrize("name", MACHINES)
def test_machine_presets_are_known(name):
    assert str(Compute(preset=name)) == name


def test_anchors_and_aliases_are_read():
    topology = Topology.loads(
        "version: 1\ntiers:\n"
        "- {name: a, compute: &c {factor: 2}, node: &n {x: y}}\n"
        "- {name: b, compute: *c, node: *n}\n"
        "links: [{between: [a, b], preset: LAN}]"
    )
    assert topology.tier("a").compute == topology.tier("b").compute == Compute(factor=2)
    assert topology.tier("b").node == {"x": "y"}


# (text to replace, what to put there, line of the error, its key path, a piece of its message)
WRONG = [
    ("up: 5.85 Mbps", "up: fast", None, "links[0].up", "'fast' is not a bandwidth; write for example '5.85 Mbps'"),
    ("up: 5.85 Mbps", "up: 5.85", None, "links[0].up", "'5.85' has no unit; write for example '5.85 Mbps'"),
    ("up: 5.85 Mbps", "up: 0 Mbps", None, "links[0].up", "0.0 is not a finite number above 0"),
    ("up: 5.85 Mbps", "up: [1]", None, "links[0].up", "[1] is not a bandwidth"),
    ("up: 5.85 Mbps", "upp: 5.85 Mbps", None, "links[0].upp", "did you mean 'up'?"),
    ("up: 5.85 Mbps", "source: me", 17, "links[0].up", "is missing and no preset gives it"),
    ("latency: 20 ms", "source: me", 17, "links[0].latency", "is missing and no preset gives it"),
    ("latency: 20 ms", "latency: -1 ms", None, "links[0].latency", "is negative"),
    ("latency: 20 ms", "up: 1 Mbps", None, "links[0].up", "is given twice, first on line 18; keep one"),
    ("energy: 1 uJ/B", "energy: 1 J", None, "links[0].energy", "is not an energy per byte"),
    ("price: 0.09 $/GB", "price: 0.09 $/h", None, "links[0].price", "is not a price per byte"),
    ("preset: Wi-Fi", "preset: wifi", None, "links[1].preset", "did you mean 'Wi-Fi'?"),
    ("preset: Wi-Fi", "preset: 4", None, "links[1].preset", "4 is not a text"),
    ("- between: [device, edge]", "- between: [edge, device]", None, "links[1].between", "reversed; write [device"),
    ("- between: [device, edge]", "- between: [device, egde]", None, "links[1].between", "did you mean 'edge'?"),
    ("- between: [device, edge]", "- between: [device, cloud]", None, "links[1].between", "no neighbours; use direct"),
    ("- between: [device, edge]", "- between: [edge, edge]", None, "links[1].between", "no neighbours; write [dev"),
    ("- between: [device, edge]", "- between: [edge, cloud]", None, "links[1].between", "joined by links[0] already"),
    ("- between: [device, edge]", "- between: device", None, "links[1].between", "are not two tiers"),
    ("- between: [device, edge]", "- source: me", 23, "links[1].between", "is missing"),
    ("- name: edge", "- name: device", None, "tiers[1].name", "names tiers[0] too"),
    ("- name: edge", "- name: the edge", None, "tiers[1].name", "is no name"),
    ("- name: edge", "- name: no", None, "tiers[1].name", "False is not a text; write it in quotes"),
    ("- name: edge", "- threads: 1", 11, "tiers[1].name", "is missing"),
    ("compute: measured", "threads: 1", 14, "tiers[2].compute", "is missing"),
    ("compute: measured", "compute: guessed", None, "tiers[2].compute", "'guessed' is no way to compute"),
    ("compute: measured", "compute: {}", None, "tiers[2].compute", "is no way to compute"),
    ("compute: measured", "compute: {speed: 1}", None, "tiers[2].compute.speed", "known: factor, preset"),
    ("compute: measured", "compute: {factor: 2, preset: nvidia-t4}", None, "tiers[2].compute", "keep one"),
    ("compute: {factor: 8}", "compute: {factor: 0}", None, "tiers[0].compute.factor", "0 is not a finite number"),
    ("compute: {factor: 8}", "compute: {factor: .nan}", None, "tiers[0].compute.factor", "is not a finite number"),
    ("compute: {factor: 8}", "compute: {factor: .inf}", None, "tiers[0].compute.factor", "is not a finite number"),
    ("compute: {factor: 8}", "compute: {factor: true}", None, "tiers[0].compute.factor", "is not a finite number"),
    ("compute: {factor: 8}", "compute: {preset: nvidia-t5}", None, "tiers[0].compute.preset", "'nvidia-t4'?"),
    ("threads: 2", "threads: 0", None, "tiers[0].threads", "0 is not a whole number above 0"),
    ("threads: 2", "threads: 1.5", None, "tiers[0].threads", "1.5 is not a whole number"),
    ("threads: 2", "threads: two", None, "tiers[0].threads", "'two' is not a whole number"),
    ("threads: 2", "threads: !!int two", None, "tiers[0].threads", "'two' is not a whole number"),
    ("threads: 2", "threads:", None, "tiers[0].threads", "None is not a whole number"),
    ("threads: 2", "threads: " + "9" * 5000, None, "tiers[0].threads", "is not a whole number"),
    ("device: cpu", "device: gpu", None, "tiers[0].device", "'gpu' is no device; use cpu, cuda, cuda:0 or mps"),
    ("memory: 2 GiB", "memory: 2", None, "tiers[0].memory", "'2' has no unit; write for example '2 GiB'"),
    ("memory: 2 GiB", "memory: 0 B", None, "tiers[0].memory", "0 is not a whole number above 0"),
    ("memory: 2 GiB", "memroy: 2 GiB", None, "tiers[0].memroy", "did you mean 'memory'?"),
    ("memory: 2 GiB", "memory: !size 2 GiB", None, "tiers[0].memory", "has the tag '!size'"),
    ("memory: 2 GiB", "memory: !!python/name:os.system", None, "tiers[0].memory", "tags are not read"),
    ("memory: 2 GiB", "<<: {memory: 2 GiB}", None, "tiers[0]", "merge keys (<<) are not read"),
    ("power: 5 W", "power: 5 kg", None, "tiers[0].power", "is not a power"),
    ("price: 0 $/h", "price: 1 $", None, "tiers[0].price", "is not a price"),
    ("node: {tier: device}", "node: {tier: '!device'}", None, "tiers[0].node.tier", "'!device' is no name"),
    ("node: {tier: device}", "node: {gpu: yes}", None, "tiers[0].node.gpu", "True is not a text; write it in quotes"),
    ("node: {tier: device}", "node: device", None, "tiers[0].node", "are no labels"),
    ("node: {tier: device}", "node: {watts: 5}", None, "tiers[0].node.watts", "5 is not a text"),
    ("version: 1", "version: 3", None, "version", "3 is not known; this release reads 1 and 2"),
    ("version: 1", "version: '1'", None, "version", "'1' is not known"),
    ("version: 1", "versoin: 1", None, "versoin", "did you mean 'version'?"),
    ("latency: 60 ms", "between: [device, cloud]", None, "direct.between", "is no known key"),
    ("latency: 60 ms", "down: 1 Mbps", 26, "direct.latency", "is missing"),
]


@pytest.mark.parametrize(("old", "new", "line", "key", "message"), WRONG, ids=[f"{w[3]}<-{w[1][:40]}" for w in WRONG])
def test_every_error_names_file_line_and_key(old, new, line, key, message):
    assert TEXT.count(old + "\n") == 1
    with pytest.raises(TopologyError) as caught:
        Topology.loads(TEXT.replace(old + "\n", new + "\n"), name="my.yaml")
    error = caught.value
    assert str(error).startswith(f"my.yaml:{line or LINE[old]}: {key}: ")
    assert message in str(error)
    assert (error.file, error.line, error.key) == ("my.yaml", line or LINE[old], key)


def test_the_message_in_full():
    with pytest.raises(TopologyError) as caught:
        Topology.loads(TEXT.replace("5.85 Mbps", "fast"))
    assert str(caught.value) == (
        "cluster.yaml:18: links[0].up: 'fast' is not a bandwidth; write for example '5.85 Mbps'"
    )
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


TIER = "{name: a, compute: measured}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c.yaml: is empty"),
        ("- 1", "c.yaml:1: [1] is not a mapping"),
        ("tiers: [", "c.yaml:1: is not YAML"),
        ("version: 1\ntiers: *x", "c.yaml:2: is not YAML: found undefined alias 'x'"),
        ("version: 1\n---\nversion: 1", "c.yaml:2: is not YAML"),
        ("version: \x00", "c.yaml: is not YAML"),
        ("[" * 5000, "c.yaml: is not YAML"),
        ("version: 1", "c.yaml:1: tiers: is missing"),
        (f"tiers: [{TIER}]", "c.yaml:1: version: is missing"),
        ("version: 1\ntiers: []", "c.yaml:2: tiers: is empty"),
        ("version: 1\ntiers: 3", "c.yaml:2: tiers: 3 is not a list"),
        ("version: 1\ntiers: [3]", "c.yaml:2: tiers[0]: 3 is not a mapping"),
        (f"version: 1\ntiers: [{TIER}]\n? [a]\n: 1", "c.yaml:3: a key is a plain word"),
        (f"version: 1\ntiers: [{TIER}]\ndirect: {{preset: LAN}}", "c.yaml:3: direct: needs a tier to pass by"),
        (f"version: 1\ntiers: [{TIER}, {TIER.replace('a,', 'b,')}]", "c.yaml:1: links: no link joins 'a' and 'b'"),
        ("version: 1\ntiers: &t [*t]", "c.yaml:2: tiers[0]"),
        ("a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
            f"{x}: &{x} [{','.join(['*' + y] * 10)}]\n" for y, x in zip("abcdef", "bcdefg", strict=True)
        ), "repeats aliases too often"),
        ("#" * (2**18 + 1), "c.yaml: is larger than 256 KiB"),
    ],
    ids=lambda value: value[:30],
)  # fmt: skip
def test_texts_that_are_no_topology(text, message):
    with pytest.raises(TopologyError) as caught:
        Topology.loads(text, name="c.yaml")
    assert message in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(TopologyError, match=r"none\.yaml: cannot be read: No such file"):
        Topology.load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(TopologyError, match="is not UTF-8 text"):
        Topology.load(tmp_path / "binary.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (2**18 + 1))
    with pytest.raises(TopologyError, match="larger than 256 KiB"):
        Topology.load(tmp_path / "large.yaml")


def test_round_trip_through_json():
    topology = Topology.loads(TEXT)
    assert Topology.from_dict(json.loads(json.dumps(topology.to_dict()))) == topology
    assert hash(Topology.from_dict(topology.to_dict())) == hash(topology)
    for line in topology.lines():
        assert Topology.from_dict(line.to_dict()) == line


def test_json_errors_carry_the_names_of_the_fields():
    data = Topology.loads(TEXT).to_dict()
    data["links"][1]["up_bytes_per_s"] = "5.85 Mbps"
    with pytest.raises(TopologyError, match=r"^links\[1\]\.up_bytes_per_s: '5.85 Mbps' is not a finite number above 0"):
        Topology.from_dict(data)


def test_built_by_hand_is_checked_too():
    with pytest.raises(TopologyError, match=r"^threads: True is not a whole number"):
        TierSpec("a", Compute(), threads=True)
    with pytest.raises(TopologyError, match=r"^compute: 'measured' is not a Compute"):
        TierSpec("a", "measured")
    with pytest.raises(TopologyError, match=r"^direct\.between"):
        Topology((TierSpec("a", Compute()), *Topology.loads(TEXT).tiers[1:]), (
            LinkSpec(("a", "edge"), 1, 1, 0), LinkSpec(("edge", "cloud"), 1, 1, 0)
        ), LinkSpec(("a", "edge"), 1, 1, 0))  # fmt: skip
    labels = {"tier": "edge"}
    tier = TierSpec("a", Compute(), node=labels)
    labels["tier"] = "changed"
    assert tier.node == {"tier": "edge"}


def test_lines_are_the_whole_one_and_the_direct_one():
    topology = Topology.loads(TEXT)
    whole, direct = topology.lines()
    assert (whole.tiers, whole.links, whole.direct) == (topology.tiers, topology.links, None)
    assert (direct.tiers, direct.links) == ((topology.tiers[0], topology.tiers[2]), (topology.direct,))


def test_paths_and_links_by_name():
    topology = Topology.loads(TEXT)
    wifi, wan = topology.links
    assert topology.path(0, 2) == (wifi, wan)
    assert topology.path(2, 0) == (wan, wifi)
    assert topology.path(1, 2) == (wan,)
    assert topology.path(1, 1) == ()
    with pytest.raises(IndexError, match="tier 3 of 3"):
        topology.path(0, 3)
    assert topology.link("device", "edge") is topology.link("edge", "device") is wifi
    assert topology.link("device", "cloud") is topology.direct
    with pytest.raises(TopologyError, match="no link joins 'device' and 'cloud'"):
        topology.lines()[0].link("device", "cloud")
    with pytest.raises(TopologyError, match="did you mean 'cloud'"):
        topology.tier("clowd")


def test_prints_as_a_table():
    shown = str(Topology.loads(TEXT))
    for piece in ("8 x slower", "jetson-nano", "measured", "2 GiB", "5 W", "tier=device", "emulated", "18.88 Mbps"):
        assert piece in shown
    assert "device -> cloud (direct)" in shown
    assert f"device -> edge: {LINKS['Wi-Fi'].source}" in shown


def test_documented_and_shipped_examples_are_read():
    shipped = Topology.load(ROOT / "examples" / "cluster.yaml")
    assert shipped.emulated
    documented = (ROOT / "docs" / "cluster-yaml.md").read_text().split("```yaml\n")[1].split("```")[0]
    assert [tier.name for tier in Topology.loads(documented).tiers] == ["device", "edge", "cloud"]
