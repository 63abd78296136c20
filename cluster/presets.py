"""Links and machines by name, each with the published source of its figures.

The figures are the sources' own, not measurements of this project. Link presets may be overridden key by key in
cluster.yaml. Machine presets are *nominal peaks* that no model reaches: they serve for a roofline estimate with an
interval when nobody could measure, never as a prediction with one number.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.errors import UnknownPresetError
from cluster.units import parse_bandwidth, parse_duration


@dataclass(frozen=True)
class LinkPreset:
    """A kind of network, seen from its lower end."""

    name: str
    up_bytes_per_s: float
    down_bytes_per_s: float | None
    """None: the source gives none, and the downlink is taken equal to the uplink."""
    latency_s: float
    """One way."""
    source: str
    note: str
    """What the source leaves open and how it was filled."""


@dataclass(frozen=True)
class MachinePreset:
    """A machine by the peaks its vendor states."""

    name: str
    flops_per_s: float
    """Peak fp32 operations per second, a fused multiply-add counted as two."""
    memory_bytes_per_s: float
    """Peak bandwidth of the main memory."""
    efficiency: tuple[float, float]
    """(low, high) share of the peaks that operators reach: an assumption of this project, not the vendor's."""
    source: str
    note: str

    def estimate_s(self, flops: float, nbytes: float) -> tuple[float, float]:
        """(least, most) seconds for `flops` operations that move `nbytes` through memory.

        The roofline, max(flops / flops_per_s, nbytes / memory_bytes_per_s), divided by the high and low efficiency.
        """
        peak_s = max(flops / self.flops_per_s, nbytes / self.memory_bytes_per_s)
        low, high = self.efficiency
        return peak_s / high, peak_s / low


_DADS = (
    "Hu, Bao, Wang, Liu: Dynamic Adaptive DNN Surgery for Inference Acceleration on the Edge, IEEE INFOCOM 2019"
)
_UPLINK_ONLY = "The source gives the uplink only: the downlink is taken equal to it and the latency as 0."


def _link(name: str, up: str, down: str | None, latency: str, source: str, note: str) -> LinkPreset:
    down_bytes_per_s = None if down is None else parse_bandwidth(down)
    return LinkPreset(name, parse_bandwidth(up), down_bytes_per_s, parse_duration(latency), source, note)


LINKS: Mapping[str, LinkPreset] = {
    preset.name: preset
    for preset in (
        _link("CAT1", "0.13 Mbps", None, "0 s", _DADS, _UPLINK_ONLY),
        _link("3G", "1.1 Mbps", None, "0 s", _DADS, _UPLINK_ONLY),
        _link("4G", "5.85 Mbps", None, "0 s", _DADS, _UPLINK_ONLY),
        _link("Wi-Fi", "18.88 Mbps", None, "0 s", _DADS, _UPLINK_ONLY),
        _link(
            "5G",
            "50 Mbps",
            "100 Mbps",
            "4 ms",
            "Report ITU-R M.2410-0 (2017), sections 4.3 and 4.7.1",
            "Minimum requirements, not measurements: user-experienced data rates and user-plane latency of eMBB.",
        ),
        _link(
            "LAN",
            "1000 Mbps",
            "1000 Mbps",
            "0 s",
            "IEEE 802.3ab-1999 (1000BASE-T)",
            "Nominal line rate, without the overhead of frames. The source gives no latency: it is taken as 0.",
        ),
    )
}
"""Link presets by name."""

# A model's operators reach between a tenth of the peak (small or memory-unfriendly ones) and six or seven tenths (large
# matrix products in a tuned library). Deliberately wide: the interval should hold the truth, not flatter the estimate.
_CPU_EFFICIENCY = (0.1, 0.6)
_GPU_EFFICIENCY = (0.1, 0.7)
_PEAK = "Nominal peak; the efficiency interval is this project's own assumption."

MACHINES: Mapping[str, MachinePreset] = {
    preset.name: preset
    for preset in (
        MachinePreset(
            "raspberry-pi-4",
            4 * 1.5e9 * 8,
            12.8e9,
            _CPU_EFFICIENCY,
            "Raspberry Pi 4 Model B product brief (4x Cortex-A72 at 1.5 GHz, LPDDR4-3200)",
            f"8 fp32 operations per cycle and core; memory 32 bit wide. {_PEAK}",
        ),
        MachinePreset(
            "raspberry-pi-5",
            4 * 2.4e9 * 16,
            17.068e9,
            _CPU_EFFICIENCY,
            "Raspberry Pi 5 product brief (4x Cortex-A76 at 2.4 GHz, LPDDR4X-4267)",
            f"16 fp32 operations per cycle and core (two 128-bit pipes); memory 32 bit wide. {_PEAK}",
        ),
        MachinePreset(
            "jetson-nano",
            236e9,
            25.6e9,
            _GPU_EFFICIENCY,
            "NVIDIA Jetson Nano data sheet (472 GFLOP/s fp16)",
            f"fp32 taken as half of the stated fp16 rate. {_PEAK}",
        ),
        MachinePreset("nvidia-t4", 8.1e12, 320e9, _GPU_EFFICIENCY, "NVIDIA T4 data sheet", _PEAK),
        MachinePreset("nvidia-v100-sxm2", 15.7e12, 900e9, _GPU_EFFICIENCY, "NVIDIA V100 data sheet", _PEAK),
        MachinePreset("nvidia-a100-40gb", 19.5e12, 1555e9, _GPU_EFFICIENCY, "NVIDIA A100 data sheet", _PEAK),
    )
}
"""Machine presets by name."""


def link_preset(name: str) -> LinkPreset:
    """The link preset `name`; raises UnknownPresetError, which proposes the nearest names."""
    if name not in LINKS:
        raise _unknown("link", name, list(LINKS))
    return LINKS[name]


def machine_preset(name: str) -> MachinePreset:
    """The machine preset `name`; raises UnknownPresetError, which proposes the nearest names."""
    if name not in MACHINES:
        raise _unknown("machine", name, list(MACHINES))
    return MACHINES[name]


def _unknown(kind: str, name: str, known: list[str]) -> UnknownPresetError:
    """Compare without case and punctuation, so that 'wifi' finds 'Wi-Fi'."""
    bare = {"".join(filter(str.isalnum, other)).lower(): other for other in known}
    near = difflib.get_close_matches("".join(filter(str.isalnum, name)).lower(), bare, n=1)
    hint = f"did you mean {bare[near[0]]!r}? Known" if near else "known"
    return UnknownPresetError(f"{name!r:.80} is no {kind} preset; {hint}: {', '.join(known)}")
