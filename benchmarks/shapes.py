"""Models with random weights, in shapes that people use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTModel,
)

_LLAMA_1B: dict[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
_SMALL: dict[str, Any] = {
    "hidden_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
}
_TINY_LLAMA = _TINY | {"num_key_value_heads": 2, "head_dim": 16}


def bert(**shape: Any) -> nn.Module:
    """An encoder of BERT's; BERT-base, but for `shape`."""
    return BertModel(BertConfig(**shape), add_pooling_layer=False).eval()


def vit(**shape: Any) -> nn.Module:
    """A vision encoder; ViT-B/16, but for `shape`."""
    return ViTModel(ViTConfig(**shape), add_pooling_layer=False).eval()


def llama(**shape: Any) -> nn.Module:
    """A decoder with its head; Llama-3.2-1B, but for `shape`."""
    return LlamaForCausalLM(LlamaConfig(**_LLAMA_1B | shape)).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "minilm": lambda: bert(
        hidden_size=384, num_hidden_layers=6, intermediate_size=1536
    ),
    "bert-base": bert,
    "bert-large": lambda: bert(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    ),
    "vit-base": vit,
    "llama-1b": llama,
    "small-bert": lambda: bert(**_SMALL, vocab_size=100),
    "small-llama": lambda: llama(**_SMALL, num_key_value_heads=4, vocab_size=100),
    "tiny-bert": lambda: bert(**_TINY, vocab_size=100),
    "tiny-llama": lambda: llama(**_TINY_LLAMA, vocab_size=100),
}


def build(name: str) -> nn.Module:
    """The model called `name`, in eval mode; the same weights every time."""
    torch.manual_seed(0)
    return MODELS[name]()
