"""Small models, each with one thing that capture could get wrong."""

import torch
from torch import nn


class InPlaceThroughViews(nn.Module):
    """Writes through views of an activation, whose later readers must see it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 8)

    def forward(self, x):
        seen = self.relu(self.norm(self.conv(x)))
        seen = self.relu(seen + self.relu(seen))
        pooled = seen.mean((2, 3)) * torch.tensor([2.0])
        left, _ = pooled.chunk(2, 1)
        left += 1
        pooled[:, 0] = 5
        return self.head(pooled), pooled


class Counter(nn.Module):
    """A buffer that changes at every call, between stateless layers."""

    def __init__(self):
        super().__init__()
        self.before = nn.Linear(4, 4)
        self.middle = nn.Linear(4, 4)
        self.after = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        x = self.before(x).relu()
        self.calls += 1
        self.mean.mul_(0.9).add_(x.mean(0) * 0.1)
        x = self.middle(x)
        return self.after(x * self.calls + self.mean).tanh()


class Feedback(nn.Module):
    """Reads a buffer early and writes it late: what lies between belongs together."""

    def __init__(self):
        super().__init__()
        self.before, self.middle, self.after = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("memory", torch.zeros(4))

    def forward(self, x):
        x = self.middle(self.before(x) + self.memory)
        self.memory.copy_(x.mean(0))
        return self.after(x)


class Branching(nn.Module):
    """Control flow as an operator with subgraphs."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.end = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.cond(x.sum() > 0, lambda x: self.one(x) + 1, lambda x: self.two(x) - 1, (x,))
        return self.end(x.relu())


class PassesThrough(nn.Module):
    """Returns its input, a constant, a number and a nested structure."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x, scale=2, *, mask=None, extra=None):
        y = self.linear(x) * scale
        if mask is not None:
            y = torch.where(mask, y, torch.zeros_like(y))
        return {"x": x, "y": [y, (y + self.table, self.table * 2)], "rows": x.shape[0], "name": 3, "none": None}


class DataDependentSize(nn.Module):
    """The number of rows behind `keep` follows from the data."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.one(x)
        keep = x[:, 0] > 0
        return self.two(x[keep]).relu()


class DataDependentFlow(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), IfPositive())

    def forward(self, x):
        return self.inner(x)


class IfPositive(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleDict({"noise": AddsNoise()})

    def forward(self, x):
        return self.blocks["noise"](x)


class AddsNoise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class WritesInput(nn.Module):
    def forward(self, x):
        x += 1
        return x * 2


class Recurrent(nn.Module):
    """GRU, bidirectional, with its final state returned."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(8, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        y, state = self.gru(x)
        return self.out(y), state


class Spectral(nn.Module):
    """Complex activations and a cut through non-contiguous tensors."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(9, 4)

    def forward(self, x):
        spectrum = torch.fft.rfft(self.one(x))
        return self.two(spectrum.abs().transpose(-1, -2).transpose(-1, -2))


class SlicedAttention(nn.Module):
    """Query, key and value are slices of one projection: their strides have gaps."""

    def __init__(self, width=32, heads=4):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attend = Attend()

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(self.attend(q, k, v).transpose(1, 2).reshape(batch, length, width))


class Attend(nn.Module):
    def forward(self, q, k, v):
        return nn.functional.scaled_dot_product_attention(q, k, v)


def made(kind, *args, **kwargs):
    torch.manual_seed(0)
    return kind(*args, **kwargs).eval()
