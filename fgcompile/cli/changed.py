"""`fgcompile changed`: reports on every model that a branch changes."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from fgcompile.cli.git_setup import GitError
from fgcompile.cli.output import (
    MAX_CHARS,
    BudgetOption,
    ExitCodeOption,
    MaxCharsOption,
    OutputOption,
    ShapeOption,
    parse_shapes,
    status,
    tell_github,
    write,
)
from fgcompile.report.diff import diff as diff_models
from fgcompile.report.external import external_files
from fgcompile.report.graph_diff import GraphDiff
from fgcompile.report.render_github import workflow_commands
from fgcompile.report.render_markdown import MARKER


def changed(
    base: Annotated[str, typer.Argument(help="Commit to compare with.")],
    pattern: Annotated[
        str, typer.Option("--models", help="Which files, as a git pathspec.")
    ] = "*.onnx",
    budget: BudgetOption = None,
    shape: ShapeOption = None,
    exit_code: ExitCodeOption = False,
    max_chars: MaxCharsOption = MAX_CHARS,
    output: OutputOption = None,
) -> int:
    """Report on every model that differs between a commit and the working tree.

    Writes one Markdown text for all of them. In GitHub Actions it also annotates,
    adds to the job summary and sets the step's outputs.
    """
    names = _git("diff", "--name-only", "-z", "--diff-filter=M", base, "--", pattern)
    diffs = [
        _compare(base, name, parse_shapes(shape)).with_budgets(budget or [])
        for name in sorted(filter(None, names.decode().split("\0")))
    ]
    write(_join(diffs, max_chars), output)
    for report in diffs:
        for line in workflow_commands(report):
            typer.echo(line, err=output is None)
    tell_github(diffs)
    return status(diffs, exit_code)


def _compare(base: str, name: str, shapes: dict[str, tuple[int, ...]]) -> GraphDiff:
    root = Path(_git("rev-parse", "--show-toplevel").decode().strip())
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / Path(name).name
        before.write_bytes(_blob(base, name))
        for location in external_files(before):
            if "\0" in location:
                continue  # no name: reading the model tells
            # Only plain names below the model's own folder are ever followed.
            target = Path(folder) / location
            if Path(folder) in target.resolve().parents:
                target.parent.mkdir(parents=True, exist_ok=True)
                path = (Path(name).parent / location).as_posix()
                target.write_bytes(_blob(base, path))
        return diff_models(before, root / name, shapes=shapes)


def _blob(commit: str, path: str) -> bytes:
    """A file of a commit, with git-lfs pointers replaced by what they point to."""
    return _git("cat-file", "--filters", f"{commit}:{path}")


def _join(diffs: list[GraphDiff], max_chars: int) -> str:
    if not diffs:
        return f"{MARKER}\nNo model changed.\n"
    share = max_chars // len(diffs)
    bodies = [diff.to_markdown(share).replace(MARKER, "").strip() for diff in diffs]
    text = f"{MARKER}\n" + "\n\n".join(bodies) + "\n"
    return text[:max_chars]


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    if done.returncode:
        detail = done.stderr.decode(errors="replace").strip()
        raise GitError(
            f"git {arguments[0]} failed\n  {detail}\n"
            "  Fetch the commit first: git fetch origin, or fetch-depth: 0 in CI."
        )
    return done.stdout
