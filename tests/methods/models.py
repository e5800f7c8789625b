"""Small language models that differ in how their heads share keys and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.gates.models import bert


def llama(kv: int = 2, **changes: Any) -> Any:
    """Rotary, grouped-query attention: 4 query heads of 8 over `kv` key/value heads."""
    transformers = pytest.importorskip("transformers")
    options: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": kv,
        "intermediate_size": 48,
        "max_position_embeddings": 32,
        "use_cache": False,
    }
    config = transformers.LlamaConfig(**(options | changes))
    return with_biases(transformers.LlamaForCausalLM(config))


def qwen3() -> Any:
    """Like `llama`, with norms over the dims of queries and keys."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        max_position_embeddings=32,
        use_cache=False,
    )
    return with_biases(transformers.Qwen3ForCausalLM(config))


def gpt2() -> Any:
    """Learned positions, one fused projection, weights stored inputs first."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50,
        n_embd=32,
        n_layer=1,
        n_head=4,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    return with_biases(transformers.GPT2LMHeadModel(config))


def with_biases(model: nn.Module) -> nn.Module:
    """Biases and norms that are not those of a new model, which hide mistakes."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.2 * noise
    return model.eval()


MODELS = {
    "MHA with biases (BERT)": lambda: with_biases(bert(num_hidden_layers=1)),
    "MHA fused, transposed (GPT-2)": gpt2,
    "GQA, RoPE, biases (Llama)": lambda: llama(2, attention_bias=True, mlp_bias=True),
    "GQA, RoPE, q/k norms (Qwen3)": qwen3,
    "MQA, RoPE (Llama)": lambda: llama(1),
}


def ids(seed: int = 0, batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, 50, (batch, 6), generator=generator)
