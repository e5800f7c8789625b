"""Places that cannot take what is written: full disks, and folders that refuse."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.faults.killing import outcome_of
from tests.faults.writers import Writer

_OVERRIDES = 0b110
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: modes of files do not bind root."""
_CAPABILITY_VERSION = 0x20080522


def fresh(work: Path, writer: Writer, has_old: bool = True) -> Path:
    """Where to write, in a folder of its own; the old state is there if wanted."""
    folder, kept = work / "attempt", work / f"old-{writer.name.replace(' ', '-')}"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / writer.target).parent.mkdir(parents=True)
    if has_old:
        if not kept.exists():
            (kept / writer.target).parent.mkdir(parents=True)
            writer.write("old", kept / writer.target)
        shutil.copytree(kept, folder, dirs_exist_ok=True)
    return folder / writer.target


def full_disk(writer: Writer, work: Path, sizes: tuple[int, ...]) -> Counter[str]:
    """States after writes that find no room, in files and on a small file system.

    Args:
        writer: What writes.
        work: Folder for files of the check.
        sizes: After so many bytes, each file is full.
    """
    found: Counter[str] = Counter()
    for size in sizes:
        path = fresh(work, writer)
        _judge(writer, path, outcome_of(partial(_limited, writer, path, size)), found)
    old = sum(f.stat().st_size for f in path.parent.rglob("*") if f.is_file())
    with small_file_system(work / "disk", 2 * old + 65536) as folder:
        if folder is None:
            found["no small file system here"] += 1
            return found
        path = _placed(writer, fresh(work, writer), folder)
        (folder / "ballast").write_bytes(b"\1" * _room(folder))
        _judge(writer, path, outcome_of(partial(writer.write, "new", path)), found)
    return found


def _placed(writer: Writer, old: Path, folder: Path) -> Path:
    """Where to write in `folder`, after the old state was copied to it."""
    top = old.parents[len(Path(writer.target).parts) - 1]
    shutil.copytree(top, folder, dirs_exist_ok=True)
    return folder / writer.target


def _room(folder: Path) -> int:
    about = os.statvfs(folder)
    return about.f_bavail * about.f_frsize


def _limited(writer: Writer, path: Path, size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    writer.write("new", path)


def _judge(writer: Writer, path: Path, told: str, found: Counter[str]) -> None:
    state = writer.state(path)
    if told == "done":
        found["written" if state == "new" else f"BROKEN {state}"] += 1
    elif state != "old" or not told.startswith("FgcompileError"):
        found[f"BROKEN {state} after {told}"] += 1
    else:
        found["refused, old intact"] += 1


def read_only(writer: Writer, work: Path) -> Counter[str]:
    """States after writes to places that may not be written.

    These are: below a file, folders whose modes forbid it (root gives up its right to
    pass over modes), and a file system that is read only.
    """
    found: Counter[str] = Counter()
    file = fresh(work, writer, has_old=False).parent / "file"
    file.write_text("kept")
    told = outcome_of(partial(writer.write, "new", file / writer.target))
    good = told.startswith("FgcompileError") and file.read_text() == "kept"
    found["refused, old intact" if good else f"BROKEN below a file: {told}"] += 1
    path = fresh(work, writer)
    with forbidden(path.parent):
        _judge(writer, path, outcome_of(partial(_bound, writer, path)), found)
    with small_file_system(work / "disk", 1 << 22) as folder:
        if folder is None:
            found["no read-only file system here"] += 1
            return found
        path = _placed(writer, fresh(work, writer), folder)
        # Of the mount alone, which root of a user namespace may too.
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        _judge(writer, path, outcome_of(partial(writer.write, "new", path)), found)
    return found


@contextlib.contextmanager
def forbidden(folder: Path) -> Iterator[None]:
    """`folder` and those below have a mode that lets nobody write to them."""
    folders = [folder, *(f for f in folder.rglob("*") if f.is_dir())]
    modes = [f.stat().st_mode for f in folders]
    for f in folders:
        f.chmod(0o555)
    try:
        yield
    finally:
        for f, mode in zip(folders, modes, strict=True):
            f.chmod(mode)


def _bound(writer: Writer, path: Path) -> None:
    if os.geteuid() == 0:
        give_up_overrides()
    assert not os.access(path.parent, os.W_OK), "modes of folders do not bind this user"
    writer.write("new", path)


def give_up_overrides() -> None:
    """From now on modes of files bind this thread as any other user; Linux only."""
    library = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    # Effective, permitted and inheritable ones: numbers 0 to 31, then the others.
    sets = (ctypes.c_uint32 * 6)()
    if library.capget(header, sets) == 0:
        for place in range(3):
            sets[place] &= ~_OVERRIDES
        library.capset(header, sets)


@contextlib.contextmanager
def small_file_system(folder: Path, size: int) -> Iterator[Path | None]:
    """One of `size` bytes in memory, None where this process may not mount any."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
        mounted = done.returncode == 0
    except OSError:
        mounted = False
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)
