"""Rows and columns of closed units go; sizes in the graph follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgcompile.analysis.coupling import find_groups
from fgcompile.capture import capture
from fgcompile.passes.eliminate_dead_dims import eliminate_dead_dims
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

X = torch.linspace(-1, 1, 2 * 3 * 4).view(2, 3, 4)


class Mlp(nn.Module):
    """Four in, eight hidden, two out."""

    def __init__(self, act: Any = torch.relu, bias: bool = True) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8, bias=bias), nn.Linear(8, 2, bias=bias)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class Attention(nn.Module):
    """`heads` heads of `dim` dims on `groups` key-value heads."""

    def __init__(self, heads: int = 2, dim: int = 4, groups: int = 2) -> None:
        super().__init__()
        self.heads, self.dim, self.groups = heads, dim, groups
        self.q, self.o = nn.Linear(4, heads * dim), nn.Linear(heads * dim, 4)
        self.k, self.v = (nn.Linear(4, groups * dim) for _ in range(2))

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.dim).transpose(1, 2)

    def rotated(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        q, k = self.rotated(q), self.rotated(k)
        repeats = self.heads // self.groups
        k, v = (y.repeat_interleave(repeats, dim=1) for y in (k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(mixed.transpose(1, 2).flatten(2))


class MultiQuery(Attention):
    """All heads read the same keys and values; attention is written out."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.k(x)[:, None], self.v(x)[:, None]
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.o(mixed.transpose(1, 2).flatten(2))


