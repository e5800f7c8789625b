"""GLUE's single-label tasks: where the rows come from and how answers are scored."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


@dataclass(frozen=True)
class Task:
    """One GLUE task: its text columns, its labels and its measures, main one first."""

    columns: tuple[str, ...]
    labels: int
    metrics: tuple[str, ...] = ("accuracy",)
    dev_split: str = "validation"


TASKS = {
    "cola": Task(("sentence",), 2, ("matthews",)),
    "mnli": Task(("premise", "hypothesis"), 3, dev_split="validation_matched"),
    "mrpc": Task(("sentence1", "sentence2"), 2, ("accuracy", "f1")),
    "qnli": Task(("question", "sentence"), 2),
    "qqp": Task(("question1", "question2"), 2, ("accuracy", "f1")),
    "rte": Task(("sentence1", "sentence2"), 2),
    "sst2": Task(("sentence",), 2),
    "stsb": Task(("sentence1", "sentence2"), 1, ("pearson", "spearman")),
    "wnli": Task(("sentence1", "sentence2"), 2),
}

METRICS = {
    "accuracy": lambda answers, labels: accuracy_score(labels, answers),
    "f1": lambda answers, labels: f1_score(labels, answers),
    "matthews": lambda answers, labels: matthews_corrcoef(labels, answers),
    "pearson": lambda answers, labels: pearsonr(answers, labels).statistic,
    "spearman": lambda answers, labels: spearmanr(answers, labels).statistic,
}


@dataclass(frozen=True)
class Rows:
    """Texts, one tuple of one or two sentences a row, and their labels."""

    texts: Sequence[tuple[str, ...]]
    labels: Sequence[int] | Sequence[float]

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None) -> Rows:
        """The first `count` rows; all of them for None."""
        return Rows(self.texts[:count], self.labels[:count])


def load(name: str, data_dir: Path | None) -> tuple[Rows, Rows]:
    """Training and development rows of task `name`.

    Args:
        name: A key of TASKS.
        data_dir: Folder that holds `train.tsv` and `dev.tsv`, itself or in a folder
            called `name`. None takes the rows from the hub, through `datasets`.
    """
    if data_dir is None:
        return _from_hub(name)
    folder = data_dir if (data_dir / "train.tsv").is_file() else data_dir / name
    kind = float if TASKS[name].labels == 1 else int
    return _read_tsv(folder / "train.tsv", kind), _read_tsv(folder / "dev.tsv", kind)


def score(name: str, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """GLUE's measures of task `name`, as fractions of one.

    Args:
        name: A key of TASKS.
        outputs: Logits [row label].
        labels: Right answers [row]; STS-B: a score.
    """
    task = TASKS[name]
    answers = outputs[:, 0] if task.labels == 1 else outputs.argmax(-1)
    return {metric: float(METRICS[metric](answers, labels)) for metric in task.metrics}


def _read_tsv(path: Path, kind: type) -> Rows:
    # A reader that honours quotes glues rows together: the texts hold single ones.
    with path.open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    texts = [
        tuple(record[c] for c in ("sentence1", "sentence2") if c in record)
        for record in records
    ]
    return Rows(texts, [kind(record["label"]) for record in records])


def _from_hub(name: str) -> tuple[Rows, Rows]:
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"The rows of {name!r} are not here. Run `pip install datasets` to fetch "
            "them from the hub, or point --data-dir at a folder with train.tsv and "
            "dev.tsv (columns sentence1[, sentence2], label; no quoting)."
        ) from error
    splits: Mapping[str, Any] = load_dataset("nyu-mll/glue", name)
    task = TASKS[name]
    train, dev = (
        Rows(list(zip(*(split[c] for c in task.columns), strict=True)), split["label"])
        for split in (splits["train"], splits[task.dev_split])
    )
    return train, dev
