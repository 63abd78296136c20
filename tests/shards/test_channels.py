"""Output channels, then input channels: linear layers, convolutions and what stands between them."""

import pytest
import torch
from division import SHARES, check_module, found_by
from hypothesis import strategies as st
from torch import nn

from splitinfer import capture
from splitinfer.errors import ShardError
from splitinfer.shards import Exchange, apportion, divide, units


def rounds(block):
    """Exchanges of the block, and the tensors that each combines on the root."""
    return [[combine.how for combine in exchange.combines] for exchange in block.programs[block.root].exchanges]


@found_by(st.integers(2, 13), st.booleans(), SHARES)
def test_a_pair_of_linear_layers_needs_one_sum(width, bias, shares):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, width, bias), nn.GELU(), nn.Linear(width, 4, bias), nn.Tanh())
    block = check_module(model, (torch.randn(3, 6, 5),), "channels", shares)
    assert sum(block.shares) == width
    assert rounds(block) == [["sum"]]


@found_by(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), SHARES)
def test_groups_stay_together(groups, per_group, multiplier, shares):
    """1x1, depthwise, grouped and normalised by groups, 1x1: units of whole groups, one sum."""
    torch.manual_seed(0)
    wide = 2 * groups * per_group
    model = nn.Sequential(
        nn.Conv2d(3, wide, 1), nn.BatchNorm2d(wide), nn.ReLU6(), nn.Conv2d(wide, wide * multiplier, 3, padding=1, groups=wide),
        nn.GroupNorm(2 * groups, wide * multiplier), nn.Conv2d(wide * multiplier, wide, 1, groups=2 * groups), nn.Hardswish(),
        nn.Conv2d(wide, 5, 1),
    )  # fmt: skip
    block = check_module(model, (torch.randn(2, 3, 6, 5),), "channels", shares)
    assert all(share % per_group == 0 for share in block.shares)
    assert rounds(block) == [["sum"]]


def test_a_lone_layer_is_gathered():
    for model in (nn.Linear(5, 7), nn.Conv2d(5, 7, 3), nn.Conv2d(6, 9, 3, groups=3), nn.Sequential(nn.Conv1d(5, 7, 3), nn.ReLU())):
        size = {nn.Linear: (4, 5), nn.Conv2d: (2, 6 if getattr(model, "groups", 1) == 3 else 5, 8, 9)}.get(type(model), (2, 5, 9))
        block = check_module(model, (torch.randn(size),), "channels", [2, 3, 1])
        assert rounds(block) == [["concatenate"]]


class Gated(nn.Module):
    """SwiGLU with a fused projection, a residual, and a squeeze of the gate."""

    def __init__(self):
        super().__init__()
        self.both, self.down, self.norm = nn.Linear(6, 22), nn.Linear(11, 6), nn.LayerNorm(6)

    def forward(self, x):
        gate, up = self.both(self.norm(x)).chunk(2, -1)
        return x + self.down(nn.functional.silu(gate) * up)


def test_a_fused_gate_is_divided_in_both_halves():
    torch.manual_seed(0)
    block = check_module(Gated(), (torch.randn(2, 3, 6),), "channels", [3, 1, 2])
    assert block.shares == (10, 4, 8)  # both halves count
    assert rounds(block) == [["sum"]]
    weights = {name: tensor.shape for name, tensor in block.programs[1].stages[0].module.named_parameters() if tensor.dim() == 2}
    assert sorted(weights.values()) == [(4, 6), (6, 2)]


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.down, self.up, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        y = torch.relu(self.wide(x))
        scale = torch.sigmoid(self.up(torch.relu(self.down(y.mean((2, 3), keepdim=True)))))
        return self.out(y * scale)


def test_squeeze_excite_merges_the_axes_of_both_branches():
    torch.manual_seed(0)
    block = check_module(SqueezeExcite(), (torch.randn(2, 3, 5, 5),), "channels", [1, 2])
    assert rounds(block) == [["sum"], ["sum"]]


