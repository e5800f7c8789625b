"""The embedding example writes folders that hold all that onnxruntime needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
