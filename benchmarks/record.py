"""Results of benchmarks, as JSON files beside the code that made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def read(name: str) -> dict[str, Any]:
    """What the benchmark called `name` wrote last; empty if it never ran."""
    file = FOLDER / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return found


def write(name: str, result: dict[str, Any]) -> None:
    """Replaces the results of the benchmark called `name`."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
