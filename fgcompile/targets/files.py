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

from safetensors import SafetensorError

from fgcompile.files import exclusive, lock, unwritable

_PREFIX = ".fgcompile-"
_FULL = ("inline_container", "PytorchStreamWriter", "No space left", "File too large")
"""What libraries say in errors of their own when a file cannot be written."""


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A fresh folder; its files move to `target` when the block ends well.

    `target` is the folder that the files shall appear in. One file replaces another
    of its name in one step. Several appear together, as in `staged_folder`, unless
    `target` holds the working folder of this process or its parent cannot be written:
    then the old ones go first, so that old and new are never mixed. If the block
    raises, nothing in `target` changed.

    Raises:
        ExportError: If the folder cannot be created or written.
    """
    created = _missing_parents(target)
    with _told(target, created):
        target.mkdir(parents=True, exist_ok=True)
        target = target.resolve()
        # Beside it if that can be: another process may exchange the folder itself.
        beside = target.parent
        near = os.access(beside, os.W_OK) and _device(beside) == _device(target)
        with _workplace(beside if near else target) as folder:
            yield folder
            _sync(folder)
            with exclusive(beside):
                _commit(folder, target)


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
    target = Path(os.path.realpath(target))
    created = _missing_parents(target.parent)
    with _told(target, created):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _workplace(target.parent) as folder:
            folder.chmod(0o777 & ~_umask())
            yield folder
            _sync(folder)
            with exclusive(target.parent):
                _recover(target)
                _take_over(target, folder, replaces)
                _exchange(folder, target)


@contextlib.contextmanager
def _told(target: Path, created: list[Path]) -> Iterator[None]:
    """Errors of writing say what was to be written; folders without files go."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise unwritable(target, error) from error
    except RuntimeError as error:
        if any(text in str(error) for text in _FULL):
            raise unwritable(target, error) from error
        raise
    finally:
        _remove_empty(created)


@contextlib.contextmanager
def _workplace(parent: Path) -> Iterator[Path]:
    """A fresh folder in `parent`, locked so that nobody takes it for a leftover."""
    with exclusive(parent) as alone:
        if alone:
            _clean(parent)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lease = lock(folder, wait=False)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lease is not None:
            os.close(lease)


def _clean(parent: Path) -> None:
    """Removes what killed processes left: work folders that nobody has locked."""
    for folder in parent.glob(f"{_PREFIX}*"):
        if folder.is_symlink() or not folder.is_dir() or folder.name.endswith("-old"):
            continue
        lease = lock(folder, wait=False)
        if lease is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lease)


def _commit(folder: Path, target: Path) -> None:
    files = sorted(f.relative_to(folder) for f in folder.rglob("*") if f.is_file())
    if len(files) > 1:
        if _swapped(folder, target):
            return
        for file in files:
            (target / file).unlink(missing_ok=True)
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / file, target / file)


def _swapped(folder: Path, target: Path) -> bool:
    """Whether a folder with the files of both took the place of `target`."""
    if Path.cwd().is_relative_to(target):
        return False
    try:
        beside = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=target.parent))
    except OSError:
        return False
    try:
        beside.chmod(target.stat().st_mode & 0o7777)
        _take_over(folder, beside, ())
        _take_over(target, beside, (f"{_PREFIX}*",))
        return _exchanged(beside, target)
    except OSError:
        return False
    finally:
        shutil.rmtree(beside, ignore_errors=True)


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
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link)
        else:
            _link(entry, new / entry.name)


def _link(source: str | Path, target: str | Path) -> None:
    """`target` is the file `source`, or a copy where there are no links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _sync(folder: Path) -> None:
    """The files are on the disk before they get their names."""
    for entry in folder.rglob("*"):
        if entry.is_file():
            with entry.open("rb") as stream:
                os.fsync(stream.fileno())


def _exchange(folder: Path, target: Path) -> None:
    if not target.exists():
        folder.rename(target)
    elif not _exchanged(folder, target):
        backup = _backup(target)
        target.rename(backup)
        folder.rename(target)
        shutil.rmtree(backup, ignore_errors=True)


def _backup(target: Path) -> Path:
    return target.with_name(f"{_PREFIX}{target.name}-old")


def _recover(target: Path) -> None:
    """The old folder is back if a process died between two names."""
    backup = _backup(target)
    if backup.is_dir() and not target.exists():
        backup.rename(target)
    elif backup.is_dir():
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


def _device(folder: Path) -> int:
    return folder.stat().st_dev


def _missing_parents(target: Path) -> list[Path]:
    return [p for p in (target, *target.parents) if not p.exists()]


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
