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
    summaries = [
        summarize(source, example_inputs, shapes or {}) for source in (before, after)
    ]
    return diff_summaries(
        summaries[0], summaries[1], verified=verified, title=_title(after)
    )


def _title(source: Any) -> str:
    """The file's own name or the class; never a folder, which names a machine."""
    if isinstance(source, (str, os.PathLike)):
        return Path(source).name
    return type(source).__name__
