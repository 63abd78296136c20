"""The largest elements beside a sort, and the two ways to say where they were."""

import math
import struct

import numpy as np
import pytest
import torch
from codec_tensors import FLOATS, KINDS, as_numpy, assert_same_bits, checked, overlaps, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinfer import codecs
from splitinfer.errors import CodecError

FORMS = {"": None, "/fp16": torch.float16, "/bf16": torch.bfloat16}


def clipped(values, dtype):
    largest = torch.finfo(dtype).max
    return values.float().clamp(-largest, largest).to(dtype) if values.dtype != torch.float64 else values.clamp(-largest, largest).to(dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", ["0.01", "0.1", "0.5", "1"])
@settings(checked, max_examples=50)
@given(tensor=tensors(dtypes=FLOATS, kinds=KINDS))
def test_the_largest_come_back_and_the_rest_is_zero(form, share, tensor):
    codec = codecs.get(f"topk{share}{form}")
    got = codec.decode(codec.encode(tensor))
    if tensor.numel() == 0 or not np.isfinite(as_numpy(tensor)).all():
        return assert_same_bits(got, tensor)
    if overlaps(tensor) or 0 in tensor.stride():
        return None  # the elements that are stored are other ones than those that are seen
    x, y = as_numpy(tensor).reshape(-1), as_numpy(got).reshape(-1)
    kept = math.ceil(float(share) * len(x))
    order = np.argsort(-np.abs(x), kind="stable")
    threshold = np.abs(x[order[kept - 1]])
    half = FORMS[form] if tensor.dtype in (torch.float32, torch.float64) else None
    exact = as_numpy(tensor if half is None else clipped(tensor.contiguous(), half).to(tensor.dtype)).reshape(-1)
    larger = np.abs(x) > threshold
    assert (y[larger] == exact[larger]).all()
    assert (y[np.abs(x) < threshold] == 0).all()
    equal = np.abs(x) == threshold
    assert np.isin(y[equal], [0, *exact[equal]]).all()
    assert np.count_nonzero(y) <= kept
    if half is None:
        assert np.count_nonzero(y) == min(kept, np.count_nonzero(x))
    return None


def test_among_equals_the_first_are_kept():
    tensor = torch.tensor([1.0, -1, 3, 1, 0, -1, 1, 0])
    codec = codecs.get("topk0.5")
    assert codec.decode(codec.encode(tensor)).tolist() == [1, -1, 3, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(("share", "bitmap"), [("0.5", True), ("0.001", False)])
def test_positions_take_the_smaller_form(share, bitmap):
    tensor = torch.randn(1, 16, 64, 64, generator=torch.Generator().manual_seed(0))
    data = codecs.get(f"topk{share}").encode(tensor)
    kept, nbytes, width = struct.unpack_from("<QQB", data, 48 + 16)
    assert kept == math.ceil(float(share) * tensor.numel())
    assert (width == 0) == bitmap
    assert nbytes < tensor.numel() / 8 * 1.01
    assert torch.count_nonzero(codecs.get(f"topk{share}").decode(data)) == kept


def test_bytes_follow_the_share():
    tensor = torch.randn(1, 16, 64, 64)
    for share in (0.01, 0.05, 0.1, 0.3):
        nbytes = len(codecs.get(f"topk{share}/fp16").encode(tensor))
        entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)  # bits a position takes at least
        assert nbytes < 200 + tensor.numel() * (1.25 * entropy / 8 + 2 * share)


@checked
@given(st.integers(1, 5000), st.floats(0.0001, 1), st.integers(0, 2**32 - 1))
def test_any_gaps(count, share, seed):
    rng = np.random.default_rng(seed)
    values = np.zeros(count, np.float32)
    values[rng.integers(0, count, 1 + count // 500)] = 1
    codec = codecs.get(f"topk{share:.4f}")
    got = codec.decode(codec.encode(torch.from_numpy(values))).numpy()
    kept = math.ceil(float(f"{share:.4f}") * count)
    assert (np.flatnonzero(got) == np.flatnonzero(values)[:kept]).all()


def test_positions_that_do_not_fit_are_refused():
    codec, tensor = codecs.get("topk0.01"), torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    data = bytearray(codec.encode(tensor))
    kept, nbytes, width = struct.unpack_from("<QQB", data, 16 + 16)
    assert width == 2
    for field in ((kept + 1, nbytes, width), (kept, nbytes + 1, width), (kept, nbytes, 0), (kept, nbytes, 3), (1 << 63, nbytes, width)):
        struct.pack_into("<QQB", data, 32, *field)
        with pytest.raises(CodecError):
            codec.decode(data)
    struct.pack_into("<QQB", data, 32, kept, nbytes, width)
    struct.pack_into("<Q", data, 8, 50_000)  # a shorter tensor: some positions lie behind its end
    with pytest.raises(CodecError, match="positions mark"):
        codec.decode(data)
