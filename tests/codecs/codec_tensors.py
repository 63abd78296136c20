"""Tensors of every dtype, layout and kind of value, and how two of them are compared: shared by the tests of codecs."""

import itertools

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from splitinfer.codecs.block import DTYPES

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SPECIALS = {
    torch.float32: [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-40, 1.17549435e-38, 3e38, -3e38, 65504, 65519.9, 65520, -7e4, 6e-8, 1.0],
    torch.float64: [0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324, 1e-310, 1e-40, 3e38, 1e300, -1.7e308, 65519.9, -65520, 2.9e-8, 1.0],
}

checked = settings(derandomize=True, deadline=None, max_examples=150)


# -- oracles


def element_bytes(tensor):
    """The elements' bytes in row-major order, read through a fresh contiguous copy."""
    if tensor.numel() == 0:
        return b""
    fresh = torch.empty(tuple(tensor.shape), dtype=tensor.dtype)
    fresh.copy_(tensor)
    return fresh.reshape(-1).view(torch.uint8).numpy().tobytes()


def offsets(tensor):
    """The offset of each element, with broadcast dimensions counted once."""
    ranges = [range(1 if step == 0 else size) for size, step in zip(tensor.shape, tensor.stride(), strict=True)]
    return [sum(place * step for place, step in zip(places, tensor.stride(), strict=True)) for places in itertools.product(*ranges)]


def overlaps(tensor):
    found = offsets(tensor)
    return len(set(found)) < len(found)


def assert_same_bits(got, want):
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert element_bytes(got) == element_bytes(want)
    if want.numel() and not overlaps(want):
        assert got.stride() == want.stride()


def as_numpy(tensor):
    return tensor.to(torch.float64).contiguous().numpy()


def channel_axis(tensor):
    """The rule of the docstring of Int8, on the elements that are stored: broadcast dimensions count once."""
    if tensor.dim() not in (2, 3, 4, 5):
        return None
    axis = 1 if tensor.dim() >= 4 else tensor.dim() - 1
    stored = [size if step or overlaps(tensor) else 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True)]
    if stored[axis] != tensor.shape[axis]:
        return None
    return axis if np.prod(stored) / stored[axis] >= 32 else None


# -- tensors


VALUES = {
    "normal": lambda rng, count: rng.normal(size=count),
    "far from zero": lambda rng, count: 1000 + rng.normal(size=count),
    "negative": lambda rng, count: -rng.exponential(size=count) - 5,
    "outlier channel": lambda rng, count: rng.normal(size=count) * np.where(np.arange(count) % 7 == 3, 100, 1),
    "one outlier": lambda rng, count: rng.normal(size=count) + 300 * (np.arange(count) == count // 2),
    "denormal": lambda rng, count: rng.normal(size=count) * 1e-40,
    "huge": lambda rng, count: rng.normal(size=count) * 3e37,
    "levels": lambda rng, count: (rng.integers(0, 256, count) / 255 - 0.45) / 0.22,
}
"""More kinds of floating-point values, by name."""
KINDS = ("bits", "zeros", "constant", "special", "smooth", *VALUES)


def filled(dtype, count, rng, kind):
    """A flat tensor of `count` elements."""
    nbytes = count * dtype.itemsize
    if dtype is torch.bool:
        return torch.from_numpy(rng.integers(0, 2, count).astype(bool))
    if kind == "special" and dtype in SPECIALS:
        return torch.tensor(rng.choice(SPECIALS[dtype], count), dtype=dtype)
    if kind == "smooth" and dtype.is_floating_point and dtype.itemsize > 1:
        return torch.from_numpy(np.maximum(rng.normal(size=count), 0) * 3).to(dtype)
    if kind in VALUES and dtype.is_floating_point and dtype.itemsize > 1:
        return torch.from_numpy(VALUES[kind](rng, count)).to(dtype)
    data = {"bits": rng.bytes(nbytes), "constant": rng.bytes(dtype.itemsize) * count}.get(kind, bytes(nbytes))
    return torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def laid_out(tensor, layout, rng):
    """The tensor's elements, or some of them, in another layout."""
    dims = tensor.dim()
    if dims == 0:
        return tensor.expand(3, 2) if layout == "expanded" else tensor
    axis = int(rng.integers(dims))
    match layout:
        case "permuted":
            return tensor.permute(tuple(int(place) for place in rng.permutation(dims)))
        case "transposed":
            return tensor.transpose(axis, int(rng.integers(dims)))
        case "sliced":
            return tensor[(slice(None),) * axis + (slice(int(rng.integers(2)), None, int(rng.integers(1, 4))),)]
        case "expanded":
            return tensor.narrow(axis, 0, min(1, tensor.shape[axis])).expand_as(tensor) if tensor.shape[axis] else tensor
        case "offset":
            return tensor[1:]
        case "channels_last" if dims == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


@st.composite
def tensors(draw, dtypes=DTYPES, kinds=("bits", "zeros", "constant", "special", "smooth")):
    dtype = draw(st.sampled_from(dtypes))
    shape = tuple(draw(st.lists(st.sampled_from([0, 1, 1, 2, 3, 4, 7, 40]), max_size=5)))
    while np.prod(shape, dtype=int) > 3000:
        shape = tuple(max(1, size // 2) for size in shape)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tensor = filled(dtype, int(np.prod(shape, dtype=int)), rng, draw(st.sampled_from(kinds))).reshape(shape)
    for layout in draw(st.lists(st.sampled_from(["permuted", "transposed", "sliced", "expanded", "offset", "channels_last"]), max_size=2)):
        tensor = laid_out(tensor, layout, rng)
    if tensor.dim() and tensor.dim() < 5 and max(tensor.shape) >= 3 and draw(st.booleans()):
        axis = list(tensor.shape).index(max(tensor.shape))
        tensor = tensor.unfold(axis, 3, draw(st.sampled_from([1, 2, 3])))  # windows that overlap, or just do not
    return tensor
