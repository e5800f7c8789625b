"""Kills a process at a random moment, or just before a random change to its files."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from random import Random
from typing import Any

_EVENTS = (
    *("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.chmod"),
    *("os.truncate", "shutil.", "tempfile.", "fcntl.", "ctypes.call_function"),
)
"""What Python tells audit hooks of before it is done."""


def measure(action: Callable[[], object]) -> tuple[int, float]:
    """How many file events `action` has in a process of its own, and its seconds."""
    reader, writer = os.pipe()

    def counted() -> None:
        seen = [0]
        sys.addaudithook(lambda event, _: _count(event, seen))
        action()
        os.write(writer, str(seen[0]).encode())

    start = time.monotonic()
    status = wait(start_child(counted))
    seconds = time.monotonic() - start
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    assert status == 0, f"the action fails by itself: {status}"
    return int(text), seconds


def kill_once(
    action: Callable[[], object], random: Random, events: int, seconds: float
) -> bool:
    """Runs `action` in a child that is killed; False if it was done before."""
    if random.random() < 0.3:
        child = start_child(action)
        time.sleep(random.random() * seconds)
        os.kill(child, signal.SIGKILL)
        return wait(child) != 0
    last = random.randint(1, events)

    def doomed() -> None:
        seen = [0]
        sys.addaudithook(lambda event, _: _count(event, seen, last))
        action()

    return wait(start_child(doomed)) != 0


def _count(event: str, seen: list[int], last: int = 0) -> None:
    if event.startswith(_EVENTS):
        seen[0] += 1
        if seen[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)


def start_child(action: Callable[[], object]) -> int:
    """Number of a process that runs `action`; its status is 1 if that raises."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        action()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(child: int) -> int:
    """Its status: 0, or -9 if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome_of(action: Callable[[], Any]) -> str:
    """Name of the error that `action` raises in a process of its own, or "done"."""
    reader, writer = os.pipe()

    def told() -> None:
        try:
            action()
            os.write(writer, b"done")
        except Exception as error:
            names = [cls.__name__ for cls in type(error).__mro__]
            root = "FgcompileError" if "FgcompileError" in names else "unclear"
            text = f"{root}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            os.write(writer, text.encode()[:2000])

    status = wait(start_child(told))
    os.close(writer)
    with os.fdopen(reader) as stream:
        return stream.read() or f"exit {status}"
