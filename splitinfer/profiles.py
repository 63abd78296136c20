"""The Profile: what each layer and each tensor costs, on which machine. Plain data; planning needs nothing else of a model.

Its file is JSON (docs/profile-format.md). This module needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tabulate import tabulate

from cluster.presets import machine_preset
from cluster.topology import TierSpec
from splitinfer.errors import ProfileError
from splitinfer.overlap import Piece
from splitinfer.plans import INPUT
from splitinfer.reading import document, text_of

VERSION = 2


@dataclass(frozen=True)
class LayerProfile:
    """What a layer needs on any machine, for the sample."""

    name: str
    flops: int
    """A multiply-add counts as two."""
    weight_nbytes: int
    output_nbytes: int
    peak_nbytes: int
    """Activations alive while the layer runs in the whole model, its own included."""


@dataclass(frozen=True)
class TensorProfile:
    """A tensor between layers, raw and encoded."""

    name: str
    producer: str
    consumers: tuple[str, ...]
    shape: tuple[int | str, ...]
    """A dynamic dimension is an expression."""
    dtype: str
    nbytes: int
    returned: bool
    sent_nbytes: Mapping[str, int] = field(default_factory=dict)
    """Codec -> measured bytes on the wire, its share of the packet's header included."""


@dataclass(frozen=True)
class LayerLayout:
    """One way to share a layer out over several machines (docs/problem-format.md has the terms)."""

    axis: str
    """``rows``, ``channels`` or ``heads``."""
    units: int
    granularity: int = 1
    """Shares are multiples of it."""
    takes: str = "split"
    """Whether each machine needs all of the layer's inputs, ``whole``, or its share of them, ``split``."""
    gives: str = "split"
    """Its share of the output, all of it (``whole``), or a term of a sum (``partial``)."""
    weight_nbytes: int = 0
    """Held by each machine that has a share."""
    weight_nbytes_per_unit: float = 0.0
    kernel: int = 1
    """For rows: output row o needs the input rows o * stride - padding ... + kernel - 1."""
    stride: int = 1
    padding: int = 0
    input_units: int | None = None
    """Rows of the inputs; None: as many as `units`."""


@dataclass(frozen=True)
class Measurement:
    """Times from one machine, device and number of threads."""

    tier: str | None
    """The tier on whose own node this was measured; None for the machine that profiled."""
    machine: str
    device: str
    threads: int
    whole_s: float
    """Median time of the whole model in one piece, one run behind the other."""
    wake_s: float
    """What a run takes longer after the process was idle for a moment, as it is between requests: caches and clocks
    are cold. Every stage pays it once per request."""
    seconds: Mapping[str, float]
    """Layer -> median seconds in context, scaled so that they add up to `whole_s`."""
    spread_s: Mapping[str, float]
    """Layer -> interquartile range."""
    codec_s: Mapping[str, Mapping[str, tuple[float, float]]]
    """Tensor -> codec -> seconds to encode and to decode."""
    pieces: Mapping[str, Mapping[str, tuple[Piece, ...]]] = field(default_factory=dict)
    """Large tensor -> codec -> what each of its pieces takes, where it can be sent in pieces."""


@dataclass(frozen=True)
class Framework:
    """What a call between stages costs beside the work inside them."""

    call_s: float = 0.0
    """Per stage, there and back."""
    s_per_byte: float = 0.0
    """For packing, copying and unpacking."""
    measured: bool = False


@dataclass(frozen=True)
class TierTimes:
    """A tier's seconds, and where they come from."""

    source: str
    seconds: Mapping[str, float]
    scale: float
    """Of codec times and of waking up, against `base`."""
    base: Measurement


