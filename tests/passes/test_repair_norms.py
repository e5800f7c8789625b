"""Means and norms over fewer units compute what they did over all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgcompile.passes.eliminate_dead_dims import eliminate_dead_dims
from fgcompile.passes.pipeline import eliminate
from tests.passes.check import assert_equal, check_pass, program_of, shapes, zero

X = torch.linspace(-1, 1, 2 * 3 * 4).view(2, 3, 4)


class Normed(nn.Module):
    """Six units, some of them zero, through `norm` to a reader."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(4, 6), norm, nn.Linear(6, 2)
        for parameter in norm.parameters() if isinstance(norm, nn.Module) else ():
            nn.init.uniform_(parameter, 0.5, 1.5)
        zero(self.up.weight, 1, 4)
        zero(self.up.bias, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.up(x)))


class RmsNorm(nn.Module):
    """As Llama writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3))


def test_rms_norm_counts_the_units_that_went() -> None:
    check_pass(
        eliminate_dead_dims,
        program_of(Normed(nn.RMSNorm(6, eps=1e-3)), X),
        """\
before
x: [s0 s1 4 float64] = input
linear: [s0 s1 6 float64] = linear(x, up.weight, up.bias)
rms_norm: [s0 s1 6 float64] = rms_norm(linear, [6], norm.weight, 0.001)
linear_1: [s0 s1 2 float64] = linear(rms_norm, down.weight, down.bias)
return linear_1

after
x: [s0 s1 4 float64] = input
linear: [s0 s1 4 float64] = linear(x, up.weight, up.bias)
rms_norm: [s0 s1 4 float64] = rms_norm(linear, [4], norm.weight, 0.0015)
mul_tensor: [s0 s1 4 float64] = mul(rms_norm, 1.224744871391589)
linear_1: [s0 s1 2 float64] = linear(mul_tensor, down.weight, down.bias)
return linear_1
""",
    )


def test_mean_counts_the_units_that_went() -> None:
    check_pass(
        eliminate_dead_dims,
        program_of(Normed(RmsNorm()), X),
        """\
before
x: [s0 s1 4 float64] = input
linear: [s0 s1 6 float64] = linear(x, up.weight, up.bias)
pow_1: [s0 s1 6 float64] = pow(linear, 2)
mean: [s0 s1 1 float64] = mean(pow_1, [-1], True)
add: [s0 s1 1 float64] = add(mean, 0.001)
rsqrt: [s0 s1 1 float64] = rsqrt(add)
mul: [s0 s1 6 float64] = mul(linear, rsqrt)
mul_1: [s0 s1 6 float64] = mul(norm.weight, mul)
linear_1: [s0 s1 2 float64] = linear(mul_1, down.weight, down.bias)
return linear_1

after
x: [s0 s1 4 float64] = input
linear: [s0 s1 4 float64] = linear(x, up.weight, up.bias)
pow_1: [s0 s1 4 float64] = pow(linear, 2)
mean: [s0 s1 1 float64] = mean(pow_1, [-1], True)
mul_tensor: [s0 s1 1 float64] = mul(mean, 0.6666666666666666)
add: [s0 s1 1 float64] = add(mul_tensor, 0.001)
rsqrt: [s0 s1 1 float64] = rsqrt(add)
mul: [s0 s1 4 float64] = mul(linear, rsqrt)
mul_1: [s0 s1 4 float64] = mul(norm.weight, mul)
linear_1: [s0 s1 2 float64] = linear(mul_1, down.weight, down.bias)
return linear_1
""",
    )


def test_layer_norm_is_written_out_with_its_original_count() -> None:
    # What the norm makes of a zero is not zero: its readers' columns must be.
    model = Normed(nn.LayerNorm(6))
    zero(model.down.weight, 1, 4, dim=1)
    check_pass(
        eliminate_dead_dims,
        program_of(model, X),
        """\
