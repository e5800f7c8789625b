"""What loaders expect beside a model's file: configuration, tokenizer, pooling."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
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
_MODULE_FILES = ("config.json", "model.safetensors")
_SENTENCE_NAMES = (
    _SENTENCE_MODULES,
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)


def write_companions(model: nn.Module, folder: Path) -> None:
    """Writes what `model` was loaded with beside its weights, as far as it is here.

    The configuration of the transformers model that `model` is or holds, and what
    `copy_companions` copies.
    """
    encoder = _encoder(model)
    if encoder is not None:
        with silence():
            encoder.config.save_pretrained(folder)
            generation = getattr(encoder, "generation_config", None)
            if generation is not None:
                generation.save_pretrained(folder)
    copy_companions(model, folder)


def copy_companions(model: nn.Module, folder: Path) -> None:
    """Copies what `model` was loaded with beside its weights and configuration.

    Its tokenizer and image processor if they lie in the folder, or in the download
    cache, that it was loaded from. The pooling of a sentence-embedding model too,
    unless a module around the encoder does what comes after it. Nothing is fetched.
    """
    encoder = _encoder(model)
    if encoder is None:
        return
    origin = getattr(encoder.config, "_name_or_path", "")
    names = _NAMES + _SENTENCE_NAMES if encoder is model else _NAMES
    with silence():
        _copy(_files_of(origin, names), folder)


def copy_sentence_modules(source: Path, folder: Path) -> None:
    """Copies the subfolders that the `modules.json` in `source` lists."""
    listing = source / _SENTENCE_MODULES
    if listing.is_file():
        _copy(_settings_of_modules(str(source), listing), folder)


def _copy(files: Iterable[tuple[str, str]], folder: Path) -> None:
    for name, source in files:
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)


def _encoder(model: nn.Module) -> Any:
    return next(filter(is_transformers_model, model.modules()), None)


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
    try:
        paths = [m["path"] for m in json.loads(listing.read_text(encoding="utf-8"))]
    except (ValueError, RecursionError, KeyError, TypeError):
        return  # a damaged list lists nothing
    for path in paths:
        # A list of others may name any place; only folders beside it are read.
        if isinstance(path, str) and path not in ("", "..") and Path(path).name == path:
            for name in (f"{path}/{file}" for file in _MODULE_FILES):
                found = _locate(origin, name)
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
