"""Model factories for demos, tests and benchmarks: ``splitinfer verify splitinfer.zoo:resnet50``.

A factory takes no arguments and returns ``(model, args, kwargs)``: a module in evaluation mode and one sample call.
All weights are random except those of :func:`splitinfer.demo.trained_digits`. The families from `transformers` need the
extra ``models``; they are built from configurations, so nothing is fetched. Sizes marked "small" keep the family's
structure and shrink its widths, so that a test over every family stays affordable on two cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from splitinfer.errors import MissingExtra

Sample = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
"""What a factory returns: the module, positional arguments, keyword arguments."""


class DigitsCNN(nn.Module):
    """Three convolutions and two linear layers for 8x8 grey digits: (batch, 1, 8, 8) float32 -> (batch, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images))
        return logits


class DigitsViT(nn.Module):
    """A small vision transformer on 8x8 digits: blocks of width 64 over the 16 patches of 2 x 2 pixels.

    (batch, 1, 8, 8) -> (batch, 10).
    """

    def __init__(self, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, stride=2)
        self.places = nn.Parameter(torch.zeros(1, 16, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def until(self, cut: int, images: Tensor) -> Tensor:
        """What block `cut` takes: (batch, 16, width)."""
        tokens: Tensor = self.embed(images).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks[:cut]:
            tokens = block(tokens)
        return tokens.contiguous()

    def onward(self, cut: int, tokens: Tensor) -> Tensor:
        """The rest, from block `cut`."""
        for block in self.blocks[cut:]:
            tokens = block(tokens)
        logits: Tensor = self.head(self.norm(tokens).mean(1))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the ten digits."""
        return self.onward(0, self.until(0, images))


class TwoInputsTied(nn.Module):
    """Two inputs (float and integer), three outputs, and a projection tied to the embedding."""

    def __init__(self, vocabulary: int = 97, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.image = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.ReLU(inplace=True), nn.Conv2d(width, width, 3))
        self.mix = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("offset", torch.linspace(-1, 1, width))

    def forward(self, pixels: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        seen = self.image(pixels)
        mixed = self.embed(tokens).mean(1) + seen.mean((2, 3)) + self.offset
        for layer in self.mix:
            mixed = mixed + torch.tanh(layer(mixed))
        return {"logits": self.head(mixed), "mixed": mixed, "seen": seen}


class StackedLSTM(nn.Module):
    """Six recurrent layers over a real-valued sequence: (batch, steps, 16) -> (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(16, 48)
        self.layers = nn.ModuleList(nn.LSTM(48, 48, batch_first=True) for _ in range(6))
        self.outlet = nn.Linear(48, 4)

    def forward(self, series: Tensor) -> Tensor:
        state = self.inlet(series)
        for layer in self.layers:
            state, _ = layer(state)
        answer: Tensor = self.outlet(state[:, -1])
        return answer


class VGG16(nn.Module):
    """VGG-16: thirteen 3x3 convolutions in five groups, and three linear layers. (batch, 3, 224, 224) -> (batch, 1000).

    `width` scales the channels (1 is the published 64 to 512), `size` is that of the image.
    """

    def __init__(self, width: float = 1.0, size: int = 224, labels: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for count, wide in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            for _ in range(count):
                layers += [nn.Conv2d(channels, int(wide * width), 3, padding=1), nn.ReLU(inplace=True)]
                channels = int(wide * width)
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        hidden = int(4096 * width)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * (size // 32) ** 2, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Dropout(), nn.Linear(hidden, labels),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images))
        return logits


class InceptionLike(nn.Module):
    """Branches of unequal kernels that are concatenated, as in Inception: 1x1, 5x5, two 3x3, 1x7 and 7x1, pooling.

    (batch, 3, height, width) -> (batch, 10), any height and width from 19.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 16, 3, stride=2), _conv(16, 24, 3, padding=1), nn.MaxPool2d(3, 2, ceil_mode=True))
        self.branches = nn.ModuleList([
            _conv(24, 16, 1),
            nn.Sequential(_conv(24, 12, 1), _conv(12, 16, 5, padding=2)),
            nn.Sequential(_conv(24, 16, 1), _conv(16, 24, 3, padding=1), _conv(24, 24, 3, padding=2, dilation=2)),
            nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), _conv(24, 8, 1)),
        ])  # fmt: skip
        self.wide = nn.Sequential(_conv(64, 32, (1, 7), padding=(0, 3)), _conv(32, 32, (7, 1), padding=(3, 0)))
        self.reduce, self.pool = _conv(96, 48, 3, stride=2), nn.MaxPool2d(3, 2)
        self.head = nn.Linear(144, 10)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.stem(images)
        mixed = torch.cat([branch(seen) for branch in self.branches], 1)
        wide = torch.cat([mixed, self.wide(mixed)], 1)
        small = torch.cat([self.reduce(wide), self.pool(wide)], 1)
        logits: Tensor = self.head(small.mean((2, 3)))
        return logits


def _conv(channels: int, filters: int, size: int | tuple[int, int], **settings: Any) -> nn.Module:
    """Convolution, batch norm with statistics that are not trivial, and ReLU."""
    norm = nn.BatchNorm2d(filters)
    nn.init.uniform_(norm.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
    nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return nn.Sequential(nn.Conv2d(channels, filters, size, bias=False, **settings), norm, nn.ReLU())


def _image(size: int = 224, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def _tokens(vocabulary: int, length: int = 24, batch: int = 1) -> Tensor:
    return torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(1))


def _family(config: str, model: str, **settings: Any) -> nn.Module:
    """A random-weight model of `transformers` in evaluation mode, the same weights at every call."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", extra="models") from error
    torch.manual_seed(0)
    built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
    return built.eval()


def digits() -> Sample:
    """The digits CNN, untrained, on one 8x8 image."""
    torch.manual_seed(0)
    return DigitsCNN().eval(), (torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1)),), {}


def two_inputs_tied() -> Sample:
    """Two inputs, three outputs, tied weights."""
    torch.manual_seed(0)
    return TwoInputsTied().eval(), (_image(32), _tokens(97, 12)), {}


def lstm() -> Sample:
    """Six LSTM layers of width 48 over 20 steps."""
    torch.manual_seed(0)
    return StackedLSTM().eval(), (torch.randn(1, 20, 16, generator=torch.Generator().manual_seed(1)),), {}


def mobilenet_v2() -> Sample:
    """MobileNetV2 at full size, 224x224."""
    model = _family("MobileNetV2Config", "MobileNetV2ForImageClassification", num_labels=1000)
    return model, (), {"pixel_values": _image()}


def vgg16() -> Sample:
    """VGG-16 at full size, 224x224: 138 million weights."""
    torch.manual_seed(0)
    return VGG16().eval(), (_image(),), {}


def vgg16_small() -> Sample:
    """VGG-16 with an eighth of the channels, 64x64."""
    torch.manual_seed(0)
    return VGG16(0.125, 64, 100).eval(), (_image(64),), {}


def inception() -> Sample:
    """An Inception-like network on one 75x75 image."""
    torch.manual_seed(0)
    return InceptionLike().eval(), (_image(75),), {}


_RESNET18: Mapping[str, Any] = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}


def resnet18() -> Sample:
    """ResNet-18 at full size, 224x224."""
    model = _family("ResNetConfig", "ResNetForImageClassification", num_labels=1000, **_RESNET18)
    return model, (), {"pixel_values": _image()}


def resnet50() -> Sample:
    """ResNet-50 at full size, 224x224."""
    model = _family("ResNetConfig", "ResNetForImageClassification", num_labels=1000)
    return model, (), {"pixel_values": _image()}


def vit() -> Sample:
    """ViT, small: 6 layers of width 192, 112x112 images."""
    model = _family("ViTConfig", "ViTForImageClassification", hidden_size=192, num_hidden_layers=6,
                    num_attention_heads=3, intermediate_size=768, image_size=112, num_labels=100)
    return model, (), {"pixel_values": _image(112)}


def bert() -> Sample:
    """BERT, small: 4 layers of width 128, with an attention mask."""
    model = _family("BertConfig", "BertForSequenceClassification", hidden_size=128, num_hidden_layers=4,
                    num_attention_heads=4, intermediate_size=512, vocab_size=1000, num_labels=3)
    tokens = _tokens(1000)
    return model, (), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def gpt2() -> Sample:
    """GPT-2, small: 4 layers of width 128, no cache."""
    model = _family("GPT2Config", "GPT2LMHeadModel", n_embd=128, n_layer=4, n_head=4, vocab_size=1000, use_cache=False)
    return model, (), {"input_ids": _tokens(1000)}


def llama() -> Sample:
    """Llama, small: 4 layers of width 128, 8 heads on 2 key-value groups, no cache."""
    model = _family("LlamaConfig", "LlamaForCausalLM", hidden_size=128, num_hidden_layers=4, num_attention_heads=8,
                    num_key_value_heads=2, intermediate_size=352, vocab_size=1000, use_cache=False)
    return model, (), {"input_ids": _tokens(1000)}


def whisper() -> Sample:
    """Whisper, small: 2 encoder and 2 decoder layers of width 64, 1500 audio frames."""
    model = _family("WhisperConfig", "WhisperForConditionalGeneration", d_model=64, encoder_layers=2, decoder_layers=2,
                    encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128,
                    vocab_size=500, num_mel_bins=80, use_cache=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                    decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None)
    audio = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(1))
    return model, (), {"input_features": audio, "decoder_input_ids": _tokens(500, 12)}


def t5() -> Sample:
    """T5, small: 2 encoder and 2 decoder layers of width 64."""
    model = _family("T5Config", "T5ForConditionalGeneration", d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
                    vocab_size=500, use_cache=False, decoder_start_token_id=0)
    return model, (), {"input_ids": _tokens(500, 16), "decoder_input_ids": _tokens(500, 10)}


FAMILIES = (resnet18, resnet50, mobilenet_v2, vit, bert, gpt2, llama, whisper, t5, lstm, two_inputs_tied, digits)
"""Every family that the equality of split and whole is shown on."""
