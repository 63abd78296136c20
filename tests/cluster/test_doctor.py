"""The doctor's judgement of what nodes say; a real cluster is looked at in test_launch.py."""

from dataclasses import replace

import pytest

from cluster.doctor import check_versions, examine
from cluster.errors import ClusterError
from cluster.launch import RAY_SETTINGS
from cluster.probe import Facts

TIERS = ("device", "edge", "cloud")
VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0+cpu", "splitinfer": "0.1.0"}
GOOD = Facts(
    "device", "10.0.0.1", VERSIONS, RAY_SETTINGS | {"RAY_AUTH_MODE": "token", "RAY_USE_TLS": "1"}, 0o600, 0.01, 0.001, 0.5, 4, 1 << 30,
    1 << 20, (),
)  # fmt: skip


def nodes(**changes):
    """Three good nodes, but for what the edge's says."""
    return [replace(GOOD, tier=tier, **(changes if tier == "edge" else {})) for tier in TIERS]


def wrong(found, tls=True):
    return [(each.tier, each.check) for each in examine(TIERS, found, tls=tls) if not each.ok]


class TestExamine:
    def test_nothing_is_wrong_with_good_nodes(self):
        assert wrong(nodes()) == []

    @pytest.mark.parametrize(
        ("changes", "check", "advice"),
        [
            ({"versions": VERSIONS | {"ray": "2.59.1"}}, "ray", "install ray 2.60.0 there"),
            ({"versions": VERSIONS | {"torch": ""}}, "torch", "install torch 2.13.0 there"),
            ({"versions": VERSIONS | {"python": "3.12.1"}}, "python", "install python 3.11 there"),
            ({"versions": VERSIONS | {"splitinfer": "0.2.0"}}, "splitinfer", "install splitinfer 0.1.0 there"),
            ({"settings": GOOD.settings | {"RAY_object_manager_pull_timeout_ms": ""}}, "RAY_object_manager_pull_timeout_ms", "=600000"),
            ({"settings": GOOD.settings | {"RAY_max_direct_call_object_size": "1"}}, "RAY_max_direct_call_object_size", "=16000000"),
            ({"settings": GOOD.settings | {"RAY_AUTH_MODE": ""}}, "token asked for", "RAY_AUTH_MODE=token"),
            ({"settings": GOOD.settings | {"RAY_USE_TLS": "0"}}, "TLS", "--tls"),
            ({"token_mode": 0o644}, "token file", "chmod 600"),
            ({"token_mode": None}, "token file", "RAY_AUTH_TOKEN_PATH"),
            ({"skew_s": -2.0}, "clock", "NTP"),
            ({"unreachable": ("10.0.0.3:45001",)}, "ports", "firewall"),
        ],
    )
    def test_each_fault_is_found_where_it_is_and_says_what_to_do(self, changes, check, advice):
        found = nodes(**changes)
        assert wrong(found) == [("edge", check)]
        assert advice in next(each.advice for each in examine(TIERS, found, tls=True) if not each.ok)

    def test_a_tier_without_a_node(self):
        assert wrong(nodes()[1:]) == [("device", "node")]

    def test_tls_is_missed_only_where_it_was_asked_for(self):
        assert wrong(nodes(settings=GOOD.settings | {"RAY_USE_TLS": "0"}), tls=False) == []

    def test_a_build_of_the_same_version_and_a_patch_of_python_are_no_faults(self):
        assert wrong(nodes(versions=VERSIONS | {"torch": "2.13.0+cu128", "python": "3.11.9"})) == []

    def test_a_skew_within_the_error_of_a_slow_link_is_none(self):
        assert wrong(nodes(skew_s=2.5, skew_error_s=1.6)) == []

    def test_of_two_that_differ_the_highest_tier_is_right(self):
        found = [replace(GOOD, versions=VERSIONS | {"ray": "2.59.0"}), replace(GOOD, tier="cloud")]
        assert [(each.tier, each.check) for each in examine(("device", "cloud"), found, tls=True) if not each.ok] == [("device", "ray")]


class TestRefusal:
    def test_equal_versions_pass(self):
        check_versions(nodes())

    def test_a_mismatch_is_refused(self):
        with pytest.raises(ClusterError, match=r"tier 'edge': ray 2\.59\.1, most have 2\.60\.0\. Install the same on all"):
            check_versions(nodes(versions=VERSIONS | {"ray": "2.59.1"}))

    def test_so_is_a_package_that_no_node_has(self):
        found = [replace(each, versions=VERSIONS | {"splitinfer": ""}) for each in nodes()]
        with pytest.raises(ClusterError, match="tier 'cloud': splitinfer not installed"):
            check_versions(found)
