"""What a measurement ran on, and how much memory it took."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "fgcompile")
ROOT = Path(__file__).resolve().parent.parent
_SELF = Path("/proc/self")


def processor() -> str:
    """Model of the processor."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def machine() -> dict[str, object]:
    """Processor, cores that may be used, and memory [GB]."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(pages / 1e9, 1),
        "system": platform.system(),
    }


def load_average() -> float:
    """Processes that wanted to run in the last minute."""
    return round(os.getloadavg()[0], 2)


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Of Python and of `packages`, and the commit of this repository."""
    found = {"python": platform.python_version(), "commit": _commit()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


@dataclass
class Peak:
    """Memory of this process: `before` a stage and at its `highest` point [bytes]."""

    before: int = 0
    highest: int = 0

    @property
    def more(self) -> int:
        """What the stage took beyond what was there [bytes]."""
        return max(0, self.highest - self.before)


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Watches the resident memory of this process while the body runs (Linux only).

    What files are mapped to counts as well; what other processes take does not.
    """
    # 5 sets the high-water mark back to what is resident now, see proc(5).
    (_SELF / "clear_refs").write_text("5", encoding="ascii")
    peak = Peak(_status("VmRSS"))
    try:
        yield peak
    finally:
        peak.highest = _status("VmHWM")


def _status(field: str) -> int:
    text = (_SELF / "status").read_text(encoding="utf-8")
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None, field
    return 1024 * int(found[1])
