"""Constants forward, needs backward, survivors: one fact a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fgcompile.analysis.facts import Constants, find_constants
from fgcompile.analysis.flow import trace_planes
from fgcompile.analysis.needs import Needs, propagate_needs
from fgcompile.analysis.steps import Flow
from fgcompile.analysis.survivors import Survivors, close_survivors
from fgcompile.capture import capture
from fgcompile.program import Program


class Mlp(nn.Module):
    def __init__(self, act: nn.Module, bias: bool = True) -> None:
        super().__init__()
        self.up = nn.Linear(4, 6, bias=bias)
        self.act = act
        self.down = nn.Linear(6, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class Attention(nn.Module):
    """Two heads of four dims, rotated in pairs as RoPE does."""

    cos: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.o = nn.Linear(8, 8, bias=False)
        self.register_buffer("cos", torch.randn(1, 1, 1, 4))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (2, 4)).transpose(1, 2)

    def rotate(self, x: Tensor) -> Tensor:
        low, high = x.chunk(2, -1)
        return x * self.cos + torch.cat((-high, low), -1)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.rotate(self.heads(self.q(x))), self.rotate(self.heads(self.k(x)))
        weights = torch.softmax(q @ k.transpose(-1, -2), -1)
        return self.o((weights @ self.heads(self.v(x))).transpose(1, 2).flatten(2))


def analysed(model: nn.Module, *shape: int) -> tuple[Program, Flow, Constants, Needs]:
    program = capture(model.eval(), (torch.randn(*shape),))
    flow = trace_planes(program)
    constants = find_constants(program, flow)
    return program, flow, constants, propagate_needs(flow, constants)


def size_of(flow: Flow, survivors: Survivors, name: str) -> tuple[int, ...]:
    index = flow.parameters[name]
    planes = range(len(flow.values[index].planes))
    return tuple(max(survivors.size(index, p)) for p in planes)


def sizes(model: nn.Module, *shape: int) -> dict[str, tuple[int, ...]]:
    """Surviving sizes of every parameter."""
    _, flow, _, needs = analysed(model, *shape)
    survivors = close_survivors(flow, needs)
    return {name: size_of(flow, survivors, name) for name in flow.parameters}


def zero(parameter: Tensor, dim: int, *indices: int) -> None:
    with torch.no_grad():
        parameter.index_fill_(dim, torch.tensor(indices), 0.0)


def constants_of(model: nn.Module, op: str, *shape: int) -> np.ndarray:
    _, flow, constants, _ = analysed(model, *shape)
    value = next(k for k, v in enumerate(flow.values) if op in v.node.name)
    return constants.planes[value][0].reshape(-1)


@pytest.mark.parametrize(
    ("act", "at_zero"), [(nn.ReLU(), 0.0), (nn.Sigmoid(), 0.5), (nn.GELU(), 0.0)]
)
def test_a_zero_row_without_bias_is_what_the_activation_makes_of_zero(
    act: nn.Module, at_zero: float
) -> None:
    model = Mlp(act, bias=False)
    zero(model.up.weight, 0, 2)
    name = type(act).__name__.lower()
    found = constants_of(model, name, 5, 4)
    assert found[2] == at_zero
    assert np.isnan(np.delete(found, 2)).all()


def test_a_zero_row_with_bias_is_what_the_activation_makes_of_the_bias() -> None:
    model = Mlp(nn.Tanh())
    zero(model.up.weight, 0, 1)
    found = constants_of(model, "tanh", 5, 4)
    assert found[1] == pytest.approx(model.up.bias.detach()[1].tanh().item())


class Function(nn.Module):
    """A function that is no module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


