"""Shapes after a rewrite, and rewrites that fit one size only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fgcompile.passes.refresh_shapes import ShapeError, refresh_shapes
from tests.passes.check import program_of


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).reshape(-1, 2).relu()


def test_a_view_that_fits_the_traced_batch_alone_is_refused() -> None:
    program = program_of(Rows(), torch.randn(2, 4))
    view = next(n for n in program.graph.nodes if n.name.startswith("reshape"))
    source = view.args[0]
    before = [str(size) for size in source.meta["val"].shape]
    view.args = (source, [4, 2])
    with pytest.raises(ShapeError, match="fits one size of"):
        refresh_shapes(program, {view})
    assert [str(size) for size in source.meta["val"].shape] == before
