"""`fgcompile textconv`: a model as text, for git's own diff."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from fgcompile.errors import FgcompileError
from fgcompile.report.render_twin import render_twin


def textconv(
    model: Annotated[Path, typer.Argument(help="The file that git hands over.")],
    form: Annotated[
        int, typer.Option("--twin-format", help="Makes git drop outdated texts.")
    ] = 0,
) -> None:
    """Print a model as text.

    git stops a whole `git diff` when its driver fails, so a file that cannot be read
    is described by its digest and the reason. External data is not there when git
    calls: a blob comes without its neighbours.
    """
    del form
    try:
        text = render_twin(model, with_data=False)
    except (FgcompileError, OSError) as error:
        content = model.read_bytes() if model.is_file() else b""
        digest = hashlib.sha256(content).hexdigest()
        reason = str(error).splitlines()[0]
        text = f"not readable as a model: {reason}\nsha256 {digest}\n"
    sys.stdout.write(text)