class Odd(nn.Module):
    """What the rules do not know is gathered: norms over channels, products of branches that lie differently, LSTM."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.norm, self.lstm = nn.Linear(6, 12), nn.Linear(6, 12), nn.LayerNorm(12), nn.LSTM(12, 4, batch_first=True)

    def forward(self, x):
        a, b = self.one(x), self.two(x)
        mixed = torch.cat([a, b.flip(1)], -1).view(2, 3, 4, 6).sum(2)
        return self.lstm(self.norm(a) * b.roll(1, -1))[0], mixed, torch.einsum("bsd,bse->bde", a, b)


def test_what_is_not_known_stays_right():
    torch.manual_seed(0)
    check_module(Odd(), (torch.randn(2, 3, 6),), "channels", [1, 2, 2])


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_an_all_reduce_moves_as_little_as_a_ring(count):
    """2 (p - 1) / p of the tensor leaves each worker, in one round among two and in two rounds among more."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 60), nn.ReLU(), nn.Linear(60, 60), nn.Tanh(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 5))
    graph = capture(model.eval(), (torch.randn(3, 5),))
    block = divide(graph, graph.layers, "channels", [1] * count)
    sums = block.programs[1].exchanges[: 1 if count == 2 else 2]
    whole = {0: 60, 1: 60 / count}  # what a worker has when it sends all of it: its summand, then its slice of the sum
    sent = sum(send.stop - send.start if send.dim is not None else whole[number] for number, step in enumerate(sums) for send in step.sends)
    assert sent == 60 * 2 * (count - 1) / count
    assert len(block.programs[1].exchanges) == len(sums) + 1


def test_each_worker_holds_its_share_of_the_weights():
    model = nn.Sequential(nn.Linear(10, 40), nn.GELU(), nn.Linear(40, 10)).eval()
    graph = capture(model, (torch.randn(2, 10),))
    block = divide(graph, graph.layers, "channels", [20, 15, 5])
    assert [program.weight_nbytes for program in block.programs.values()] == [
        4 * (share * (10 + 1 + 10) + (10 if worker == 0 else 0)) for worker, share in enumerate(block.shares)
    ]


def test_units_and_exact_shares():
    graph = capture(nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, groups=3)).eval(), (torch.randn(1, 3, 8, 8),))
    found = units(graph, graph.layers, "channels")
    assert (found.count, found.granularity) == (12, 4)
    assert divide(graph, graph.layers, "channels", [8, 0, 4]).shares == (8, 0, 4)
    assert divide(graph, graph.layers, "channels", [2, 1]).shares == (8, 4)
    assert apportion((12, 4), [1, 1, 1, 1]) == (4, 4, 4, 0)
    assert apportion(found, [5, 3, 2]) == (4, 4, 4)


def test_workers_without_a_share_are_left_out():
    graph = capture(nn.Linear(4, 6).eval(), (torch.randn(2, 4),))
    block = divide(graph, graph.layers, "channels", [0, 2, 0, 4])
    assert (block.workers, block.root) == ((1, 3), 1)
    assert {part.source for combine in block.programs[1].exchanges[0].combines for part in combine.parts} == {1, 3}


@pytest.mark.parametrize(
    ("shares", "axis", "reason"),
    [
        ([], "channels", "zero or more"),
        ([0, 0], "channels", "above zero"),
        ([1, -1], "channels", "zero or more"),
        ([1, 1], "depth", "no axis"),
    ],
)
def test_why_not(shares, axis, reason):
    graph = capture(nn.Linear(4, 6).eval(), (torch.randn(2, 4),))
    with pytest.raises(ShardError, match=reason):
        divide(graph, graph.layers, axis, shares)


def test_nothing_to_divide():
    graph = capture(nn.Sequential(nn.ReLU(), nn.Linear(4, 1)).eval(), (torch.randn(2, 4),))
    with pytest.raises(ShardError, match="one unit"):
        divide(graph, graph.layers, "channels", [1, 1])
    with pytest.raises(ShardError, match="no layer 'nought'"):
        divide(graph, ["nought"], "channels", [1, 1])


def test_a_malformed_exchange_is_refused():
    graph = capture(nn.Linear(4, 6).eval(), (torch.randn(2, 4),))
    plain = divide(graph, graph.layers, "channels", [1, 1]).programs[0].exchanges[0].to_dict()
    assert Exchange.from_dict(plain).to_dict() == plain
    for broken in (
        {},
        {**plain, "sends": 3},
        {**plain, "combines": [{**plain["combines"][0], "how": "multiply"}]},
        {**plain, "worker": "x"},
    ):
        with pytest.raises(ShardError):
            Exchange.from_dict(broken)
