"""Fractional gates go into the weights beside them, or stay as multiplications."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fgcompile
from fgcompile.passes.fold_gates import fold_gates
from fgcompile.program import Program
from tests.passes.check import check_pass, check_unchanged, gated_program, program_of


class Gated(nn.Module):
    """A layer, its gate where the subclass puts it, and what reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 2)
        self.z = nn.Parameter(torch.tensor([1.0, 0.5, 0.25, 2.0]))

    def gate(self, x: Tensor) -> Tensor:
        return torch.ops.fgcompile.gate(x, self.z, -1)


def program(model: nn.Module) -> Program:
    return program_of(model, torch.randn(2, 3))


class ReadByLinear(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gate(self.up(x).tanh()))


def test_factor_goes_into_the_columns_of_the_reader() -> None:
    check_pass(
        fold_gates,
        program(ReadByLinear()),
        """\
before
x: [s0 3 float64] = input
linear: [s0 4 float64] = linear(x, up.weight, up.bias)
tanh: [s0 4 float64] = tanh(linear)
gate: [s0 4 float64] = gate(tanh, z, -1)
linear_1: [s0 2 float64] = linear(gate, down.weight, down.bias)
return linear_1

after
x: [s0 3 float64] = input
linear: [s0 4 float64] = linear(x, up.weight, up.bias)
tanh: [s0 4 float64] = tanh(linear)
linear_1: [s0 2 float64] = linear(tanh, down.weight, down.bias)
return linear_1
""",
    )


class MadeByLinear(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gate(self.up(x)).tanh())


def test_factor_goes_into_the_rows_and_bias_of_the_producer() -> None:
    model = MadeByLinear()
    bias = (model.up.bias * model.z).detach().double()
    after = program(model)
    check_pass(
        fold_gates,
        after,
        """\
before
x: [s0 3 float64] = input
linear: [s0 4 float64] = linear(x, up.weight, up.bias)
gate: [s0 4 float64] = gate(linear, z, -1)
tanh: [s0 4 float64] = tanh(gate)
linear_1: [s0 2 float64] = linear(tanh, down.weight, down.bias)
return linear_1

after
x: [s0 3 float64] = input
linear: [s0 4 float64] = linear(x, up.weight, up.bias)
tanh: [s0 4 float64] = tanh(linear)
linear_1: [s0 2 float64] = linear(tanh, down.weight, down.bias)
return linear_1
""",
    )
    parameters = dict(after.graph_module.named_parameters())
    assert torch.equal(parameters["up.bias"].detach(), bias)


class Between(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gate(self.up(x).tanh()).exp())


def test_factor_that_no_weight_can_take_stays_as_multiplication() -> None:
    check_pass(
        fold_gates,
        program(Between()),
        """\
before
x: [s0 3 float64] = input
linear: [s0 4 float64] = linear(x, up.weight, up.bias)
tanh: [s0 4 float64] = tanh(linear)
gate: [s0 4 float64] = gate(tanh, z, -1)
exp: [s0 4 float64] = exp(gate)
linear_1: [s0 2 float64] = linear(exp, down.weight, down.bias)
return linear_1

after
x: [s0 3 float64] = input
linear: [s0 4 float64] = linear(x, up.weight, up.bias)
tanh: [s0 4 float64] = tanh(linear)
mul_tensor: [s0 4 float64] = mul(tanh, factors_0)
exp: [s0 4 float64] = exp(mul_tensor)
linear_1: [s0 2 float64] = linear(exp, down.weight, down.bias)
return linear_1
""",
    )


class SharedReader(Gated):
    """`down` also reads what no gate scales."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x).tanh()
        return self.down(self.gate(hidden)) + self.down(hidden.exp())


def test_weight_that_another_value_goes_through_is_not_scaled() -> None:
    check_pass(
        fold_gates,
        program(SharedReader()),
        """\
