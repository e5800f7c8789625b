"""The embedding example writes folders that hold all that onnxruntime needs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_bert import WORDS, write_bert

for package in ("sentence_transformers", "onnxruntime", "transformers"):
    pytest.importorskip(package)


@pytest.mark.slow
def test_neighbours_are_those_of_the_dense_model(
    minilm_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from examples import embeddings

    monkeypatch.chdir(tmp_path)
    embeddings.main()
    pairs = [row ^ 1 for row in range(len(embeddings.TEXTS))]
    for folder in (embeddings.OUT, embeddings.OUT / "int8"):
        vectors = embeddings.embed(folder, embeddings.TEXTS)
        assert embeddings.nearest(vectors) == pairs
        names = {file.name for file in folder.iterdir()}
        assert names >= {"model.onnx", "config.json", "tokenizer.json", "vocab.txt"}
        assert "modules.json" not in names  # the pooling is a part of the graph


def test_every_step_runs_on_a_small_model(tmp_path: Path, monkeypatch: Any) -> None:
    import onnx

    from examples import embeddings

    folder = write_bert(tmp_path / "bert", num_hidden_layers=1)
    texts = [f"{one} {other}" for one, other in pairwise(WORDS)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embeddings, "minilm_folder", lambda: folder)
    monkeypatch.setattr(embeddings, "TEXTS", texts)
    embeddings.main()
    exact, small = (
        embeddings.embed(embeddings.OUT / name, texts) for name in ("", "int8")
    )
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(small, axis=1)
    assert ((exact * small).sum(axis=1) / lengths).min() > 0.98
    tensors = onnx.load(embeddings.OUT / "model.onnx").graph.initializer
    channels = {size for tensor in tensors for size in tensor.dims}
    assert 48 in channels, "a quarter of 64 channels is gone"
    assert 64 not in channels
