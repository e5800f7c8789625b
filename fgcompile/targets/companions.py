"""What loaders expect beside a model's file: configuration, tokenizer, pooling."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fgcompile.capture.inputs import is_transformers_model
from fgcompile.capture.state import silence

_NAMES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_SENTENCE_MODULES = "modules.json"
_SENTENCE_NAMES = (
    _SENTENCE_MODULES,
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)


def write_companions(model: nn.Module, folder: Path) -> None:
    """Writes what `model` was loaded with beside its weights, as far as it is here.

    The configuration of the transformers model that `model` is or holds; its tokenizer
    and image processor if they lie in the folder, or in the download cache, that it was
    loaded from. The pooling of a sentence-embedding model too, unless a module around
    the encoder does what comes after it. Nothing is fetched.
    """
    encoder: Any = next(filter(is_transformers_model, model.modules()), None)
    if encoder is None:
        return
    config = encoder.config
    with silence():
        config.save_pretrained(folder)
        generation = getattr(encoder, "generation_config", None)
        if generation is not None:
            generation.save_pretrained(folder)
        origin = getattr(config, "_name_or_path", "")
        names = _NAMES + _SENTENCE_NAMES if encoder is model else _NAMES
        for name, source in _files_of(origin, names):
            target = folder / name
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)


def _files_of(origin: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and place of those files that the checkpoint `origin` has."""
    if not origin:
        return
    for name in names:
        found = _locate(origin, name)
        if found is None:
            continue
        yield name, found
        if name == _SENTENCE_MODULES:
            yield from _settings_of_modules(origin, Path(found))


def _settings_of_modules(origin: str, listing: Path) -> Iterator[tuple[str, str]]:
    """`1_Pooling/config.json` and the like, as `modules.json` lists them."""
    for module in json.loads(listing.read_text(encoding="utf-8")):
        name = f"{module['path']}/config.json"
        found = _locate(origin, name) if module["path"] else None
        if found is not None:
            yield name, found


def _locate(origin: str, name: str) -> Any:
    from transformers.utils import cached_file

    return cached_file(
        origin,
        name,
        local_files_only=True,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
