"""Zeros that other tools left are eliminated without any gate of ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from fgcompile import lower
from tests.gates.models import bert


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class ConvNet(nn.Module):
    """Two convolutions with batch norms that have seen data, and a classifier."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.after = nn.Conv2d(8, 6, 3, padding=padding), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 2)
        self(torch.randn(8, 3, 9, 9))
        nn.init.uniform_(self.norm.bias, 0.1, 0.5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.head(self.after(self.second(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("padding", [0, 1])
def test_pruned_channels_go_where_no_padding_tells_them_apart(
    padding: int, attached: bool
) -> None:
    # A zero channel leaves its batch norm as a constant other than zero, which a
    # padded convolution sees inside but not at the border.
    model = ConvNet(padding)
    prune.ln_structured(model.first, "weight", amount=0.5, n=2, dim=0)
    if not attached:
        prune.remove(model.first, "weight")
    x = torch.randn(2, 3, 9, 9)
    lowered = lower(model, example_inputs=(x,))
    shapes = [tuple(p.shape) for p in lowered.model.parameters()]
    kept = 8 if padding else 4
    assert (kept, 3, 3, 3) in shapes
    assert (6, kept, 3, 3) in shapes
    x = torch.randn(5, 3, 9, 9)
    torch.testing.assert_close(lowered(x), model(x), atol=1e-5, rtol=1e-5)


def test_scattered_zeros_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16))
    weights = [(model[0], "weight"), (model[2], "weight")]
    prune.global_unstructured(weights, prune.L1Unstructured, amount=0.3)
    x = torch.randn(4, 16)
    lowered = lower(model, example_inputs=(x,))
    assert count(lowered.model) == 24 * 16 + 24 + 16 * 24 + 16
    torch.testing.assert_close(lowered(x), model(x))


@torch.no_grad()
def test_head_whose_output_columns_are_zero_goes_whole() -> None:
    model = bert().eval()
    attention: Any = model.bert.encoder.layer[0].attention
    attention.output.dense.weight[:, 8:16] = 0  # the second of four heads
    inputs = {"input_ids": torch.randint(0, 50, (3, 7))}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    lowered = lower(model, example_inputs=inputs)
    rows = [*range(8), *range(16, 32)]
    for name in ("query", "key", "value"):
        weight = f"bert.encoder.layer.0.attention.self.{name}.weight"
        assert lowered.program.kept[weight][0].tolist() == rows
    want = model(**inputs).logits
    torch.testing.assert_close(lowered(**inputs)["logits"], want, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_zero_rows_with_a_bias_move_into_the_next_layer() -> None:
    model: Any = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 3))
    model[0].weight[2:5] = 0
    assert bool((model[0].bias[2:5] != 0).all())
    x = torch.randn(4, 6)
    lowered = lower(model, example_inputs=(x,))
    assert count(lowered.model) == 6 * 6 + 6 + 3 * 6 + 3
    torch.testing.assert_close(lowered(x), model(x))
