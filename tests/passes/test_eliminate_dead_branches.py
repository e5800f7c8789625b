"""Blocks whose every unit is closed disappear, shortcuts stay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgcompile.passes.eliminate_dead_branches import eliminate_dead_branches
from fgcompile.passes.pipeline import eliminate
from tests.passes.check import (
    assert_equal,
    check_pass,
    check_unchanged,
    gated_program,
    program_of,
    shapes,
    zero,
)


class Residual(nn.Module):
    """One MLP in a residual stream, and a head that reads the sum."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4, bias=bias)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.down(self.up(x).relu()))


class Attention(nn.Module):
    """Two heads of three dims, in a residual stream."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 6) for _ in range(3))
        self.o = nn.Linear(6, 4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).view(*x.shape[:2], 2, 3).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.o(mixed.transpose(1, 2).reshape(*x.shape[:2], 6))


class Encoder(nn.Module):
    """An attention block and an MLP block, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(), Residual(bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.attention(x))


X = torch.linspace(-1, 1, 2 * 3 * 4).view(2, 3, 4)


def test_shortcut_stays_where_the_branch_adds_zero() -> None:
    model = Residual(bias=False)
    zero(model.down.weight, 0, 1, 2, 3)
    check_pass(
        eliminate_dead_branches,
        program_of(model, X),
        """\
before
x: [s0 s1 4 float64] = input
linear: [s0 s1 6 float64] = linear(x, up.weight, up.bias)
relu: [s0 s1 6 float64] = relu(linear)
linear_1: [s0 s1 4 float64] = linear(relu, down.weight)
add: [s0 s1 4 float64] = add(x, linear_1)
linear_2: [s0 s1 2 float64] = linear(add, head.weight, head.bias)
return linear_2

after
x: [s0 s1 4 float64] = input
linear_2: [s0 s1 2 float64] = linear(x, head.weight, head.bias)
return linear_2
""",
    )


def test_branch_that_only_adds_its_bias_is_its_bias() -> None:
    model = Residual()
    zero(model.down.weight, 0, 1, 2, 3)
    check_pass(
        eliminate_dead_branches,
        program_of(model, X),
        """\
before
x: [s0 s1 4 float64] = input
linear: [s0 s1 6 float64] = linear(x, up.weight, up.bias)
relu: [s0 s1 6 float64] = relu(linear)
linear_1: [s0 s1 4 float64] = linear(relu, down.weight, down.bias)
add: [s0 s1 4 float64] = add(x, linear_1)
linear_2: [s0 s1 2 float64] = linear(add, head.weight, head.bias)
return linear_2

after
x: [s0 s1 4 float64] = input
sym_size_int: s0 = sym_size(x, 0)
sym_size_int_1: s1 = sym_size(x, 1)
expand_default: [s0 s1 4 float64] = expand(down.bias, [sym_size_int, sym_size_int_1, 4])
add: [s0 s1 4 float64] = add(x, expand_default)
linear_2: [s0 s1 2 float64] = linear(add, head.weight, head.bias)
return linear_2
""",
    )


