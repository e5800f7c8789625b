"""INT8 files: smaller, close, and honest about not being equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fgcompile import GateConfig, gates, insert_gates, lower
from fgcompile.errors import ExportError
from tests.end_to_end.closing import random_half

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

X = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
CLOSED = [0, 3, 4, 17, 31]
KEPT = [unit for unit in range(32) if unit not in CLOSED]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()


def scales(model: Any) -> dict[tuple[int, ...], np.ndarray[Any, Any]]:
    """One scale per output channel, by the shape of the int8 matrix."""
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    return {
        array.shape: stored[name.replace("_quantized", "_scale")]
        for name, array in stored.items()
        if name.endswith("_quantized")
    }


@pytest.fixture(scope="module")
def gated() -> Any:
    torch.manual_seed(0)
    model = insert_gates(mlp(), (X,), GateConfig(kinds=("mlp",)))
    gates(model)["mlp"].close(CLOSED)
    return model


@pytest.fixture(scope="module")
def lowered(gated: Any) -> Any:
    return lower(gated, "onnx", quantization="int8")


def test_weights_of_pruned_layers_are_rounded_no_coarser_than_dense_ones(
    gated: Any, lowered: Any
) -> None:
    gates(gated)["mlp"].reopen()
    dense = scales(lower(gated, "onnx", quantization="int8").model)
    gates(gated)["mlp"].close(CLOSED)
    pruned = scales(lowered.model)
    assert pruned.keys() == {(16, 27), (27, 8)}
    np.testing.assert_allclose(pruned[16, 27], dense[16, 32][KEPT], rtol=1e-6)
    assert (pruned[27, 8] <= dense[32, 8] * (1 + 1e-6)).all()
    assert (pruned[27, 8] < dense[32, 8] * 0.999).any()


def test_call_runs_the_int8_file_and_rounding_says_how_far_it_is(
    gated: Any, lowered: Any
) -> None:
    difference = float((lowered(X)["output"] - gated(X).detach()).abs().max())
    assert 0 < difference <= 2 * lowered.rounding.absolute
    assert lowered.comparison.relative < 1e-5 < lowered.rounding.relative < 0.05


def test_report_puts_the_files_side_by_side(lowered: Any) -> None:
    variants = {variant.name: variant for variant in lowered.report.variants}
    assert list(variants) == [
        *("dense float32", "dense int8", "lowered float32", "lowered int8"),
    ]
    assert variants["dense float32"].latency_ratio == 1.0
    assert all(variant.latency_ratio for variant in variants.values())
    assert variants["lowered int8"].difference == lowered.rounding.relative
    assert variants["lowered int8"].reference == "lowered float32"
    exact = variants["lowered float32"]
    assert (exact.difference, exact.reference) == (
        lowered.comparison.relative,
        "gated model",
    )


def test_report_warns_that_int8_is_not_equal(lowered: Any) -> None:
    (note,) = [n for n in lowered.report.notes if n.subject == "quantization"]
    assert note.level == "warning"
    assert note.text.startswith("int8 weights are close, not equal: outputs differ by")
    assert lowered.report.verdict.verified.max_difference == lowered.comparison.absolute


def test_saved_file_holds_int8_matrices(lowered: Any, tmp_path: Path) -> None:
    file = lowered.save(tmp_path / "small.onnx")
    assert scales(onnx.load(file)).keys() == {(16, 27), (27, 8)}


def test_float_models_have_no_rounding(gated: Any) -> None:
    result = lower(gated, "onnx")
    assert result.rounding is None
    assert result.report.variants == ()


class Scale(nn.Module):
    """Nothing that has an int8 kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_model_without_matrices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        lower(
            Scale().eval(),
            "onnx",
            tmp_path / "model.onnx",
            example_inputs=(torch.ones(3, 2),),
            quantization="int8",
        )
    assert str(caught.value) == (
        "the model has no weights that onnxruntime quantises\n"
        "  It quantises matrix products, convolutions and embeddings.\n"
        "  Lower without quantization."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "onnx", "quantization": "int4"}, "unknown quantization 'int4'"),
        ({"target": "fx", "quantization": "int8"}, "quantization='int8' is for ONNX"),
        ({"target": "openvino", "cache": True}, "cache=True is for ONNX files"),
    ],
)
def test_options_that_a_target_lacks_are_refused(options: Any, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        lower(mlp(), **options, example_inputs=(X,))


@pytest.mark.slow
def test_sentences_mean_the_same_in_int8(minilm: Any, minilm_tokenizer: Any) -> None:
    insert_gates(minilm, config=GateConfig(kinds=("mlp",)))
    random_half(minilm, 0)
    result = lower(minilm, "onnx", quantization="int8")
    texts = ["A cat sits on the mat.", "Shares fell sharply on Monday.", "Hello!"]
    inputs = minilm_tokenizer(texts, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    want, got = minilm(**inputs).pooler_output, result(**inputs)["pooler_output"]
    assert (torch.cosine_similarity(want, got) > 0.98).all()
    assert len(scales(result.model)) >= 6
    sizes = {v.name: v.size_bytes for v in result.report.variants}
    assert sizes["lowered int8"] < 0.3 * sizes["lowered float32"]
