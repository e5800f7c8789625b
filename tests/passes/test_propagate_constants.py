"""A hidden unit that is the same for every input moves into the next bias."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgcompile.passes.eliminate_dead_dims import eliminate_dead_dims
from fgcompile.passes.pipeline import eliminate
from fgcompile.passes.propagate_constants import propagate_constants
from tests.passes.check import (
    assert_equal,
    check_pass,
    check_unchanged,
    program_of,
    shapes,
    zero,
)


def mlp(act: nn.Module, bias: bool = True) -> Any:
    return nn.Sequential(nn.Linear(3, 5, bias=bias), act, nn.Linear(5, 2, bias=bias))


def test_activation_of_a_bias_moves_into_the_next_bias() -> None:
    model = mlp(nn.GELU())
    zero(model[0].weight, 1, 4)
    want = model[2].weight[:, [1, 4]] @ nn.functional.gelu(model[0].bias[[1, 4]])
    want = (model[2].bias + want).detach().double()
    program = program_of(model, torch.randn(2, 3))
    check_pass(
        propagate_constants,
        program,
        """\
before
input_1: [s0 3 float64] = input
linear: [s0 5 float64] = linear(input_1, 0.weight, 0.bias)
gelu: [s0 5 float64] = gelu(linear)
linear_1: [s0 2 float64] = linear(gelu, 2.weight, 2.bias)
return linear_1

after
input_1: [s0 3 float64] = input
linear: [s0 5 float64] = linear(input_1, 0.weight, 0.bias)
gelu: [s0 5 float64] = gelu(linear)
linear_1: [s0 2 float64] = linear(gelu, 2.weight, 2.bias)
return linear_1
""",
    )
    bias = dict(program.graph_module.named_parameters())["2.bias"]
    torch.testing.assert_close(bias.detach(), want, atol=1e-6, rtol=0)
    assert eliminate_dead_dims(program)
    assert shapes(program)["0.weight"] == [3, 3]
    assert shapes(program)["2.weight"] == [2, 3]


def test_reader_without_bias_gets_one() -> None:
    model = mlp(nn.Sigmoid(), bias=False)
    zero(model[0].weight, 2)
    check_pass(
        propagate_constants,
        program_of(model, torch.randn(2, 3)),
        """\
before
input_1: [s0 3 float64] = input
linear: [s0 5 float64] = linear(input_1, 0.weight)
sigmoid: [s0 5 float64] = sigmoid(linear)
linear_1: [s0 2 float64] = linear(sigmoid, 2.weight)
return linear_1

after
input_1: [s0 3 float64] = input
linear: [s0 5 float64] = linear(input_1, 0.weight)
sigmoid: [s0 5 float64] = sigmoid(linear)
linear_1: [s0 2 float64] = linear(sigmoid, 2.weight, 2.bias_0)
return linear_1
""",
    )


def test_zeros_that_stay_zeros_need_no_bias() -> None:
    model = mlp(nn.GELU(), bias=False)
    zero(model[0].weight, 2)
    check_unchanged(propagate_constants, program_of(model, torch.randn(2, 3)))


def test_units_that_vary_stay() -> None:
    check_unchanged(
        propagate_constants, program_of(mlp(nn.Sigmoid()), torch.ones(2, 3))
    )


def test_convolution_takes_the_constant_of_a_channel() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softplus(), nn.Conv2d(4, 2, 3))
    zero(model[0].weight, 3)
    check_pass(
        propagate_constants,
        program_of(model, torch.randn(2, 3, 6, 6)),
        """\
before
input_1: [s0 3 6 6 float64] = input
conv2d: [s0 4 6 6 float64] = conv2d(input_1, 0.weight, 0.bias)
softplus: [s0 4 6 6 float64] = softplus(conv2d, 1.0, 20.0)
conv2d_1: [s0 2 4 4 float64] = conv2d(softplus, 2.weight, 2.bias)
return conv2d_1

after
input_1: [s0 3 6 6 float64] = input
conv2d: [s0 4 6 6 float64] = conv2d(input_1, 0.weight, 0.bias)
softplus: [s0 4 6 6 float64] = softplus(conv2d, 1.0, 20.0)
conv2d_1: [s0 2 4 4 float64] = conv2d(softplus, 2.weight, 2.bias)
return conv2d_1
""",
    )


def test_padded_convolution_sees_a_constant_only_inside() -> None:
    model: Any = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)
    )
    zero(model[0].weight, 3)
    nn.init.ones_(model[0].bias)
    program = program_of(model, torch.randn(2, 3, 6, 6))
    check_unchanged(propagate_constants, program)
    check_unchanged(eliminate_dead_dims, program)


class Twice(nn.Module):
    """One layer reads a constant unit in one place and a varying one in another."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.other = nn.Linear(3, 4), nn.Linear(3, 4)
        self.down = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).sigmoid()) * self.down(self.other(x))


def test_shared_reader_is_left_alone() -> None:
    model = Twice()
    zero(model.up.weight, 1)
    check_unchanged(propagate_constants, program_of(model, torch.randn(2, 3)))


@pytest.mark.parametrize("act", [nn.Sigmoid(), nn.ReLU(), nn.Tanh(), nn.Softplus()])
@pytest.mark.parametrize("bias", [True, False])
def test_constant_units_vanish_whatever_the_activation(
    act: nn.Module, bias: bool
) -> None:
    model = mlp(act, bias)
    zero(model[0].weight, 0, 3)
    program = program_of(model, torch.randn(2, 3))
    reference = program.copy()
    propagate_constants(program)
    assert eliminate_dead_dims(program)
    assert shapes(program)["0.weight"] == [3, 3]
    assert_equal(reference, program)


def test_constant_channels_are_no_columns_of_a_layer_that_mixes_positions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Linear(8, 2))
    zero(model[0].weight, *range(8))
    program = program_of(model, torch.randn(2, 3, 8, 8))
    lowered = eliminate(program)
    assert_equal(program, lowered)
