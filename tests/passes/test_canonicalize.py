"""One form for what can be written in several ways."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from fgcompile.passes.canonicalize import canonicalize
from fgcompile.passes.eliminate_dead_dims import eliminate_dead_dims
from fgcompile.printer import show
from fgcompile.program import Program
from tests.passes.check import check_pass, check_unchanged, program_of, shapes

X = torch.linspace(-1, 1, 8).view(2, 4)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


def with_copy() -> Program:
    """As a pass may leave it: a copy between the layers, and a value nobody reads."""
    program = program_of(Plain(), X)
    relu = next(n for n in program.graph.nodes if n.name == "relu")
    with program.graph.inserting_after(relu):
        copied = _call(program, torch.ops.aten.alias.default, relu)
    relu.replace_all_uses_with(copied, delete_user_cb=lambda user: user is not copied)
    with program.graph.inserting_after(copied):
        _call(program, torch.ops.aten.exp.default, copied)
    program.graph_module.recompile()
    return program


def _call(program: Program, target: torch._ops.OpOverload, operand: Node) -> Node:
    node = program.graph.call_function(target, (operand,))
    node.meta["val"] = operand.meta["val"]
    return node


def test_identities_and_unread_values_are_gone() -> None:
    check_pass(
        canonicalize,
        with_copy(),
        """\
before
x: [s0 4 float64] = input
linear: [s0 3 float64] = linear(x, up.weight, up.bias)
relu: [s0 3 float64] = relu(linear)
alias_default: [s0 3 float64] = alias(relu)
exp_default: [s0 3 float64] = exp(alias_default)
linear_1: [s0 2 float64] = linear(alias_default, down.weight, down.bias)
return linear_1

after
x: [s0 4 float64] = input
linear: [s0 3 float64] = linear(x, up.weight, up.bias)
relu: [s0 3 float64] = relu(linear)
linear_1: [s0 2 float64] = linear(relu, down.weight, down.bias)
return linear_1
""",
    )


def test_captured_programs_are_canonical() -> None:
    check_unchanged(canonicalize, program_of(Plain(), X))


class Scaled(nn.Module):
    """Takes its sizes from a tensor that may shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return x / x.abs().sum(-1, keepdim=True).expand_as(x)


def test_sizes_of_another_tensor_are_named() -> None:
    program = program_of(Scaled(), X)
    assert "expand(sum_1, [-1, 3])" in show(program)


def graph_of(function: Callable[..., Tensor], *inputs: Tensor) -> Program:
    """`function` as a program of the operators that it calls, not simplified."""
    exported = torch.export.export(Function(function), inputs)
    graph_module = exported.module(check_guards=False)
    names = [n.target for n in graph_module.graph.nodes if n.op == "placeholder"]
    return Program(graph_module, dict(zip(names, inputs, strict=True)))


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(x, y)


A, B = torch.arange(6.0).view(2, 3), torch.arange(6.0, 12.0).view(2, 3)
ROUNDABOUT: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "view_as": (lambda x, y: x.view(3, 2).view_as(y), ("reshape", "[2, 3]")),
    "expand_as": (lambda x, y: x[:1].expand_as(y), ("expand", "[2, -1]")),
    "type_as": (lambda x, y: x.int().type_as(y), ("to(", "float32")),
    "glu": (
        lambda x, y: nn.functional.glu(torch.cat([x, y]), 0),
        ("chunk", "sigmoid", "mul"),
    ),
    "slice_scatter": (
        lambda x, y: torch.slice_scatter(
            torch.slice_scatter(x.new_empty(2, 6), y, 1, 3, 6), x, 1, 0, 3
        ),
        ("cat([x, y], 1)",),
    ),
    "cat([empty": (
        lambda x, y: torch.cat([torch.empty(0), x, y], 1),
        ("cat([x, y], 1)",),
    ),
}


