"""Small programs that once failed; each was found by the random ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgcompile import GateConfig, gates, insert_gates, lower
from fgcompile.compiler import analyze
from fgcompile.errors import GateError
from fgcompile.lowering import Lowered


def lowered_equal(model: nn.Module, **inputs: Tensor) -> Lowered:
    """The lowered `model`, which is equal, and stays as it is when lowered again."""
    model.double().eval()
    lowered = lower(model, example_inputs=inputs)
    again = lower(lowered.model, example_inputs=inputs)
    assert sizes(again.model) == sizes(lowered.model)
    with torch.no_grad():
        expected = model(**inputs)
        torch.testing.assert_close(lowered(**inputs), expected)
        torch.testing.assert_close(again(**inputs), expected)
    return lowered


def sizes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def zero(parameter: Any, *index: Any) -> None:
    with torch.no_grad():
        parameter[index] = 0.0


class FoldedTokens(nn.Module):
    """The inner linear map is dead, but sizes still come from what feeds it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(13, 12)
        self.inner, self.head = nn.Linear(12, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.table(x).reshape(-1, 12)
        return self.head(F.relu(self.inner(flat)).view(x.shape[0], x.shape[1], -1))


def test_tokens_of_a_dead_embedding_still_find_their_rows() -> None:
    model = FoldedTokens()
    zero(model.inner.weight)
    tokens = torch.arange(22).reshape(2, 11) % 13
    lowered_equal(model, x=tokens)


class PositionsBeside(nn.Module):
    """A slice of a table, of dynamic length, that the head does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(64, 3))
        self.up, self.head = nn.Linear(4, 6), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table[: x.shape[1]].expand(x.shape[0], -1, -1)
        y = self.up(x)
        return self.head(torch.cat([y @ y.transpose(1, 2) @ x, rows], -1))


def test_a_slice_of_dynamic_length_keeps_its_rows() -> None:
    model = PositionsBeside()
    zero(model.head.weight, slice(None), slice(4, 7))
    zero(model.up.weight, slice(2, 4))
    zero(model.up.bias, slice(2, 4))
    lowered = lowered_equal(model, x=torch.randn(3, 11, 4).double())
    assert lowered.model.get_parameter("up.weight").shape == (4, 4)


class EveryOther(nn.Module):
    """A dead linear map of every other position: no input has that many."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(4, 6), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, ::2]
        return self.head(x) + self.up(x).mean(-1, keepdim=True)


def test_passes_settle_where_a_dead_map_cannot_be_replaced() -> None:
    model = EveryOther()
    zero(model.up.weight)
    lowered_equal(model, x=torch.randn(3, 11, 4).double())


class OneStreamTwice(nn.Module):
    """Scores of two equal rows: the planes of both meet in the sum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        rows = torch.stack([x, x], 2)
        return self.head((rows @ rows.transpose(-1, -2)).softmax(-1) @ rows)


def test_zeros_of_a_product_meet_in_planes_of_their_own() -> None:
    model = OneStreamTwice()
    zero(model.up.weight, slice(3, 9))
    zero(model.up.bias, slice(3, 9))
    lowered = lowered_equal(model, x=torch.randn(3, 11, 4).double())
    assert lowered.model.get_parameter("head.weight").shape == (3, 10)


class BesideConstants(nn.Module):
    """A dead map beside the input; the constant has no units."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(4, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.up(x), x.clamp(min=0.1)], -1))


def test_zeros_beside_an_input_do_not_make_it_zero() -> None:
    model = BesideConstants()
    zero(model.up.weight)
    zero(model.up.bias)
    lowered_equal(model, x=torch.randn(3, 11, 4).double())


class PaddedWithOnes(nn.Module):
    """Positions of ones around a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.pad(self.up(x), [0, 0, 1, 1], value=1.0))


@pytest.mark.parametrize("count", [2, 6])
def test_padding_with_ones_is_not_zero_where_its_operand_is(count: int) -> None:
    model = PaddedWithOnes()
    zero(model.up.weight, slice(0, count))
    zero(model.up.bias, slice(0, count))
    lowered_equal(model, x=torch.randn(3, 11, 4).double())


class HardRouting(nn.Module):
    """Each row takes the matrix that its router chooses, and nothing else of it."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.head = nn.Linear(4, 3), nn.Linear(6, 3)
        self.experts = nn.Parameter(torch.randn(3, 4, 6))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).argmax(-1)
        return self.head(torch.einsum("bc,bch->bh", x, self.experts[chosen]))


