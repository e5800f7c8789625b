"""The text example runs from rows to a served folder, on a tiny model of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_bert import WORDS, write_bert

SCRIPT = Path(__file__).parents[2] / "examples" / "text_classification.py"


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random BERT (2 layers, 32 wide) and a tokenizer of eight words."""
    pytest.importorskip("sklearn")
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with 32 rows; "not" decides the label."""
    folder = tmp_path_factory.mktemp("rows")
    lines = ["sentence1\tlabel"]
    for i in range(32):
        first, second = WORDS[i % 3], WORDS[3 + i % 3]
        lines.append(f"{first} is {'not ' * (i % 2)}{second}\t{i % 2}")
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def run(*arguments: object) -> str:
    """Standard output of the script; the test fails with its errors if it does."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def test_gated_run_ends_with_a_smaller_model_that_serves(
    tiny_bert: Path, rows: Path, tmp_path: Path
) -> None:
    printed = run(
        *("cola", "--model", tiny_bert, "--data-dir", rows, "--out", tmp_path),
        *("--params", 0.5, "--epochs", 3, "--batch-size", 4),
    )
    result = result_of(tmp_path)
    assert result["parameters"]["after"] < 0.75 * result["parameters"]["before"]
    assert result["dev_onnxruntime"] == pytest.approx(result["dev"])
    assert printed.count("right is") == 2
    for name in ("model.onnx", "config.json", "tokenizer.json", "report.md"):
        assert (tmp_path / name).is_file()


@pytest.mark.slow
def test_dense_run_keeps_every_parameter(
    tiny_bert: Path, rows: Path, tmp_path: Path
) -> None:
    run(
        *("cola", "--model", tiny_bert, "--data-dir", rows, "--out", tmp_path),
        *("--no-gates", "--epochs", 1, "--max-rows", 8),
    )
    result = result_of(tmp_path)
    assert result["parameters"]["after"] == result["parameters"]["before"]
    assert result["dev_onnxruntime"] == pytest.approx(result["dev"])


def test_help_names_every_task() -> None:
    pytest.importorskip("sklearn")
    printed = run("--help")
    assert "mrpc" in printed
    assert "--no-gates" in printed


def test_unknown_task_is_refused_by_name() -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(AssertionError, match="'mrcp' is not one of"):
        run("mrcp")
