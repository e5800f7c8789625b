"""OpenVINO files compute what the gated model does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fgcompile import GateConfig, gates, insert_gates, lower
from fgcompile.errors import ExportError
from fgcompile.zoo.models import entry
from tests.end_to_end.closing import batches, random_half, worst_difference

KINDS = GateConfig(kinds=("mlp", "head"))


@pytest.fixture
def openvino() -> Any:
    return pytest.importorskip("openvino")


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def test_pruned_model_is_equal_and_saved_with_its_weights(
    openvino: Any, tmp_path: Path
) -> None:
    x = torch.randn(3, 4)
    model = insert_gates(mlp(), (x,), GateConfig(kinds=("mlp",)))
    gates(model)["mlp"].close([0, 2, 5])
    lowered = lower(model, "openvino", tmp_path / "out")
    torch.testing.assert_close(lowered(x)["output"], model(x))
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"model.xml", "model.bin"}
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    core, file = openvino.Core(), tmp_path / "out" / "model.xml"
    loaded = core.compile_model(file, "CPU", settings)
    x = torch.randn(9, 4)
    found = loaded({"input": x.numpy()})["output"]
    torch.testing.assert_close(torch.from_numpy(found), model(x))
    assert lowered.report.verdict.verified is not None
    assert lowered.report.verdict.verified.method == "OpenVINO"


def test_rows_that_attend_to_nothing_spoil_no_others(openvino: Any) -> None:
    # Left padding of a causal model; without care such rows are NaN in OpenVINO.
    model = insert_gates(entry("gpt2").build(), config=KINDS).eval()
    random_half(model, 0)
    lowered = lower(model, "openvino")
    ids = torch.randint(3, 60, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    want, got = model(**inputs).logits, lowered(**inputs)["logits"]
    assert got.isfinite().all()
    torch.testing.assert_close(
        got[mask.bool()], want[mask.bool()], rtol=1e-4, atol=1e-4
    )


def test_missing_package_is_named_by_its_extra(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ExportError) as caught:
        lower(mlp(), "openvino", example_inputs=(torch.randn(3, 4),))
    assert str(caught.value) == (
        "the target openvino needs the package openvino\n"
        "  Install it: pip install fgcompile[openvino]"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "causal"), [("load_minilm", False), ("load_stories260k", True)]
)
def test_real_models_are_equal(
    openvino: Any, name: str, causal: bool, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)()
    insert_gates(model, config=KINDS)
    random_half(model, 0)
    lowered = lower(model, "openvino")
    inputs = batches(model.config.vocab_size)
    assert worst_difference(model, lowered, inputs, visible_only=causal) < 1e-4
