"""The public verb: what changed between two models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgcompile.report.changes import Verification
from fgcompile.report.compare import diff_summaries
from fgcompile.report.graph_diff import GraphDiff
from fgcompile.report.load import summarize
from fgcompile.report.summary import ModelSummary


def diff(
    before: Any,
    after: Any,
    *,
    example_inputs: tuple[Any, ...] | dict[str, Any] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    verified: Verification | None = None,
) -> GraphDiff:
    """What changed between two models.

    Nodes are matched by module path, provenance and structure, never by generated
    names or positions: a renamed or re-ordered but equal graph is no change, and an
    inserted node misaligns nothing.

    Args:
        before: An nn.Module, GraphModule, ExportedProgram, lowered model, ONNX
            ModelProto, or the path of an `.onnx`, `.pt2` or `.safetensors` file or of
            a saved folder.
        after: The same or another of these kinds.
        example_inputs: Inputs of `forward`, to trace nn.Modules with; transformers
            models need none. Without, other modules are compared by parameters only.
        shapes: Input shapes to count MACs at, by input name.
        verified: What running both models side by side showed.

    Raises:
        FormatError: If a file is missing, damaged or of another kind.
        CaptureError: If a module cannot be traced.
    """
    sources = (before, after)
    old, new = (summarize(source, example_inputs, shapes or {}) for source in sources)
    common = _common_shapes(old, new) | dict(shapes or {})
    if _sizes(old) != _sizes(new):
        old, new = (summarize(source, example_inputs, common) for source in sources)
    return diff_summaries(old, new, verified=verified, title=_title(after))


def _common_shapes(
    before: ModelSummary, after: ModelSummary
) -> dict[str, tuple[int, ...]]:
    """Sizes at which both can be counted: a dim that one of them fixes is fixed."""
    types = {port.name: port.type.shape or () for port in before.inputs}
    sizes = _sizes(before)
    return {
        name: tuple(
            sizes[name][dim]
            if dim < len(sizes[name]) and isinstance(types[name][dim], int)
            else size
            for dim, size in enumerate(shape)
        )
        for name, shape in _sizes(after).items()
        if name in sizes
    }


def _sizes(summary: ModelSummary) -> dict[str, tuple[int, ...]]:
    ports = zip(summary.inputs, summary.input_sizes, strict=True)
    return {port.name: size for port, size in ports if size is not None}


def _title(source: Any) -> str:
    """The file's own name or the class; never a folder, which names a machine."""
    if isinstance(source, (str, os.PathLike)):
        return Path(source).name
    return type(source).__name__
