"""The old output is intact or the new one complete: a few faults of each kind."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest

from tests.faults import campaign, places
from tests.faults.download import INTERRUPTIONS, Interruption, interrupted
from tests.faults.writers import WRITERS, Writer

QUICK = ("gates", "adapter", "module", "onnx", "openvino")


@pytest.fixture(
    scope="module",
    params=[
        *QUICK,
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in WRITERS
            if name not in QUICK
        ),
    ],
)
def writer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    return WRITERS[request.param](tmp_path_factory.mktemp("writer"))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What lowering leaves in the folder for temporary files is there too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def lost(found: Counter[str]) -> list[str]:
    return [text for text in found if text.startswith("BROKEN")]


def test_kills_lose_nothing(work: Path, writer: Writer) -> None:
    found = campaign.kill(writer, 5, 0, work)
    assert lost(found) == []
    assert found["killed"] == 5


def test_full_disks_lose_nothing(work: Path, writer: Writer) -> None:
    found = places.full_disk(writer, work, (0, 300))
    assert lost(found) == []
    assert found["refused, old intact"] >= 1


def test_folders_that_are_read_only_are_told(work: Path, writer: Writer) -> None:
    found = places.read_only(writer, work)
    assert lost(found) == []
    assert found["refused, old intact"] >= 2  # below a file, and by its mode


def test_two_writers_lose_nothing(work: Path, writer: Writer) -> None:
    found = campaign.two_writers(writer, work, 3)
    assert lost(found) == []
    assert found["writer done"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_more_kills_lose_nothing(work: Path, name: str) -> None:
    assert lost(campaign.kill(WRITERS[name](work), 30, 1, work)) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", INTERRUPTIONS)
def test_downloads_that_stop_half_way_lose_nothing(
    how: Interruption, work: Path
) -> None:
    found = interrupted(how, work)
    assert found == {"stopped, old intact": 1, "next try complete": 1}
