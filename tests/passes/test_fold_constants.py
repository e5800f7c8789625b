"""What depends on weights alone is stored: masks of other tools leave zeros."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from fgcompile.capture import capture
from fgcompile.passes.fold_constants import fold_constants
from fgcompile.passes.pipeline import eliminate
from tests.passes.check import (
    assert_equal,
    check_pass,
    check_unchanged,
    program_of,
    shapes,
)

X = torch.linspace(-1, 1, 8).view(2, 4).double()


def mlp() -> Any:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()


def pruned(model: Any, remove: bool) -> Any:
    """Half of the hidden units masked by PyTorch's own pruning."""
    prune.ln_structured(model[0], "weight", amount=0.5, n=2, dim=0)
    dead = model[0].weight_mask[:, 0] == 0
    prune.custom_from_mask(model[0], "bias", (~dead).to(X))
    if remove:
        prune.remove(model[0], "weight")
        prune.remove(model[0], "bias")
    return model


def test_mask_of_another_tool_is_multiplied_once() -> None:
    check_pass(
        fold_constants,
        capture(pruned(mlp(), remove=False), (X,)),
        """\
before
input_1: [s0 4 float64] = input
mul: [8 4 float64] = mul(0.weight_mask, 0.weight_orig)
mul_1: [8 float64] = mul(0.bias_mask, 0.bias_orig)
linear: [s0 8 float64] = linear(input_1, mul, mul_1)
relu: [s0 8 float64] = relu(linear)
linear_1: [s0 2 float64] = linear(relu, 2.weight, 2.bias)
return linear_1

after
input_1: [s0 4 float64] = input
linear: [s0 8 float64] = linear(input_1, 0.weight_orig_0, 0.bias_orig_0)
relu: [s0 8 float64] = relu(linear)
linear_1: [s0 2 float64] = linear(relu, 2.weight, 2.bias)
return linear_1
""",
    )


@pytest.mark.parametrize("remove", [True, False], ids=["removed", "attached"])
def test_units_that_another_tool_pruned_are_gone(remove: bool) -> None:
    program = program_of(pruned(mlp(), remove), X)
    lowered = eliminate(program)
    sizes = sorted(map(tuple, shapes(lowered).values()))
    assert sizes == [(2,), (2, 4), (4,), (4, 4)]
    assert_equal(program, lowered)


def test_pruned_columns_take_the_rows_before_them() -> None:
    model = mlp()
    prune.ln_structured(model[2], "weight", amount=3, n=1, dim=1)
    program = program_of(model, X)
    lowered = eliminate(program)
    assert shapes(lowered)["0.weight"] == [5, 4]
    assert_equal(program, lowered)


def test_biases_that_pruning_left_are_still_exact() -> None:
    model = mlp()
    prune.ln_structured(model[0], "weight", amount=0.5, n=2, dim=0)
    program = program_of(model, X)
    lowered = eliminate(program)
    assert sorted(map(tuple, shapes(lowered).values()))[-1] == (4, 4)
    assert_equal(program, lowered)


def test_plain_weights_have_nothing_to_fold() -> None:
    check_unchanged(fold_constants, capture(mlp(), (X,)))


class Grown(nn.Module):
    """An outer product of two small weights."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(4, 1).double())
        self.right = nn.Parameter(torch.randn(1, 4).double())

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.left * self.right)


def test_what_would_take_more_space_is_still_computed() -> None:
    check_unchanged(fold_constants, capture(Grown(), (X,)))
