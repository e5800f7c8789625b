"""The page about budgets runs as it is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import fgcompile
from fgcompile.capture import default_inputs

PAGE = Path(__file__).parents[2] / "docs" / "budgets.md"


def train(model: Any) -> None:
    """More steps than the budget's."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    inputs = default_inputs(model)
    for _ in range(25):
        loss = model(**inputs)[0].square().mean() + fgcompile.penalty(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.mark.slow
def test_page_about_budgets_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for package in ("onnxruntime", "transformers"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FGCOMPILE_CACHE", str(tmp_path / "cache"))
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2}
    model, fresh = (small_bert(**sizes) for _ in range(2))
    names: dict[str, Any] = {"model": model.train(), "fresh_model": fresh}
    names["train"] = train
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    first, second = capsys.readouterr().out.splitlines()
    predicted, met = first.split()
    assert 0.5 < float(predicted) <= 0.7 + 1e-6
    assert met == "True"
    assert 0 < float(second) < 1
    assert (tmp_path / "out" / "model.onnx").is_file()
    measured = list((tmp_path / "cache").iterdir())
    assert len(measured) == 1  # both models are of one shape


def small_bert(**sizes: int) -> Any:
    from transformers import BertConfig, BertModel

    config: Any = {"num_attention_heads": 4, "vocab_size": 100, **sizes}
    return BertModel(BertConfig(**config), add_pooling_layer=False).eval()
