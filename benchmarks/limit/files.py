"""A cache of built files, of which those used least recently go when it is full."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch

from benchmarks.cache import cache
from benchmarks.machine import ROOT

FULL = 30e9
"""Bytes that the cache has at most; files of a billion parameters have five of them."""

_SOURCES = (
    *("fgcompile/**/*.py", "passes/*.py"),
    *("benchmarks/limit/build.py", "benchmarks/shapes.py"),
)
_LOCK = "used"

_held: list[IO[bytes]] = []
"""Locks of this process: what it reads is not removed until it ends."""


@functools.cache
def digest() -> str:
    """Of all that decides what is built: this program, the compiler and torch."""
    found = hashlib.sha256(torch.__version__.encode())
    for source in sorted(file for each in _SOURCES for file in ROOT.glob(each)):
        found.update(source.read_bytes())
    return found.hexdigest()[:12]


def hold(name: str) -> Path:
    """The folder called `name` for this state of the compiler, locked for reading."""
    folder = _root() / digest() / name
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("wb")
        fcntl.flock(lock, fcntl.LOCK_SH)
        if (folder / _LOCK).exists():  # else it was removed while this waited
            break
    os.utime(folder / _LOCK)
    _held.append(lock)
    return folder


def make_room() -> None:
    """Removes folders that no process holds, the least recently used first."""
    sizes = {lock.parent: _size(lock.parent) for lock in _locks()}
    total = sum(sizes.values())
    for folder, size in sizes.items():
        if total <= FULL:
            return
        if _removed(folder):
            total -= size


def _root() -> Path:
    return cache() / "limit"


def _locks() -> Iterator[Path]:
    yield from sorted(_root().glob(f"*/*/{_LOCK}"), key=lambda f: f.stat().st_mtime)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*"))


def _removed(folder: Path) -> bool:
    """Whether nobody held the folder, so that it is gone now."""
    with (folder / _LOCK).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(folder)
    return True
