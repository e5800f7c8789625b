"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fgcompile.errors import ExportError


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A fresh folder beside `target`; its files move there when the block ends well.

    `target` is the folder that the files shall appear in. Each file replaces one of
    the same name atomically; if the block raises, nothing in `target` changed.

    Raises:
        ExportError: If the folder cannot be created or written.
    """
    created = _missing_parents(target)
    try:
        target.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".fgcompile-", dir=target))
    except OSError as error:
        _remove_empty(created)
        raise _unwritable(target, error) from error
    try:
        yield folder
        for file in sorted(folder.iterdir()):
            os.replace(file, target / file.name)
    except OSError as error:
        _remove_empty(created)
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(created)


def _missing_parents(target: Path) -> list[Path]:
    return [p for p in (target, *target.parents) if not p.exists()]


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _unwritable(target: Path, error: OSError) -> ExportError:
    return ExportError(
        f"cannot write to {target}: {error.strerror or error}\n"
        "  Nothing was changed there. Choose a folder that you may write to."
    )