def test_closed_attention_block_disappears() -> None:
    closed = {"attention.head": [0, 1]}
    check_pass(
        eliminate_dead_branches,
        gated_program(Encoder(), X, closed=closed),
        """\
before
x: [s0 s1 4 float64] = input
sym_size_int_2: s0 = sym_size(x, 0)
sym_size_int_3: s1 = sym_size(x, 1)
linear: [s0 s1 6 float64] = linear(x, attention.q.weight, attention.q.bias)
view: [s0 s1 2 3 float64] = view(linear, [sym_size_int_2, sym_size_int_3, 2, 3])
transpose: [s0 2 s1 3 float64] = transpose(view, 1, 2)
linear_1: [s0 s1 6 float64] = linear(x, attention.k.weight, attention.k.bias)
view_1: [s0 s1 2 3 float64] = view(linear_1, [sym_size_int_2, sym_size_int_3, 2, 3])
transpose_1: [s0 2 s1 3 float64] = transpose(view_1, 1, 2)
linear_2: [s0 s1 6 float64] = linear(x, attention.v.weight, attention.v.bias)
view_2: [s0 s1 2 3 float64] = view(linear_2, [sym_size_int_2, sym_size_int_3, 2, 3])
transpose_2: [s0 2 s1 3 float64] = transpose(view_2, 1, 2)
scaled_dot_product_attention: [s0 2 s1 3 float64] = scaled_dot_product_attention(transpose, transpose_1, transpose_2)
transpose_3: [s0 s1 2 3 float64] = transpose(scaled_dot_product_attention, 1, 2)
reshape: [s0 s1 6 float64] = reshape(transpose_3, [sym_size_int_2, sym_size_int_3, 6])
gate: [s0 s1 6 float64] = gate(reshape, fgcompile_gates.gates.attention_head.logits_0, -1)
linear_3: [s0 s1 4 float64] = linear(gate, attention.o.weight)
add_1: [s0 s1 4 float64] = add(x, linear_3)
linear_4: [s0 s1 6 float64] = linear(add_1, mlp.up.weight, mlp.up.bias)
relu: [s0 s1 6 float64] = relu(linear_4)
gate_1: [s0 s1 6 float64] = gate(relu, fgcompile_gates.gates.mlp.logits_0, -1)
linear_5: [s0 s1 4 float64] = linear(gate_1, mlp.down.weight)
add_3: [s0 s1 4 float64] = add(add_1, linear_5)
linear_6: [s0 s1 2 float64] = linear(add_3, mlp.head.weight, mlp.head.bias)
return linear_6

after
x: [s0 s1 4 float64] = input
sym_size_int_2: s0 = sym_size(x, 0)
sym_size_int_3: s1 = sym_size(x, 1)
linear: [s0 s1 6 float64] = linear(x, attention.q.weight, attention.q.bias)
view: [s0 s1 2 3 float64] = view(linear, [sym_size_int_2, sym_size_int_3, 2, 3])
transpose: [s0 2 s1 3 float64] = transpose(view, 1, 2)
linear_1: [s0 s1 6 float64] = linear(x, attention.k.weight, attention.k.bias)
view_1: [s0 s1 2 3 float64] = view(linear_1, [sym_size_int_2, sym_size_int_3, 2, 3])
transpose_1: [s0 2 s1 3 float64] = transpose(view_1, 1, 2)
linear_2: [s0 s1 6 float64] = linear(x, attention.v.weight, attention.v.bias)
view_2: [s0 s1 2 3 float64] = view(linear_2, [sym_size_int_2, sym_size_int_3, 2, 3])
transpose_2: [s0 2 s1 3 float64] = transpose(view_2, 1, 2)
scaled_dot_product_attention: [s0 2 s1 3 float64] = scaled_dot_product_attention(transpose, transpose_1, transpose_2)
linear_4: [s0 s1 6 float64] = linear(x, mlp.up.weight, mlp.up.bias)
relu: [s0 s1 6 float64] = relu(linear_4)
gate_1: [s0 s1 6 float64] = gate(relu, fgcompile_gates.gates.mlp.logits_0, -1)
linear_5: [s0 s1 4 float64] = linear(gate_1, mlp.down.weight)
add_3: [s0 s1 4 float64] = add(x, linear_5)
linear_6: [s0 s1 2 float64] = linear(add_3, mlp.head.weight, mlp.head.bias)
return linear_6
""",  # noqa: E501
    )


