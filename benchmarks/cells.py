"""What a benchmark is: cells that are measured one by one, and tables of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Parameters = dict[str, Any]
Result = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        parameters: What is measured, as JSON.
        limit: When it is given up [s].
    """

    parameters: Parameters
    limit: float = 1800.0

    @property
    def key(self) -> str:
        """The parameters as text; no two cells of a benchmark share it."""
        return " ".join(f"{name}={value}" for name, value in self.parameters.items())


@dataclass(frozen=True)
class Record:
    """A cell that was measured, as it is stored.

    Attributes:
        parameters: Those of the cell.
        result: What was measured; None where that failed.
        error: Why it failed, or "".
        seconds: Wall-clock time of all of it, with what had to be built [s].
        when: Date and time, ISO 8601.
        machine: Processor, cores, memory and load average before and after.
        versions: Of Python, of the packages that matter and of fgcompile.
    """

    parameters: Parameters
    result: Result | None
    error: str
    seconds: float
    when: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def key(self) -> str:
        """That of the cell."""
        return Cell(self.parameters).key


@dataclass(frozen=True)
class Benchmark:
    """A set of cells, and what is made of their results.

    Attributes:
        name: What it is called on the command line, and its file of results.
        about: One line.
        cells: The cells, the most important first; small ones for a smoke test.
        measure: Measures one, in a process of its own.
        page: Markdown from the records of all cells.
        summary: The same in one table, for the README.
        plots: Writes pictures into a folder; the files.
    """

    name: str
    about: str
    cells: Callable[[bool], Sequence[Cell]]
    measure: Callable[[Parameters], Result]
    page: Callable[[Sequence[Record]], str]
    summary: Callable[[Sequence[Record]], str]
    plots: Callable[[Sequence[Record], Path], Sequence[Path]]
