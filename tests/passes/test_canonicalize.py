"""One form for what can be written in several ways."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from fgcompile.passes.canonicalize import canonicalize
from fgcompile.printer import show
from fgcompile.program import Program
from tests.passes.check import check_pass, check_unchanged, program_of

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
