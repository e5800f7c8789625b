"""The models that peers are tried on, with the same half of units zero for all.

This runs in the environments of peers, so it needs torch and transformers alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    ViTConfig,
    ViTModel,
)

CUT = 0.5
"""Part of the heads and of the feed-forward channels of every layer that is zero."""


@dataclass(frozen=True)
class Names:
    """Where the matrices of a layer are; `q`, `k` and `v` are one name if fused.

    `attention` is the module that knows the number of heads.
    """

    layers: str
    attention: str
    q: str
    k: str
    v: str
    o: str
    up: tuple[str, ...]
    down: str


NAMES = {
    "bert": Names(
        "encoder.layer",
        "attention.self",
        *("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.output.dense",
        ("intermediate.dense",),
        "output.dense",
    ),
    "gpt2": Names(
        "h",
        "attn",
        *("attn.c_attn",) * 3,
        "attn.c_proj",
        ("mlp.c_fc",),
        "mlp.c_proj",
    ),
    "llama": Names(
        "layers",
        "self_attn",
        *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attn.o_proj",
        ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down_proj",
    ),
    "vit": Names(
        "layers",
        "attention",
        *("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        "attention.o_proj",
        ("mlp.fc1",),
        "mlp.fc2",
    ),
}
"""Llama has 12 query heads that share 4 heads of keys and values."""


def build(name: str, small: bool) -> Any:
    """A base-sized model with random weights, biases and norms; or a tiny one."""
    torch.manual_seed(0)
    layers, width, heads, inner = (2, 64, 4, 128) if small else (12, 768, 12, 3072)
    words = 100 if small else 30522
    shape: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
    }
    if name == "bert":
        model: Any = BertModel(
            BertConfig(**shape, vocab_size=words), add_pooling_layer=False
        )
    elif name == "vit":
        image: dict[str, Any] = {"image_size": 32, "patch_size": 16} if small else {}
        model = ViTModel(ViTConfig(**shape, **image), add_pooling_layer=False)
    elif name == "gpt2":
        sizes: dict[str, Any] = {"n_embd": width, "n_layer": layers, "n_head": heads}
        sizes |= {"n_inner": inner, "bos_token_id": None, "eos_token_id": None}
        model = GPT2Model(GPT2Config(**sizes, vocab_size=words))
    else:
        kv: dict[str, Any] = {"num_key_value_heads": heads // (2 if small else 3)}
        model = LlamaModel(LlamaConfig(**shape, **kv, vocab_size=words))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.2)
    model.config.use_cache = False
    return model.eval()


def inputs_of(model: Any, batch: int, length: int) -> dict[str, Tensor]:
    """Random pictures, or tokens with a mask."""
    generator = torch.Generator().manual_seed(batch * length)
    if model.main_input_name == "pixel_values":
        size = model.config.image_size
        shape = (batch, 3, size, size)
        return {"pixel_values": torch.randn(shape, generator=generator)}
    tokens = torch.randint(5, 100, (batch, length), generator=generator)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def layers_of(model: nn.Module, names: Names) -> Iterator[nn.Module]:
    """The layers, each with the matrices of `names`."""
    yield from model.get_submodule(names.layers)  # type: ignore[misc]


def heads_of(model: Any) -> tuple[int, int, int]:
    """Heads of queries, heads of keys and values, and dims of a head [count]."""
    heads = model.config.num_attention_heads
    kv = getattr(model.config, "num_key_value_heads", None) or heads
    return heads, kv, model.config.hidden_size // heads


@torch.no_grad()
def zero_half(model: Any, name: str) -> dict[str, list[list[int]]]:
    """Zeros half of the heads (groups that share keys) and channels of every layer.

    All that belongs to a unit is zero: rows, their biases, and columns.

    Returns:
        The units that are left: `channels`, and `heads` of keys, by layer.
    """
    names = NAMES[name]
    heads, kv, size = heads_of(model)
    generator = torch.Generator().manual_seed(1)
    kept: dict[str, list[list[int]]] = {"heads": [], "channels": []}
    for layer in layers_of(model, names):
        inner = _matrix(layer.get_submodule(names.down)).shape[1]
        gone = torch.randperm(inner, generator=generator)[: round(CUT * inner)]
        for up in names.up:
            _zero_rows(layer.get_submodule(up), gone)
        _matrix(layer.get_submodule(names.down))[:, gone] = 0
        dead = torch.randperm(kv, generator=generator)[: round(CUT * kv)]
        queries = spread(dead, size * (heads // kv))
        keys = spread(dead, size)
        width = heads * size if names.q == names.k else 0
        for k, (part, rows) in enumerate(((names.q, queries), (names.k, keys))):
            _zero_rows(layer.get_submodule(part), rows + k * width)
        _zero_rows(layer.get_submodule(names.v), keys + 2 * width)
        _matrix(layer.get_submodule(names.o))[:, queries] = 0
        kept["heads"].append(_rest(dead, kv))
        kept["channels"].append(_rest(gone, inner))
    return kept


def spread(units: Tensor, size: int) -> Tensor:
    """The dims of `units` that have `size` each."""
    return (units[:, None] * size + torch.arange(size)).flatten()


def _rest(gone: Tensor, size: int) -> list[int]:
    keep = torch.ones(size, dtype=torch.bool)
    keep[gone] = False
    return keep.nonzero().flatten().tolist()


def _matrix(module: Any) -> Tensor:
    """The weight as `[out in]`, to write into."""
    return module.weight.T if type(module).__name__ == "Conv1D" else module.weight


def _zero_rows(module: Any, rows: Tensor) -> None:
    _matrix(module)[rows] = 0
    if module.bias is not None:
        module.bias[rows] = 0


def load(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model that was prepared in `folder`, and the facts about it."""
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    model = build(facts["model"], facts["small"])
    kept = zero_half(model, facts["model"])
    assert kept == facts["kept"]
    return model, facts


def export(model: Any, file: Path) -> None:
    """Writes `model` as users do, with free batch and length."""
    inputs = inputs_of(model, 2, 16)
    free = {0: torch.export.Dim.DYNAMIC}
    text = free | {1: torch.export.Dim.DYNAMIC}
    shapes = {name: text if v.dim() == 2 else free for name, v in inputs.items()}
    torch.onnx.export(
        model,
        (),
        str(file),
        kwargs=inputs,
        dynamic_shapes=shapes,
        output_names=["last_hidden_state"],
        external_data=False,
        verbose=False,
        dynamo=True,
    )
