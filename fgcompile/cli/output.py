"""What the verbs share: formats, limits, and where the text goes."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console

from fgcompile.errors import FgcompileError
from fgcompile.files import replace_file
from fgcompile.report.graph_diff import GraphDiff
from fgcompile.report.render_github import render_github, step_outputs
from fgcompile.report.render_markdown import COMMENT_LIMIT

EXIT_DIFFERS = 2
# GitHub drops a longer job summary instead of cutting it.
_SUMMARY_LIMIT = 1_000_000


class Format(str, Enum):
    """Renderings."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    JSON = "json"
    HTML = "html"
    SVG = "svg"
    GITHUB = "github"


FormatOption = Annotated[
    Format, typer.Option("--format", "-f", help="What to write.", show_default=True)
]
BudgetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        help="A limit, such as params=-30%, macs=-20%, bytes=50M or diff=1e-4. "
        "May be given several times.",
        metavar="MEASURE=LIMIT",
    ),
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        help="Input shape to count MACs at, such as input_ids=1x128. "
        "May be given several times.",
        metavar="NAME=SIZES",
    ),
]
ExitCodeOption = Annotated[
    bool,
    typer.Option(
        "--exit-code", help="Exit with 2 if the models differ or a budget is exceeded."
    ),
]
MaxCharsOption = Annotated[
    int, typer.Option("--max-chars", min=200, help="Longest Markdown to write.")
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write to this file.")
]
MAX_CHARS = COMMENT_LIMIT


class Patient:
    """A stream that drops what cannot be written.

    A full disk behind a log is no reason to stop lowering, or to hide an error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Its length, written or not."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Nothing waits to be written, if that can be."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class UsageError(FgcompileError):
    """An option has a value that cannot be read."""


def parse_shapes(texts: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """Shapes by input name.

    Raises:
        UsageError: If one is not of the form name=1x128.
    """
    shapes = {}
    for text in texts or ():
        name, _, sizes = text.rpartition("=")
        parts = sizes.replace(",", "x").split("x")
        if not name or not all(map(_is_size, parts)):
            raise UsageError(
                f'cannot read the shape "{text}"\n'
                "  Write it as name=sizes, for example --shape input_ids=1x128."
            )
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


def _is_size(text: str) -> bool:
    return text.isdecimal() and len(text) < 10 and int(text) > 0


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Says on standard error what takes time, with a spinner where that is a screen."""
    console = Console(stderr=True)
    with took(what):
        if console.is_terminal:
            with console.status(what):
                yield
        else:
            yield


@contextlib.contextmanager
def took(what: str) -> Iterator[None]:
    """Says on standard error how long it took, when it ended well."""
    start = time.perf_counter()
    yield
    text = f"{what}: {time.perf_counter() - start:.1f} s"
    Console(stderr=True).print(text, style="dim", markup=False, highlight=False)


def render(diff: GraphDiff, form: Format, max_chars: int) -> str:
    """The diff as text in one of the formats."""
    if form is Format.MARKDOWN:
        return diff.to_markdown(max_chars)
    if form is Format.GITHUB:
        return render_github(diff, max_chars)
    if form is Format.JSON:
        return diff.to_json()
    if form is Format.HTML:
        return diff.to_html()
    if form is Format.SVG:
        return diff.to_svg()
    width = os.get_terminal_size().columns if sys.stdout.isatty() else 120
    return diff.to_terminal(width, color=sys.stdout.isatty())


def write(text: str, output: Path | None) -> None:
    """Write to a file, or to standard output."""
    if output is None:
        sys.stdout.write(text)
    elif output.exists() and not output.is_file():
        output.write_text(text, encoding="utf-8", newline="\n")  # such as /dev/stdout
    else:
        replace_file(output.resolve(), text.encode())


def tell_github(diffs: Sequence[GraphDiff]) -> None:
    """Add to the job summary and the step's outputs, where GitHub gives files."""
    share = _SUMMARY_LIMIT // max(len(diffs), 1)
    for variable, text in (
        ("GITHUB_STEP_SUMMARY", "\n".join(diff.to_markdown(share) for diff in diffs)),
        ("GITHUB_OUTPUT", step_outputs(diffs)),
    ):
        if os.environ.get(variable):
            with open(os.environ[variable], "a", encoding="utf-8") as stream:
                stream.write(text)


def status(diffs: Sequence[GraphDiff], exit_code: bool) -> int:
    """0, or 2 if asked for and something differs or exceeds its budget."""
    clean = all(diff.same and diff.verdict.within_budget for diff in diffs)
    return EXIT_DIFFERS if exit_code and not clean else 0
