"""What is wrong with a cluster, and what to do about it: a pure function of what its nodes said (probe.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.errors import ClusterError
from cluster.launch import RAY_SETTINGS
from cluster.probe import PACKAGES, Facts
from cluster.raynode import KEEPER_LOG

_WORST_SKEW_S = 1.0
"""Deadlines travel as seconds left, so only logs and certificates need the clocks to agree."""
_WHY = {
    "RAY_max_direct_call_object_size": "packets above 100 KB take 4 ms longer each hop",
    "RAY_task_rpc_inlined_bytes_limit": "packets above 100 KB take 4 ms longer each hop",
    "RAY_object_manager_pull_timeout_ms": "a transfer longer than 10 s is sent again from the start",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "Ray ends processes that are without the head for 60 s",
    "RAY_raylet_liveness_self_check_interval_ms": "it takes a node a minute to notice that the head was started again",
    "RAY_health_check_period_ms": "a node that was killed counts as alive for 15 s (the head's setting counts)",
}
_NO_NODE = f"its keeper starts it again when it can, and says in its home's {KEEPER_LOG} why not; else 'splitinfer cluster down', then 'up'"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at on one node."""

    tier: str
    check: str
    ok: bool
    found: str
    advice: str = ""
    """What to do; empty where nothing is."""


def examine(tiers: Sequence[str], nodes: Sequence[Facts], *, tls: bool) -> list[Finding]:
    """All findings, node by node in the order of the tiers; `tls` says whether channels should be encrypted."""
    findings = []
    for tier in tiers:
        found = [node for node in nodes if node.tier == tier]
        if not found:
            findings.append(Finding(tier, "node", False, "no live node has its label", _NO_NODE))
        for node in found:
            findings += _node(node, nodes, tls)
    return findings


def check_versions(nodes: Sequence[Facts]) -> None:
    """Raise ClusterError where nodes differ in Python, Ray, torch or this project: stages are sent between them."""
    wrong = [finding for node in nodes for finding in _versions(node, nodes) if not finding.ok]
    if wrong:
        told = "; ".join(f"tier '{each.tier}': {each.check} {each.found}" for each in wrong)
        raise ClusterError(f"the nodes' versions differ: {told}. Install the same on all")


def _node(node: Facts, nodes: Sequence[Facts], tls: bool) -> list[Finding]:
    return [*_versions(node, nodes), *_settings(node), *_security(node, tls), _clock(node), _ports(node)]


def _versions(node: Facts, nodes: Sequence[Facts]) -> list[Finding]:
    findings = []
    for name in ("python", *PACKAGES):
        have = node.versions.get(name, "")
        # Ties go to the highest tier, whose node is asked last: the head is the one to follow.
        common = Counter(_comparable(name, each.versions.get(name, "")) for each in reversed(nodes)).most_common(1)[0][0]
        ok = bool(have) and _comparable(name, have) == common
        advice = "" if ok else f"install {name} {common or 'on every node'} there"
        findings.append(
            Finding(node.tier, name, ok, (have or "not installed") + ("" if ok or not have else f", most have {common}"), advice)
        )
    return findings


def _comparable(name: str, version: str) -> str:
    """Local parts ("+cpu") are the build, and a patch of Python changes no format."""
    public = version.partition("+")[0]
    return ".".join(public.split(".")[:2]) if name == "python" else public


def _settings(node: Facts) -> list[Finding]:
    findings = []
    for name, wanted in RAY_SETTINGS.items():
        have = node.settings.get(name, "")
        advice = "" if have == wanted else f"set {name}={wanted} where the node is started: else {_WHY[name]}"
        findings.append(Finding(node.tier, name, have == wanted, have or "not set", advice))
    return findings


def _security(node: Facts, tls: bool) -> list[Finding]:
    asked = node.settings.get("RAY_AUTH_MODE") == "token"
    encrypted = node.settings.get("RAY_USE_TLS") == "1"
    private = node.token_mode is not None and not node.token_mode & 0o077
    mode = "cannot be seen by the node" if node.token_mode is None else f"mode {node.token_mode:o}"
    return [
        Finding(
            node.tier,
            "token asked for",
            asked,
            "yes" if asked else "no",
            "" if asked else "set RAY_AUTH_MODE=token where the node is started",
        ),
        Finding(
            node.tier, "token file", private, mode, "" if private else "chmod 600 it, name it by RAY_AUTH_TOKEN_PATH, and make a new token"
        ),
        Finding(
            node.tier,
            "TLS",
            encrypted or not tls,
            "on" if encrypted else "off",
            "" if encrypted or not tls else "start all nodes with --tls",
        ),
    ]


def _clock(node: Facts) -> Finding:
    # What cannot be told apart from the time the question took is no finding.
    ok = abs(node.skew_s) - node.skew_error_s <= _WORST_SKEW_S
    told = f"{node.skew_s:+.3f} s, give or take {node.skew_error_s:.3f}"
    return Finding(node.tier, "clock", ok, told, "" if ok else f"differs by more than {_WORST_SKEW_S:g} s: let NTP set it")


def _ports(node: Facts) -> Finding:
    closed = ", ".join(node.unreachable)
    advice = "Ray's nodes talk both ways on many ports: use one flat network or a VPN, and open the firewall between them"
    return Finding(node.tier, "ports", not closed, f"cannot open {closed}" if closed else "all open", advice if closed else "")
