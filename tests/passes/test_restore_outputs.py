"""Callers see outputs of the width they had; constants are put back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgcompile.passes.eliminate_dead_dims import eliminate_dead_dims
from fgcompile.passes.pipeline import eliminate
from tests.passes.check import assert_equal, check_pass, program_of, shapes, zero

X = torch.linspace(-1, 1, 2 * 3 * 4).view(2, 3, 4)


class Hidden(nn.Module):
    """Returns the hidden units, and what is made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.up(x).sigmoid()
        return self.down(hidden), hidden


def test_constants_are_put_back_at_an_output() -> None:
    model = Hidden()
    zero(model.up.weight, 0, 4)
    zero(model.down.weight, 0, 4, dim=1)
    check_pass(
        eliminate_dead_dims,
        program_of(model, X),
        """\
before
x: [s0 s1 4 float64] = input
linear: [s0 s1 6 float64] = linear(x, up.weight, up.bias)
sigmoid: [s0 s1 6 float64] = sigmoid(linear)
linear_1: [s0 s1 2 float64] = linear(sigmoid, down.weight, down.bias)
return linear_1, sigmoid

after
x: [s0 s1 4 float64] = input
linear: [s0 s1 4 float64] = linear(x, up.weight, up.bias)
sigmoid: [s0 s1 4 float64] = sigmoid(linear)
linear_1: [s0 s1 2 float64] = linear(sigmoid, down.weight, down.bias)
constant_pad_nd_default: [s0 s1 5 float64] = constant_pad_nd(sigmoid, [0, 1])
index_select_default: [s0 s1 6 float64] = index_select(constant_pad_nd_default, 2, index_0)
add_tensor: [s0 s1 6 float64] = add(index_select_default, values_0)
return linear_1, add_tensor
""",  # noqa: E501
    )


def test_zeros_are_put_back_at_an_output() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    zero(model[0].weight, 1, 2)
    zero(model[0].bias, 1, 2)
    check_pass(
        eliminate_dead_dims,
        program_of(model, X),
        """\
before
input_1: [s0 s1 4 float64] = input
linear: [s0 s1 6 float64] = linear(input_1, 0.weight, 0.bias)
relu: [s0 s1 6 float64] = relu(linear)
return relu

after
input_1: [s0 s1 4 float64] = input
linear: [s0 s1 4 float64] = linear(input_1, 0.weight, 0.bias)
relu: [s0 s1 4 float64] = relu(linear)
constant_pad_nd_default: [s0 s1 5 float64] = constant_pad_nd(relu, [0, 1])
index_select_default: [s0 s1 6 float64] = index_select(constant_pad_nd_default, 2, index_0)
return index_select_default
""",  # noqa: E501
    )


def test_output_of_constants_alone_keeps_its_shape() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid())
    zero(model[0].weight, *range(6))
    program = program_of(model, X)
    lowered = eliminate(program)
    assert_equal(program, lowered)


def test_row_that_only_an_output_sees_stays_if_it_varies() -> None:
    model = Hidden()
    zero(model.down.weight, 0, 4, dim=1)
    program = program_of(model, X)
    lowered = eliminate(program)
    assert shapes(lowered)["up.weight"] == [6, 4]
    assert_equal(program, lowered)


class Rows(nn.Module):
    """Every row of the batch as one long row of units."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x).sigmoid().flatten(1)


def test_units_are_put_back_in_a_dim_that_holds_the_length_too() -> None:
    for units in ((1, 4), range(6)):
        model = Rows()
        zero(model.up.weight, *units)
        program = program_of(model, X)
        lowered = eliminate(program)
        assert_equal(program, lowered)
        assert shapes(lowered) != shapes(program)
