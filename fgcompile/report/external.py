"""Which data files an ONNX model refers to."""

from __future__ import annotations

from pathlib import Path

from fgcompile.report.load_onnx import parse_onnx
from fgcompile.report.onnx_tensors import is_external


def external_files(model: Path) -> list[str]:
    """Locations, as the model spells them; none of them is opened.

    Raises:
        FormatError: If the file is not an ONNX model.
    """
    locations = {
        entry.value
        for tensor in parse_onnx(model).graph.initializer
        if is_external(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted(locations)
