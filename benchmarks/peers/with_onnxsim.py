"""onnxsim's structured pruning of an ONNX file, by magnitude, as it is documented.

Channels go first: simplifying hides the chains that it looks for. Then it simplifies,
which is where it fuses attention, whose heads it can prune.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.models import CUT, export, load


def prepare(folder: Path) -> Any:
    """The model."""
    return load(folder)[0]


def prune(model: Any, folder: Path) -> str:
    """Exports, prunes channels, simplifies, and prunes heads."""
    import onnx
    import onnxsim
    from onnxsim.pruning import apply_attention_head_pruning, apply_structured_pruning

    export(model, folder / "exported.onnx")
    exported = onnx.load(str(folder / "exported.onnx"))
    simple, _ = onnxsim.simplify(apply_structured_pruning(exported, CUT))
    pruned = apply_attention_head_pruning(simple, CUT)
    onnx.save(pruned, str(folder / "model.onnx"))
    return ""
