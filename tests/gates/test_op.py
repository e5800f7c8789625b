"""The operator `fgcompile::gate`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fgcompile.gates import gate_op
from fgcompile.gates.op import gate_backward

GATE = torch.ops.fgcompile.gate.default


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_factors_multiply_along_their_dim(dim: int) -> None:
    x = torch.randn(2, 3, 4)
    z = torch.rand(x.shape[dim])
    expected = (x.movedim(dim, -1) * z).movedim(-1, dim)
    assert torch.equal(gate_op(x, z, dim), expected)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_gradients_agree_with_finite_differences(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    z = torch.rand(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, z: gate_op(x, z, -1), (x, z))
    assert torch.autograd.gradgradcheck(lambda x, z: gate_op(x, z, -1), (x, z))


def test_registration_is_complete() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    z = torch.rand(3, requires_grad=True)
    torch.library.opcheck(GATE, (x, z, -1))


def test_result_has_the_dtype_of_the_value_and_factors_keep_theirs() -> None:
    x = torch.randn(2, 3, dtype=torch.bfloat16, requires_grad=True)
    z = torch.rand(3, requires_grad=True)
    y = gate_op(x, z, -1)
    y.sum().backward()
    assert (y.dtype, z.grad.dtype) == (torch.bfloat16, torch.float32)


def test_autocast_keeps_bfloat16() -> None:
    linear, z = nn.Linear(4, 4), torch.rand(4)
    with torch.autocast("cpu", torch.bfloat16):
        assert gate_op(linear(torch.randn(2, 4)), z, -1).dtype == torch.bfloat16


def test_export_keeps_one_node() -> None:
    class Gated(nn.Module):
        def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            return gate_op(x, z, -1)

    program = torch.export.export(Gated(), (torch.randn(2, 4), torch.rand(4)))
    calls = [n.target for n in program.graph.nodes if n.op == "call_function"]
    assert calls == [GATE]


def test_wrong_number_of_factors_is_refused_when_traced() -> None:
    with torch.device("meta"), pytest.raises(RuntimeError, match="gate has 3 factors"):
        gate_op(torch.empty(2, 4), torch.empty(3), -1)


@pytest.mark.parametrize("shape", [(3,), (2, 5), (3, 70, 4), (0, 4), (1, 129, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_in_blocks_is_that_of_the_formula(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    grad, x = torch.randn(2, *shape).to(dtype)
    z = torch.rand(shape[-1])
    grad_x, slope = gate_backward(grad, x, z, -1)
    torch.testing.assert_close(grad_x, grad * z.to(dtype), rtol=0, atol=0)
    expected = (grad.double() * x.double()).view(-1, shape[-1]).sum(0)
    assert slope.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(slope.double(), expected, rtol=0, atol=tolerance)
    torch.library.opcheck(gate_backward, (grad, x, z, -1))