ONE = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("function", "at_zero"),
    [
        pytest.param(torch.nan_to_num, 0.0, id="nan_to_num"),
        pytest.param(torch.sign, 0.0, id="sign"),
        pytest.param(lambda h: torch.fmax(h, ONE), 1.0, id="fmax"),
        pytest.param(lambda h: torch.heaviside(h, ONE), 1.0, id="heaviside"),
        pytest.param(lambda h: torch.signbit(h).float(), 0.0, id="signbit"),
        pytest.param(lambda h: (h > 0).to(h.dtype), 0.0, id="a cast"),
    ],
)
def test_what_is_a_number_even_for_nan_varies_all_the_same(
    function: Callable[[Tensor], Tensor], at_zero: float
) -> None:
    model = Mlp(Function(function), bias=False)
    zero(model.up.weight, 0, 2)
    _, flow, constants, _ = analysed(model, 5, 4)
    linear = next(n for n in flow.of if n.name == "linear_1")
    found = constants.planes[flow.of[linear.args[0]][0]][-1].reshape(-1)  # type: ignore[index]
    assert found[2] == at_zero
    assert np.isnan(np.delete(found, 2)).all()


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda h: torch.where(h > 0, h, 0.1 * h), id="of itself"),
        pytest.param(lambda h: torch.where(h.mean() > 0, h, 0 * h), id="of all"),
        pytest.param(lambda h: h.where(h == h, torch.zeros_like(h)), id="a guard"),
        pytest.param(lambda h: torch.maximum(h, torch.zeros(6)), id="of a constant"),
    ],
)
def test_a_choice_between_zeros_is_zero(function: Callable[[Tensor], Tensor]) -> None:
    model = Mlp(Function(function), bias=False)
    zero(model.up.weight, 0, 2, 3)
    assert sizes(model, 5, 4) == {"up.weight": (4, 4), "down.weight": (3, 4)}


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_channels_leave_through_padding_that_copies_positions(mode: Any) -> None:
    first, second = (
        nn.Conv1d(*channels, 3, padding=1, padding_mode=mode, bias=False)
        for channels in ((2, 6), (6, 4))
    )
    zero(first.weight, 0, 1, 4)
    found = sizes(nn.Sequential(first, second), 3, 2, 7)
    assert found == {"0.weight": (4, 2, 3), "1.weight": (4, 4, 3)}


@pytest.mark.parametrize(
    ("function", "width"),
    [
        pytest.param(lambda h: h.amax(1), 6, id="amax"),
        pytest.param(lambda h: h.std(1, keepdim=True), 6, id="std"),
        pytest.param(lambda h: h.prod(1), 6, id="prod"),
        pytest.param(lambda h: h.unfold(1, 3, 2).sum(-1), 6, id="unfold"),
        pytest.param(lambda h: h.unfold(1, 3, 2).flatten(2), 18, id="unfold, flat"),
        pytest.param(lambda h: patches(h).mT, 24, id="im2col"),
        pytest.param(lambda h: functional.pad(h, (0, 0, 1, 1)), 6, id="pad"),
        pytest.param(lambda h: functional.pad(h, (0, 0, -1, 1)), 6, id="shift"),
    ],
)
def test_units_leave_through_what_takes_their_zeros_along(
    function: Callable[[Tensor], Tensor], width: int
) -> None:
    model = Mlp(Function(function), bias=False)
    model.down = nn.Linear(width, 3, bias=False)
    zero(model.up.weight, 0, 2, 3)
    kept = {"up.weight": (4, 4), "down.weight": (3, width * 4 // 6)}
    assert sizes(model, 5, 8, 4) == kept


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        pytest.param(lambda h: h.flatten(0, 1), 4, id="rows"),
        pytest.param(lambda h: h.flatten(1).unflatten(1, (-1, 6)), 4, id="and back"),
        pytest.param(lambda h: h.mT.flatten(1).unflatten(1, (-1, 6)), 6, id="mixed"),
        pytest.param(
            lambda h: h.unflatten(2, (3, 2)).transpose(1, 2).flatten(0, 1).sum(2),
            4,
            id="heads in the batch",
        ),
    ],
)
def test_units_in_a_dim_with_a_dynamic_size_lie_beside_each_other(
    function: Callable[[Tensor], Tensor], kept: int
) -> None:
    linear = nn.Linear(4, 6, bias=False)
    zero(linear.weight, 0, 2, 3)
    found = sizes(nn.Sequential(linear, Function(function)), 5, 8, 4)
    assert found == {"0.weight": (kept, 4)}


def patches(hidden: Tensor) -> Tensor:
    """Channels of 4 x 2 positions, in patches of 2 x 2 that start outside."""
    return functional.unfold(hidden.mT.unflatten(2, (4, 2)), 2, padding=1)


@pytest.mark.parametrize(
    ("op", "function"),
    [
        pytest.param("pad", lambda h: functional.pad(h, (0, 0, 1, 1)), id="pad"),
        pytest.param("im2col", patches, id="im2col"),
        pytest.param("tril", lambda h: h.mT.tril(), id="tril"),
    ],
)
def test_a_constant_beside_padded_zeros_is_none(
    op: str, function: Callable[[Tensor], Tensor]
) -> None:
    def model(inner: Callable[[Tensor], Tensor]) -> nn.Module:
        linear = nn.Linear(4, 6, bias=False)
        zero(linear.weight, 0, 2)
        return nn.Sequential(linear, Function(inner))

    found = constants_of(model(lambda h: function(torch.sigmoid(h))), op, 5, 8, 4)
    assert np.isnan(found).all()
    found = constants_of(model(lambda h: function(torch.tanh(h))), op, 5, 8, 4)
    assert (found == 0).sum() == len(found) // 6


