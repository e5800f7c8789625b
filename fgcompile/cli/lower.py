"""`fgcompile lower`: from a trained model to a smaller one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from rich.console import Console
from rich.progress import Progress
from torch import nn

from fgcompile.checkpoint.streaming import lower_checkpoint
from fgcompile.cli.models import ModelName, model_class, open_model
from fgcompile.cli.output import (
    MAX_CHARS,
    BudgetOption,
    ExitCodeOption,
    Format,
    FormatOption,
    MaxCharsOption,
    UsageError,
    render,
    status,
    took,
    working,
    write,
)
from fgcompile.compiler import insert_gates
from fgcompile.gates import load_gates, saved_config
from fgcompile.lowering import Target, check_options
from fgcompile.lowering import lower as lower_model
from fgcompile.report import GraphDiff
from fgcompile.report.diff import diff as diff_models

TARGETS = ", ".join(get_args(Target))


def lower(
    model: ModelName,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="File or folder to write; it appears whole."),
    ],
    target: Annotated[
        str,
        typer.Option(
            *("--target", "-t"),
            help=f"What to make: {TARGETS}.",
            autocompletion=lambda: list(get_args(Target)),
        ),
    ] = "onnx",
    gates: Annotated[
        Path | None,
        typer.Option(
            help="Folder that save_gates wrote. Without, what is dead is what is zero."
        ),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Round the weights of an ONNX file to int8.")
    ] = False,
    cache: Annotated[
        bool,
        typer.Option("--cache", help="Write an ONNX decoder with its key-value cache."),
    ] = False,
    uniform: Annotated[
        bool | None,
        typer.Option(
            "--uniform/--no-uniform",
            help="Target module, or --cache: all layers keep equally many units, so "
            "that other loaders can read the result. By default only the heads of "
            "--cache do.",
            show_default=False,
        ),
    ] = None,
    form: FormatOption = Format.TERMINAL,
    budget: BudgetOption = None,
    exit_code: ExitCodeOption = False,
    max_chars: MaxCharsOption = MAX_CHARS,
    report: Annotated[
        Path | None, typer.Option(help="Write the report to this file.")
    ] = None,
) -> int:
    """Remove what is dead in a model, verify the result, and write it.

    The report of what changed goes to standard output, progress to standard error.

    Target module reads a folder of safetensors tensor by tensor, whatever its size.

    Example: fgcompile lower my-bert --gates my-gates --target onnx --out out/
    """
    if target not in get_args(Target):
        raise UsageError(f'unknown target "{target}"\n  Targets are {TARGETS}.')
    quantization: Literal["int8"] | None = "int8" if int8 else None
    check_options(target, quantization, cache)  # type: ignore[arg-type]
    if target == "module" and list(Path(model).glob("*.safetensors")):
        changes = _stream(Path(model), gates, out, bool(uniform)).with_budgets(
            budget or []
        )
        write(render(changes, form, max_chars), report)
        return status([changes], exit_code)
    with working(f"loading {model}"):
        opened: Any = open_model(model)
        if gates is not None:
            _gate(opened, gates)
    with working(f"lowering {model} to {target}"):
        lowered = lower_model(
            opened,
            target,  # type: ignore[arg-type]
            out,
            quantization=quantization,
            cache=cache,
            uniform=uniform,
        )
        changes = lowered.report.with_budgets(budget or [])
    write(render(changes, form, max_chars), report)
    return status([changes], exit_code)


def _gate(model: nn.Module, folder: Path) -> None:
    insert_gates(model, config=saved_config(folder))
    load_gates(model, folder)


def _stream(model: Path, gates: Path | None, out: Path, uniform: bool) -> GraphDiff:
    """Lowers a checkpoint tensor by tensor, whatever its size."""
    cls, config = model_class(str(model))
    gate = None if gates is None else partial(_gate, folder=gates)
    what = f"lowering {model} to module"
    columns, console = Progress.get_default_columns(), Console(stderr=True)
    with took(what), Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        lower_checkpoint(
            *(model, cls, config, gate, out),
            uniform=uniform,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    return diff_models(model, out)
