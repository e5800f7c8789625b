"""Kills, full disks, folders that nobody may write to, and two writers at once."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

from tests.faults.killing import kill_once, measure, outcome_of, start_child
from tests.faults.writers import Writer

LEFT = (".fgcompile-*", ".*.tmp", "*.safetensors.*")
"""What a killed process may leave beside the files."""


def kill(writer: Writer, times: int, seed: int, work: Path) -> Counter[str]:
    """States after kills: "old", "new", "nothing", or what is wrong.

    Every fifth attempt finds no old state. After each, the next write must succeed and
    leave nothing of the killed one.
    """
    found: Counter[str] = Counter()
    random = Random(f"{seed}:{writer.name}")
    path = _fresh(work, writer)
    writer.write("old", path)
    events, seconds = measure(lambda: writer.write("new", path))
    for attempt in range(times):
        path = _fresh(work, writer)
        has_old = attempt % 5 != 0
        if has_old:
            writer.write("old", path)
        killed = kill_once(partial(writer.write, "new", path), random, events, seconds)
        state = writer.state(path, has_old)
        bad = state not in (("old", "new") if has_old else ("nothing", "new"))
        found["killed" if killed else "done"] += 1
        found[f"BROKEN {state}" if bad else state] += 1
        if attempt % 4 == 0:
            writer.write("new", path)
            again = writer.state(path)
            left = leftovers(path.parent)
            if again != "new" or left:
                found[f"BROKEN next write: {again}, left {left}"] += 1
    return found


def _fresh(work: Path, writer: Writer) -> Path:
    folder = work / "attempt"
    shutil.rmtree(folder, ignore_errors=True)
    path = folder / writer.target
    path.parent.mkdir(parents=True)
    return path


def leftovers(folder: Path) -> list[str]:
    """Names of files that a killed process left below `folder`."""
    return sorted({f.name for pattern in LEFT for f in folder.rglob(pattern)})


def full_disk(writer: Writer, work: Path, sizes: tuple[int, ...]) -> Counter[str]:
    """States after writes that find no room, in files and on a small file system."""
    found: Counter[str] = Counter()
    for size in sizes:
        path = _fresh(work, writer)
        writer.write("old", path)
        told = outcome_of(partial(_limited, writer, path, size))
        _judge(writer, path, told, found)
    with small_file_system(work / "disk", "64k") as folder:
        if folder is None:
            found["no small file system here"] += 1
            return found
        path = folder / writer.target
        path.parent.mkdir(exist_ok=True)
        told = outcome_of(lambda: writer.write("old", path))
        if told != "done":  # it does not even fit once
            found["too large for the disk" if "Fgcompile" in told else told] += 1
            return found
        (folder / "ballast").write_bytes(b"\1" * _room(folder))
        _judge(writer, path, outcome_of(lambda: writer.write("new", path)), found)
    return found


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
    """States after writes below a file, and to a file system that is read only."""
    found: Counter[str] = Counter()
    file = _fresh(work, writer).parent / "file"
    file.write_text("kept")
    told = outcome_of(lambda: writer.write("new", file / writer.target))
    good = told.startswith("FgcompileError") and file.read_text() == "kept"
    found["refused, old intact" if good else f"BROKEN below a file: {told}"] += 1
    with small_file_system(work / "disk", "4m") as folder:
        if folder is None:
            found["no read-only file system here"] += 1
            return found
        path = folder / writer.target
        path.parent.mkdir(exist_ok=True)
        writer.write("old", path)
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        _judge(writer, path, outcome_of(lambda: writer.write("new", path)), found)
    return found


def two_writers(writer: Writer, work: Path, rounds: int) -> Counter[str]:
    """States that a reader sees while two processes write, and afterwards."""
    found: Counter[str] = Counter()
    path = _fresh(work, writer)
    writer.write("old", path)

    def repeat(state: str) -> None:
        for _ in range(rounds):
            writer.write(state, path)

    children = [start_child(partial(repeat, state)) for state in ("old", "new")]
    while children:
        for child in list(children):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                children.remove(child)
                found["writer done" if status == 0 else "BROKEN writer failed"] += 1
        found[_seen(writer, path)] += 1
    if leftovers(path.parent):
        writer.write("new", path)
        left = leftovers(path.parent)
        found[
            "leftovers gone with the next write" if not left else f"BROKEN {left}"
        ] += 1
    return found


def _seen(writer: Writer, path: Path) -> str:
    """What a reader finds; one that opens files one by one may have to look twice."""
    for _ in range(5):
        state = writer.state(path)
        if state in ("old", "new"):
            return state
    return f"BROKEN {state}"


@contextlib.contextmanager
def small_file_system(folder: Path, size: str) -> Iterator[Path | None]:
    """A file system in memory, None where this process may not mount one."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = (
            subprocess.run(mount, capture_output=True, check=False).returncode == 0
        )
    except OSError:
        mounted = False
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)
