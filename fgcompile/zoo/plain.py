"""Models in plain PyTorch: convolutions, torch's own attention, mixers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgcompile.zoo.registry import Entry, register


class AttentionBlock(nn.Module):
    """Self-attention of torch, a gated MLP and a head."""

    def __init__(self, width: int = 32, heads: int = 4, hidden: int = 96) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.gate = nn.Linear(width, hidden)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return self.head(x.mean(dim=1))


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1, with batch norms and a projected shortcut."""

    def __init__(self, inputs: int, hidden: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.spread = nn.Conv2d(hidden, hidden, 3, padding=1, groups=groups)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.expand = nn.Conv2d(hidden, outputs, 1)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.reduce(x)), inplace=True)
        y = F.relu(self.norm2(self.spread(y)))
        return F.relu(self.norm3(self.expand(y)) + self.shortcut(x))


class ResidualNet(nn.Module):
    """Stem, max pooling, plain, grouped and depthwise bottlenecks, average, head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.blocks = nn.Sequential(
            Bottleneck(16, 8, 32, groups=1),
            Bottleneck(32, 16, 32, groups=4),
            Bottleneck(32, 16, 48, groups=16),
        )
        self.average = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(48, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.stem(pixels)), inplace=True))
        return self.head(torch.flatten(self.average(self.blocks(x)), 1))


class ConvNextBlock(nn.Module):
    """Depthwise 7x7, layer norm over channels, MLP, layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 3 * width)
        self.down = nn.Linear(3 * width, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """Patchify, two stages with a strided convolution between, head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 4, stride=4),
            ConvNextBlock(16),
            nn.GroupNorm(1, 16),
            nn.Conv2d(16, 32, 2, stride=2),
            ConvNextBlock(32),
        )
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(pixels).mean(dim=(-2, -1))))


class SuperResolution(nn.Module):
    """Convolutions whose channels become pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 5, padding=2)
        self.second = nn.Conv2d(16, 24, 3, padding=1)
        self.third = nn.Conv2d(24, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, pixels: Tensor) -> Tensor:
        x = torch.tanh(self.second(F.leaky_relu(self.first(pixels), 0.1)))
        return self.shuffle(self.third(x))


class Mlp(nn.Module):
    """Two linear maps around an activation, with dropout."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.drop = nn.Dropout(0.1)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.drop(F.gelu(self.up(x))))


class MixerBlock(nn.Module):
    """Mixes tokens, then channels."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.tokens = nn.LayerNorm(width), Mlp(tokens, 24)
        self.norm2, self.channels = nn.LayerNorm(width), Mlp(width, 96)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """Patches, mixer blocks, mean over tokens, head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, stride=4)
        self.blocks = nn.Sequential(MixerBlock(16, 32), MixerBlock(16, 32))
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


def _encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        32, 4, 96, activation="gelu", batch_first=True, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _sequence() -> dict[str, Any]:
    return {"x": torch.randn(2, 11, 32)}


def _source() -> dict[str, Any]:
    return {"src": torch.randn(2, 11, 32)}


def _image() -> dict[str, Any]:
    return {"pixels": torch.randn(2, 3, 16, 16)}


register(Entry("torch-encoder", lambda: _encoder(False), _source))
register(Entry("torch-encoder:norm-first", lambda: _encoder(True), _source))
register(Entry("torch-attention", AttentionBlock, _sequence))
register(Entry("plain-resnet", ResidualNet, _image))
register(Entry("plain-convnext", ConvNext, _image))
register(Entry("plain-pixel-shuffle", SuperResolution, _image))
register(Entry("plain-mixer", Mixer, _image))
