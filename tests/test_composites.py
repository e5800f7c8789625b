"""Operators that only call others are taken apart where rules know the parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fgcompile
from fgcompile.capture import capture


class Block(nn.Module):
    """Channels that go through one function; they may change in number."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(function(torch.randn(3, 8)).shape[-1], 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.function(self.up(x)))


SLOPES, MATRIX = torch.linspace(0.1, 0.5, 8), torch.randn(8, 5)


@pytest.mark.parametrize(
    "f",
    [
        pytest.param(lambda h: F.prelu(h, SLOPES), id="prelu"),
        pytest.param(lambda h: torch.tensordot(h, MATRIX, 1), id="tensordot"),
        pytest.param(lambda h: torch.inner(h, MATRIX.T), id="inner"),
        pytest.param(lambda h: torch.hstack([h, h * h]), id="hstack"),
        pytest.param(lambda h: torch.subtract(h, 2 * h), id="subtract"),
        pytest.param(lambda h: torch.absolute(torch.negative(h)), id="absolute"),
        pytest.param(lambda h: h.where(torch.greater(h, 0), 0 * h), id="greater"),
        pytest.param(lambda h: h * F.cosine_similarity(h, h * h)[:, None], id="cosine"),
        pytest.param(lambda h: h / torch.linalg.norm(h, dim=1)[:, None], id="norm"),
        pytest.param(lambda h: h * torch.linalg.vecdot(h, h)[:, None], id="vecdot"),
        pytest.param(lambda h: h * torch.special.expit(h), id="expit"),
        pytest.param(lambda h: h * (h > 0).broadcast_to(2, *h.shape)[0], id="a mask"),
        pytest.param(lambda h: torch.true_divide(torch.multiply(h, h), 3), id="divide"),
        pytest.param(lambda h: F.hardswish(h), id="hardswish"),
        pytest.param(lambda h: torch.moveaxis(h[:, None], 1, 2)[..., 0], id="moveaxis"),
    ],
)
def test_zeros_are_removed_through_composites(f: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = Block(f).eval(), torch.randn(3, 6)
    with torch.no_grad():
        model.up.weight[[1, 2, 6]] = model.up.bias[[1, 2, 6]] = 0
    lowered = fgcompile.lower(model, "fx", example_inputs=(x,))
    parameters = dict(lowered.program.graph_module.named_parameters())
    assert parameters["up.weight"].shape == (5, 6)
    torch.testing.assert_close(lowered(x[:2]), model(x[:2]))


def test_a_composite_of_unknown_parts_is_named_as_it_was_called() -> None:
    model, x = (
        Block(lambda h: torch.cdist(h[:, None], MATRIX.T)[:, 0]),
        torch.ones(3, 6),
    )
    assert "no dimension rule for aten.cdist" in str(fgcompile.analyze(model, (x,)))


def test_parts_are_where_the_whole_was_called() -> None:
    program = capture(Block(lambda h: torch.subtract(h, 1.0)), (torch.ones(3, 6),))
    (part,) = (n for n in program.graph.nodes if n.target is torch.ops.aten.sub.Tensor)
    assert "self.down(self.function(self.up(x)))" in part.meta["stack_trace"]