class Rotary(Attention):
    """Dims `d` and `d + dim / 2` of a head turn together."""

    def rotated(self, x: Tensor) -> Tensor:
        turns = torch.arange(x.shape[2], dtype=x.dtype)[:, None]
        speeds = 0.5 ** torch.arange(self.dim // 2, dtype=x.dtype)
        angles = turns * speeds.repeat(2)
        first, second = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


def test_closed_gate_removes_row_and_column() -> None:
    check_pass(
        eliminate_dead_dims,
        gated_program(Mlp(), X, closed={"mlp": [3, 4, 6]}, kinds=("mlp",)),
        """\
before
x: [s0 s1 4 float64] = input
linear: [s0 s1 8 float64] = linear(x, up.weight, up.bias)
relu: [s0 s1 8 float64] = relu(linear)
gate: [s0 s1 8 float64] = gate(relu, fgcompile_gates.gates.mlp.logits_0, -1)
linear_1: [s0 s1 2 float64] = linear(gate, down.weight, down.bias)
return linear_1

after
x: [s0 s1 4 float64] = input
linear: [s0 s1 5 float64] = linear(x, up.weight, up.bias)
relu: [s0 s1 5 float64] = relu(linear)
gate: [s0 s1 5 float64] = gate(relu, fgcompile_gates.gates.mlp.logits_0, -1)
linear_1: [s0 s1 2 float64] = linear(gate, down.weight, down.bias)
return linear_1
""",
    )


def test_closed_heads_leave_narrower_views() -> None:
    check_pass(
        eliminate_dead_dims,
        gated_program(Attention(), X, closed={"head": [0]}, kinds=("head",)),
        """\
before
x: [s0 s1 4 float64] = input
sym_size_int_4: s0 = sym_size(x, 0)
sym_size_int_5: s1 = sym_size(x, 1)
linear: [s0 s1 8 float64] = linear(x, q.weight, q.bias)
view: [s0 s1 2 4 float64] = view(linear, [sym_size_int_4, sym_size_int_5, -1, 4])
transpose: [s0 2 s1 4 float64] = transpose(view, 1, 2)
linear_1: [s0 s1 8 float64] = linear(x, k.weight, k.bias)
view_1: [s0 s1 2 4 float64] = view(linear_1, [sym_size_int_4, sym_size_int_5, -1, 4])
transpose_1: [s0 2 s1 4 float64] = transpose(view_1, 1, 2)
linear_2: [s0 s1 8 float64] = linear(x, v.weight, v.bias)
view_2: [s0 s1 2 4 float64] = view(linear_2, [sym_size_int_4, sym_size_int_5, -1, 4])
transpose_2: [s0 2 s1 4 float64] = transpose(view_2, 1, 2)
repeat_interleave: [s0 2 s1 4 float64] = repeat_interleave(transpose_1, 1, 1)
repeat_interleave_1: [s0 2 s1 4 float64] = repeat_interleave(transpose_2, 1, 1)
scaled_dot_product_attention: [s0 2 s1 4 float64] = scaled_dot_product_attention(transpose, repeat_interleave, repeat_interleave_1)
transpose_3: [s0 s1 2 4 float64] = transpose(scaled_dot_product_attention, 1, 2)
flatten: [s0 s1 8 float64] = flatten(transpose_3, 2)
gate: [s0 s1 8 float64] = gate(flatten, fgcompile_gates.gates.head.logits_0, -1)
linear_3: [s0 s1 4 float64] = linear(gate, o.weight, o.bias)
return linear_3

after
x: [s0 s1 4 float64] = input
sym_size_int_4: s0 = sym_size(x, 0)
sym_size_int_5: s1 = sym_size(x, 1)
linear: [s0 s1 4 float64] = linear(x, q.weight, q.bias)
view: [s0 s1 1 4 float64] = view(linear, [sym_size_int_4, sym_size_int_5, -1, 4])
transpose: [s0 1 s1 4 float64] = transpose(view, 1, 2)
linear_1: [s0 s1 4 float64] = linear(x, k.weight, k.bias)
view_1: [s0 s1 1 4 float64] = view(linear_1, [sym_size_int_4, sym_size_int_5, -1, 4])
transpose_1: [s0 1 s1 4 float64] = transpose(view_1, 1, 2)
linear_2: [s0 s1 4 float64] = linear(x, v.weight, v.bias)
view_2: [s0 s1 1 4 float64] = view(linear_2, [sym_size_int_4, sym_size_int_5, -1, 4])
transpose_2: [s0 1 s1 4 float64] = transpose(view_2, 1, 2)
repeat_interleave: [s0 1 s1 4 float64] = repeat_interleave(transpose_1, 1, 1)
repeat_interleave_1: [s0 1 s1 4 float64] = repeat_interleave(transpose_2, 1, 1)
scaled_dot_product_attention: [s0 1 s1 4 float64] = scaled_dot_product_attention(transpose, repeat_interleave, repeat_interleave_1, scale=0.5)
transpose_3: [s0 s1 1 4 float64] = transpose(scaled_dot_product_attention, 1, 2)
flatten: [s0 s1 4 float64] = flatten(transpose_3, 2)
gate: [s0 s1 4 float64] = gate(flatten, fgcompile_gates.gates.head.logits_0, -1)
linear_3: [s0 s1 4 float64] = linear(gate, o.weight, o.bias)
return linear_3
""",  # noqa: E501
    )


def test_open_gates_leave_everything() -> None:
    check_unchanged(eliminate_dead_dims, gated_program(Mlp(), X, kinds=("mlp",)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", [torch.relu, torch.tanh, torch.sigmoid, torch.cos])
def test_closed_units_go_whatever_the_activation(act: Any, bias: bool) -> None:
    program = gated_program(Mlp(act, bias), X, closed={"mlp": [0, 7]}, kinds=("mlp",))
    lowered = eliminate(program)
    assert shapes(lowered)["up.weight"] == [6, 4]
    assert shapes(lowered)["down.weight"] == [2, 6]
    assert_equal(program, lowered)


@pytest.mark.parametrize("bias", [True, False])
def test_model_with_all_units_closed_is_its_last_bias(bias: bool) -> None:
    closed = {"mlp": list(range(8))}
    program = gated_program(Mlp(bias=bias), X, closed=closed, kinds=("mlp",))
    lowered = eliminate(program)
    assert shapes(lowered) == ({"down.bias": [2]} if bias else {})
    assert_equal(program, lowered)


def test_zero_columns_kill_rows_that_no_gate_closed() -> None:
    model = Mlp()
    zero(model.down.weight, 1, 2, dim=1)
    program = program_of(model, X)
    lowered = eliminate(program)
    assert shapes(lowered)["up.weight"] == [6, 4]
    assert_equal(program, lowered)


def test_different_dims_may_survive_in_different_heads() -> None:
    # Value dims 0, 1 of the first head and 1, 3 of the second.
    closed = {"vo": [0, 1, 5, 7]}
    program = gated_program(Attention(), X, closed=closed, kinds=("vo",))
    lowered = eliminate(program)
    assert shapes(lowered)["v.weight"] == [4, 4]
    assert shapes(lowered)["o.weight"] == [4, 4]
    assert shapes(lowered)["q.weight"] == [8, 4]
    assert lowered.kept["v.weight"][0].tolist() == [2, 3, 4, 6]
    assert_equal(program, lowered)


def test_heads_stay_as_wide_as_the_fullest() -> None:
    closed = {"vo": [0, 1, 2, 5]}
    program = gated_program(Attention(), X, closed=closed, kinds=("vo",))
    lowered = eliminate(program)
    assert shapes(lowered)["v.weight"] == [6, 4]
    kept = lowered.kept["v.weight"][0].tolist()
    assert {3, 4, 6, 7} < set(kept)
    assert_equal(program, lowered)


def test_attention_keeps_the_scale_of_the_full_head() -> None:
    closed = {"qk": [0, 1, 5, 7]}
    program = gated_program(Attention(), X, closed=closed, kinds=("qk",))
    lowered = eliminate(program)
    assert shapes(lowered)["q.weight"] == [4, 4]
    assert shapes(lowered)["k.weight"] == [4, 4]
    assert_equal(program, lowered)


def test_rotary_dims_go_in_pairs() -> None:
    # Units are the pairs of head 0, then those of head 1.
    program = gated_program(Rotary(), X, closed={"qk": [0, 3]}, kinds=("qk",))
    lowered = eliminate(program)
    assert lowered.kept["q.weight"][0].tolist() == [1, 3, 4, 6]
    assert lowered.kept["k.weight"][0].tolist() == [1, 3, 4, 6]
    assert_equal(program, lowered)


def test_rotary_pairs_of_uneven_heads_are_revived_together() -> None:
    # Two pairs in head 0 and one in head 1, of four: three stay in each.
    closed = {"qk": [0, 1, 7]}
    model = Rotary(dim=8)
    program = gated_program(model, X, closed=closed, kinds=("qk",))
    lowered = eliminate(program)
    kept = lowered.kept["k.weight"][0].tolist()
    assert len(kept) == 12
    assert {2, 3, 6, 7, 8, 9, 10, 12, 13, 14} < set(kept)
    assert_equal(program, lowered)


def test_query_heads_go_with_their_key_value_head() -> None:
    model = Attention(heads=6, dim=2, groups=3)
    program = gated_program(model, X, closed={"head": [1]}, kinds=("head",))
    lowered = eliminate(program)
    assert lowered.kept["q.weight"][0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert lowered.kept["k.weight"][0].tolist() == [0, 1, 4, 5]
    assert lowered.kept["o.weight"][1].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert_equal(program, lowered)


@pytest.mark.parametrize("eager", [False, True])
def test_query_heads_go_alone_where_all_share_keys_and_values(eager: bool) -> None:
    model = MultiQuery(heads=4, dim=2, groups=1) if eager else Attention(4, 2, 1)
    program = gated_program(model, X, closed={"head": [0, 2]}, kinds=("head",))
    lowered = eliminate(program)
    assert lowered.kept["q.weight"][0].tolist() == [2, 3, 6, 7]
    assert lowered.kept["o.weight"][1].tolist() == [2, 3, 6, 7]
    assert shapes(lowered)["k.weight"] == shapes(lowered)["v.weight"] == [2, 4]
    assert_equal(program, lowered)


@pytest.mark.parametrize("kind", ["qk", "vo"])
def test_shared_dims_go_from_every_query_head(kind: str) -> None:
    model = Attention(heads=2, dim=4, groups=1)
    program = gated_program(model, X, closed={kind: [1]}, kinds=(kind,))
    lowered = eliminate(program)
    own, shared = (("q.weight", 0), ("k.weight", 0))
    if kind == "vo":
        own, shared = ("o.weight", 1), ("v.weight", 0)
    assert lowered.kept[own[0]][own[1]].tolist() == [0, 2, 3, 4, 6, 7]
    assert lowered.kept[shared[0]][shared[1]].tolist() == [0, 2, 3]
    assert_equal(program, lowered)


def test_heads_and_shared_dims_go_together() -> None:
    model = Attention(heads=4, dim=4, groups=1)
    closed = {"head": [3], "vo": [1, 2]}
    program = gated_program(model, X, closed=closed, kinds=("head", "vo"))
    lowered = eliminate(program)
    assert lowered.kept["o.weight"][1].tolist() == [0, 3, 4, 7, 8, 11]
    assert shapes(lowered)["v.weight"] == [2, 4]
    assert shapes(lowered)["q.weight"] == [12, 4]
    assert_equal(program, lowered)


class Fused(nn.Module):
    """Query, key and value rows in one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(4, 3 * 2 * 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts.unbind(0))
        return self.o(mixed.transpose(1, 2).flatten(2))


def test_head_goes_from_all_three_parts_of_a_fused_weight() -> None:
    program = gated_program(Fused(), X, closed={"head": [0]}, kinds=("head",))
    lowered = eliminate(program)
    rows = [*range(4, 8), *range(12, 16), *range(20, 24)]
    assert lowered.kept["qkv.weight"][0].tolist() == rows
    assert_equal(program, lowered)


class Tied(nn.Module):
    """The embedding is also the output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up = nn.Embedding(7, 4), nn.Linear(4, 4, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.up(self.embed(ids)) @ self.embed.weight.T


def test_tied_weight_shrinks_for_all_its_uses_or_not_at_all() -> None:
    ids = torch.tensor([[0, 1, 2], [3, 4, 5]])
    model = Tied()
    zero(model.up.weight, 2)  # unit 2 of the output side is zero
    program = program_of(model, ids)
    lowered = eliminate(program)
    assert shapes(lowered)["embed.weight"] == [7, 4]
    assert_equal(program, lowered)
    zero(model.embed.weight, 2, dim=1)  # and now of the input side
    program = program_of(model, ids)
    lowered = eliminate(program)
    assert shapes(lowered) == {"embed.weight": [7, 3], "up.weight": [3, 3]}
    assert_equal(program, lowered)


class Pairs(nn.Module):
    """Two branches, of which every pair of units has a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(4, 5)
        self.pair, self.down = nn.Bilinear(6, 5, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.pair(self.left(x), self.right(x)))


def test_all_three_dims_of_a_bilinear_weight_shrink() -> None:
    model = Pairs()
    for rows, dead in ((model.left, (0, 3)), (model.right, (1,))):
        zero(rows.weight, *dead)
        zero(rows.bias, *dead)
    zero(model.down.weight, 2, 4, 6, dim=1)
    program = program_of(model, X)
    before = program.copy()
    assert eliminate_dead_dims(program)
    assert shapes(program)["pair.weight"] == [4, 4, 4]
    assert_equal(before, program)


class ConvNet(nn.Module):
    """Convolutions with batch norms, as in a residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, padding=1)
        self.norm, self.after = nn.BatchNorm2d(6), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.head(self.after(self.second(x)).relu().mean((2, 3)))


def test_channels_take_their_statistics_with_them() -> None:
    model = ConvNet().train()
    model(torch.randn(4, 3, 8, 8))  # statistics that are not 0 and 1
    image = torch.randn(2, 3, 8, 8)
    closed = {"conv": [0, 2]}
    program = gated_program(model, image, closed=closed, kinds=("conv",))
    lowered = eliminate(program)
    assert shapes(lowered)["first.weight"] == [4, 3, 3, 3]
    assert shapes(lowered)["second.weight"] == [4, 4, 3, 3]
    assert shapes(lowered)["norm.weight"] == [4]
    assert_equal(program, lowered)


class Pooling(nn.Module):
    """Attention of what is learned over the inputs, which are keys and values alike."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = x * x
        query = self.down(torch.tanh(self.up(x)))
        return self.head(nn.functional.scaled_dot_product_attention(query, y, y))


def test_operand_that_is_read_twice_is_not_gathered_for_one_of_its_uses() -> None:
    model = Pooling()
    zero(model.down.weight, 1, 3)
    zero(model.down.bias, 1, 3)
    zero(model.up.weight, 5)
    zero(model.up.bias, 5)
    program = program_of(model, X)
    lowered = eliminate(program)
    assert_equal(program, lowered)
    assert shapes(lowered)["up.weight"] == [7, 4]
    assert shapes(lowered)["head.weight"] == [3, 4]


class Squared(nn.Module):
    """A matrix times itself, the only operand of the product."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        return self.down(y @ y)


def test_matrix_times_itself_reads_it_in_two_places() -> None:
    model = Squared()
    program = capture(model.double(), (X.double(),), fixed=True)
    (group,) = [g for g in find_groups(program).groups if g.kind == "mlp"]
    members = {(member.parameter, member.dim) for member in group.members}
    assert members == {("up.weight", 0), ("up.bias", 0), ("down.weight", 1)}
    zero(model.down.weight, 1, dim=1)
    want, got = program(X.double()), eliminate(program)(X.double())
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
