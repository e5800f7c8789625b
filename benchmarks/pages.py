"""docs/benchmarks.md and the tables of the README, from the files of results alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import catalogue
from benchmarks.cells import Benchmark, Record
from benchmarks.machine import ROOT
from benchmarks.markdown import table
from benchmarks.store import RESULTS, ordered, read

PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
PICTURES = ROOT / "docs" / "benchmarks"

_HEAD = """\
# Benchmarks

`python -m benchmarks table` makes this page from the files in `benchmarks/results`.
`python -m benchmarks list` says what can be measured; `python -m benchmarks run NAME`
measures what is missing there: each cell in a process of its own, one at a time.
Competitors are timed in turns within one process, after a warm-up, and a ratio is
the median of those of the single turns. Latency on one thread is by a clock that stands
still while other processes have the processor. Weights are random, as time does not
depend on them.
"""


def write_all() -> list[Path]:
    """Writes the page, the README's tables and all pictures; the files."""
    PAGE.write_text(page(), encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    README.write_text(with_tables(text), encoding="utf-8")
    written = [PAGE, README]
    for found, records in measured():
        PICTURES.mkdir(exist_ok=True)
        written += found.plots(records, PICTURES)
    return written


def measured(folder: Path = RESULTS) -> Iterator[tuple[Benchmark, list[Record]]]:
    """Every benchmark that has results in `folder`, with them."""
    for name in catalogue.NAMES:
        found = catalogue.benchmark(name)
        keys = [cell.key for cell in found.cells(False)]
        records = ordered(read(folder / f"{name}.json"), keys)
        if any(record.result is not None for record in records):
            yield found, records


def page(folder: Path = RESULTS) -> str:
    """docs/benchmarks.md."""
    sections = [_section(found, records) for found, records in measured(folder)]
    return "\n".join([_HEAD, *sections])


def with_tables(readme: str, folder: Path = RESULTS) -> str:
    """`readme` with the table of each benchmark between its two comments."""
    for found, records in measured(folder):
        marks = f"<!-- benchmark {found.name} -->\n", f"<!-- end {found.name} -->"
        pattern = re.escape(marks[0]) + ".*?" + re.escape(marks[1])
        block = (
            f"\n### {found.about}\n\n{found.summary(records)}\n"
            f"{_command(found, records)}\n\n"
        )
        new = marks[0] + block + marks[1]
        # Backslashes in the table are no escapes.
        new = new.replace("\\", "\\\\")
        readme = re.sub(pattern, new, readme, flags=re.DOTALL)
    return readme


def _command(found: Benchmark, records: Sequence[Record]) -> str:
    """What makes a table, and how much of it is made."""
    text = f"Made by `python -m benchmarks run {found.name}`."
    done, count = len(records), len(found.cells(False))
    return text if done == count else f"{text} So far {done} of {count} cells were run."


def _section(found: Benchmark, records: Sequence[Record]) -> str:
    text = (
        f"## {found.about}\n\n{_command(found, records)} {_where(records)}\n\n"
        f"{found.page(records)}"
    )
    failed = [(r.key, r.error) for r in records if r.result is None]
    if failed:
        text += f"\nNo result:\n\n{table(('cell', 'why'), failed, left=2)}"
    return text


def _where(records: Sequence[Record]) -> str:
    """What the records were measured on; everything, if that changed between them."""
    facts = [
        f"{r.machine['processor']}, {r.machine['cores']} cores, "
        f"{r.machine['memory_gb']} GB; onnxruntime {r.versions['onnxruntime']}, torch "
        f"{r.versions['torch']}, transformers {r.versions['transformers']}"
        for r in records
    ]
    loads = [load for r in records for load in r.machine["load_average"]]
    return (
        f"Measured on {'; and '.join(dict.fromkeys(facts))}; load average "
        f"{min(loads)} to {max(loads)}."
    )
