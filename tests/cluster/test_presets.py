"""Named links and machines: their figures, their sources, and names that are nearly right."""

from pathlib import Path

import pytest

from cluster.errors import UnknownPresetError
from cluster.presets import LINKS, MACHINES, link_preset, machine_preset

MBPS = 1e6 / 8


@pytest.mark.parametrize(
    ("name", "up_mbps", "down_mbps", "latency_s"),
    [
        ("CAT1", 0.13, None, 0),
        ("3G", 1.1, None, 0),
        ("4G", 5.85, None, 0),
        ("Wi-Fi", 18.88, None, 0),
        ("5G", 50, 100, 0.004),
        ("LAN", 1000, 1000, 0),
    ],
)
def test_link_figures(name, up_mbps, down_mbps, latency_s):
    preset = link_preset(name)
    assert preset.up_bytes_per_s == pytest.approx(up_mbps * MBPS)
    assert preset.down_bytes_per_s == (None if down_mbps is None else pytest.approx(down_mbps * MBPS))
    assert preset.latency_s == latency_s


def test_every_preset_has_a_source_and_says_what_was_filled():
    for preset in (*LINKS.values(), *MACHINES.values()):
        assert preset.source
        assert preset.note
    assert all("equal to it" in preset.note for preset in LINKS.values() if preset.down_bytes_per_s is None)


def test_roofline_interval_holds_the_bound_that_binds():
    pi = machine_preset("raspberry-pi-4")
    low, high = pi.efficiency
    assert pi.flops_per_s == 48e9
    assert pi.estimate_s(48e9, 0) == pytest.approx((1 / high, 1 / low))
    assert pi.estimate_s(0, 12.8e9) == pytest.approx((1 / high, 1 / low))
    assert pi.estimate_s(48e9, 2 * 12.8e9) == pytest.approx((2 / high, 2 / low))


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_efficiency_is_an_interval(machine):
    low, high = machine.efficiency
    assert 0 < low < high < 1


@pytest.mark.parametrize(("name", "meant"), [("wifi", "Wi-Fi"), ("WI FI", "Wi-Fi"), ("5g", "5G"), ("Lan", "LAN")])
def test_nearly_right_names_are_proposed(name, meant):
    with pytest.raises(UnknownPresetError, match=f"did you mean '{meant}'"):
        link_preset(name)


def test_unknown_machine_lists_the_known():
    with pytest.raises(UnknownPresetError, match="is no machine preset; known: raspberry-pi-4"):
        machine_preset("abacus")


def test_documentation_lists_every_preset_with_its_source():
    text = (Path(__file__).parents[2] / "docs" / "cluster-yaml.md").read_text()
    for preset in (*LINKS.values(), *MACHINES.values()):
        assert f"| {preset.name} |" in text
        assert preset.source in text
