"""Attention in ONNX files: fewer operators than the exporter writes, and right."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fgcompile import lower

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
# A whole row, a row with padding, and one in which nothing can be seen.
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()


class Layers(nn.Module):
    """Two layers of attention over two heads, with the same options."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(8, 24) for _ in range(2))
        self.options = options

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        seen = None if mask is None else mask[:, None, None, :]
        for project in self.project:
            q, k, v = (
                part.unflatten(-1, (2, 4)).transpose(1, 2)
                for part in project(x).split(8, -1)
            )
            mixed = scaled_dot_product_attention(q, k, v, seen, **self.options)
            x = x + mixed.transpose(1, 2).flatten(2)
        return x


def written(model: nn.Module, *inputs: Tensor) -> tuple[Any, Counter[str]]:
    """The lowered model, and how often its file has each operator."""
    lowered = lower(model.eval(), "onnx", example_inputs=inputs)
    return lowered, Counter(node.op_type for node in lowered.model.graph.node)


def test_a_row_that_sees_nothing_is_zero_as_in_torch() -> None:
    model = Layers()
    lowered, operators = written(model, X, MASK)
    got = lowered(X, MASK)["output"]
    torch.testing.assert_close(got[2], X[2])
    torch.testing.assert_close(got, model(X, MASK).detach())
    assert operators["IsNaN"] == 0
    assert operators["ReduceMax"] == 1  # rows that see nothing, for both layers


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}])
def test_keys_are_transposed_once(options: dict[str, Any]) -> None:
    model = Layers(**options)
    lowered, operators = written(model, X)
    torch.testing.assert_close(lowered(X)["output"], model(X).detach())
    # query, key, value and result
    assert operators["Transpose"] == 2 * 4
    assert operators["Softmax"] == 2
    assert operators["Where"] == 0


def test_causal_attention_is_left_to_the_exporter() -> None:
    model = Layers(is_causal=True)
    lowered, operators = written(model, X)
    torch.testing.assert_close(lowered(X)["output"], model(X).detach())
    assert operators["Softmax"] == 2


def test_opset_23_keeps_one_operator_for_attention() -> None:
    model = Layers().eval()
    lowered = lower(model, "onnx", example_inputs=(X,), opset=23)
    assert [n.op_type for n in lowered.model.graph.node].count("Attention") == 2
