"""Cells are measured once, stored one by one, and survive what fails."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import runner
from benchmarks.cells import Benchmark, Cell, Parameters, Record, Result
from benchmarks.machine import Peak, machine, peak_memory, processor, versions
from benchmarks.store import ordered, read, write


def benchmark(*sizes: int) -> Benchmark:
    """One cell for each size; nothing else of it is used here."""
    cells = [Cell({"size": size, "kind": "a" if size < 3 else "b"}) for size in sizes]
    nothing: Any = None
    return Benchmark("none", "", lambda smoke: cells, *[nothing] * 4)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes that were measured; 13 fails."""
    sizes: list[int] = []

    def measure(name: str, cell: Cell) -> tuple[Result | None, str]:
        sizes.append(cell.parameters["size"])
        if sizes[-1] == 13:
            return None, "bad luck"
        return {"twice": 2 * sizes[-1]}, ""

    monkeypatch.setattr(runner, "_in_process", measure)
    return sizes


def test_second_call_measures_what_is_missing(
    measured: list[int], tmp_path: Path
) -> None:
    file = tmp_path / "r.json"
    runner.run(benchmark(1, 2), file)
    records = runner.run(benchmark(3, 2, 1), file)
    assert measured == [1, 2, 3]
    assert [r.result for r in records] == [{"twice": 6}, {"twice": 4}, {"twice": 2}]
    assert read(file) == records


def test_only_some_cells_are_measured_again(
    measured: list[int], tmp_path: Path
) -> None:
    file = tmp_path / "r.json"
    runner.run(benchmark(1, 2, 3, 4), file)
    runner.run(benchmark(1, 2, 3, 4), file, only="kind=b", redo=True)
    assert measured == [1, 2, 3, 4, 3, 4]


def test_failures_are_stored_and_tried_again(
    measured: list[int], tmp_path: Path
) -> None:
    file = tmp_path / "r.json"
    first = runner.run(benchmark(13, 1), file)
    assert [(r.result, r.error) for r in first] == [
        (None, "bad luck"),
        ({"twice": 2}, ""),
    ]
    runner.run(benchmark(13, 1), file)
    assert measured == [13, 1, 13]


def test_no_cell_begins_when_time_is_up(measured: list[int], tmp_path: Path) -> None:
    assert runner.run(benchmark(1, 2), tmp_path / "r.json", minutes=-1) == []


def test_every_cell_is_stored_as_soon_as_it_is_there(
    measured: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, seen = tmp_path / "r.json", []
    measure = runner._in_process

    def watched(name: str, cell: Cell) -> tuple[Result | None, str]:
        seen.append(len(read(file)))
        return measure(name, cell)

    monkeypatch.setattr(runner, "_in_process", watched)
    runner.run(benchmark(1, 2, 3), file)
    assert seen == [0, 1, 2]


def record(parameters: Parameters, result: Result | None = None) -> Record:
    facts = machine() | {"load_average": [0.1, 0.2]}
    return Record(parameters, result, "", 1.5, "2026-01-01", facts, versions())


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    records = [record({"a": 1}, {"b": [1.5]}), record({"a": 2})]
    write(tmp_path / "r.json", records)
    assert read(tmp_path / "r.json") == records
    stored = json.loads((tmp_path / "r.json").read_text())
    assert len(stored["machine"]) == len(stored["versions"]) == 1


def test_last_record_of_a_cell_counts_and_those_of_old_cells_go() -> None:
    old, new, other = record({"a": 1}, {}), record({"a": 1}, {"b": 1}), record({"c": 1})
    assert ordered([old, other, new], ["a=1"]) == [new]


def call(code: str, log: Path, limit: float = 60) -> int | None:
    return runner.call([sys.executable, "-c", code], log, limit)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError('no such thing')", "ValueError: no such thing"),
        ("raise SystemExit(7)", "exit code 7"),
        ("print('x' * 1000); raise SystemExit(1)", "x" * 400 + "..."),
    ],
)
def test_failure_is_told_by_its_last_line(
    code: str, message: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    assert runner.failure(call(code, log), log, 60) == message


def test_nothing_is_left_of_what_takes_too_long(tmp_path: Path) -> None:
    mark, log = tmp_path / "mark", tmp_path / "log"
    child = f"import time; time.sleep(2); open({str(mark)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert call(code, log, 1.0) is None
    assert runner.failure(None, log, 1.0) == "no result after 1 s"
    time.sleep(2.5)
    assert not mark.exists()


def test_sessions_of_what_takes_too_long_end_with_it(tmp_path: Path) -> None:
    mark, folder = tmp_path / "mark", str(tmp_path)
    child = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    code = f"""
import signal, sys
from pathlib import Path
from benchmarks.runner import call
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
call([sys.executable, "-c", {child!r}], Path({folder!r}) / "inner", 60)
"""
    assert call(code, tmp_path / "log", 2.0) is None
    assert (tmp_path / "inner").exists()
    time.sleep(3)
    assert not mark.exists()


def peak_of(work: Callable[[], object]) -> Peak:
    with peak_memory() as peak:
        work()
    return peak


def test_memory_is_that_of_the_stage_alone() -> None:
    large = peak_of(lambda: bytearray(200_000_000))
    small = peak_of(lambda: bytearray(1000))
    assert 190e6 < large.more < 260e6
    assert small.more < 20e6


def test_machine_and_versions_are_known() -> None:
    assert processor()
    assert machine()["cores"]
    assert versions()["torch"].startswith("2.")
    assert versions(["no-such-package"])["no-such-package"] == "not installed"
