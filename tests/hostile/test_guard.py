"""The harness sees what it looks for: a reader that misbehaves is a defect."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.hostile import runner
from tests.hostile.runner import Target, run
from tests.hostile.shrinking import DefectError, search


def _opens(case: Path) -> None:
    (case.parent / "outside" / "secret").read_text()


def _follows(case: Path) -> None:
    (case / "link").symlink_to("../outside/secret")
    (case / "link").read_text()


def _raises(case: Path) -> None:
    raise KeyError("x")


def _dies(case: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hides(case: Path) -> None:
    try:
        (case.parent / "outside" / "secret").read_text()
    except Exception:
        return


def _hangs(case: Path) -> None:
    while True:
        time.process_time()


def _grows(case: Path) -> None:
    bytearray(3 << 30)


def _unpickles(case: Path) -> None:
    pickle.loads(pickle.dumps(Path))


def _runs(case: Path) -> None:
    subprocess.run(["true"], check=True)


@pytest.mark.parametrize(
    ("use", "kind"),
    [
        (_opens, "trespass"),
        (_follows, "trespass"),
        (_hides, "trespass"),
        (_raises, "error"),
        (_dies, "crash"),
        (_hangs, "hang"),
        (_grows, "memory"),
        (_unpickles, "trespass"),
        (_runs, "trespass"),
    ],
)
def test_a_reader_that_misbehaves_is_told(
    tmp_path: Path,
    use: Callable[[Path], None],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "SECONDS", 1.0)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")
    target = Target("bad", 1, lambda folder: None, lambda random, case: "", use)
    tally = run(target, 0, range(1), tmp_path, lambda text: None)
    assert dict(tally.counts) == {kind: 1}


def _numbers(random: Random, case: Path) -> str:
    """Some numbers; what is read is those."""
    text = " ".join(str(random.randrange(1000)) for _ in range(random.randrange(1, 9)))
    (case / "numbers").write_text(text)
    return text


def _dies_of_large_ones(case: Path) -> None:
    if max(map(int, (case / "numbers").read_text().split())) > 100:
        _dies(case)


def test_an_input_that_kills_a_reader_is_made_small_and_remembered(
    tmp_path: Path,
) -> None:
    tried: list[str] = []

    def attack(random: Random, case: Path) -> str:
        tried.append(_numbers(random, case))
        return tried[-1]

    target = Target("bad", 1, lambda folder: None, attack, _dies_of_large_ones)
    with pytest.raises(DefectError, match=r"bad crash: exit -9 \(101\)"):
        search(target, 50, tmp_path, tmp_path / "database")
    tried.clear()
    with pytest.raises(DefectError):
        search(target, 50, tmp_path, tmp_path / "database")
    assert tried[0] == "101"
