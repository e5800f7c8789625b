"""Records of runs: JSON files that are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "results" / "glue"


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Writes `record` so that the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote there; empty if it never did."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records in `folder`, each with the `name` of its file."""
    return [
        {"name": file.stem} | json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(folder.glob("*.json"))
    ]
