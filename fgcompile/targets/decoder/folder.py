"""`genai_config.json`: how onnxruntime-genai runs a decoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fgcompile.targets.companions import write_companions
from fgcompile.targets.decoder.cached import CacheLayer, token_names

_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_DEFAULT_CONTEXT = 2048

GENERIC = "decoder"
"""The type under which onnxruntime-genai runs any decoder by its inputs' names."""


def write_decoder_companions(
    model: nn.Module, layers: Sequence[CacheLayer], file: Path
) -> None:
    """Writes what loaders expect beside the ONNX file `file` of a decoder.

    Configuration, tokenizer if it is here, and `genai_config.json`. Where all layers
    cache alike, the configuration says how, as loaders make empty caches from it.
    """
    write_companions(model, file.parent)
    _correct_heads(file.with_name("config.json"), layers)
    write_genai_config(model, layers, file)


def write_genai_config(
    model: nn.Module, layers: Sequence[CacheLayer], file: Path
) -> None:
    """Writes `genai_config.json` beside the ONNX file `file`.

    The runtime takes heads and head sizes of every layer from the ONNX file; those in
    the configuration are of the first layer.
    """
    document = {"model": _model(model, layers, file.name), "search": _search(model)}
    target = file.with_name("genai_config.json")
    target.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _correct_heads(file: Path, layers: Sequence[CacheLayer]) -> None:
    if len({(layer.heads, layer.key_size) for layer in layers}) > 1:
        return
    config = json.loads(file.read_text(encoding="utf-8"))
    sizes = {"num_key_value_heads": layers[0].heads, "head_dim": layers[0].key_size}
    config.update({name: size for name, size in sizes.items() if name in config})
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _model(
    model: nn.Module, layers: Sequence[CacheLayer], file_name: str
) -> dict[str, Any]:
    config: Any = model.config
    special = {
        name: value
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        if (value := _special(model, name)) is not None
    }
    if "eos_token_id" in special:
        eos = special["eos_token_id"]
        special.setdefault("pad_token_id", eos[0] if isinstance(eos, list) else eos)
    return {
        "type": GENERIC,
        "vocab_size": config.vocab_size,
        "context_length": _context_length(model),
        **special,
        "decoder": {
            "filename": file_name,
            "num_hidden_layers": len(layers),
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": layers[0].heads,
            "head_size": layers[0].key_size,
            "hidden_size": config.hidden_size,
            "inputs": {
                **{name: name for name in token_names(model)},
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    }


def _search(model: nn.Module) -> dict[str, Any]:
    return {
        "do_sample": False,
        "max_length": _context_length(model),
        "num_beams": 1,
        "past_present_share_buffer": False,
    }


def _special(model: nn.Module, name: str) -> Any:
    for owner in (getattr(model, "generation_config", None), model.config):
        value = getattr(owner, name, None)
        if value is not None:
            return value
    return None


def _context_length(model: nn.Module) -> int:
    found = (getattr(model.config, name, None) for name in _CONTEXT)
    return next((size for size in found if isinstance(size, int)), _DEFAULT_CONTEXT)
