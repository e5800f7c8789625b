"""Results of programs say what they were measured on, and give their tables again."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import int8, record, runtimes
from benchmarks.machine import processor


def test_results_say_what_they_were_measured_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "FOLDER", tmp_path / "results")
    record.write("none", {"seconds": 1.5, "threads": 8}, threads=2)
    found = record.read("none")
    assert found["seconds"] == 1.5
    assert found["threads"] == 2
    assert found["machine"]["processor"] == processor()
    assert found["machine"]["load_average"] >= 0
    assert found["versions"]["torch"].startswith("2.")
    assert found["versions"]["commit"]
    assert found["when"].endswith("+00:00")


def test_tables_come_from_the_stored_results() -> None:
    console = Console(quiet=True)
    quantized, runs = record.read(int8.RESULT), record.read(runtimes.RESULT)
    tables = [int8._table(quantized), runtimes._runtimes(runs)]
    for table in [*tables, runtimes._operators(runs["operators"])]:
        console.print(table)
    assert tables[0].row_count == len(quantized["variants"]) == 4
    assert tables[1].row_count == len(runtimes.RUNTIMES)
    assert list(tables[1].columns[3].cells) == [
        f"{runs['over_mac_ratio'][name] * runs['mac_ratio']:.3f}"
        for name in runtimes.RUNTIMES
    ]
