"""`fgcompile analyze`: what a model can lose."""

from __future__ import annotations

import json
from enum import Enum
from typing import Annotated, Any

import typer

from fgcompile.analysis.coupling import Analysis
from fgcompile.analysis.table import describe
from fgcompile.cli.models import ModelName, open_model
from fgcompile.cli.output import OutputOption, working, write
from fgcompile.compiler import analyze as analyze_model

SCHEMA_VERSION = 1


class Form(str, Enum):
    """Renderings."""

    TERMINAL = "terminal"
    JSON = "json"


def analyze(
    model: ModelName,
    explain: Annotated[
        str | None,
        typer.Option(
            help="Say why this group, parameter or module may or may not shrink, and "
            "what it is coupled to.",
            metavar="NAME",
        ),
    ] = None,
    form: Annotated[
        Form, typer.Option("--format", "-f", help="What to write.")
    ] = Form.TERMINAL,
    output: OutputOption = None,
) -> int:
    """Show what a model can lose: its coupled groups, and what pins the rest.

    Only the configuration is read, so that this works for models larger than memory.

    Example: fgcompile analyze bert-base-uncased --explain encoder.layer.3
    """
    with working(f"analysing {model}"):
        analysis = analyze_model(open_model(model, weights=False))
    if explain is not None:
        write(analysis.explain(explain) + "\n", output)
    elif form is Form.JSON:
        write(json.dumps(as_json(analysis), indent=1) + "\n", output)
    else:
        write(f"{analysis}\n", output)
    return 0


def as_json(analysis: Analysis) -> dict[str, Any]:
    """The groups, with costs per unit [parameters], [MACs per example]."""
    return {
        "schema_version": SCHEMA_VERSION,
        "parameters": analysis.parameters,
        "macs": analysis.macs,
        "groups": [
            {
                "name": group.name,
                "kind": group.kind,
                "units": group.size,
                "members": [f"{m.parameter}:{m.dim}" for m in group.members],
                "parameters": float(group.parameters.sum()),
                "macs": float(group.macs.sum()),
                "pinned": None if group.pinned is None else describe(group.pinned),
            }
            for group in analysis.groups
        ],
    }
