"""Optional packages: named by their extra where they are missing."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterator

from fgcompile.capture.state import silence
from fgcompile.errors import ExportError


def require(extra: str, *modules: str) -> None:
    """Nothing, if all `modules` can be imported.

    Raises:
        ExportError: If one cannot; names the `extra` of fgcompile that installs it.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ExportError(
                f"the target {extra} needs the package {module}\n"
                f"  Install it: pip install fgcompile[{extra}]"
            ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters report their progress on standard output, whatever one asks."""
    with (
        silence(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def cause(error: BaseException) -> str:
    """Type and first line of what an exporter stumbled over."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
