"""A folder with a random BERT and its tokenizer, for scripts that load one."""

from __future__ import annotations

from pathlib import Path

import pytest

WORDS = ("red", "green", "blue", "one", "two", "three", "is", "not")


def write_bert(folder: Path, **changes: int) -> Path:
    """Saves a BERT (2 layers, 32 wide, but for `changes`) and a tokenizer of `WORDS`.

    Returns:
        The folder.
    """
    transformers = pytest.importorskip("transformers")
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = {word: i for i, word in enumerate(special + WORDS)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    config = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    }
    transformers.BertModel(transformers.BertConfig(**config | changes)).save_pretrained(
        folder
    )
    return folder
