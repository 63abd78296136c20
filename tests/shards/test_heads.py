"""Attention by heads: separate and fused projections, groups of keys and values, rotary embeddings, explicit and fused softmax."""

import math

import pytest
import torch
from division import check_module
from torch import nn

from splitinfer import capture
from splitinfer.errors import ShardError
from splitinfer.shards import divide, units


class Attention(nn.Module):
    """Every common way to write it; `heads` queries on `groups` keys and values of `size`."""

    def __init__(self, heads=6, groups=6, size=8, form="fused", projection="separate"):
        super().__init__()
        self.heads, self.groups, self.size, self.form, self.projection = heads, groups, size, form, projection
        width = 12
        if projection == "separate":
            self.query, self.key, self.value = (nn.Linear(width, count * size) for count in (heads, groups, groups))
        else:
            self.all = nn.Linear(width, 3 * heads * size)
        self.out = nn.Linear(heads * size, width)
        self.register_buffer("angles", torch.rand(1, 1, 5, size))
        self.bias = nn.Parameter(torch.randn(1, heads, 5, 5))

    def rotated(self, x):
        one, two = x.chunk(2, -1)
        return x * self.angles.cos() + torch.cat([-two, one], -1) * self.angles.sin()

    def projected(self, x):
        batch, length, _ = x.shape
        if self.projection == "separate":
            pairs = ((self.query, self.heads), (self.key, self.groups), (self.value, self.groups))
            return [layer(x).view(batch, length, count, self.size).transpose(1, 2) for layer, count in pairs]
        if self.projection == "side by side":  # GPT-2
            return [part.view(batch, length, self.heads, self.size).transpose(1, 2) for part in self.all(x).chunk(3, -1)]
        if self.projection == "timm":
            return self.all(x).reshape(batch, length, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        made = self.all(x).view(batch, length, self.heads, 3, self.size)  # BLOOM: by heads, then q, k, v
        return [made[:, :, :, place].transpose(1, 2) for place in range(3)]

    def forward(self, x):
        query, key, value = self.projected(x)
        query, key = self.rotated(query), self.rotated(key)
        if self.form == "grouped":
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        else:
            repeats = self.heads // key.shape[1]
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
            if self.form == "fused":
                mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=self.bias)
            else:
                scores = query @ key.transpose(-1, -2) / math.sqrt(self.size) + self.bias
                mixed = scores.softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))


def attention_check(shares, **settings):
    torch.manual_seed(0)
    return check_module(Attention(**settings), (torch.randn(2, 5, 12),), "heads", shares)


def sums(block):
    return [[combine.how for combine in exchange.combines] for exchange in block.programs[block.root].exchanges]


@pytest.mark.parametrize("projection", ["separate", "side by side", "timm", "by heads"])
@pytest.mark.parametrize("form", ["fused", "explicit"])
def test_forms(projection, form):
    block = attention_check([1, 3, 2], form=form, projection=projection)
    assert block.shares == (1, 3, 2)
    assert sums(block) == [["sum"]], "one reduction, nothing gathered"


def test_seven_heads_on_five_workers():
    block = attention_check([5, 3, 2, 0, 4], heads=7, groups=7)
    assert sum(block.shares) == 7
    assert sums(block) == [["sum"]]


@pytest.mark.parametrize("form", ["grouped", "fused", "explicit"])
def test_shares_are_whole_groups_of_keys_and_values(form):
    model = Attention(heads=6, groups=3, form=form).eval()
    graph = capture(model, (torch.randn(2, 5, 12),))
    found = units(graph, graph.layers, "heads")
    assert (found.count, found.granularity) == (6, 2)
    block = attention_check([4, 2], heads=6, groups=3, form=form)
    assert block.shares == (4, 2)
    assert sums(block) == [["sum"]]


@pytest.mark.parametrize("form", ["grouped", "fused"])
def test_one_key_for_all_heads_is_held_by_every_worker(form):
    block = attention_check([2, 1, 3], heads=6, groups=1, form=form)
    assert sums(block) == [["sum"]]
    assert len(block.workers) == 3


def test_weights_by_heads():
    block = attention_check([2, 1, 3], projection="side by side")
    size, width = 8, 12
    for worker, program in block.programs.items():
        heads = block.shares[worker]
        matrices = 3 * heads * size * (width + 1) + heads * size * width
        tables = heads * 5 * 5 + 2 * 5 * size  # bias, cosine and sine
        assert program.weight_nbytes <= 4 * (matrices + tables + (width if worker == 0 else 0))
        assert program.weight_nbytes >= 4 * (matrices + heads * 5 * 5)


class Block(nn.Module):
    """A transformer layer of torch itself, with a fused projection in sequence-first order."""

    def __init__(self, heads=4):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, heads, batch_first=True)
        self.one, self.two, self.norm, self.last = nn.Linear(16, 24), nn.Linear(24, 16), nn.LayerNorm(16), nn.LayerNorm(16)

    def forward(self, x):
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.last(x + self.two(nn.functional.gelu(self.one(x))))


@pytest.mark.parametrize("batch", [1, 3])
def test_multi_head_attention_of_torch(batch):
    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        block = check_module(Block(), (torch.randn(batch, 5, 16),), "heads", [1, 2, 1])
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert sums(block) == [["sum"], ["concatenate"], ["sum"]]


def test_what_comes_after_the_last_sum_runs_on_the_root_only():
    torch.manual_seed(0)
    block = check_module(Block(), (torch.randn(3, 5, 16),), "heads", [1, 1])
    last = [program.stages[-1].layers for program in block.programs.values()]
    assert "last" in last[0]
    assert "last" not in last[1]
    assert "norm" in last[1], "the MLP of every worker needs the norm"


def test_attention_is_not_divided_by_channels():
    torch.manual_seed(0)
    block = check_module(Attention(), (torch.randn(2, 5, 12),), "channels", [1, 2])
    assert not any("scaled" in name for name in block.divided)


def test_no_attention_no_heads():
    graph = capture(nn.Sequential(nn.Linear(4, 4)).eval(), (torch.randn(2, 4),))
    with pytest.raises(ShardError, match="it has no attention"):
        divide(graph, graph.layers, "heads", [1, 1])
