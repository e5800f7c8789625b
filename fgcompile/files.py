"""Files that are the old ones or the new ones, whenever a process dies.

A name is changed in one step, and what belongs together becomes visible by one such
change. Leftovers of a killed process are never read, and go with the next write.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fgcompile.errors import ExportError, FormatError

_TRIES = 3


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[bool]:
    """Only one process at a time is in such a block for the same folder.

    Yields whether that is so: not where the file system has no locks. The lock lies
    on the folder itself and leaves no file; it goes with the process.
    """
    lease = lock(folder, wait=True)
    try:
        yield lease is not None
    finally:
        if lease is not None:
            os.close(lease)


def lock(folder: Path, wait: bool) -> int | None:
    """A descriptor that holds the lock of `folder` until it is closed, if there is one.

    Args:
        folder: It exists.
        wait: For another process that holds the lock; without, None is the answer.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return None
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


def replace_file(path: Path, content: bytes) -> None:
    """`path` holds `content`, or what it held if this raises or the process dies."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_file(path: Path) -> bytes:
    """The content.

    Raises:
        FormatError: If it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise FormatError(f"cannot read {path}: it is no file")
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise FormatError(
            f"cannot read {path}: {getattr(error, 'strerror', error)}"
        ) from error


def write_described(
    folder: Path, name: str, content: bytes, manifest_name: str, manifest: Any
) -> None:
    """Writes data and a manifest that holds its digest, as one.

    The data waits under a name with its digest until the manifest asks for it, so that
    a reader finds both old files or both new ones.

    Raises:
        ExportError: If they cannot be written; the old ones are there then.
    """
    digest = hashlib.sha256(content).hexdigest()
    text = json.dumps(manifest | {"sha256": digest}, indent=1).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder) as alone:
            if alone:
                _settle(folder, name, manifest_name)
            waiting = _waiting(folder / name, digest)
            try:
                replace_file(waiting, content)
                replace_file(folder / manifest_name, text)
            except OSError:
                waiting.unlink(missing_ok=True)
                raise
            waiting.replace(folder / name)
    except OSError as error:
        raise unwritable(folder, error) from error


def read_described(folder: Path, name: str, manifest_name: str, read: Any) -> Any:
    """Manifest and data that belong together.

    Args:
        folder: Where `write_described` wrote.
        name: Of the data.
        manifest_name: Of the manifest.
        read: Parses and checks the manifest; its entry "sha256" is the digest.

    Returns:
        The manifest and the data's bytes.

    Raises:
        FormatError: If one is missing, damaged, or they do not belong together.
    """
    for _ in range(_TRIES):  # again if they are replaced meanwhile
        manifest = read(folder / manifest_name)
        digest = str(manifest["sha256"])
        waiting = _waiting(folder / name, digest)
        file = waiting if waiting.is_file() else folder / name
        content = read_file(file)
        if hashlib.sha256(content).hexdigest() == digest:
            return manifest, content
    raise FormatError(
        f"{folder / name} is damaged: its digest is not the one in {manifest_name}\n"
        "  Copy both files again, or save them again."
    )


def unwritable(target: Path, error: BaseException) -> ExportError:
    """What is raised where `target` could not be written."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    return ExportError(
        f"cannot write to {target}: {reason}\n"
        "  Nothing was changed there. Choose a folder that you may write to, with "
        "room for the model."
    )


def _waiting(data: Path, digest: str) -> Path:
    safe = digest if re.fullmatch("[0-9a-f]{64}", digest) else "none"
    return data.with_name(f"{data.name}.{safe[:16]}")


def _settle(folder: Path, name: str, manifest_name: str) -> None:
    """Ends what a killed process began, and removes what it left."""
    try:
        digest = str(json.loads((folder / manifest_name).read_bytes())["sha256"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        digest = ""
    waiting = _waiting(folder / name, digest)
    if digest and waiting.is_file():
        waiting.replace(folder / name)
    for entry in folder.iterdir():
        left = re.fullmatch(rf"{re.escape(name)}\.[0-9a-f]{{16}}", entry.name)
        half = re.fullmatch(rf"\.{re.escape(name)}.*\.\d+\.tmp", entry.name)
        note = re.fullmatch(rf"\.{re.escape(manifest_name)}\.\d+\.tmp", entry.name)
        if left or half or note:
            entry.unlink(missing_ok=True)