before
x: [s0 s1 4 float64] = input
linear: [s0 s1 6 float64] = linear(x, up.weight, up.bias)
layer_norm: [s0 s1 6 float64] = layer_norm(linear, [6], norm.weight, norm.bias, 1e-05, False)
linear_1: [s0 s1 2 float64] = linear(layer_norm, down.weight, down.bias)
return linear_1

after
x: [s0 s1 4 float64] = input
linear: [s0 s1 4 float64] = linear(x, up.weight, up.bias)
sum_dim_int_list: [s0 s1 1 float64] = sum(linear, [-1], True)
div_tensor: [s0 s1 1 float64] = div(sum_dim_int_list, 6.0)
sub_tensor: [s0 s1 4 float64] = sub(linear, div_tensor)
mul_tensor: [s0 s1 4 float64] = mul(sub_tensor, sub_tensor)
sum_dim_int_list_1: [s0 s1 1 float64] = sum(mul_tensor, [-1], True)
mul_tensor_1: [s0 s1 1 float64] = mul(div_tensor, div_tensor)
mul_tensor_2: [s0 s1 1 float64] = mul(mul_tensor_1, 2.0)
add_tensor: [s0 s1 1 float64] = add(sum_dim_int_list_1, mul_tensor_2)
div_tensor_1: [s0 s1 1 float64] = div(add_tensor, 6.0)
add_tensor_1: [s0 s1 1 float64] = add(div_tensor_1, 1e-05)
rsqrt_default: [s0 s1 1 float64] = rsqrt(add_tensor_1)
mul_tensor_3: [s0 s1 4 float64] = mul(sub_tensor, rsqrt_default)
mul_tensor_4: [s0 s1 4 float64] = mul(mul_tensor_3, norm.weight)
add_tensor_2: [s0 s1 4 float64] = add(mul_tensor_4, norm.bias)
linear_1: [s0 s1 2 float64] = linear(add_tensor_2, down.weight, down.bias)
return linear_1
""",  # noqa: E501
    )


@pytest.mark.parametrize("eps", [None, 1e-6, 0.3])
def test_eps_is_scaled_like_the_mean(eps: float | None) -> None:
    program = program_of(Normed(nn.RMSNorm(6, eps=eps)), 1e-3 * X)
    lowered = eliminate(program)
    assert shapes(lowered)["norm.weight"] == [4]
    assert_equal(program, lowered)


def test_normalised_zeros_that_a_reader_sees_stay() -> None:
    program = program_of(Normed(nn.LayerNorm(6)), X)
    lowered = eliminate(program)
    assert shapes(lowered)["down.weight"] == [2, 6]
    assert_equal(program, lowered)


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(6, elementwise_affine=False),
        nn.LayerNorm(6, bias=False),
        nn.RMSNorm(6, elementwise_affine=False),
        lambda x: x / (1e-3 + x.norm(dim=-1, keepdim=True)),
        lambda x: x - x.mean(-1, keepdim=True),
        lambda x: x / (1e-3 + x.std(-1, keepdim=True)),
        lambda x: x.softmax(-1),
        lambda x: x / (1 + x.abs().amax(-1, keepdim=True)),
        lambda x: nn.functional.normalize(x, dim=-1),
        lambda x: nn.functional.group_norm(x.flatten(0, 1), 2).view(x.shape),
    ],
)
def test_whatever_the_statistic_outputs_are_equal(norm: Any) -> None:
    model = Normed(norm)
    zero(model.down.weight, 1, 4, dim=1)
    program = program_of(model, X)
    assert_equal(program, eliminate(program))


def test_norms_one_after_the_other_are_all_repaired() -> None:
    norms = nn.Sequential(nn.RMSNorm(6, eps=1e-3), nn.LayerNorm(6), nn.RMSNorm(6))
    model = Normed(norms)
    zero(norms[0].weight, 1, 4)
    zero(norms[1].weight, 1, 4)
    zero(norms[1].bias, 1, 4)
    zero(model.down.weight, 1, 4, dim=1)
    program = program_of(model, X)
    lowered = eliminate(program)
    assert_equal(program, lowered)
    assert shapes(lowered)["up.weight"] == [4, 4]
