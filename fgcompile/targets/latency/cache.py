"""What was measured before, in the user's cache folder.

One JSON file for every model, group, size, thread count, runtime and machine.
`FGCOMPILE_CACHE` names another folder than `~/.cache/fgcompile`; it may be deleted at
any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path

from fgcompile.errors import FormatError
from fgcompile.gates.latency import LatencyTable
from fgcompile.gates.storage import replace_file

FORMAT = 1
"""Grows when what is measured changes its meaning."""


def cache_file(facts: dict[str, object]) -> Path:
    """Where the table for these facts is, or will be."""
    text = json.dumps({"format": FORMAT, **facts}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return cache_folder() / f"latency-{digest[:32]}.json"


def cache_folder() -> Path:
    """The folder of everything that fgcompile remembers between processes."""
    named = os.environ.get("FGCOMPILE_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fgcompile"


def recall(file: Path) -> LatencyTable | None:
    """The table in `file`; None if there is none, or it is damaged."""
    try:
        return LatencyTable.from_json(file.read_text("utf-8"))
    except (OSError, ValueError, FormatError):
        return None


def remember(file: Path, table: LatencyTable) -> None:
    """Writes `table` to `file`, where the folder can be written at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, table.to_json().encode())
    except OSError:
        return  # a read-only home: the next process measures again


def machine() -> str:
    """The processor, and how many of it this process sees."""
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return next(iter(names), platform.processor() or platform.machine())
