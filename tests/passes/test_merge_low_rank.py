"""Low-rank updates become part of the weight beside them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgcompile.capture import capture
from fgcompile.passes.merge_low_rank import merge_low_rank
from fgcompile.program import Program
from tests.passes.check import check_pass, check_unchanged

X = torch.linspace(-1, 1, 8).view(2, 4)


class Updated(nn.Module):
    """`x W^T + b + s (f(x) A^T) B^T` with a chosen `f`."""

    def __init__(self, scale: float = 0.5, shared: bool = True) -> None:
        super().__init__()
        self.base = nn.Linear(4, 3)
        self.a, self.b = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)
        self.scale, self.shared = scale, shared

    def forward(self, x: Tensor) -> Tensor:
        update = self.b(self.a(x if self.shared else x.abs())) * self.scale
        return (self.base(x) + update).relu()


class Twice(Updated):
    def forward(self, x: Tensor) -> Tensor:
        # Another adapter of the same weight, added to the first sum.
        return super().forward(x) + (self.base(x) + self.b(self.a(x)))


class Squashed(Updated):
    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x).tanh())


class Viewed(Updated):
    """Both multiply a view of their own of `x`, as in attention's output."""

    def forward(self, x: Tensor) -> Tensor:
        low = self.b(self.a(x.reshape(-1, 4)))
        return self.base(x.reshape(-1, 4)) + low


class Broadcast(Updated):
    """Every row gets the update of every other row."""

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x.unsqueeze(1).reshape(-1, 1, 4)) + self.b(self.a(x))


def program(model: nn.Module) -> Program:
    return capture(model.double().eval(), (X.double(),))


def test_update_is_added_to_the_weight() -> None:
    check_pass(
        merge_low_rank,
        program(Updated()),
        """\
before
x: [s0 4 float64] = input
linear: [s0 2 float64] = linear(x, a.weight)
linear_1: [s0 3 float64] = linear(linear, b.weight)
mul: [s0 3 float64] = mul(linear_1, 0.5)
linear_2: [s0 3 float64] = linear(x, base.weight, base.bias)
add: [s0 3 float64] = add(linear_2, mul)
relu: [s0 3 float64] = relu(add)
return relu

after
x: [s0 4 float64] = input
linear_2: [s0 3 float64] = linear(x, base.weight, base.bias)
relu: [s0 3 float64] = relu(linear_2)
return relu
""",
    )


def test_updates_of_several_adapters_are_all_added() -> None:
    class Two(Updated):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.d = nn.Linear(4, 1, bias=False), nn.Linear(1, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.b(self.a(x)) + 2.0 * self.d(self.c(x))

    model = Two().double()
    reference = program(model)
    merged = program(model)
    assert merge_low_rank(merged)
    linear = torch.ops.aten.linear.default
    assert len(merged.graph.find_nodes(op="call_function", target=linear)) == 1
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(merged(x), reference(x), rtol=0, atol=1e-12)


def test_update_of_another_value_stays() -> None:
    check_unchanged(merge_low_rank, program(Updated(shared=False)))


def test_update_of_another_view_is_added() -> None:
    merged = program(Viewed())
    reference = merged.copy()
    assert merge_low_rank(merged)
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(merged(x), reference(x), rtol=0, atol=1e-12)


def test_update_that_is_spread_over_all_rows_stays() -> None:
    check_unchanged(merge_low_rank, program(Broadcast()))


def test_update_with_something_between_its_factors_stays() -> None:
    check_unchanged(merge_low_rank, program(Squashed()))


def test_update_of_a_weight_with_other_readers_stays() -> None:
    check_unchanged(merge_low_rank, program(Twice()))
