"""Rows of single operators and small networks against the unsplit operator, at every shape that hypothesis finds."""

import pytest
import torch
from division import SHARES, check_module, found_by
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from splitinfer.errors import ShardError
from splitinfer.shards.window_rules import Kernel


def image(height, width=7, channels=4, batch=2):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(height * 31 + width))


@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 5), st.integers(1, 3), st.integers(0, 40), st.integers(1, 20))
def test_rows_that_a_window_reads(size, stride, before, dilation, start, count):
    read = [row * stride - before + tap * dilation for row in range(start, start + count) for tap in range(size)]
    assert Kernel(size, stride, before, dilation).need((start, start + count)) == (min(read), max(read) + 1)


@found_by(
    st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(2, 29), SHARES
)
def test_convolution(size, stride, padding, dilation, groups, height, shares):
    made = (height + 2 * padding - dilation * (size - 1) - 1) // stride + 1
    assume(made >= 2)
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, (size, 3), (stride, 1), (padding, 1), (dilation, 1), groups)
    check_module(nn.Sequential(layer, nn.BatchNorm2d(8), nn.SiLU()), (image(height),), "rows", shares)


@found_by(
    st.sampled_from(["max", "avg", "avg_counted", "avg_divided"]),
    st.integers(2, 5),
    st.integers(1, 4),
    st.integers(0, 2),
    st.booleans(),
    st.integers(2, 23),
    SHARES,
)
def test_pooling(kind, size, stride, padding, ceil, height, shares):
    padding = min(padding, size // 2)
    pool = {
        "max": lambda: nn.MaxPool2d(size, stride, padding, 1, ceil_mode=ceil),
        "avg": lambda: nn.AvgPool2d(size, stride, padding, ceil, False),
        "avg_counted": lambda: nn.AvgPool2d(size, stride, padding, ceil, True),
        "avg_divided": lambda: nn.AvgPool2d(size, stride, padding, ceil, True, 3),
    }[kind]()
    made = pool(image(height, 9)).shape[2] if height + 2 * padding >= size else 0
    assume(made >= 2)
    check_module(pool, (image(height, 9) - 3.0,), "rows", shares)  # all below zero: a zero padding would win


@found_by(st.integers(0, 3), st.integers(0, 5), st.sampled_from([0.0, -1.5]), st.integers(2, 12), SHARES, st.sets(st.sampled_from("012")))
def test_explicit_padding(above, below, value, height, shares, after):
    """Also where a worker's rows are nothing but padding, which then has nothing to read."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ConstantPad2d((1, 2, above, below), value), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    check_module(model, (image(height),), "rows", shares, exchange_after=after)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 6, 5, padding=2)
        self.skip, self.up = nn.Conv2d(4, 6, 1), nn.Upsample(scale_factor=3)
        self.scale = nn.Parameter(torch.rand(1, 4, 1, 1))
        self.pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x):
        y = torch.relu(self.one(x)) + x * self.scale
        both = torch.cat([self.two(y), self.skip(x)], 1)
        first, second = both.chunk(2, 1)
        return self.up(self.pool(first * torch.sigmoid(second))), y


@found_by(st.integers(3, 40), SHARES, st.booleans())
def test_branches_residuals_and_two_outputs(height, shares, exchange):
    torch.manual_seed(0)
    check_module(Residual(), (image(height),), "rows", shares, exchange_after=("one", "add") if exchange else ())


@found_by(st.integers(8, 40), SHARES, st.lists(st.sampled_from([f"{place}" for place in range(5)]), unique=True))
def test_halos_exchanged_or_computed_twice(height, shares, after):
    torch.manual_seed(0)
    chain = nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 3, stride=1 + (place == 2), padding=1), nn.ReLU()) for place in range(5)))
    check_module(chain, (image(height),), "rows", shares, exchange_after=[f"{place}.1" for place in after])


class ChannelsLast(nn.Module):
    """A ConvNeXt block: norm and linear layers over channels at the end."""

    def __init__(self):
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(4, 4, 7, padding=3, groups=4), nn.LayerNorm(4)
        self.wide, self.narrow = nn.Linear(4, 16), nn.Linear(16, 4)

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.narrow(nn.functional.gelu(self.wide(y))).permute(0, 3, 1, 2)


def test_channels_last_and_one_dimension():
    torch.manual_seed(0)
    check_module(ChannelsLast(), (image(13),), "rows", [2, 3, 1])
    signal = nn.Sequential(nn.Conv1d(4, 8, 5, stride=2, padding=2), nn.GELU(), nn.MaxPool1d(3, 2, 1))
    check_module(signal, (torch.randn(2, 4, 37),), "rows", [2, 3, 1])
    check_module(nn.Conv2d(4, 4, 3, padding="same"), (image(9),), "rows", [1, 1, 1])
    check_module(nn.Sequential(nn.Conv2d(4, 4, 3)), (image(30),), "rows", [1, 1], dynamic="batch")


def test_a_worker_without_a_last_row_works_before_it():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(4), nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(2))
    block = check_module(model, (image(16, 16),), "rows", [1, 1, 1], exchange_after=["1"])
    assert (block.shares, block.workers) == ((1, 1, 0), (0, 1, 2))
    assert check_module(model, (image(16, 16),), "rows", [1, 1, 1]).workers == (0, 1)


def test_a_worker_with_nothing_but_padding():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ConstantPad2d((0, 0, 0, 4), 0.0), nn.Conv2d(4, 4, 1))
    for after in ((), "0", "1", "01"):
        check_module(model, (image(2),), "rows", [1, 1, 1], exchange_after=after)


def test_padding_wider_than_the_kernel():
    check_module(nn.Conv2d(4, 4, 3, padding=4), (image(5),), "rows", [1] * 11)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(2)), "adaptive_avg_pool2d"),
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.Flatten()), "flattens the rows"),
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)), "group_norm"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")), "padding by reflect"),
        (nn.Linear(7, 7), "neither convolutions nor pooling"),
        (nn.Conv2d(4, 4, 9), "one row"),
    ],
)
def test_why_not(model, reason):
    with pytest.raises(ShardError, match=reason):
        check_module(model, (image(9, 9),) if not isinstance(model, nn.Linear) else (image(9, 7),), "rows", [1, 1])
