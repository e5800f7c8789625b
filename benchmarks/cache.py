"""Where things lie that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """The folder; `XDG_CACHE_HOME` moves it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fgcompile-benchmarks"