@pytest.mark.parametrize("name", ROUNDABOUT)
def test_what_can_be_said_plainly_is(name: str) -> None:
    function, plain = ROUNDABOUT[name]
    program = graph_of(function, A, B)
    assert f"= {name}" in show(program)
    assert canonicalize(program)
    assert f"= {name}" not in show(program)
    assert all(word in show(program) for word in plain)
    assert torch.equal(program.graph_module(A, B), function(A, B))
    assert not canonicalize(program)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: torch.slice_scatter(x, y[:, :2], 1, 0, 2),
        lambda x, y: torch.slice_scatter(
            torch.slice_scatter(x, y[:, :2], 1, 0, 2), y[:, 1:], 1, 1, 3
        ),
        lambda x, y: torch.slice_scatter(x, y[:, :2], 1, 0, 3, 2),
    ],
    ids=["part", "overlap", "steps"],
)
def test_slices_that_are_no_whole_stay(function: Callable[..., Tensor]) -> None:
    program = graph_of(function, A, B)
    canonicalize(program)
    assert "slice_scatter" in show(program)
    assert torch.equal(program.graph_module(A, B), function(A, B))


def _power(x: Tensor, dim: int) -> Tensor:
    mean = x.mean(dim, keepdim=True)
    variance = (x - mean).pow(2).mean(dim, keepdim=True)
    return (x - mean) * (variance + 1e-5).rsqrt()


def _root(x: Tensor, dim: int) -> Tensor:
    centred = x - x.mean(dim, keepdim=True)
    variance = (centred * centred).mean(dim, keepdim=True)
    return centred / torch.sqrt(variance + 1e-5)


def _exponent(x: Tensor, dim: int) -> Tensor:
    variance = x.var(dim, unbiased=False, keepdim=True)
    return (variance + 1e-5) ** -0.5 * (x - x.mean(dim, keepdim=True))


def _reciprocal(x: Tensor, dim: int) -> Tensor:
    variance = x.var(dim, correction=0, keepdim=True)
    return (x - x.mean(dim, keepdim=True)) * (1 / torch.sqrt(variance + 1e-5))


class Written(nn.Module):
    """A stream of six units, normalised along `dim` and read by one layer."""

    def __init__(self, norm: Callable[[Tensor, int], Tensor], dim: int) -> None:
        super().__init__()
        self.norm, self.dim = norm, dim
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.weight = nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        stream = self.first(x).transpose(-1, self.dim)
        normed = self.norm(stream, self.dim).transpose(-1, self.dim)
        return self.last(self.weight * normed)


@pytest.mark.parametrize("dim", [-1, 1])
@pytest.mark.parametrize("norm", [_power, _root, _exponent, _reciprocal])
def test_a_written_layer_norm_is_one_operator_and_shrinks(
    norm: Callable[[Tensor, int], Tensor], dim: int
) -> None:
    model, x = Written(norm, dim), torch.randn(2, 5, 4)
    for parameter in (model.first.weight, model.first.bias, model.weight):
        parameter.data[[1, 4]] = 0
    program = program_of(model, x)
    assert "layer_norm" in show(program)
    lowered = program.copy()
    assert eliminate_dead_dims(lowered)
    assert shapes(lowered)["first.weight"] == [4, 4]
    torch.testing.assert_close(lowered(x.double()), model(x.double()))


def _unbiased(x: Tensor, dim: int) -> Tensor:
    variance = x.var(dim, keepdim=True)
    return (x - x.mean(dim, keepdim=True)) * (variance + 1e-5).rsqrt()


def _of_something_else(x: Tensor, dim: int) -> Tensor:
    variance = x.var(dim, unbiased=False, keepdim=True)
    return (x - (x + 1).mean(dim, keepdim=True)) * (variance + 1e-5).rsqrt()


@pytest.mark.parametrize("norm", [_unbiased, _of_something_else])
def test_what_is_no_layer_norm_stays(norm: Callable[[Tensor, int], Tensor]) -> None:
    assert "layer_norm" not in show(program_of(Written(norm, -1), torch.randn(2, 5, 4)))
