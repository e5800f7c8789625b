"""What int8 costs and saves: all-MiniLM-L6-v2 on SST-2, dense and pruned.

    python -m benchmarks.int8 SST2_FOLDER [--train 4000] [--cut 0.25]

The encoder is not trained: a logistic regression on the embeddings that the dense
float32 file makes of the training sentences is applied to what each file makes of the
development set. Pruned are the hidden channels whose weights are the smallest. Times
are of one sentence of 128 tokens on one thread, in turns, and medians.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from transformers import AutoTokenizer

import fgcompile
from examples import embeddings, glue
from fgcompile.targets.onnx import OnnxModel
from fgcompile.targets.timing import median_times

ROWS = ("dense float32", "dense int8", "pruned float32", "pruned int8")
BATCH = 16
SECONDS = 30.0


def write_files(folder: Path, cut: float, out: Path) -> list[OnnxModel]:
    """The four files, in the order of `ROWS`, each on one thread."""
    model = embeddings.Embedder(folder).eval()
    ids = torch.full((2, 16), 1000)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    fgcompile.insert_gates(model, inputs, fgcompile.GateConfig(kinds=("mlp",)))
    made: list[OnnxModel] = []
    for share in (0.0, cut):
        embeddings.close_weakest(model, share)
        for quantization in (None, "int8"):
            lowered = fgcompile.lower(
                model, "onnx", verify=False, quantization=quantization
            )
            file = lowered.save(out / f"{len(made)}.onnx")
            made.append(OnnxModel(file, lowered.program, threads=1))
    return made


def embed(run: OnnxModel, tokenizer: Any, texts: list[str]) -> np.ndarray[Any, Any]:
    """Embeddings of texts, `[n 384]`."""
    order = np.argsort([len(text) for text in texts])
    found = np.zeros((len(texts), 384), np.float32)
    for start in track(range(0, len(texts), BATCH), "embed", transient=True):
        rows = order[start : start + BATCH]
        batch = tokenizer(
            [texts[row] for row in rows],
            padding=True,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        found[rows] = run(**batch)["embedding"].numpy()
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sst2", type=Path)
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--cut", type=float, default=0.25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = embeddings.minilm_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    train, dev = glue.load("sst2", options.sst2)
    out = Path(tempfile.mkdtemp(prefix="int8-"))
    made = write_files(folder, options.cut, out)
    train = train.first(options.train)
    probe = LogisticRegression(max_iter=1000)
    probe.fit(embed(made[0], tokenizer, texts_of(train)), np.array(train.labels))
    scores = [
        probe.score(embed(run, tokenizer, texts_of(dev)), np.array(dev.labels))
        for run in made
    ]
    tokens: dict[str, Tensor] = {
        "input_ids": torch.randint(1000, 2000, (1, 128)),
        "attention_mask": torch.ones(1, 128, dtype=torch.long),
    }
    calls = [functools.partial(run, **tokens) for run in made]
    times = median_times(calls, SECONDS)
    table = Table("", "accuracy", "size", "time", title="MiniLM on SST-2 dev")
    for row, (name, score, seconds) in enumerate(zip(ROWS, scores, times, strict=True)):
        size = (out / f"{row}.onnx").stat().st_size / 1e6
        ratio = seconds / times[0]
        table.add_row(
            *(name, f"{score:.1%}", f"{size:.1f} MB"),
            f"{1000 * seconds:.1f} ms, {ratio:.2f} x",
        )
    shutil.rmtree(out)
    Console().print(table)


def texts_of(rows: Any) -> list[str]:
    """The sentences of a task with one column."""
    return [text for (text,) in rows.texts]


if __name__ == "__main__":
    main()