before
x: [s0 3 float64] = input
linear: [s0 4 float64] = linear(x, up.weight, up.bias)
tanh: [s0 4 float64] = tanh(linear)
gate: [s0 4 float64] = gate(tanh, z, -1)
linear_1: [s0 2 float64] = linear(gate, down.weight, down.bias)
exp: [s0 4 float64] = exp(tanh)
linear_2: [s0 2 float64] = linear(exp, down.weight, down.bias)
add: [s0 2 float64] = add(linear_1, linear_2)
return add

after
x: [s0 3 float64] = input
linear: [s0 4 float64] = linear(x, up.weight, up.bias)
tanh: [s0 4 float64] = tanh(linear)
mul_tensor: [s0 4 float64] = mul(tanh, factors_0)
linear_1: [s0 2 float64] = linear(mul_tensor, down.weight, down.bias)
exp: [s0 4 float64] = exp(tanh)
linear_2: [s0 2 float64] = linear(exp, down.weight, down.bias)
add: [s0 2 float64] = add(linear_1, linear_2)
return add
""",
    )


class SameGateTwice(Gated):
    """Both uses of `down` read the same factors."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        return self.down(self.gate(hidden.tanh())) + self.down(self.gate(hidden.exp()))


def test_shared_weight_is_scaled_once_if_all_its_uses_are_gated_alike() -> None:
    check_pass(
        fold_gates,
        program(SameGateTwice()),
        """\
before
x: [s0 3 float64] = input
linear: [s0 4 float64] = linear(x, up.weight, up.bias)
tanh: [s0 4 float64] = tanh(linear)
gate: [s0 4 float64] = gate(tanh, z, -1)
linear_1: [s0 2 float64] = linear(gate, down.weight, down.bias)
exp: [s0 4 float64] = exp(linear)
gate_1: [s0 4 float64] = gate(exp, z, -1)
linear_2: [s0 2 float64] = linear(gate_1, down.weight, down.bias)
add: [s0 2 float64] = add(linear_1, linear_2)
return add

after
x: [s0 3 float64] = input
linear: [s0 4 float64] = linear(x, up.weight, up.bias)
tanh: [s0 4 float64] = tanh(linear)
linear_1: [s0 2 float64] = linear(tanh, down.weight, down.bias)
exp: [s0 4 float64] = exp(linear)
linear_2: [s0 2 float64] = linear(exp, down.weight, down.bias)
add: [s0 2 float64] = add(linear_1, linear_2)
return add
""",
    )


def test_open_gates_disappear() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    check_pass(
        fold_gates,
        gated_program(model, torch.randn(2, 3), kinds=("mlp",)),
        """\
before
input_1: [s0 3 float64] = input
linear: [s0 4 float64] = linear(input_1, 0.weight, 0.bias)
relu: [s0 4 float64] = relu(linear)
gate: [s0 4 float64] = gate(relu, fgcompile_gates.gates.mlp.logits_0, -1)
linear_1: [s0 2 float64] = linear(gate, 2.weight, 2.bias)
return linear_1

after
input_1: [s0 3 float64] = input
linear: [s0 4 float64] = linear(input_1, 0.weight, 0.bias)
relu: [s0 4 float64] = relu(linear)
linear_1: [s0 2 float64] = linear(relu, 2.weight, 2.bias)
return linear_1
""",
    )


def test_programs_without_gates_are_left_alone() -> None:
    check_unchanged(fold_gates, program(nn.Linear(3, 2)))


def test_lowered_fractional_gates_leave_no_trace() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(5, 3)
    fgcompile.insert_gates(model, (x,), fgcompile.GateConfig(kinds=("mlp",)))
    (gate,) = fgcompile.gates(model).values()
    with torch.no_grad():
        gate.logits.uniform_(-0.9, 0.0)
    gate.close([1])
    assert 0.1 < float(gate.eval_value().detach()[0]) < 0.9
    lowered = fgcompile.lower(model)
    names = {node.name for node in lowered.program.graph.nodes}
    assert not any("gate" in name or "mul" in name for name in names)
    assert sum(p.numel() for p in lowered.model.parameters()) == 3 * 4 + 3 * 2 + 2
    torch.testing.assert_close(lowered(x), model(x))
