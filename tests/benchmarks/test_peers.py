"""Tools are judged by the files that they leave, and never by our own failures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks.peers import compare, judge
from benchmarks.peers.rows import HANG, LIMIT, ROWS, Row, rows_for


def test_weights_beside_a_file_count(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((100, 250), np.float32), "w")
    graph = onnx.helper.make_graph([], "g", [], [], [weight])
    model, file = onnx.helper.make_model(graph), tmp_path / "m.onnx"
    onnx.save(model, str(tmp_path / "whole.onnx"))
    assert judge.megabytes(tmp_path / "whole.onnx") == 0.1
    onnx.save(
        model, str(file), save_as_external_data=True, location="w", size_threshold=0
    )
    assert file.stat().st_size < 1000
    assert judge.megabytes(file) == 0.1


def test_what_hangs_is_given_up_early() -> None:
    limits = {row.name: row.limit("llama") for row in rows_for("llama", False)}
    assert limits["torch-pruning"] == HANG
    assert limits["torch-pruning, channels only"] == limits["fgcompile"] == LIMIT
    assert [row.name for row in rows_for("bert", False)] == [
        row.name for row in ROWS if not row.models
    ]


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Code that stands for the worker; the folder is its first argument."""
    code = [""]

    def call(command: list[str], log: Path, limit: float) -> int | None:
        work = Path(command[4])
        exec(code[0], {"work": work, "json": json})
        return 0 if (work / "result.json").exists() else None

    monkeypatch.setattr(compare, "call", call)
    monkeypatch.setattr(compare, "interpreter", lambda peer: sys.executable)
    return code


def run(peer: str, work: Path, times: int = 1) -> dict[str, Any]:
    row = Row(peer, peer)
    found: dict[str, Any] = {"runs": True, "each": {n: [] for n in compare.TIMED}}
    for _ in range(times):
        compare._run(row, "bert", work, found)
    return found


def test_time_of_ours_that_is_up_is_no_result(
    worker: list[str], tmp_path: Path
) -> None:
    assert run("script", tmp_path)["message"] == f"no result after {LIMIT:.0f} s"
    with pytest.raises(RuntimeError, match="fgcompile on bert: no result after 900 s"):
        run("fgcompile", tmp_path)


def test_medians_of_runs_count(worker: list[str], tmp_path: Path) -> None:
    worker[0] = """
turn = work / "turn"
turn.write_text(turn.read_text() + "x" if turn.exists() else "x")
seconds = [9.0, 1.0, 2.0][len(turn.read_text()) - 1]
told = dict(seconds=seconds, process_seconds=1.0, megabytes=5.0, note="so so")
(work / "result.json").write_text(json.dumps(told))
"""
    found = run("script", tmp_path, times=3)
    assert found["seconds"] == 2.0
    assert found["each"]["seconds"] == [9.0, 1.0, 2.0]
    assert found["note"] == "so so"