@dataclass(frozen=True)
class Profile:
    """Everything that planning needs to know of a model."""

    model: str
    fingerprint: str
    stateful: bool
    layers: tuple[LayerProfile, ...]
    """In the order of the graph."""
    tensors: tuple[TensorProfile, ...]
    together: tuple[tuple[tuple[str, ...], str], ...]
    """Layers that must share a stage, and why."""
    measurements: tuple[Measurement, ...]
    packet_nbytes: int
    """Bytes of a packet without tensors."""
    framework: Framework = Framework()
    exits: tuple[str, ...] = ()
    """Layers that are heads of early exits: a plan that does not use one leaves it out."""
    layouts: Mapping[str, tuple[LayerLayout, ...]] = field(default_factory=dict)
    """Layer -> the ways in which several machines can share it."""

    @property
    def codecs(self) -> tuple[str, ...]:
        """The codecs that were measured."""
        return tuple(dict.fromkeys(codec for tensor in self.tensors for codec in tensor.sent_nbytes))

    def times(self, tier: TierSpec) -> TierTimes:
        """Seconds of each layer on a tier: measured there, else a factor or a machine preset applied to a measurement."""
        if tier.compute.measured:
            own = [m for m in self.measurements if m.tier == tier.name]
            if own:
                return TierTimes(f"measured on its node ({own[0].machine})", own[0].seconds, 1.0, own[0])
        base = self._base(tier)
        where = f"{base.machine}, {base.threads} thread{'s' * (base.threads > 1)}"
        if tier.compute.preset is not None:
            return self._by_preset(tier.compute.preset, base)
        factor = tier.compute.factor or 1.0
        source = f"measured on {where}" if factor == 1 else f"{factor:g} x measured on {where}"
        return TierTimes(source, {name: factor * seconds for name, seconds in base.seconds.items()}, factor, base)

    def pieces(self, times: TierTimes, tensor: str, codec: str) -> tuple[Piece, ...]:
        """What a tier needs for each piece of a tensor; empty where it travels whole.

        Each piece is a call of its own. Measured, one takes as long as a call between stages, half of it at either end.
        """
        half_s, found = self.framework.call_s / 2, times.base.pieces.get(tensor, {}).get(codec, ())
        return tuple((times.scale * encode_s + half_s, nbytes, times.scale * decode_s + half_s) for encode_s, nbytes, decode_s in found)

    def _base(self, tier: TierSpec) -> Measurement:
        here = [m for m in self.measurements if m.tier is None] or list(self.measurements)
        if not here:
            raise ProfileError("the profile holds no measurement")
        return min(here, key=lambda m: (m.device != tier.device, abs(m.threads - tier.threads)))

    def _by_preset(self, name: str, base: Measurement) -> TierTimes:
        """Roofline times of a machine that is not here: the geometric middle of the preset's interval."""
        preset = machine_preset(name)
        bounds = {layer.name: preset.estimate_s(layer.flops, layer.weight_nbytes + 2 * layer.output_nbytes) for layer in self.layers}
        least, most = (sum(bound[end] for bound in bounds.values()) for end in (0, 1))
        seconds = {layer: (low * high) ** 0.5 for layer, (low, high) in bounds.items()}
        source = f"roofline of {name}, between {least * 1e3:.1f} and {most * 1e3:.1f} ms"
        return TierTimes(source, seconds, sum(seconds.values()) / base.whole_s, base)

    def to_json(self) -> str:
        """The profile's file."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1)

    def save(self, path: str | Path) -> None:
        """Write the profile's file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Profile:
        """Read a profile's file. Raises ProfileError for one that is malformed."""
        return Profile.from_json(text_of(path, "profile", ProfileError))

    @staticmethod
    def from_json(text: str) -> Profile:
        """A profile from its file's text. Raises ProfileError, which names the field, for one that is malformed."""
        profile = document(Profile, text, "profile", (1, VERSION), ProfileError)
        profile.validate()
        return profile

    def validate(self) -> None:
        """Raise ProfileError unless names agree and no time is negative."""
        names = {layer.name for layer in self.layers}
        if not names or not self.measurements:
            raise ProfileError("malformed profile: it holds no layer or no measurement")
        tied = {name for layers, _ in self.together for name in layers} | set(self.exits)
        for name in tied.union(*({tensor.producer, *tensor.consumers} for tensor in self.tensors)) - {INPUT}:
            if name not in names:
                raise ProfileError(f"malformed profile: it speaks of a layer '{name}' and has none")
        for m in self.measurements:
            unmeasured = [tensor.name for tensor in self.tensors if tensor.name not in m.codec_s]
            if unmeasured:
                raise ProfileError(f"malformed profile: {m.machine} measured no codec on '{unmeasured[0]}'")
            if set(m.seconds) != names or set(m.spread_s) != names:
                missing = sorted((names ^ set(m.seconds)) | (names ^ set(m.spread_s)))[0]
                raise ProfileError(f"malformed profile: the times of {m.machine} and the layers differ in '{missing}'")
            pairs = [pair for rows in m.codec_s.values() for pair in rows.values()]
            numbers = [m.whole_s, m.wake_s, *m.seconds.values(), *(seconds for pair in pairs for seconds in pair)]
            if not all(0 <= number < float("inf") for number in numbers):
                raise ProfileError(f"malformed profile: a time of {m.machine} is negative or not finite")

    def __str__(self) -> str:
        base = self.measurements[0]
        heaviest = sorted(self.layers, key=lambda layer: -base.seconds[layer.name])[:12]
        rows = [
            [layer.name, _ms(base.seconds[layer.name]), _ms(base.spread_s[layer.name]), f"{layer.flops / 1e6:,.1f}",
             f"{layer.weight_nbytes:,}", f"{layer.output_nbytes:,}", f"{layer.peak_nbytes:,}"]
            for layer in heaviest
        ]
        head = ["layer", "median ms", "spread ms", "MFLOP", "weight bytes", "output bytes", "peak bytes"]
        measured = [
            f"{m.machine}, {m.device}, {m.threads} thread{'s' * (m.threads > 1)}"
            f"{f', node of {m.tier}' if m.tier else ''}: {_ms(m.whole_s)} ms whole, {_ms(m.wake_s)} ms more after a pause"
            for m in self.measurements
        ]
        more = f"{len(self.layers)} layers; the {len(heaviest)} that take longest:"
        table = tabulate(rows, head, disable_numparse=True, colalign=("left", *["right"] * 6))
        return "\n".join([f"{self.model}: {more}", "", table, "", *measured])


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"
