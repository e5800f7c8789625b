"""`fgcompile git-setup`: let git show models as text."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from fgcompile.errors import FgcompileError
from fgcompile.report.render_twin import TWIN_FORMAT

_DRIVER = "diff.fgcompile"
_BEGIN = "# fgcompile git-setup: begin"
_END = "# fgcompile git-setup: end"
_LINES = ("*.onnx diff=fgcompile",)


class GitError(FgcompileError):
    """git is missing, or refused."""


def git_setup(
    undo: Annotated[
        bool, typer.Option("--undo", help="Take out what this verb put in.")
    ] = False,
    shared: Annotated[
        bool,
        typer.Option(
            "--shared",
            help="Write .gitattributes, for everybody, not .git/info/attributes.",
        ),
    ] = False,
) -> None:
    """Install a git textconv driver: `git diff` and `git log -p` show models as text.

    The driver itself is a setting of this clone: git never takes commands from a
    repository. Whoever clones runs this verb once.
    """
    root = Path(_git("rev-parse", "--show-toplevel"))
    private = Path(_git("rev-parse", "--git-path", "info/attributes"))
    private = private if private.is_absolute() else Path.cwd() / private
    attributes = root / ".gitattributes" if shared else private
    if undo:
        _forget_driver()
        for path in (root / ".gitattributes", private):
            _write(path, ())
        typer.echo("git shows .onnx files as binary again")
        return
    command = f"{shlex.quote(sys.executable)} -m fgcompile.cli textconv"
    _git("config", f"{_DRIVER}.textconv", f"{command} --twin-format {TWIN_FORMAT}")
    _git("config", f"{_DRIVER}.cachetextconv", "true")
    _git("config", f"{_DRIVER}.binary", "true")
    _write(attributes, _LINES)
    typer.echo(f"git diff and git log -p show .onnx files as text ({attributes.name})")
    typer.echo("Undo with: fgcompile git-setup --undo")


def _forget_driver() -> None:
    listed = _git("config", "--local", "--list", "--name-only").splitlines()
    if any(name.startswith(f"{_DRIVER}.") for name in listed):
        _git("config", "--local", "--remove-section", _DRIVER)


def _write(path: Path, lines: tuple[str, ...]) -> None:
    """Replace our block of an attributes file, and leave the rest as it is."""
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    kept, _, rest = old.partition(f"{_BEGIN}\n")
    rest = rest.partition(f"{_END}\n")[2]
    if kept and not kept.endswith("\n") and lines:
        kept += "\n"
    block = "".join(f"{line}\n" for line in (_BEGIN, *lines, _END)) if lines else ""
    new = kept + block + rest
    if new == old:
        return
    if new:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(new, encoding="utf-8", newline="\n")
    else:
        path.unlink()


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise GitError(
            "git is not installed\n  Install git, then try again."
        ) from error
    if done.returncode:
        raise GitError(
            f"git {' '.join(arguments[:2])} failed\n  {done.stderr.strip()}\n"
            "  Run this inside a git repository."
        )
    return done.stdout.strip()
