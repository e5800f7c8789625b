"""`fgcompile diff`: what changed between two models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgcompile.cli.output import (
    MAX_CHARS,
    BudgetOption,
    ExitCodeOption,
    Format,
    FormatOption,
    MaxCharsOption,
    OutputOption,
    ShapeOption,
    parse_shapes,
    render,
    status,
    tell_github,
    write,
)
from fgcompile.report.diff import diff as diff_models

ModelPath = Annotated[
    Path, typer.Argument(help="An .onnx, .pt2 or .safetensors file, or a saved folder.")
]


def diff(
    before: ModelPath,
    after: ModelPath,
    form: FormatOption = Format.TERMINAL,
    budget: BudgetOption = None,
    shape: ShapeOption = None,
    exit_code: ExitCodeOption = False,
    max_chars: MaxCharsOption = MAX_CHARS,
    output: OutputOption = None,
) -> int:
    """Show what changed between two models.

    Nodes are matched by module path, provenance and structure, so that a rename is
    no change and an insertion misaligns nothing.

    Example: fgcompile diff dense.onnx small.onnx --budget params=-30% --exit-code
    """
    report = diff_models(before, after, shapes=parse_shapes(shape))
    report = report.with_budgets(budget or [])
    write(render(report, form, max_chars), output)
    if form is Format.GITHUB:
        tell_github([report])
    return status([report], exit_code)
