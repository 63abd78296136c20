"""Names of codecs: what can be written, what it means, and the codec that it stands for.

A name is a form with its options, and how it is compressed::

    int4 / channel / sym + zstd3
    form   options         compression

Each codec prints the name that gives it back; ``get`` accepts a few more spellings, such as ``int4`` for ``int4/channel``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite

from splitinfer.codecs.base import Codec
from splitinfer.codecs.bounded import Bounded
from splitinfer.codecs.compression import LEVEL, LEVELS
from splitinfer.codecs.dct import Dct
from splitinfer.codecs.half import Bf16, Fp16
from splitinfer.codecs.image import Uint8
from splitinfer.codecs.int8 import Int8
from splitinfer.codecs.integer import BITS, BLOCKS, Integer
from splitinfer.codecs.lossless import Raw, Zstd
from splitinfer.codecs.topk import TopK
from splitinfer.errors import CodecError

DEFAULT = ("raw", "zstd", "fp16", "int8")
"""What is measured unless asked otherwise."""
SUGGESTED = (*DEFAULT, "bf16+zstd", "fp16+zstd", "int8/block64+zstd", "int6/channel+zstd", "int4/channel+zstd", "int4/block64+zstd",
             "int3/block64+zstd", "int2/block64+zstd", "eb0.001rel", "eb0.01rel", "topk0.1/fp16")  # fmt: skip
"""What a calibration should try on activations: from lossless down to where small models lose their accuracy."""

_LONGEST = 64  # characters; a name may come from a packet
_NUMBER = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e(-?[0-9]{1,3}))?"
_ZSTD = re.compile(r"zstd([0-9]*)")


@dataclass(frozen=True)
class Form:
    """A family of codecs."""

    written: str
    """How its names are formed: ``<...>`` is to be filled in, ``[...]`` may be left out."""
    meaning: str
    pattern: re.Pattern[str]
    """What stands before the ``+``."""
    build: Callable[[re.Match[str], int | None], Codec]
    """The codec of a match and a level of zstd, None where none is asked for. Raises CodecError for a bad value."""


def get(name: str) -> Codec:
    """The codec of this name. Raises CodecError, which says what is wrong and lists the forms, for any other."""
    if not isinstance(name, str) or len(name) > _LONGEST:
        raise CodecError(f"a codec's name has at most {_LONGEST} characters")
    return _parsed(name)


@lru_cache(maxsize=256)
def _parsed(name: str) -> Codec:
    front, plus, back = name.partition("+")
    level = _level(name, back) if plus else None
    if (alone := _ZSTD.fullmatch(front)) and not plus:
        return Zstd(_level(name, front))
    for form in FORMS:
        if not alone and (match := form.pattern.fullmatch(front)):
            try:
                return form.build(match, level)
            except CodecError as error:
                raise CodecError(f"no codec '{name}': {error}; the form is {form.written}") from None
    raise CodecError(f"no codec '{name}'; known: {', '.join(DEFAULT)}; forms: {', '.join(form.written for form in FORMS)}")


def _level(name: str, text: str) -> int:
    match = _ZSTD.fullmatch(text)
    level = int(match[1] or LEVEL) if match and len(match[1]) < 4 else 0
    if level not in LEVELS:
        raise CodecError(f"no codec '{name}': after '+' stands zstd or zstd{LEVELS.start} to zstd{LEVELS.stop - 1}")
    return level


def catalogue() -> tuple[tuple[str, str], ...]:
    """The forms of names and what each means, for people to read."""
    return tuple((form.written, form.meaning) for form in FORMS)


def number(value: float) -> str:
    """As short as it can be and in one way: 0.01, 5e-7, 20."""
    mantissa, _, exponent = repr(value).partition("e")
    mantissa = mantissa.removesuffix(".0")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def _float(match: re.Match[str], lowest: float, highest: float) -> float:
    value = float(match[1] + (f"e{match[2]}" if match[2] else ""))
    if not (isfinite(value) and lowest < value <= highest):
        raise CodecError(f"{number(value)} is not above {number(lowest)} and at most {number(highest)}")
    return value


def _integer(match: re.Match[str], level: int | None) -> Codec:
    bits, span, block = int(match[1]), match[2] or "channel", int(match[3] or 0)
    if bits not in BITS:
        raise CodecError(f"{bits} bits; choose from {', '.join(map(str, BITS))}")
    if span.startswith("block") and block not in BLOCKS:
        raise CodecError(f"blocks of {block}; choose from {', '.join(map(str, BLOCKS))}")
    return Integer(bits, "block" if block else span, block, symmetric=match[4] is not None, level=level)


def _raw(_: re.Match[str], level: int | None) -> Codec:
    return Raw() if level is None else Zstd(level)


def _bounded(match: re.Match[str], level: int | None) -> Codec:
    bound = _float(match, 0.0, 1e300)
    return Bounded(bound, number(bound), relative=match[3] is not None, level=level or LEVEL)


def _topk(match: re.Match[str], level: int | None) -> Codec:
    share = _float(match, 0.0, 1.0)
    return TopK(share, number(share), match[3] or "", level=level or LEVEL)


def _dct(match: re.Match[str], level: int | None) -> Codec:
    if not 1 <= int(match[1]) <= 100:
        raise CodecError(f"quality {int(match[1])} is not from 1 to 100")
    return Dct(int(match[1]), level=level or LEVEL)


FORMS: tuple[Form, ...] = (
    Form("raw", "the bytes as they are", re.compile("raw"), _raw),
    Form("zstd[<level>]", "lossless: shuffled, zeros left out, as a sample decides; levels 1 to 19", re.compile("zstd"), _raw),
    Form("fp16[+zstd[<level>]]", "IEEE half precision; clipped to +-65504", re.compile("fp16"),
         lambda _, level: Fp16(level)),
    Form("bf16[+zstd[<level>]]", "bfloat16: 8 significant bits, the range of float32", re.compile("bf16"),
         lambda _, level: Bf16(level)),
    Form("int8[+zstd<level>]", "affine 8 bits per channel around an exact zero, then zstd", re.compile("int8"),
         lambda _, level: Int8(level or LEVEL)),
    Form("int<8|6|4|3|2>/<tensor|channel|block<16..1024>>[/sym][+zstd[<level>]]",
         "few bits, affine or symmetric, clipped for the least squared error, bit-packed",
         re.compile(r"int([0-9]{1,3})(?:/(tensor|channel|block([0-9]{1,5})))?(/sym)?"), _integer),
    Form("eb<bound>[rel][+zstd<level>]", "no finite element farther off than the bound, absolute or times the range; zstd",
         re.compile(rf"eb{_NUMBER}(rel)?"), _bounded),
    Form("topk<share>[/<fp16|bf16>][+zstd<level>]", "the share of largest magnitude, the rest zero; zstd",
         re.compile(rf"topk{_NUMBER}(?:/(fp16|bf16))?"), _topk),
    Form("uint8[+zstd<level>]", "images as the 256 levels a channel that they had, predicted like a PNG; zstd", re.compile("uint8"),
         lambda _, level: Uint8(level or LEVEL)),
    Form("dct<1..100>[+zstd<level>]", "images, JPEG-like at this quality; zstd", re.compile(r"dct([0-9]{1,3})"), _dct),
)  # fmt: skip
"""All forms, in the order of :func:`catalogue`; the first whose pattern fits counts."""
