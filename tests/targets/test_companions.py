"""Folders hold what loaders expect beside the model's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from fgcompile.targets.companions import write_companions
from fgcompile.targets.files import staged
from fgcompile.zoo.models import entry

pytest.importorskip("transformers")

POOLING = {
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    "1_Pooling",
}
TOKENIZER = {"vocab.txt", "tokenizer.json", "tokenizer_config.json"}


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_encoder_keeps_its_tokenizer_and_pooling(minilm: Any, tmp_path: Path) -> None:
    write_companions(minilm, tmp_path)
    assert names(tmp_path) >= {"config.json"} | TOKENIZER | POOLING
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"]


def test_files_in_subfolders_are_replaced_as_well(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with staged(tmp_path / "out") as folder:
            (folder / "1_Pooling").mkdir()
            (folder / "1_Pooling" / "config.json").write_text(text)
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == "new"
    assert names(tmp_path / "out") == {"1_Pooling"}


def test_module_around_an_encoder_does_its_own_pooling(
    minilm: Any, tmp_path: Path
) -> None:
    write_companions(nn.Sequential(minilm), tmp_path)
    assert names(tmp_path) >= {"config.json"} | TOKENIZER
    assert not names(tmp_path) & POOLING


def test_model_from_nowhere_has_a_configuration_only(tmp_path: Path) -> None:
    write_companions(entry("bert").build(), tmp_path)
    assert names(tmp_path) == {"config.json"}


def test_plain_modules_have_none(tmp_path: Path) -> None:
    write_companions(nn.Linear(2, 2), tmp_path)
    assert names(tmp_path) == set()
