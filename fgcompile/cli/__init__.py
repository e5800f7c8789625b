"""The command line: one verb per public function, one module per verb.

A new verb is a module with a function, and a line in `VERBS`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from fgcompile.cli.analyze import analyze
from fgcompile.cli.bench import bench
from fgcompile.cli.changed import changed
from fgcompile.cli.diff import diff
from fgcompile.cli.git_setup import git_setup
from fgcompile.cli.lower import lower
from fgcompile.cli.output import Patient
from fgcompile.cli.textconv import textconv
from fgcompile.cli.twin import twin
from fgcompile.errors import FgcompileError

VERBS: tuple[Callable[..., Any], ...] = (
    *(analyze, lower, diff, bench),
    *(changed, twin, git_setup),
)
# Called by git, not by people.
HIDDEN_VERBS: tuple[Callable[..., Any], ...] = (textconv,)

NAME = "fgcompile"
EXIT_ERROR = 1

app = typer.Typer(
    name=NAME,
    help="Trainable gates, exact lowering, and reports on what changed.\n\n"
    "See what a model can lose (analyze) and what that gains on this machine (bench); "
    "train it with gates in Python; then make the smaller model (lower) and review "
    "it (diff).",
    epilog="Results go to standard output, progress to standard error. Exit status: "
    "0 done, 1 an error, 2 only with --exit-code: models differ, or a budget is "
    "exceeded.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _fgcompile() -> None:
    """Keep verbs as sub-commands even while there is only one."""


for _verb in (*VERBS, *HIDDEN_VERBS):
    app.command(_verb.__name__.replace("_", "-"), hidden=_verb in HIDDEN_VERBS)(_verb)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; its exit status.

    0: done, or the same. 1: an error, also a wrong command line. 2: only where
    `--exit-code` asks for it, the models differ or a budget is exceeded.
    """
    if sys.stderr is None:  # closed by whoever started this process
        return _main(arguments)
    with contextlib.redirect_stderr(Patient(sys.stderr)):
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    try:
        status = app(arguments, prog_name=NAME, standalone_mode=False)
    except FgcompileError as error:
        typer.echo(f"error: {error}", err=True)
        return EXIT_ERROR
    except OSError as error:
        name = f" {error.filename}" if error.filename else ""
        typer.echo(f"error:{name}: {error.strerror or error}", err=True)
        return EXIT_ERROR
    except typer.Abort:
        return EXIT_ERROR
    except Exception as error:
        # A wrong command line: the class lives in click or inside typer, by version.
        if not hasattr(error, "format_message"):
            raise
        typer.echo(f"error: {error.format_message()}", err=True)
        return EXIT_ERROR
    return status if isinstance(status, int) else 0


def run() -> None:
    """Entry point of `python -m fgcompile.cli`."""
    sys.exit(main())
