"""What a page takes for granted before its code runs, and what must hold after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from docs import draw_figures
from fgcompile import GateConfig, insert_gates, lower, remove_gates
from fgcompile.capture import default_inputs
from fgcompile.zoo.models import entry
from tests.end_to_end.closing import random_half

Names = dict[str, Any]


def targets(names: Names) -> None:
    """Two pruned models, tokens for one, and `check_hidden` for what a runtime says."""
    for package in ("onnxruntime", "openvino"):
        pytest.importorskip(package)
    ids = torch.randint(3, 60, (2, 9))
    model = _pruned("bert")
    tokens = {name: torch.zeros_like(ids) for name in default_inputs(model)}
    tokens |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    want = model(**tokens).last_hidden_state.detach()

    def check_hidden(hidden: Any) -> None:
        got = torch.as_tensor(hidden).detach()
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)

    names |= {
        **{"model": model, "decoder": _pruned("llama"), "torch_tokens": tokens},
        "tokens": {name: value.numpy() for name, value in tokens.items()},
        "check_hidden": check_hidden,
    }


def reports(names: Names) -> None:
    """A pruned model, and the files dense.onnx and pruned.onnx."""
    names["model"] = model = _pruned("bert")
    lower(model, "onnx", "pruned.onnx")
    dense = remove_gates(_pruned("bert"))
    lower(dense, "onnx", "dense.onnx")


def _pruned(name: str) -> Any:
    model = insert_gates(entry(name).build(), config=GateConfig(kinds=("mlp", "head")))
    random_half(model, 0)
    return model.eval()


SETTINGS: dict[str, Callable[[Names], None]] = {
    "reports.md": reports,
    "targets.md": targets,
}


def figures_are_these(names: Names) -> None:
    """The figures that lie beside the page show what its code made."""
    for name, figure in draw_figures.FIGURES.items():
        file = draw_figures.FOLDER / f"{name}.svg"
        drawn = figure(names).svg()
        assert drawn == file.read_text("utf-8"), (
            "run python docs/draw_figures.py, and look"
        )


CHECKS: dict[str, Callable[[Names], None]] = {"how-it-works.md": figures_are_these}
