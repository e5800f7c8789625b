"""The encoder, and GLUE's rows as batches of tokens of equal length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from examples import glue
from examples.embeddings import minilm_folder

MAX_LENGTH = 128
BUCKET = 32
"""Batches that are sorted by length together."""


@dataclass(frozen=True)
class TaskSetting:
    """How long a task is trained.

    Attributes:
        epochs: Passes over the rows in full fine-tuning.
        batch: Rows a step.
        max_rows: Training rows at most.
    """

    epochs: int
    batch: int
    max_rows: int | None = None


SETTINGS = {
    "mrpc": TaskSetting(epochs=5, batch=16),
    "cola": TaskSetting(epochs=3, batch=32),
    "stsb": TaskSetting(epochs=3, batch=16),
    "rte": TaskSetting(epochs=5, batch=16),
    "sst2": TaskSetting(epochs=3, batch=32, max_rows=12_000),
}
"""As transformers' examples for GLUE: three passes, five over the smallest tasks."""


class TaskData:
    """Rows of one task as tokens, and what scores the answers."""

    def __init__(
        self, task: str, data_dir: Path, encoder: str, max_rows: int | None = None
    ) -> None:
        """Reads `task` from `data_dir`, with the tokenizer of `encoder`.

        Args:
            task: A key of SETTINGS.
            data_dir: As for `examples.glue.load`.
            encoder: Folder of a model with its tokenizer.
            max_rows: Rows of each split, at most; for trying out.
        """
        self.task, self.encoder = task, encoder
        self.batch = SETTINGS[task].batch
        self.labels = glue.TASKS[task].labels
        train, dev = glue.load(task, data_dir)
        train = train.first(SETTINGS[task].max_rows)
        self._tokenizer = AutoTokenizer.from_pretrained(
            encoder, model_max_length=MAX_LENGTH
        )
        self.train = self._tokens(train.first(max_rows))
        self.dev = self._tokens(dev.first(max_rows))

    def model(self) -> Any:
        """The encoder with a new classifier."""
        return AutoModelForSequenceClassification.from_pretrained(
            self.encoder, num_labels=self.labels
        )

    @cached_property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass."""
        return -(-len(self.train["labels"]) // self.batch)

    def batches(self, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
        """One pass over the training rows in random order.

        Batches hold rows of about the same length: rows are shuffled, sorted within
        buckets of 32 batches, and the batches are shuffled again.
        """
        count = len(self.train["labels"])
        order = torch.randperm(count, generator=generator)
        lengths = torch.tensor([len(row) for row in self.train["input_ids"]])
        batches = [
            part
            for bucket in order.split(BUCKET * self.batch)
            for part in bucket[lengths[bucket].argsort(stable=True)].split(self.batch)
        ]
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield self._collate(self.train, batches[index].tolist())

    def score(self, run: Any) -> dict[str, float]:
        """GLUE's measures of a callable that gives `logits`, on the dev rows."""
        order = sorted(
            range(len(self.dev["labels"])), key=lambda i: len(self.dev["input_ids"][i])
        )
        outputs = np.zeros((len(order), self.labels), np.float32)
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            inputs = self._collate(self.dev, rows)
            del inputs["labels"]
            with torch.no_grad():
                outputs[rows] = run(**inputs)["logits"].numpy()
        return glue.score(self.task, outputs, np.array(self.dev["labels"]))

    def _tokens(self, rows: glue.Rows) -> dict[str, Any]:
        columns = [list(column) for column in zip(*rows.texts, strict=True)]
        encoded = dict(self._tokenizer(*columns, truncation=True))
        return encoded | {"labels": list(rows.labels)}

    def _collate(self, split: dict[str, Any], rows: list[int]) -> dict[str, Tensor]:
        labels = [split["labels"][row] for row in rows]
        padded = self._tokenizer.pad(
            {
                name: [values[row] for row in rows]
                for name, values in split.items()
                if name != "labels"
            },
            return_tensors="pt",
        )
        return {**padded, "labels": torch.tensor(labels)}


def bundled_encoder() -> str:
    """Folder of all-MiniLM-L6-v2 inside its package."""
    return str(minilm_folder())
