"""Short runs of `python -m tests.hostile` with fixed seeds, and longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.runner import Tally, run
from tests.hostile.shrinking import search
from tests.hostile.targets import TARGETS, write_outside

QUICK = {
    "onnx": 25,
    "safetensors": 25,
    "module": 20,
    "gates": 20,
    "s2ft": 20,
    "cli": 10,
}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with files outside of it."""
    write_outside(tmp_path / "outside")
    return tmp_path


def check(tally: Tally, count: int) -> None:
    """No input was a defect."""
    assert tally.defects == {}
    assert sum(tally.counts.values()) == count
    assert tally.counts["refused"]


@pytest.mark.parametrize(("name", "count"), QUICK.items())
def test_damaged_files_are_read_or_refused(work: Path, name: str, count: int) -> None:
    check(run(TARGETS[name], 7, range(count), work, print), count)


@pytest.mark.parametrize("name", QUICK)
def test_files_that_hypothesis_damages_are_read_or_refused(
    work: Path, name: str
) -> None:
    check(search(TARGETS[name], 8, work), 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_more_damaged_files_are_read_or_refused(work: Path, name: str) -> None:
    count = max(4, round(15 * TARGETS[name].share))
    check(run(TARGETS[name], 11, range(count), work, print), count)
    check(search(TARGETS[name], count, work), count)
