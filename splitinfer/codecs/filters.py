"""Reversible rearrangements that make bytes compress better: byte and bit shuffle, bit packing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinfer.codecs.block import Buffer

Bytes = NDArray[np.uint8]
_LANES = 8  # a 64-bit word holds eight bytes
_TILE = 1 << 17  # codes packed at a time


def shuffled(data: Buffer, itemsize: int) -> memoryview:
    """First bytes of all elements, then all second bytes, and so on: exponents lie beside exponents."""
    return _memory(np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(-1, itemsize).T))


def unshuffled(data: Buffer, itemsize: int) -> memoryview:
    """The inverse of :func:`shuffled`."""
    planes = np.frombuffer(data, np.uint8).reshape(itemsize, -1)
    items = np.empty(planes.shape[::-1], np.uint8)
    for place, plane in enumerate(planes):  # a third of the time of a transpose, whose inner loop would be `itemsize` long
        items[:, place] = plane
    return _memory(items)


def bitshuffled(data: Buffer, itemsize: int) -> memoryview:
    """First bits of all elements, then all second bits, and so on (Masui et al., Astronomy and Computing 12, 2015).

    Bits count from the lowest of byte 0. The elements behind the last multiple of eight follow as they are.
    """
    count = len(data) // itemsize // _LANES * _LANES
    planes = np.frombuffer(shuffled(memoryview(data)[: count * itemsize], itemsize), np.uint64)
    bits = _transposed(planes).view(np.uint8).reshape(itemsize, -1, _LANES).transpose(0, 2, 1)
    return _memory(np.concatenate((bits.reshape(-1), np.frombuffer(data, np.uint8)[count * itemsize :])))


def unbitshuffled(data: Buffer, itemsize: int) -> memoryview:
    """The inverse of :func:`bitshuffled`."""
    count = len(data) // itemsize // _LANES * _LANES
    bits = np.frombuffer(data, np.uint8)[: count * itemsize].reshape(itemsize, _LANES, -1).transpose(0, 2, 1)
    planes = _transposed(np.ascontiguousarray(bits).reshape(-1).view(np.uint64))
    items = np.frombuffer(unshuffled(planes.view(np.uint8).data, itemsize), np.uint8)
    return _memory(np.concatenate((items, np.frombuffer(data, np.uint8)[count * itemsize :])))


def _transposed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each word as 8 x 8 bits, transposed (Warren, Hacker's Delight, 2nd edition, section 7-3)."""
    words = words.copy()
    for shift, mask in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0)):
        swap = (words ^ (words >> np.uint64(shift))) & np.uint64(mask)
        words ^= swap
        words ^= swap << np.uint64(shift)
    return words


def packed_nbytes(count: int, bits: int) -> int:
    """Bytes of `count` codes of `bits` bits."""
    return -(-count * bits // 8)


def pack_bits(codes: Bytes, bits: int) -> Bytes:
    """Codes below 2**bits as one string of bits: code i at bits i x bits and up, counted from the lowest of byte 0."""
    if bits == 8:
        return codes
    packed = np.empty(-(-len(codes) // _LANES) * bits, np.uint8)
    for start in range(0, len(codes), _TILE):  # temporaries stay in the cache
        tile = codes[start : start + _TILE]
        if len(tile) % _LANES:
            tile = np.concatenate((tile, np.zeros(-len(tile) % _LANES, np.uint8)))
        words = tile.view(np.uint64)
        for width in (2, 4, 8):  # pairs, then fours, then all eight of a word move together
            shift, low = np.uint64((8 - bits) * width // 2), _lanes(width, width // 2 * bits)
            words = words & low | words >> shift & low << np.uint64(width // 2 * bits)
        space = packed[start // _LANES * bits : (start + len(tile)) // _LANES * bits]
        space.reshape(-1, bits)[:] = words.view(np.uint8).reshape(-1, _LANES)[:, :bits]
    return packed[: packed_nbytes(len(codes), bits)]


def unpack_bits(packed: Bytes, bits: int, count: int) -> Bytes:
    """The inverse of :func:`pack_bits`."""
    if bits == 8:
        return packed
    codes = np.zeros((-(-count // _LANES), _LANES), np.uint8)
    for start in range(0, len(codes), _TILE // _LANES):
        lanes = codes[start : start + _TILE // _LANES]
        part = packed[start * bits : (start + len(lanes)) * bits]
        if len(part) < len(lanes) * bits:
            part = np.concatenate((part, np.zeros(len(lanes) * bits - len(part), np.uint8)))
        lanes[:, :bits] = part.reshape(-1, bits)
        words = lanes.reshape(-1).view(np.uint64)
        for width in (8, 4, 2):
            shift, low = np.uint64((8 - bits) * width // 2), _lanes(width, width // 2 * bits)
            words[:] = words & low | words << shift & low << np.uint64(4 * width)
    return codes.reshape(-1)[:count]


def _lanes(width: int, bits: int) -> np.uint64:
    """A mask of the lowest `bits` bits of each group of `width` bytes."""
    return np.uint64(sum(((1 << bits) - 1) << 8 * start for start in range(0, _LANES, width)))


def _memory(array: NDArray[Any]) -> memoryview:
    return array.data.cast("B") if array.size else memoryview(b"")