def test_a_choice_between_numbers_that_differ_varies() -> None:
    model = Mlp(Function(lambda h: torch.where(h.mean() > 0, h, h + 1)), bias=False)
    zero(model.up.weight, 0, 2)
    assert np.isnan(constants_of(model, "where", 5, 4)).all()


def test_a_zero_column_frees_the_row_that_it_read() -> None:
    model = Mlp(nn.ReLU())
    zero(model.down.weight, 1, 0, 5)
    assert sizes(model, 5, 4) == {
        "up.weight": (4, 4),
        "up.bias": (4,),
        "down.weight": (3, 4),
        "down.bias": (3,),
    }


def test_a_constant_other_than_zero_is_needed_until_it_is_folded() -> None:
    model = Mlp(nn.Sigmoid())
    zero(model.up.weight, 0, 2)
    assert sizes(model, 5, 4)["down.weight"] == (3, 6)


def test_nothing_dead_means_nothing_removed() -> None:
    _, flow, _, needs = analysed(Mlp(nn.ReLU()), 5, 4)
    assert not close_survivors(flow, needs).removed


def test_a_dead_head_takes_its_queries_and_keys_along() -> None:
    model = Attention()
    zero(model.o.weight, 1, 4, 5, 6, 7)
    found = sizes(model, 2, 5, 8)
    assert found["q.weight"] == found["k.weight"] == found["v.weight"] == (4, 8)
    assert found["o.weight"] == (8, 4)


def test_heads_keep_as_many_dims_as_the_fullest_one() -> None:
    model = Attention()
    zero(model.o.weight, 1, 0, 1, 4)  # two dims of head 0, one of head 1
    found = sizes(model, 2, 5, 8)
    assert found["v.weight"] == (6, 8)
    assert found["q.weight"] == (8, 8)


def test_different_dims_may_survive_in_different_heads() -> None:
    model = Attention()
    zero(model.o.weight, 1, 0, 1, 6, 7)
    _, flow, _, needs = analysed(model, 2, 5, 8)
    survivors = close_survivors(flow, needs)
    kept = survivors.positions(flow.parameters["v.weight"], 0).reshape(-1)
    assert kept.tolist() == [2, 3, 4, 5]


class MultiQuery(Attention):
    """Both heads read the same keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.v = (nn.Linear(8, 4, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(self.q(x)), self.k(x)[:, None], self.v(x)[:, None]
        weights = torch.softmax(q @ k.transpose(-1, -2), -1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


def test_a_head_that_shares_its_values_leaves_alone() -> None:
    model = MultiQuery()
    zero(model.o.weight, 1, 4, 5, 6, 7)
    found = sizes(model, 2, 5, 8)
    assert found["q.weight"] == (4, 8)
    assert found["o.weight"] == (8, 4)
    assert found["k.weight"] == found["v.weight"] == (4, 8)


def test_a_shared_dim_stays_as_long_as_one_head_reads_it() -> None:
    model = MultiQuery()
    zero(model.o.weight, 1, 0, 1, 5)
    found = sizes(model, 2, 5, 8)
    assert found["v.weight"] == (3, 8)  # both heads lost dim 1, one head dim 0
    assert found["o.weight"] == (8, 6)


def test_rotated_dims_go_in_pairs() -> None:
    model = Attention()
    for weight in (model.q.weight, model.k.weight):
        zero(weight, 0, 0, 2, 4, 6)  # the pair (0, 2) of both heads
    assert sizes(model, 2, 5, 8)["q.weight"] == (4, 8)


def test_half_a_rotated_pair_stays() -> None:
    model = Attention()
    for weight in (model.q.weight, model.k.weight):
        zero(weight, 0, 0, 4)
    assert sizes(model, 2, 5, 8)["q.weight"] == (8, 8)


def test_survivors_contain_all_needs() -> None:
    model = Attention()
    zero(model.o.weight, 1, 0, 1, 2, 5)
    _, flow, _, needs = analysed(model, 2, 5, 8)
    survivors = close_survivors(flow, needs)
    for kept, needed in zip(survivors.planes, needs.planes, strict=True):
        assert all((k | ~n).all() for k, n in zip(kept, needed, strict=True))
