"""Nodes without a reader go, whatever FX thinks of their side effects."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fgcompile.capture import capture
from fgcompile.passes.eliminate_dead_code import eliminate_dead_code
from fgcompile.printer import show


class Skips(nn.Module):
    """Attention and a projection whose results are cut off after the capture."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        q = self.proj(x)
        return x + scaled_dot_product_attention(q, q, q)


def test_attention_without_a_reader_goes_with_its_weights() -> None:
    program = capture(Skips().eval(), (torch.randn(2, 3, 4),))
    x = next(node for node in program.graph.nodes if node.op == "placeholder")
    output = next(node for node in program.graph.nodes if node.op == "output")
    output.args = ((x,),)
    assert eliminate_dead_code(program)
    assert show(program) == "x: [s0 s1 4] = input\nreturn x"
    assert not program.graph_module.state_dict()
    assert not eliminate_dead_code(program)


def test_what_an_output_reads_stays() -> None:
    program = capture(Skips().eval(), (torch.randn(2, 3, 4),))
    before = show(program)
    assert not eliminate_dead_code(program)
    assert show(program) == before
