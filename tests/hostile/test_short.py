"""A short run of `python -m tests.hostile` with fixed seeds, and a longer one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.runner import run
from tests.hostile.targets import TARGETS, write_outside

QUICK = {
    "onnx": 25,
    "safetensors": 25,
    "module": 20,
    "gates": 20,
    "s2ft": 20,
    "cli": 10,
}


def check(name: str, seed: int, count: int, work: Path) -> None:
    """No input of the target is a defect."""
    write_outside(work / "outside")
    tally = run(TARGETS[name], seed, range(count), work, print)
    assert tally.defects == {}
    assert sum(tally.counts.values()) == count
    assert tally.counts["refused"]


@pytest.mark.parametrize(("name", "count"), QUICK.items())
def test_damaged_files_are_read_or_refused(
    tmp_path: Path, name: str, count: int
) -> None:
    check(name, 7, count, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_more_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    check(name, 11, max(4, round(15 * TARGETS[name].share)), tmp_path)
