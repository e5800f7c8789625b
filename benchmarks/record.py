"""Results of benchmarks, as JSON files beside the code that made them."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import load_average, machine, versions

FOLDER = Path(__file__).parent / "results"


def read(name: str) -> dict[str, Any]:
    """What the benchmark called `name` wrote last; empty if it never ran."""
    file = FOLDER / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return found


def write(name: str, result: dict[str, Any], threads: int | None = None) -> None:
    """Replaces the results of the benchmark called `name`.

    When and on what they were measured is added: machine, load, versions and threads.

    Args:
        name: Of the benchmark.
        result: What was measured.
        threads: Those of what was measured; by default as many as torch has here.
    """
    facts = {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "threads": torch.get_num_threads() if threads is None else threads,
        "machine": machine() | {"load_average": load_average()},
        "versions": versions(),
    }
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(result | facts, indent=1) + "\n"
    (FOLDER / f"{name}.json").write_text(text, "utf-8")
