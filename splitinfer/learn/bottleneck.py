"""A bottleneck: a small trained encoder and decoder at a cut, so that a narrow tensor crosses the link.

::

    producer --(64 channels)--> bottleneck.encode --(16 channels)--> bottleneck.decode --(64 channels)--> consumers
                                                        the cut

Both are linear maps of the channels at each position (1x1 convolutions, or linear layers on the last dimension), the
decoder with a ReLU where the tensor is never negative. They start from the principal components of the channels, the best
linear map by squared error (Eckart and Young, 1936), and are then trained so that the *model's answers* stay, with
everything else frozen: distillation at a split as in Matsubara et al., "Distilled Split Deep Neural Networks for
Edge-Assisted Real-Time Systems" (2019) and "BottleFit" (2022). During training the narrow tensor gets uniform noise of one
step of the integer codec that will carry it, which stands for rounding and has gradients (Ballé et al., "End-to-end
Optimized Image Compression", ICLR 2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional
from tqdm import tqdm

from splitinfer.errors import CutError, PlanError
from splitinfer.graph import Graph
from splitinfer.learn import files
from splitinfer.learn.editing import GraphEditor, LayerWriter
from splitinfer.learn.halves import Batch, Halves, Samples, checked, fits, weights_digest
from splitinfer.learn.matching import check_match, mismatch, relative

_FEW = 32  # values below which the integer codecs share one scale among all channels
_WEIGHTS = ("encode_weight", "encode_bias", "decode_weight", "decode_bias")
_FACTS: dict[str, type | tuple[type, ...]] = {
    "fingerprint": str, "digest": str, "tensor": str, "axis": int, "rectified": bool, "bits": int, "first_loss": float, "last_loss": float,
}


@dataclass(frozen=True)
class Bottleneck:
    """A trained encoder and decoder for one tensor of one model. Made by :func:`train_bottleneck`."""

    fingerprint: str
    """Of the graph that it was trained for."""
    digest: str
    """Of the weights of that graph."""
    tensor: str
    """The tensor that it makes narrow."""
    axis: int
    """The dimension of the channels: 1 or -1."""
    rectified: bool
    """Whether the decoder ends in a ReLU."""
    bits: int
    """Of the integer codec that it was trained for."""
    first_loss: float
    """Of all samples before training, from principal components alone."""
    last_loss: float
    """Of all samples after training."""
    encode_weight: Tensor
    """(narrow, channels) float32."""
    encode_bias: Tensor
    """(narrow,) float32."""
    decode_weight: Tensor
    """(channels, narrow) float32."""
    decode_bias: Tensor
    """(channels,) float32."""

    @property
    def channels(self) -> int:
        """Channels of the narrow tensor."""
        return len(self.encode_bias)

    @property
    def layers(self) -> tuple[str, str]:
        """The names of the two layers: a cut behind the first sends the narrow tensor."""
        return f"bottleneck.{self.tensor}.encode", f"bottleneck.{self.tensor}.decode"

    def apply(self, graph: Graph) -> Graph:
        """The graph with two more layers, to be profiled, planned, verified and deployed like any other.

        Raises CutError where the bottleneck was trained for another graph or other weights.
        """
        fits(graph, self.fingerprint, self.digest, f"the bottleneck at '{self.tensor}'")
        spec = graph.tensors[checked(graph, self.tensor)]
        width = spec.shape[self.axis]
        if (len(self.decode_bias), tuple(self.encode_weight.shape)) != (width, (self.channels, width)):
            raise CutError(f"the bottleneck has weights for {len(self.decode_bias)} channels; '{self.tensor}' has {width}")
        encode, decode = self.layers
        dtype = getattr(torch, spec.dtype)
        editor = GraphEditor(graph)
        first = editor.layer(encode, self.tensor, [spec.producer])
        narrow = self._linear(first, first.source, self.encode_weight.to(dtype), self.encode_bias.to(dtype))
        first.done([narrow])
        second = editor.layer(decode, narrow.name, [encode])
        restored = self._linear(second, narrow, self.decode_weight.to(dtype), self.decode_bias.to(dtype))
        if self.rectified:
            restored = second.call(torch.ops.aten.relu.default, restored, name=f"{decode}.relu")
        second.done([restored])
        editor.redirect(self.tensor, restored.name)
        return editor.finish()

    def _linear(self, layer: LayerWriter, source: fx.Node, weight: Tensor, bias: Tensor) -> fx.Node:
        rank = source.meta["val"].dim()
        held = layer.weight("weight", _shaped(weight, self.axis, rank)), layer.weight("bias", bias)
        return layer.call(_operator(self.axis, rank), source, *held, name=layer.name)

    def save(self, path: str | Path) -> None:
        """Write the bottleneck's file (docs/learned-compression.md)."""
        files.save(self.pack(), path)

    def pack(self) -> bytes:
        """The file's bytes."""
        facts = {key: getattr(self, key) for key in _FACTS}
        return files.pack("bottleneck", facts, {name: getattr(self, name) for name in _WEIGHTS})

    @staticmethod
    def load(path: str | Path) -> Bottleneck:
        """Read a bottleneck's file; runs no code of it. Raises PlanError, which says what is wrong."""
        return Bottleneck.unpack(files.load(path, "bottleneck"), path)

    @staticmethod
    def unpack(data: bytes, path: str | Path) -> Bottleneck:
        """A bottleneck from its file's bytes; `path` is for errors, which are those of `load`."""
        made = Bottleneck(**files.unpack(data, "bottleneck", _FACTS, _WEIGHTS, path))
        narrow, wide = made.encode_bias.numel(), made.decode_bias.numel()
        shapes = [tuple(getattr(made, name).shape) for name in _WEIGHTS]
        dtypes = {getattr(made, name).dtype for name in _WEIGHTS}
        if shapes != [(narrow, wide), (narrow,), (wide, narrow), (wide,)] or dtypes != {torch.float32} or not 0 < narrow < wide:
            raise PlanError(f"malformed bottleneck {path}: weights of shapes {shapes} and {sorted(map(str, dtypes))}")
        if made.axis not in (1, -1):
            raise PlanError(f"malformed bottleneck {path}: 'axis' is {made.axis}")
        return made

    def __str__(self) -> str:
        wide = len(self.decode_bias)
        return (
            f"bottleneck at '{self.tensor}': {wide} -> {self.channels} channels for int{self.bits}, "
            f"loss {self.first_loss:.3g} from principal components, {self.last_loss:.3g} trained"
        )


