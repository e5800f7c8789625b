"""The old output is intact or the new one complete: a few faults of each kind."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest

from tests.faults import campaign
from tests.faults.writers import WRITERS, Writer

QUICK = ("gates", "adapter", "module", "onnx", "openvino")


@pytest.fixture(scope="module", params=QUICK)
def writer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    return WRITERS[request.param](tmp_path_factory.mktemp("writer"))


def lost(found: Counter[str]) -> list[str]:
    return [text for text in found if text.startswith("BROKEN")]


def test_kills_lose_nothing(tmp_path: Path, writer: Writer) -> None:
    found = campaign.kill(writer, 6, 0, tmp_path)
    assert lost(found) == []
    assert found["killed"]


def test_full_disks_lose_nothing(tmp_path: Path, writer: Writer) -> None:
    found = campaign.full_disk(writer, tmp_path, (0, 300))
    assert lost(found) == []
    assert found["refused, old intact"]


def test_folders_that_are_read_only_are_told(tmp_path: Path, writer: Writer) -> None:
    found = campaign.read_only(writer, tmp_path)
    assert lost(found) == []
    assert found["refused, old intact"]


def test_two_writers_lose_nothing(tmp_path: Path, writer: Writer) -> None:
    found = campaign.two_writers(writer, tmp_path, 3)
    assert lost(found) == []
    assert found["writer done"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_more_kills_lose_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = WRITERS[name](tmp_path)
    assert lost(campaign.kill(made, max(6, round(30 * made.share)), 1, tmp_path)) == []
