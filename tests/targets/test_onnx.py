"""ONNX files: what the exporter would refuse otherwise."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fgcompile import diff, lower
from fgcompile.report import summarize

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


class BiasedAttention(nn.Module):
    """Two heads with a trained bias on scores, as in T5 and Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)
        self.bias = nn.Parameter(torch.randn(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        parts = self.project(x).view(rows, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        distance = torch.arange(length)[None] - torch.arange(length)[:, None]
        scores = self.bias * distance
        query, key, value = parts
        mixed = scaled_dot_product_attention(query, key, value, scores[None])
        return mixed.transpose(1, 2).reshape(rows, length, 8)


def test_heads_are_joined_wherever_they_lie_in_memory() -> None:
    inputs: Any = (torch.randn(2, 5, 8),)
    lowered = lower(BiasedAttention().eval(), "onnx", example_inputs=inputs)
    assert lowered.comparison is not None
    assert lowered.comparison.relative < 1e-5
    assert not [n for n in lowered.model.graph.node if n.op_type == "Identity"]


class NamedAsAnOperator(nn.Module):
    """Returns its result under the name that the exporter gives a value inside."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.up = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        return {"embedding": self.up(self.table(ids))}


def test_output_may_be_called_as_an_operator_calls_its_result() -> None:
    ids = torch.tensor([[1, 2, 4], [0, 3, 3]])
    model = NamedAsAnOperator().eval()
    lowered = lower(model, "onnx", example_inputs=(ids,))
    torch.testing.assert_close(lowered(ids)["embedding"], model(ids)["embedding"])


class NormOfSum(nn.Module):
    """The end of a block as BERT has it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.up(x) + x)


def test_onnxruntime_keeps_sums_and_norms_apart(tmp_path: Path) -> None:
    # Its CPU kernel for both at once is slower than the two.
    import onnxruntime

    inputs: Any = (torch.randn(2, 5, 8),)
    file = lower(NormOfSum().eval(), "onnx", example_inputs=inputs).save(tmp_path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    kinds = {n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert kinds >= {"LayerNormalization", "Sum"}


def test_reports_know_that_a_sum_of_two_is_an_addition() -> None:
    inputs: Any = (torch.randn(2, 5, 8),)
    model = lower(NormOfSum().eval(), "onnx", example_inputs=inputs).model
    other = copy.deepcopy(model)
    (node,) = [n for n in other.graph.node if n.op_type == "Sum"]
    node.op_type = "Add"
    assert diff(other, model).same


def test_files_name_lines_but_no_folders_of_the_machine(tmp_path: Path) -> None:
    inputs: Any = (torch.randn(2, 5, 8),)
    file = lower(NormOfSum().eval(), "onnx", example_inputs=inputs).save(tmp_path)
    assert str(Path(__file__).parent).encode() not in file.read_bytes()
    lines = {node.line.partition(":")[0] for node in summarize(file).nodes}
    assert lines == {Path(__file__).name}
