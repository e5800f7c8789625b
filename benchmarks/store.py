"""Records on disk: one JSON file for each benchmark."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.cells import Record

RESULTS = Path(__file__).resolve().parent / "results"
_SHARED = ("machine", "versions")


def read(file: Path) -> list[Record]:
    """The records in `file`; none if there is no such file."""
    if not file.exists():
        return []
    found = json.loads(file.read_text(encoding="utf-8"))
    return [_unpacked(found, stored) for stored in found["records"]]


def write(file: Path, records: Iterable[Record]) -> None:
    """Writes the records to `file`, atomically."""
    packed: dict[str, Any] = {name: [] for name in _SHARED}
    packed["records"] = [_packed(packed, record) for record in records]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(packed, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, file)


def ordered(records: Iterable[Record], keys: Sequence[str]) -> list[Record]:
    """Records in the order of `keys`; others, of cells that are no more, are left out.

    The last record of a key counts.
    """
    latest = {record.key: record for record in records}
    return [latest[key] for key in keys if key in latest]


def _packed(packed: dict[str, Any], record: Record) -> dict[str, Any]:
    """Machines and versions are stored once, and named by their position."""
    stored = asdict(record)
    loads = stored["machine"].pop("load_average", None)
    for name in _SHARED:
        if stored[name] not in packed[name]:
            packed[name].append(stored[name])
        stored[name] = packed[name].index(stored[name])
    return stored | {"load_average": loads}


def _unpacked(packed: dict[str, Any], stored: dict[str, Any]) -> Record:
    loads = stored.pop("load_average")
    shared = {name: packed[name][stored[name]] for name in _SHARED}
    record = Record(**{**stored, **shared})
    return replace(record, machine={**record.machine, "load_average": loads})
