"""The Calibration: what each codec does to each tensor and to the model's answers. Plain data; planning needs no torch.

Its file is JSON (docs/calibration-format.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tabulate import tabulate

from splitinfer.errors import ProfileError
from splitinfer.reading import document, text_of

VERSION = 1


@dataclass(frozen=True)
class Measured:
    """One codec on one tensor, over the samples."""

    nbytes: float
    """Mean bytes on the wire, the share of the packet's header included."""
    encode_s: float
    """Median, on the machine that calibrated."""
    decode_s: float
    """Median."""
    error: float
    """Mean of the tensor's relative error, |decoded - x| / |x| in the 2-norm."""
    drop: float
    """What the model's answers lose when only this tensor passes this codec, in units of the metric; never below 0."""


@dataclass(frozen=True)
class Calibration:
    """Tensor -> codec -> what it costs and what it loses."""

    model: str
    fingerprint: str
    """Of the graph."""
    metric: str
    """How answers were compared: top1, accuracy, kl, relative, or the name of the user's function."""
    samples: int
    lossless: tuple[str, ...]
    """The codecs, of those tried, that return every bit."""
    rows: Mapping[str, Mapping[str, Measured]]

    def drop(self, tensor: str, codec: str) -> float | None:
        """The loss of one codec on one tensor; None where it was not measured."""
        if codec == "raw" or codec in self.lossless:
            return 0.0
        row = self.rows.get(tensor, {}).get(codec)
        return None if row is None else row.drop

    def raised(self, pairs: Sequence[tuple[str, str]], drop: float) -> Calibration:
        """The same with the drops of these pairs raised, in proportion, until they add up to `drop`."""
        pairs = [(tensor, codec) for tensor, codec in pairs if codec in self.rows.get(tensor, {})]
        if not pairs:
            return self
        known = [self.rows[tensor][codec].drop for tensor, codec in pairs]
        total = sum(known)
        rows = {tensor: dict(row) for tensor, row in self.rows.items()}
        for (tensor, codec), old in zip(pairs, known, strict=True):
            share = old * drop / total if total else drop / len(pairs)
            rows[tensor][codec] = replace(rows[tensor][codec], drop=max(old, share))
        return replace(self, rows=rows)

    def to_json(self) -> str:
        """The calibration's file."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1)

    def save(self, path: str | Path) -> None:
        """Write the calibration's file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Calibration:
        """Read a calibration's file. Raises ProfileError for one that is malformed."""
        return Calibration.from_json(text_of(path, "calibration", ProfileError))

    @staticmethod
    def from_json(text: str) -> Calibration:
        """A calibration from its file's text. Raises ProfileError, which names the field, for one that is malformed."""
        made = document(Calibration, text, "calibration", (VERSION,), ProfileError)
        for tensor, row in made.rows.items():
            for codec, cell in row.items():
                for name, value in asdict(cell).items():
                    if value < 0:
                        raise ProfileError(f"malformed calibration: 'rows.{tensor}.{codec}.{name}' is {value:g}; it must be zero or more")
        return made

    def __str__(self) -> str:
        """The codecs, each over all tensors: how small, how quick, how harmful."""
        names = list(dict.fromkeys(codec for row in self.rows.values() for codec in row))
        raw = {tensor: row["raw"].nbytes for tensor, row in self.rows.items() if "raw" in row}
        table = []
        for codec in names:
            cells = [(raw.get(tensor), row[codec]) for tensor, row in self.rows.items() if codec in row]
            ratio = [whole / cell.nbytes for whole, cell in cells if whole and cell.nbytes]
            drops = sorted(cell.drop for _, cell in cells)
            table.append([
                codec, len(cells), f"{sum(ratio) / len(ratio):.2f}" if ratio else "-", _ms(sum(c.encode_s for _, c in cells)),
                _ms(sum(c.decode_s for _, c in cells)), f"{sum(c.error for _, c in cells) / len(cells):.2e}",
                f"{drops[len(drops) // 2]:.4f}", f"{drops[-1]:.4f}",
            ])  # fmt: skip
        head = ["codec", "tensors", "mean ratio", "encode ms, all", "decode ms, all", "mean error", f"median {self.metric} drop", "worst"]
        text = tabulate(table, head, disable_numparse=True, colalign=("left", *["right"] * 7))
        return f"{self.model}: {len(self.rows)} tensors, {self.samples} samples\n\n{text}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"
