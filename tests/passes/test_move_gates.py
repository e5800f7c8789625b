"""A table with two readers is stored once, though one of them is gated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fgcompile.capture import capture
from fgcompile.passes.move_gates import move_gates
from fgcompile.passes.pipeline import eliminate
from fgcompile.printer import show
from tests.passes.check import assert_equal, shapes

IDS = torch.tensor([[1, 2, 3], [4, 0, 5]])


class Tied(nn.Module):
    """An embedding whose gated table scores all tokens, or makes units of them."""

    def __init__(self, dim: int, factors: list[float], bias: bool = False) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(6, 6), nn.Linear(6, 3)
        self.bias = nn.Parameter(torch.ones(6)) if bias else None
        self.dim = dim
        self.register_buffer("factors", torch.tensor(factors, dtype=torch.float64))

    def forward(self, ids: Tensor) -> Tensor:
        weight = torch.ops.fgcompile.gate(self.table.weight, self.factors, self.dim)
        x = self.table(ids)
        return self.head(nn.functional.linear(x, weight, self.bias)) + x.sum()


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("open_", [1.0, 0.5])
def test_table_is_not_stored_twice(dim: int, open_: float) -> None:
    model = Tied(dim, [open_, 0.0, open_, open_, 0.0, open_]).double().eval()
    program = capture(model, (IDS,))
    lowered = eliminate(program)
    assert_equal(program, lowered)
    assert set(shapes(lowered)) == {"table.weight", "head.weight", "head.bias"}


def test_gate_goes_to_the_operand_or_the_result() -> None:
    for dim, order in ((1, ["gate", "linear"]), (0, ["linear", "gate"])):
        program = capture(Tied(dim, [0.5] * 6).double().eval(), (IDS,))
        reference = program.copy()
        assert move_gates(program)
        assert_equal(reference, program)
        names = [n.target._schema.name for n in program.graph.nodes if n.op[0] == "c"]
        calls = [name.split("::")[1] for name in names]
        assert [c for c in calls if c in ("gate", "linear")] == [*order, "linear"]
        assert not move_gates(program)


def test_rows_under_a_bias_stay_gated() -> None:
    program = capture(Tied(0, [0.5] * 6, bias=True).double().eval(), (IDS,))
    before = show(program)
    assert not move_gates(program)
    assert show(program) == before


def test_weight_of_one_reader_takes_its_gate() -> None:
    model = Tied(1, [0.5] * 6).double().eval()
    model.table = nn.Embedding.from_pretrained(torch.ones(6, 6).double())
    alone = nn.Linear(6, 6, bias=False).double()
    model.forward = lambda ids: nn.functional.linear(  # type: ignore[method-assign]
        model.table(ids), torch.ops.fgcompile.gate(alone.weight, model.factors, 1)
    )
    model.alone = alone
    assert not move_gates(capture(model, (IDS,)))
