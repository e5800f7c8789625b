"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import fnmatch
import os
import shutil
import sys
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
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            place = target / file.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
    except OSError as error:
        _remove_empty(created)
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(created)


@contextlib.contextmanager
def staged_folder(target: Path, replaces: tuple[str, ...] = ()) -> Iterator[Path]:
    """A fresh folder that takes the place of `target` when the block ends well.

    Files that `target` holds and the block did not write are kept, except those whose
    names match a pattern of `replaces`. At every moment `target` is the old folder or
    the new one (between two system calls nothing, where the file system cannot
    exchange folders); if the block raises, nothing changed.

    Raises:
        ExportError: If the folder cannot be created or written.
    """
    created = _missing_parents(target.parent)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".fgcompile-", dir=target.parent))
    except OSError as error:
        _remove_empty(created)
        raise _unwritable(target, error) from error
    try:
        folder.chmod(0o777 & ~_umask())
        yield folder
        _take_over(target, folder, replaces)
        _sync(folder)
        _exchange(folder, target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(created)


def _take_over(old: Path, new: Path, replaced: tuple[str, ...]) -> None:
    """Links what only the old folder has into the new one."""
    if not old.exists():
        return
    if not old.is_dir():
        raise NotADirectoryError(20, "it is a file, not a folder")
    for entry in old.iterdir():
        stale = any(fnmatch.fnmatch(entry.name, pattern) for pattern in replaced)
        if stale or (new / entry.name).exists():
            continue
        if entry.is_dir():
            shutil.copytree(entry, new / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, new / entry.name, follow_symlinks=False)


def _sync(folder: Path) -> None:
    """The files are on the disk before the folder gets its name."""
    for entry in folder.iterdir():
        if entry.is_file():
            with entry.open("rb") as stream:
                os.fsync(stream.fileno())


def _exchange(folder: Path, target: Path) -> None:
    if not target.exists():
        folder.rename(target)
    elif not _exchanged(folder, target):
        backup = folder.with_name(f"{folder.name}-old")
        target.rename(backup)
        folder.rename(target)
        shutil.rmtree(backup, ignore_errors=True)


def _exchanged(first: Path, second: Path) -> bool:
    """Whether the kernel gave each path the other's folder, in one step."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    names = os.fsencode(first), os.fsencode(second)
    return rename is not None and rename(here, names[0], here, names[1], exchange) == 0


def _umask() -> int:
    """The process's file mode mask; reading it means setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
