"""A script such as users write: it slices the matrices of the models that it knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.models import NAMES, export, heads_of, layers_of, load, spread


def prepare(folder: Path) -> Any:
    """The model, and which units are left."""
    return load(folder)


def prune(prepared: Any, folder: Path) -> str:
    """Slices every layer, corrects the attributes of its attention, and exports."""
    model, facts = prepared
    names, kept = NAMES[facts["model"]], facts["kept"]
    heads, kv, size = heads_of(model)
    for k, layer in enumerate(layers_of(model, names)):
        channels = torch.tensor(kept["channels"][k])
        groups = torch.tensor(kept["heads"][k])
        queries, keys = spread(groups, size * (heads // kv)), spread(groups, size)
        for up in names.up:
            _slice(layer.get_submodule(up), rows=channels)
        _slice(layer.get_submodule(names.down), columns=channels)
        if names.q == names.k:
            width = heads * size
            rows = torch.cat([queries, keys + width, keys + 2 * width])
            _slice(layer.get_submodule(names.q), rows=rows)
        else:
            _slice(layer.get_submodule(names.q), rows=queries)
            _slice(layer.get_submodule(names.k), rows=keys)
            _slice(layer.get_submodule(names.v), rows=keys)
        _slice(layer.get_submodule(names.o), columns=queries)
        set_heads(layer.get_submodule(names.attention), len(groups) * (heads // kv))
    export(model, folder / "model.onnx")
    return ""


def set_heads(attention: Any, heads: int) -> None:
    """The attributes that the code of these models reads."""
    if hasattr(attention, "all_head_size"):  # BERT
        attention.num_attention_heads = heads
        attention.all_head_size = heads * attention.attention_head_size
    elif hasattr(attention, "split_size"):  # GPT-2
        attention.num_heads = heads
        attention.split_size = heads * attention.head_dim
    elif hasattr(attention, "num_attention_heads"):  # ViT
        attention.num_attention_heads = heads
    # Llama's code works with the sizes that it finds.


@torch.no_grad()
def _slice(
    module: Any, rows: Tensor | None = None, columns: Tensor | None = None
) -> None:
    turned = type(module).__name__ == "Conv1D"
    weight = module.weight.T if turned else module.weight
    weight = weight if rows is None else weight[rows]
    weight = weight if columns is None else weight[:, columns]
    module.weight = nn.Parameter((weight.T if turned else weight).contiguous())
    if rows is not None and module.bias is not None:
        module.bias = nn.Parameter(module.bias[rows])
    if turned:
        module.nf = weight.shape[0]
    else:
        module.out_features, module.in_features = weight.shape