def test_closed_mlp_block_disappears() -> None:
    closed = {"mlp": list(range(6))}
    check_pass(
        eliminate_dead_branches,
        gated_program(Encoder(), X, closed=closed),
        """\
before
x: [s0 s1 4 float64] = input
sym_size_int_2: s0 = sym_size(x, 0)
sym_size_int_3: s1 = sym_size(x, 1)
linear: [s0 s1 6 float64] = linear(x, attention.q.weight, attention.q.bias)
view: [s0 s1 2 3 float64] = view(linear, [sym_size_int_2, sym_size_int_3, 2, 3])
transpose: [s0 2 s1 3 float64] = transpose(view, 1, 2)
linear_1: [s0 s1 6 float64] = linear(x, attention.k.weight, attention.k.bias)
view_1: [s0 s1 2 3 float64] = view(linear_1, [sym_size_int_2, sym_size_int_3, 2, 3])
transpose_1: [s0 2 s1 3 float64] = transpose(view_1, 1, 2)
linear_2: [s0 s1 6 float64] = linear(x, attention.v.weight, attention.v.bias)
view_2: [s0 s1 2 3 float64] = view(linear_2, [sym_size_int_2, sym_size_int_3, 2, 3])
transpose_2: [s0 2 s1 3 float64] = transpose(view_2, 1, 2)
scaled_dot_product_attention: [s0 2 s1 3 float64] = scaled_dot_product_attention(transpose, transpose_1, transpose_2)
transpose_3: [s0 s1 2 3 float64] = transpose(scaled_dot_product_attention, 1, 2)
reshape: [s0 s1 6 float64] = reshape(transpose_3, [sym_size_int_2, sym_size_int_3, 6])
gate: [s0 s1 6 float64] = gate(reshape, fgcompile_gates.gates.attention_head.logits_0, -1)
linear_3: [s0 s1 4 float64] = linear(gate, attention.o.weight)
add_1: [s0 s1 4 float64] = add(x, linear_3)
linear_4: [s0 s1 6 float64] = linear(add_1, mlp.up.weight, mlp.up.bias)
relu: [s0 s1 6 float64] = relu(linear_4)
gate_1: [s0 s1 6 float64] = gate(relu, fgcompile_gates.gates.mlp.logits_0, -1)
linear_5: [s0 s1 4 float64] = linear(gate_1, mlp.down.weight)
add_3: [s0 s1 4 float64] = add(add_1, linear_5)
linear_6: [s0 s1 2 float64] = linear(add_3, mlp.head.weight, mlp.head.bias)
return linear_6

after
x: [s0 s1 4 float64] = input
sym_size_int_2: s0 = sym_size(x, 0)
sym_size_int_3: s1 = sym_size(x, 1)
linear: [s0 s1 6 float64] = linear(x, attention.q.weight, attention.q.bias)
view: [s0 s1 2 3 float64] = view(linear, [sym_size_int_2, sym_size_int_3, 2, 3])
transpose: [s0 2 s1 3 float64] = transpose(view, 1, 2)
linear_1: [s0 s1 6 float64] = linear(x, attention.k.weight, attention.k.bias)
view_1: [s0 s1 2 3 float64] = view(linear_1, [sym_size_int_2, sym_size_int_3, 2, 3])
transpose_1: [s0 2 s1 3 float64] = transpose(view_1, 1, 2)
linear_2: [s0 s1 6 float64] = linear(x, attention.v.weight, attention.v.bias)
view_2: [s0 s1 2 3 float64] = view(linear_2, [sym_size_int_2, sym_size_int_3, 2, 3])
transpose_2: [s0 2 s1 3 float64] = transpose(view_2, 1, 2)
scaled_dot_product_attention: [s0 2 s1 3 float64] = scaled_dot_product_attention(transpose, transpose_1, transpose_2)
transpose_3: [s0 s1 2 3 float64] = transpose(scaled_dot_product_attention, 1, 2)
reshape: [s0 s1 6 float64] = reshape(transpose_3, [sym_size_int_2, sym_size_int_3, 6])
gate: [s0 s1 6 float64] = gate(reshape, fgcompile_gates.gates.attention_head.logits_0, -1)
linear_3: [s0 s1 4 float64] = linear(gate, attention.o.weight)
add_1: [s0 s1 4 float64] = add(x, linear_3)
linear_6: [s0 s1 2 float64] = linear(add_1, mlp.head.weight, mlp.head.bias)
return linear_6
""",  # noqa: E501
    )


def test_nothing_but_the_stream_is_left_of_closed_blocks() -> None:
    closed = {"attention.head": [0, 1], "mlp": list(range(6))}
    program = gated_program(Encoder(), X, closed=closed)
    lowered = eliminate(program)
    assert shapes(lowered) == {"mlp.head.weight": [2, 4], "mlp.head.bias": [2]}
    assert len(lowered.graph.nodes) == 5
    assert_equal(program, lowered)


def test_branches_with_one_unit_left_stay() -> None:
    closed = {"attention.head": [0], "mlp": list(range(5))}
    program = gated_program(Encoder(), X, closed=closed)
    check_unchanged(eliminate_dead_branches, program)
    lowered = eliminate(program)
    assert shapes(lowered)["mlp.up.weight"] == [1, 4]
    assert shapes(lowered)["attention.q.weight"] == [3, 4]
    assert_equal(program, lowered)


class Shifted(nn.Module):
    """The branch is wider than the shortcut: dropping it would change the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.one = nn.Linear(4, 5, bias=False), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.inner(x)


def test_zeros_that_widen_a_sum_stay() -> None:
    model = Shifted()
    zero(model.inner.weight, 0, 1, 2, 3, 4)
    program = program_of(model, X)
    reference = program.copy()
    eliminate_dead_branches(program)
    assert_equal(reference, program)
