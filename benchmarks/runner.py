"""Measures the cells of a benchmark that have no result yet, one process at a time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from rich.console import Console

from benchmarks.cells import Benchmark, Cell, Record, Result
from benchmarks.machine import ROOT, load_average, machine, versions
from benchmarks.store import ordered, read, write

_MESSAGE = 400
_GRACE = 3.0


def run(
    benchmark: Benchmark,
    file: Path,
    *,
    smoke: bool = False,
    only: str = "",
    redo: bool = False,
    minutes: float | None = None,
) -> list[Record]:
    """Measures what is missing in `file`, and stores each cell as soon as it is there.

    Args:
        benchmark: What to measure.
        file: Where records are, and are added.
        smoke: Small cells.
        only: Words that the key of a cell must all have, as `model=minilm`.
        redo: Measure again what has a result.
        minutes: No further cell begins after this.

    Returns:
        All records, in the order of the cells.
    """
    cells = benchmark.cells(smoke)
    keys = [cell.key for cell in cells]
    records = ordered(read(file), keys)
    done = {record.key for record in records if record.result is not None}
    todo = [
        cell
        for cell in cells
        if set(only.split()) <= set(cell.key.split()) and (redo or cell.key not in done)
    ]
    end = time.monotonic() + 60 * (minutes if minutes is not None else 1e6)
    console = Console(stderr=True)
    for position, cell in enumerate(todo, start=1):
        if time.monotonic() > end:
            console.print(f"{len(todo) - position + 1} cells are left")
            break
        console.print(f"{position}/{len(todo)} {cell.key}", highlight=False)
        record = measure(benchmark.name, cell)
        console.print(f"  {record.error or f'{record.seconds:.1f} s'}", highlight=False)
        # Another call may have added records meanwhile.
        records = ordered([*read(file), record], keys)
        write(file, records)
    return records


def measure(name: str, cell: Cell) -> Record:
    """One cell of the benchmark called `name`, in a process of its own."""
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    load, start = load_average(), time.perf_counter()
    result, error = _in_process(name, cell)
    seconds = round(time.perf_counter() - start, 2)
    facts = machine() | {"load_average": [load, load_average()]}
    return Record(cell.parameters, result, error, seconds, when, facts, versions())


def _in_process(name: str, cell: Cell) -> tuple[Result | None, str]:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        out, log = Path(folder) / "result.json", Path(folder) / "log"
        command = [
            *(sys.executable, "-m", "benchmarks", "cell", name),
            *(json.dumps(cell.parameters), str(out)),
        ]
        code = call(command, log, cell.limit)
        if out.exists():
            return json.loads(out.read_text(encoding="utf-8")), ""
        return None, failure(code, log, cell.limit)


def call(command: Sequence[str], log: Path, limit: float) -> int | None:
    """Exit code of a command; None, and nothing of it is left, after `limit` seconds.

    Args:
        command: What to run, in the folder of the repository.
        log: Where its output goes.
        limit: When it is ended [s].
    """
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(limit)
        except BaseException as error:
            _end(process)
            if isinstance(error, subprocess.TimeoutExpired):
                return None
            raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and its session; first it may end sessions that it began."""
    os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def failure(code: int | None, log: Path, limit: float) -> str:
    """What went wrong in a command that `call` ran: its last line, if it said any."""
    if code is None:
        return f"no result after {limit:.0f} s"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    text = last.strip() or f"exit code {code}"
    return text if len(text) <= _MESSAGE else text[:_MESSAGE] + "..."
