"""Groups of a convolution keep equally many channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgcompile.lowering import lower


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.mix = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.spread(x).relu())


def closed(*channels: int) -> tuple[Grouped, Tensor]:
    torch.manual_seed(0)
    model, x = Grouped().eval(), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        model.mix.weight[:, list(channels)] = 0
    return model, x


def test_the_fullest_group_decides() -> None:
    model, x = closed(0, 1, 2, 7)  # one channel is left of group 0, three of group 1
    lowered = lower(model, example_inputs=(x,))
    assert lowered.model.spread.weight.shape == (6, 2, 3, 3)
    assert torch.allclose(lowered(x), model(x), atol=1e-6)


def test_equally_many_channels_go_from_each_group() -> None:
    model, x = closed(0, 2, 5, 6)
    lowered = lower(model, example_inputs=(x,))
    assert lowered.model.spread.weight.shape == (4, 2, 3, 3)
    assert torch.allclose(lowered(x), model(x), atol=1e-6)