def test_a_router_that_only_chooses_is_needed() -> None:
    model = HardRouting()
    zero(model.head.weight, slice(None), slice(0, 2))
    lowered = lowered_equal(model, x=torch.randn(7, 4).double())
    assert lowered.model.get_parameter("router.weight").shape == (3, 4)
    assert lowered.model.get_parameter("head.weight").shape == (3, 4)


class Halves(nn.Module):
    """A module that returns one half of what it made; nobody reads the other."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(4, 3)
        self.first = FirstHalf()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.first(self.up(x)))


class FirstHalf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin().chunk(2, -1)[0]


def test_gates_are_placed_beside_a_split() -> None:
    x = torch.randn(3, 4)
    config = GateConfig(kinds=("mlp",), gate="plain")
    model = insert_gates(Halves(), {"x": x}, config)
    for gate in gates(model).values():
        gate.close([1])
    lowered_equal(model, x=x.double())


class Cosine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cos()


def test_a_program_without_parameters_has_no_groups() -> None:
    x = torch.randn(3, 4)
    assert analyze(Cosine(), {"x": x}).groups == ()
    with pytest.raises(GateError):
        insert_gates(Cosine(), {"x": x})


class MaximumOfRows(nn.Module):
    """The largest value along the positions, between two linear maps."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).amax(1).sin())


def test_gates_pass_operators_that_need_a_dim() -> None:
    x = torch.randn(3, 5, 4)
    config = GateConfig(kinds=("mlp",), gate="plain")
    model = insert_gates(MaximumOfRows(), {"x": x}, config)
    for gate in gates(model).values():
        gate.close([1, 2])
    lowered_equal(model, x=x.double())


class HalfBesideUnits(nn.Module):
    """Half of the inputs, of a width that only the norm tells, beside as many units."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(2), nn.Linear(2, 5)
        self.down, self.head = nn.Linear(5, 2), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        half = x.chunk(2, 1)[1]
        units = self.down(self.up(self.norm(half)).tanh())
        return self.head(torch.stack([half, units], 2))


def test_units_beside_a_size_of_the_inputs_stay() -> None:
    model = HalfBesideUnits()
    zero(model.up.weight, 1)
    zero(model.down.weight, ..., 1)
    lowered = lowered_equal(model, x=torch.randn(3, 4).double())
    assert lowered.model.get_parameter("up.weight").shape == (4, 2)


class DiagonalBesideUnits(nn.Module):
    """As many inputs as the shorter side of a matrix has, added to units."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        diagonal = x.diagonal(dim1=-2, dim2=-1)
        return self.head(diagonal + self.down(self.up(diagonal).relu()))


def test_units_that_are_as_many_as_a_size_of_the_inputs_stay() -> None:
    model = DiagonalBesideUnits()
    zero(model.up.weight, 1)
    zero(model.up.bias, 1)
    zero(model.down.weight, 2)
    zero(model.down.bias, 2)
    lowered = lowered_equal(model, x=torch.randn(3, 5, 4).double())
    assert lowered.model.get_parameter("up.weight").shape == (5, 4)


class UnreadPositions(nn.Module):
    """A table of positions, which nobody reads, takes short inputs alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.table(torch.arange(x.shape[1]))
        return self.down(self.up(x).relu())


def test_inputs_that_only_an_unread_branch_refuses_are_not_compared() -> None:
    model = UnreadPositions().double().eval()
    zero(model.up.weight, 1)
    zero(model.up.bias, 1)
    x = torch.randn(2, 7, 4).double()
    lowered = lower(model, "module", example_inputs={"x": x})
    assert lowered.model.up.weight.shape == (5, 4)
    torch.testing.assert_close(lowered.model(x), model(x))


class NormOfAll(nn.Module):
    """One norm of all elements, whose dims stay."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.linalg.vector_norm(x, 1, keepdim=True))


def test_a_norm_over_all_dims_keeps_them_in_onnx() -> None:
    model, x = NormOfAll().eval(), torch.randn(2, 7, 4)
    lowered = lower(model, "onnx", example_inputs={"x": x})
    expected = {"output": model(x)}
    torch.testing.assert_close(lowered(x), expected, rtol=1e-4, atol=1e-4)
