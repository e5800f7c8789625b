"""One form for what can be written in several ways."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Node

from fgcompile.capture import capture
from fgcompile.passes.canonicalize import canonicalize
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
    check_pass(
        canonicalize,
        capture(Scaled().double(), (X.double(),)),
        """\
before
x: [s0 4 float64] = input
linear: [s0 3 float64] = linear(x, up.weight, up.bias)
abs_1: [s0 3 float64] = abs(linear)
sum_1: [s0 1 float64] = sum(abs_1, [-1], True)
expand_as: [s0 3 float64] = expand_as(sum_1, linear)
div: [s0 3 float64] = div(linear, expand_as)
return div

after
x: [s0 4 float64] = input
linear: [s0 3 float64] = linear(x, up.weight, up.bias)
abs_1: [s0 3 float64] = abs(linear)
sum_1: [s0 1 float64] = sum(abs_1, [-1], True)
expand_as: [s0 3 float64] = expand(sum_1, [-1, 3])
div: [s0 3 float64] = div(linear, expand_as)
return div
""",
    )
