"""`fgcompile twin`: a text twin beside each model, for review on the web."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgcompile.cli.output import EXIT_DIFFERS
from fgcompile.files import replace_file
from fgcompile.report.render_twin import TWIN_SUFFIX, render_twin


def twin(
    models: Annotated[list[Path], typer.Argument(help="Model files.")],
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 2 if a twin was rewritten.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; only say what is stale.")
    ] = False,
) -> int:
    """Write `model.onnx.fg.md` beside each model: its graph and digests as text.

    The twin is committed with the model, so that every viewer of diffs shows what
    changed in it.
    """
    stale = []
    for model in models:
        path = model.with_name(model.name + TWIN_SUFFIX)
        text = render_twin(model)
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path)
        if not check:
            replace_file(path.resolve(), text.encode())
        typer.echo(f"{'stale' if check else 'wrote'} {path}")
    return EXIT_DIFFERS if stale and (exit_code or check) else 0
