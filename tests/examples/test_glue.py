"""The GLUE helper of the examples reads every row and scores as GLUE does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
from examples import glue


def write_tsv(path: Path, *lines: str) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_single_quote_marks_do_not_glue_rows(tmp_path: Path) -> None:
    rows = ("sentence1\tsentence2\tlabel", 'He said "no.\tHe agreed.\t0', 'A"\tA"\t1')
    for split in ("train", "dev"):
        write_tsv(tmp_path / f"{split}.tsv", *rows)
    train, dev = glue.load("mrpc", tmp_path)
    assert train == dev
    assert train.texts == [('He said "no.', "He agreed."), ('A"', 'A"')]
    assert train.labels == [0, 1]


def test_rows_are_found_in_a_folder_named_as_the_task(tmp_path: Path) -> None:
    (tmp_path / "stsb").mkdir()
    for split in ("train", "dev"):
        write_tsv(
            tmp_path / "stsb" / f"{split}.tsv", "sentence1\tlabel", "a\t5", "b\t2.5"
        )
    train, _ = glue.load("stsb", tmp_path)
    assert train.labels == [5.0, 2.5]
    assert train.first(1).texts == [("a",)]


@pytest.mark.parametrize(
    ("task", "sizes"),
    [
        ("cola", (8551, 1043)),
        ("mrpc", (3668, 408)),
        ("rte", (2490, 277)),
        ("sst2", (67349, 872)),
        ("stsb", (5749, 1500)),
    ],
)
def test_no_row_of_glue_is_lost(
    shared_data: Path, task: str, sizes: tuple[int, int]
) -> None:
    train, dev = glue.load(task, shared_data / "data")
    assert (len(train), len(dev)) == sizes
    assert {len(texts) for texts in dev.texts} == {len(glue.TASKS[task].columns)}


def test_scores_are_glues_measures() -> None:
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
    labels = np.array([0, 1, 0, 0])
    assert glue.score("mrpc", logits, labels) == pytest.approx(
        {"accuracy": 0.75, "f1": 2 / 3}
    )
    assert glue.score("cola", logits, labels) == pytest.approx(
        {"matthews": (1 * 2 - 1 * 0) / (2 * 1 * 3 * 2) ** 0.5}
    )


def test_regression_is_scored_by_value_and_by_rank() -> None:
    logits = np.array([[0.0], [1.0], [5.0]])
    labels = np.array([0.0, 4.0, 5.0])
    # Distances from the means: -2, -1, 3 and -3, 1, 2.
    assert glue.score("stsb", logits, labels) == pytest.approx(
        {"pearson": (6 - 1 + 6) / 14, "spearman": 1.0}
    )
    ranks = glue.score("stsb", logits, np.array([4.0, 0.0, 5.0]))
    assert ranks["spearman"] == pytest.approx(0.5)


def test_missing_rows_name_both_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(SystemExit, match=r"pip install datasets.*--data-dir"):
        glue.load("mrpc", None)
