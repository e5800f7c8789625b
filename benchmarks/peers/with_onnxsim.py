"""onnxsim's structured pruning of an ONNX file, by magnitude, as it is documented.

The file is exported and simplified first, which is where it fuses attention.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.models import CUT, export, load


def prepare(folder: Path) -> Any:
    """The model."""
    return load(folder)[0]


def prune(model: Any, folder: Path) -> str:
    """Exports, simplifies, and prunes channels and heads."""
    import onnx
    import onnxsim
    from onnxsim.pruning import apply_attention_head_pruning, apply_structured_pruning

    file = folder / "model.onnx"
    export(model, folder / "exported.onnx")
    simple, _ = onnxsim.simplify(str(folder / "exported.onnx"))
    pruned = apply_structured_pruning(simple, CUT)
    onnx.save(apply_attention_head_pruning(pruned, CUT), str(file))
    return ""
