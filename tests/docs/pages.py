"""Documentation pages as programs: their Python and console blocks, in order."""

from __future__ import annotations

import doctest
import os
import shutil
import subprocess
import sys
from pathlib import Path

from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def run_console(example: Example) -> None:
    """Runs each `$` line of a block in a shell; what it prints must match."""
    for part in example.parsed.removeprefix("$ ").split("\n$ "):
        command, _, expected = part.partition("\n")
        done = subprocess.run(
            ["bash", "-c", f"fgcompile() {{ {_FGCOMPILE} }}; {command}"],
            env=os.environ | _GIT | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        matches = doctest.OutputChecker().check_output(expected, done.stdout, FLAGS)
        assert matches or not expected.strip(), f"$ {command}\n{done.stdout}"


_FGCOMPILE = f'"{sys.executable}" -m fgcompile.cli "$@";'
_GIT = {
    **dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "Test"),
    **dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "test@example.org"),
    "GIT_CONFIG_GLOBAL": os.devnull,
}
_PYTHON = PythonCodeBlockParser(doctest_optionflags=FLAGS)
_CONSOLE = CodeBlockParser("console", run_console)


def read(name: str, *, console: bool) -> Document:
    """The page of docs/ with that name; its console blocks are examples if asked."""
    sybil = Sybil([_PYTHON, _CONSOLE] if console else [_PYTHON])
    document = sybil.parse(DOCS / name)
    document.namespace["__name__"] = "page"
    return document


def has_git() -> bool:
    """Whether console blocks about git can run."""
    return shutil.which("git") is not None
