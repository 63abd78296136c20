"""How long a tensor takes when it is encoded, sent and decoded in pieces, so that the three overlap. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

Piece = tuple[float, float, float]
"""Seconds to encode, bytes on the wire, seconds to decode. What ends a decode as a whole counts to the last piece."""


def overlapped_s(pieces: Sequence[Piece], s_per_byte: Sequence[float]) -> float:
    """Seconds from the start of encoding to the end of decoding, over links in a row, each paying `s_per_byte`.

    Encoder, links and decoder each take the pieces in order, one at a time, and a piece enters one when it has left the
    one before: a flow shop without waiting for places. Latencies of the links are left out; they delay all pieces alike.
    """
    free = [0.0] * (len(s_per_byte) + 2)
    for encode_s, nbytes, decode_s in pieces:
        ready = 0.0
        for place, seconds in enumerate([encode_s, *(nbytes * rate for rate in s_per_byte), decode_s]):
            ready = free[place] = max(ready, free[place]) + seconds
    return free[-1]


def median_piece(runs: Sequence[Sequence[Piece]]) -> tuple[Piece, ...]:
    """Each piece with the medians of its times over several runs of the same tensor."""
    from statistics import median

    return tuple((median(p[0] for p in same), same[0][1], median(p[2] for p in same)) for same in zip(*runs, strict=True))