def train_bottleneck(
    graph: Graph,
    tensor: str,
    samples: Iterable[Any],
    channels: int | None = None,
    *,
    bits: int = 8,
    labels: Sequence[int] | Tensor | None = None,
    axis: int | None = None,
    match: str = "auto",
    steps: int = 300,
    batch: int = 32,
    rate: float = 3e-3,
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
) -> Bottleneck:
    """Train an encoder and a decoder for one tensor between layers; the model's own weights stay as they are.

    `samples` are calls of the model, each a tensor, a tuple of arguments, a dictionary of keyword arguments, or both as a
    pair; samples of one shape are joined where the graph's batch is dynamic. `channels`: of the narrow tensor, default a
    quarter. `axis`: where the channels are, default 1 for (batch, channels, height, width) and volumes, -1 otherwise;
    say -1 for channels-last maps. `match`: how answers are compared, "kl" for logits, "cosine", "mse" relative to the
    answer's mean square, "auto" by the answer's shape (see ``learn.matching``). `labels`, one for each row, add the
    cross-entropy of a single result of logits. `bits`: of the integer codec that will carry the narrow tensor. `rate`: of
    Adam, falling to 0 over `steps` along a cosine. Equal arguments and `seed` give equal weights on one machine.

    Raises CutError where no bottleneck fits (unknown tensor, integers, a result, a dynamic number of channels, a stateful
    model), InputError for samples that do not fit the graph.
    """
    check_match(match)
    axis = _axis(graph, checked(graph, tensor), axis)
    width = graph.tensors[tensor].shape[axis]
    if not isinstance(width, int) or width < 2:
        raise CutError(f"'{tensor}' has {width} channels in dimension {axis}; a bottleneck needs a fixed number above 1")
    narrow = max(1, width // 4) if channels is None else channels
    if not 0 < narrow < width:
        raise CutError(f"cannot narrow the {width} channels of '{tensor}' to {narrow}; choose 1 to {width - 1}")
    halves, given = Halves(graph, tensor, device), Samples(graph, samples, labels)
    if labels is not None and len(halves.results) != 1:
        raise CutError(f"labels need a single result; {graph.name} has {list(halves.results)}")
    trainer = _Trainer(halves, given, axis, bits, match, seed)
    trainer.start(narrow)
    first = trainer.loss_of_all()
    trainer.train(steps, batch, rate, progress)
    made = dict(zip(_WEIGHTS, (weight.detach().cpu() for weight in trainer.weights), strict=True))
    return Bottleneck(
        graph.fingerprint, weights_digest(graph), tensor, axis, trainer.rectified, bits, first, trainer.loss_of_all(), **made
    )


class _Trainer:
    """Principal components first, then Adam on encoder and decoder alone."""

    def __init__(self, halves: Halves, samples: Samples, axis: int, bits: int, match: str, seed: int) -> None:
        self.halves, self.samples, self.axis, self.bits, self.match = halves, samples, axis, bits, match
        self.random = torch.Generator().manual_seed(seed)
        self.weights: list[Tensor] = []
        self.rectified = False

    def start(self, narrow: int) -> None:
        """Encoder and decoder from the mean and the covariance of the channels over all samples."""
        count, total, square, least = 0, torch.zeros(()), torch.zeros(()), math.inf
        for batch in self.samples.all():
            rows = self.halves.before(batch)[self.halves.tensor].movedim(self.axis, -1).flatten(0, -2).double()
            count, total, square = count + len(rows), total.to(rows.device) + rows.sum(0), square.to(rows.device) + rows.T @ rows
            least = min(least, float(rows.min()))
        mean = total / count
        basis = torch.linalg.eigh(square / count - torch.outer(mean, mean))[1][:, -narrow:].flip(1).float()
        mean = mean.float()
        self.rectified = least >= 0
        self.weights = [t.contiguous().requires_grad_() for t in (basis.T.clone(), -(basis.T @ mean), basis.clone(), mean.clone())]

    def train(self, steps: int, batch: int, rate: float, progress: bool) -> None:
        optimiser = torch.optim.Adam(self.weights, lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
        for _ in tqdm(range(steps), desc="training the bottleneck", disable=not progress, leave=False):
            chosen = torch.randperm(len(self.samples), generator=self.random)[:batch].tolist()
            parts = self.samples.batches(chosen)
            # Of these weights alone: the model's own must not be marked.
            gradients = [torch.autograd.grad(self._loss(part), self.weights) for part in parts]
            for weight, *each in zip(self.weights, *gradients, strict=True):
                weight.grad = torch.stack(each).mean(0)
            optimiser.step()
            schedule.step()

    def loss_of_all(self) -> float:
        """Without gradients, over all samples; its noise is drawn anew."""
        with torch.no_grad():
            losses = [float(self._loss(batch)) for batch in self.samples.all()]
        return sum(losses) / len(losses)

    def _loss(self, batch: Batch) -> Tensor:
        values = self.halves.before(batch)
        full = values[self.halves.tensor]
        with torch.no_grad():
            taught = self.halves.behind(values, batch)
        encode_weight, encode_bias, decode_weight, decode_bias = self.weights
        operator = _operator(self.axis, full.dim())
        narrow = operator(full.float(), _shaped(encode_weight, self.axis, full.dim()), encode_bias)
        restored = operator(narrow + self._rounding(narrow), _shaped(decode_weight, self.axis, full.dim()), decode_bias)
        restored = (restored.relu() if self.rectified else restored).to(full.dtype)
        answers = self.halves.behind(values | {self.halves.tensor: restored}, batch)
        loss = mismatch(answers, taught, self.match) + relative(restored.float(), full.float())
        if batch.labels is not None:
            (logits,) = answers.values()
            loss = loss + functional.cross_entropy(logits.float(), batch.labels.to(logits.device))
        return loss

    def _rounding(self, narrow: Tensor) -> Tensor:
        """Uniform noise of one step of the integer codec, each request by itself, as it will be sent."""
        values = narrow.detach()
        kept = {0, 1 if values.dim() > 3 else values.dim() - 1}  # the codec's channels
        if values[0].numel() < _FEW * values.shape[max(kept)]:
            kept = {0}
        inner = [dimension for dimension in range(values.dim()) if dimension not in kept]
        low, high = (values.amin(inner, keepdim=True), values.amax(inner, keepdim=True)) if inner else (values, values)
        step = (high.clamp_min(0) - low.clamp_max(0)) / (2**self.bits - 1)  # the codec's range holds an exact zero
        drawn = torch.rand(values.shape, generator=self.random).to(values.device)
        return torch.mul(drawn - 0.5, step)


def _axis(graph: Graph, tensor: str, axis: int | None) -> int:
    rank = len(graph.tensors[tensor].shape)
    if rank < 2 or axis not in (None, 1, -1) or (axis == 1 and rank not in (4, 5)):
        raise CutError(f"'{tensor}' has {rank} dimensions; a bottleneck takes axis 1 of maps and volumes, or the last of two and more")
    return axis if axis is not None else 1 if rank in (4, 5) else -1


def _shaped(weight: Tensor, axis: int, rank: int) -> Tensor:
    """The matrix as the operator takes it: a 1x1 kernel has a dimension for each of the map's."""
    return weight.reshape(*weight.shape, *[1] * (rank - 2)) if axis == 1 else weight


def _operator(axis: int, rank: int) -> torch._ops.OpOverload:
    aten = torch.ops.aten
    found = aten.linear.default if axis == -1 else {4: aten.conv2d.default, 5: aten.conv3d.default}[rank]
    assert isinstance(found, torch._ops.OpOverload)
    return found


