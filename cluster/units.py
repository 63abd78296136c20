"""Quantities as people write them: "5.85 Mbps", "20 ms", "4 GiB", "0.10 $/h".

A number without its unit is refused, because Mbps and MB/s differ by eight and both look like ``5.85``; only a bare 0
needs none. Bits are decimal (1 Mbps = 10^6 bit/s), B is a byte, Ki, Mi, Gi are powers of 1024. Letters keep their case:
"Mb/s" are bits and "MB/s" bytes.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Context, Decimal, DecimalException
from fractions import Fraction

from cluster.errors import UnitError

# No honest quantity is longer; the limit keeps a hostile file from spending time in the number parser.
_LONGEST_TEXT = 64
_TEXT = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\S.*)?", re.ASCII)
# 40 digits hold every float and every 64-bit integer exactly, whatever the caller's own decimal context is.
_CONTEXT = Context(prec=40)

_DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SMALL = {"": Fraction(1), "m": Fraction(1, 10**3), "u": Fraction(1, 10**6), "n": Fraction(1, 10**9)}


@dataclass(frozen=True)
class Quantity:
    """One kind of quantity: the units it may be written in and those it is shown in."""

    name: str
    """With its article, as in "'fast' is not a bandwidth"."""
    example: str
    """What an error message proposes to write."""
    units: Mapping[str, Fraction]
    """Unit as written -> its size in the SI unit that `parse` returns."""
    shown: tuple[str, ...]
    """Units that `format` chooses from, smallest first."""

    def exact(self, text: str | float) -> Decimal:
        """Value of `text` in the SI unit, before rounding to a float; raises UnitError."""
        if isinstance(text, bool) or not isinstance(text, str | int | float):
            raise self._refused(text)
        written = text.strip() if isinstance(text, str) else repr(text)
        match = _TEXT.fullmatch(written) if len(written) <= _LONGEST_TEXT else None
        if match is None:
            raise self._refused(text)
        digits, unit = match[1], (match[2] or "").replace("\u00b5", "u").replace("\u03bc", "u")
        try:
            number = Decimal(digits)
            if unit not in self.units:
                if not unit and number == 0:
                    return number
                raise self._bad_unit(written, digits, unit)
            scale = self.units[unit]
            value = _CONTEXT.divide(_CONTEXT.multiply(number, Decimal(scale.numerator)), Decimal(scale.denominator))
        except DecimalException:
            raise UnitError(f"{written!r} is out of range; write for example {self.example!r}") from None
        if value < 0:
            raise UnitError(f"{written!r} is negative; write for example {self.example!r}")
        if float(value) == float("inf"):
            raise UnitError(f"{written!r} is out of range; write for example {self.example!r}")
        return value

    def parse(self, text: str | float) -> float:
        """Value of `text` in the SI unit; raises UnitError."""
        return float(self.exact(text))

    def format(self, value: float, digits: int = 4) -> str:
        """`value`, given in the SI unit, with `digits` significant digits in the unit that suits it.

        `parse` reads the text back, to the digits shown; only negative and infinite values are for the eye alone.
        """
        if value != value or value in (float("inf"), float("-inf")):
            return f"{value} {self.shown[-1]}"
        fitting = [unit for unit in self.shown if abs(value) >= self.units[unit]]
        # Zero is shown in the plain unit ("0 s"), not in the smallest one ("0 ns").
        unit = fitting[-1] if fitting else self.shown[0] if value else self._plain_unit()
        return f"{float(Fraction(value) / self.units[unit]):.{digits}g} {unit}"

    def _plain_unit(self) -> str:
        return next((unit for unit in self.shown if self.units[unit] == 1), self.shown[0])

    def _refused(self, text: object) -> UnitError:
        return UnitError(f"{text!r:.80} is not {self.name}; write for example {self.example!r}")

    def _bad_unit(self, written: str, digits: str, unit: str) -> UnitError:
        if not unit:
            return UnitError(f"{written!r} has no unit; write for example '{digits} {self.example.split()[1]}'")
        # "mb/s" may mean bits or bytes: every unit that differs in case alone is named, none is chosen.
        near = [known for known in self.units if known.lower() == unit.lower()]
        near = near or difflib.get_close_matches(unit, self.units, n=2)
        hint = "did you mean " + " or ".join(map(repr, near)) if near else f"write for example {self.example!r}"
        return UnitError(f"{written!r} is not {self.name}: unknown unit {unit!r}; {hint}")


def _bandwidth_units() -> dict[str, Fraction]:
    units: dict[str, Fraction] = {}
    for prefix, scale in _DECIMAL.items():
        for bits in ("bps", "bit/s", "b/s"):
            units[prefix + bits] = Fraction(scale, 8)
        for octets in ("B/s", "Bps"):
            units[prefix + octets] = Fraction(scale)
    return units | {f"{prefix}B/s": Fraction(scale) for prefix, scale in _BINARY.items()}


_SIZE_UNITS = {f"{prefix}B": Fraction(scale) for prefix, scale in (_DECIMAL | _BINARY).items()}
_POWER_UNITS = {"uW": _SMALL["u"], "mW": _SMALL["m"], "W": Fraction(1), "kW": Fraction(1000)}
_HOURS = {"s": Fraction(1), "min": Fraction(60), "h": Fraction(3600)}

BANDWIDTH = Quantity(
    "a bandwidth", "5.85 Mbps", _bandwidth_units(), tuple(f"{prefix}bps" for prefix in _DECIMAL)
)
DURATION = Quantity(
    "a duration", "20 ms", {f"{p}s": scale for p, scale in _SMALL.items()} | _HOURS, ("ns", "us", "ms", "s")
)
SIZE = Quantity("a size", "4 GiB", _SIZE_UNITS, ("B", "KiB", "MiB", "GiB", "TiB"))
POWER = Quantity("a power", "5 W", _POWER_UNITS, tuple(_POWER_UNITS))
PRICE = Quantity(
    "a price", "0.10 $/h", {f"{c}/{time}": 1 / s for c in ("$", "USD") for time, s in _HOURS.items()}, ("$/h",)
)
PRICE_PER_BYTE = Quantity(
    "a price per byte",
    "0.09 $/GB",
    {f"{c}/{unit}": 1 / scale for c in ("$", "USD") for unit, scale in _SIZE_UNITS.items()},
    ("$/GB",),
)
ENERGY_PER_BYTE = Quantity(
    "an energy per byte",
    "1 uJ/B",
    {f"{p}J/{u}": e / s for p, e in _SMALL.items() for u, s in (_SIZE_UNITS | {"bit": Fraction(1, 8)}).items()},
    ("nJ/B", "uJ/B", "mJ/B", "J/B"),
)


def parse_bandwidth(text: str | float) -> float:
    """Bytes per second of "5.85 Mbps", "100 kbit/s" or "2 MB/s"; raises UnitError."""
    return BANDWIDTH.parse(text)


def parse_duration(text: str | float) -> float:
    """Seconds of "20 ms", "0.5 s" or "100 us"; raises UnitError."""
    return DURATION.parse(text)


def parse_size(text: str | float) -> int:
    """Bytes of "4 GiB", "512 MB" or "64 KiB", rounded to a whole byte; raises UnitError."""
    return int(SIZE.exact(text).to_integral_value())


def parse_power(text: str | float) -> float:
    """Watts of "5 W" or "900 mW"; raises UnitError."""
    return POWER.parse(text)


def parse_price(text: str | float) -> float:
    """Dollars per second of "0.10 $/h" or "0.00003 $/s"; raises UnitError."""
    return PRICE.parse(text)


def parse_price_per_byte(text: str | float) -> float:
    """Dollars per byte of "0.09 $/GB"; raises UnitError."""
    return PRICE_PER_BYTE.parse(text)


def parse_energy_per_byte(text: str | float) -> float:
    """Joules per byte of "1 uJ/B" or "100 nJ/bit"; raises UnitError."""
    return ENERGY_PER_BYTE.parse(text)


def format_bandwidth(bytes_per_s: float, digits: int = 4) -> str:
    """Bits per second for people, as links are advertised: ``format_bandwidth(731250.0) == "5.85 Mbps"``."""
    return BANDWIDTH.format(bytes_per_s, digits)


def format_seconds(seconds: float, digits: int = 4) -> str:
    """Seconds for people: ``format_seconds(0.02) == "20 ms"``."""
    return DURATION.format(seconds, digits)


def format_bytes(nbytes: float, digits: int = 4) -> str:
    """Bytes for people: ``format_bytes(1536) == "1.5 KiB"``."""
    return SIZE.format(nbytes, digits)
