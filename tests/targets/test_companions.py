"""Folders hold what loaders expect beside the model's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fgcompile import GateConfig, gates, insert_gates, lower
from fgcompile.cli import main
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


@pytest.fixture
def sentence_folder(tmp_path: Path) -> Path:
    """A tiny encoder as sentence-embedding models are saved."""
    folder = tmp_path / "dense"
    entry("bert").build().save_pretrained(folder)  # type: ignore[operator]
    (folder / "tokenizer.json").write_text("{}")
    listing = [{"path": path} for path in ("", "1_Pooling", "2_Dense", "../outside")]
    (folder / "modules.json").write_text(json.dumps(listing))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 8}')
    for path in ("1_Pooling", "2_Dense", "../outside"):
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps({"of": path}))
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize("streamed", [False, True])
def test_module_folders_keep_tokenizer_and_pooling(
    sentence_folder: Path, tmp_path: Path, streamed: bool
) -> None:
    out = tmp_path / "small" / "model"
    if streamed:
        call = ["lower", str(sentence_folder), "--target", "module", "--out", str(out)]
        assert main(call) == 0
    else:
        from transformers import AutoModel

        lower(AutoModel.from_pretrained(sentence_folder), "module", out)
    assert names(out) == names(sentence_folder) | {"fgcompile.json"}
    for file in ("1_Pooling/config.json", "2_Dense/model.safetensors"):
        assert (out / file).read_bytes() == (sentence_folder / file).read_bytes()
    assert names(tmp_path / "small") == {"model"}


@pytest.mark.slow
def test_lowered_module_embeds_sentences_with_its_own_pooling(
    minilm: Any, tmp_path: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    insert_gates(minilm, config=GateConfig(kinds=("mlp",)))
    for gate in gates(minilm).values():
        gate.close(range(0, gate.size, 2))
    out = lower(minilm, "module", uniform=True).save(tmp_path / "small")
    assert names(out) >= {"config.json", "fgcompile.json"} | TOKENIZER | POOLING
    got = sentence_transformers.SentenceTransformer(str(out), device="cpu")
    found = got.encode(["a cat", "two dogs"], normalize_embeddings=True)
    tokens = got.tokenize(["a cat", "two dogs"])
    hidden = minilm.eval()(tokens["input_ids"], tokens["attention_mask"])[0]
    mask = tokens["attention_mask"][..., None]
    mean = nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    torch.testing.assert_close(torch.tensor(found), mean, rtol=0, atol=1e-5)


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
