"""What a reader must not do: open files elsewhere, run code, ask, or use the network.

Python reports such events to audit hooks, whatever module they come from. Files that
native code opens are not seen; tests/hostile/targets.py looks for what they held.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

_RUNS_CODE = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "pickle.find_class"),
    *("builtins.input", "socket.connect", "socket.getaddrinfo", "urllib.Request"),
    *("webbrowser.open", "ctypes.dlopen"),
)
_PRIVATE = ("/etc/", "/root/", "/home/", "/boot/", "/sys/", "/proc/self/environ")
# Read by Python's own modules, whatever the input is.
_HARMLESS = ("/etc/mime.types", "/etc/localtime", "/sys/fs/cgroup", "/sys/devices")
_PYTHON = tuple({sys.prefix, sys.base_prefix, str(Path(__file__).parents[2])})
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class TrespassError(BaseException):
    """Stops a reader that does what it must not; no handler of errors catches it."""


class Guard:
    """Watches this process while a case runs.

    Attributes:
        found: What was done against the rules since `start`.
    """

    def __init__(self, work: Path, outside: Path) -> None:
        """Files may be written below `work`, and nothing below `outside` be opened."""
        self.found: list[str] = []
        self._work, self._outside = os.path.realpath(work), os.path.realpath(outside)
        self._on = self._inside = False
        self._commands: tuple[str, ...] = ()
        sys.addaudithook(self._hook)  # for good: hooks cannot be removed

    def start(self, commands: tuple[str, ...] = ()) -> None:
        """Watches from here on; `commands` are programs that may be run."""
        self.found, self._commands, self._on = [], commands, True

    def stop(self) -> None:
        """Watches no longer."""
        self._on = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on or self._inside:
            return
        self._inside = True  # what the hook itself opens is no event
        try:
            fault = self._fault(event, arguments)
        finally:
            self._inside = False
        if fault:
            self.found.append(fault)
            raise TrespassError(fault)

    def _fault(self, event: str, arguments: tuple[Any, ...]) -> str:
        if event == "open":
            return self._fault_of_file(*arguments)
        if event == "subprocess.Popen":
            program = os.path.basename(str(arguments[0]))
            return "" if program in self._commands else f"ran {program}"
        if event == "ctypes.dlopen" and arguments[0] is None:
            return ""
        if event.startswith(_RUNS_CODE) and not self._commands:
            return f"{event}{arguments!r}"[:200]
        return ""

    def _fault_of_file(self, path: Any, mode: Any, flags: Any) -> str:
        if not isinstance(path, str | bytes):
            return ""
        name = os.path.realpath(os.fsdecode(path))
        if mode is None and os.path.isdir(name):
            return ""  # a folder is listed, perhaps one below another than the current
        if name.startswith(self._outside):
            return f"opened {path!r}"
        if name.startswith(_PRIVATE) and not name.startswith((*_HARMLESS, *_PYTHON)):
            return f"opened {path!r}"
        writes = isinstance(flags, int) and flags & _WRITES
        if writes and not name.startswith((self._work, "/dev/", "/proc/self/")):
            return f"wrote {path!r}"
        return ""
