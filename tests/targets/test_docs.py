"""The page about targets runs as it is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fgcompile import GateConfig, insert_gates
from fgcompile.capture import default_inputs
from fgcompile.zoo.models import entry
from tests.end_to_end.closing import random_half

PAGE = Path(__file__).parents[2] / "docs" / "targets.md"


def pruned(name: str) -> Any:
    model = insert_gates(entry(name).build(), config=GateConfig(kinds=("mlp", "head")))
    random_half(model, 0)
    return model.eval()


@pytest.mark.slow
def test_page_about_targets_runs(tmp_path: Path, monkeypatch: Any) -> None:
    for package in ("onnxruntime", "openvino", "transformers"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    ids = torch.randint(3, 60, (2, 9))
    model = pruned("bert")
    inputs = default_inputs(model)
    tokens = {n: torch.zeros_like(ids) for n in inputs}
    tokens |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    names: dict[str, Any] = {
        **{"model": model, "decoder": pruned("llama"), "torch_tokens": tokens},
        "tokens": {name: value.numpy() for name, value in tokens.items()},
    }
    found = []
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    for block in blocks:
        exec(block, names)
        if "hidden" in names:
            found.append(names.pop("hidden"))
    want = model(**tokens).last_hidden_state.detach()
    found.append(names["outputs"][0])
    assert len(found) == 3
    for hidden in found:
        got = torch.as_tensor(hidden).detach()
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    made = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.onnx")}
    assert made == {f"out/{n}/model.onnx" for n in ("encoder", "int8", "decoder")}
