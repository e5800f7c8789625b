"""Prunes trained models by hand, so that every right answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn


def choose(size: int, count: int, seed: int) -> list[int]:
    """`count` of `size` units, sorted; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(size, generator=generator)[:count].tolist())


def entries(units: Sequence[int], size: int) -> list[int]:
    """The indices that units of `size` entries each consist of."""
    return [unit * size + entry for unit in units for entry in range(size)]


def keep(
    layer: nn.Linear,
    rows: Sequence[int] | None = None,
    columns: Sequence[int] | None = None,
) -> None:
    """Keep some outputs or inputs of a linear layer."""
    weight = layer.weight.data
    if rows is not None:
        weight = weight[list(rows)]
        if layer.bias is not None:
            layer.bias.data = layer.bias.data[list(rows)]
    if columns is not None:
        weight = weight[:, list(columns)]
    layer.weight.data = weight.contiguous()
    layer.out_features, layer.in_features = weight.shape


def prune_bert(
    model: Any, heads: Sequence[Sequence[int]], channels: Sequence[Sequence[int]]
) -> None:
    """Keep these heads and MLP channels of each layer."""
    size = model.config.hidden_size // model.config.num_attention_heads
    for layer, kept, width in zip(model.encoder.layer, heads, channels, strict=True):
        attention = layer.attention.self
        for part in (attention.query, attention.key, attention.value):
            keep(part, rows=entries(kept, size))
        keep(layer.attention.output.dense, columns=entries(kept, size))
        attention.num_attention_heads = len(kept)
        attention.all_head_size = len(kept) * size
        keep(layer.intermediate.dense, rows=width)
        keep(layer.output.dense, columns=width)


def prune_llama(
    model: Any, heads: Sequence[Sequence[int]], channels: Sequence[Sequence[int]]
) -> None:
    """Keep these key-value heads, with their query heads, and MLP channels."""
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // config.num_key_value_heads
    for layer, kept, width in zip(model.model.layers, heads, channels, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        queries = entries(entries(kept, group), size)
        keep(attention.q_proj, rows=queries)
        keep(attention.k_proj, rows=entries(kept, size))
        keep(attention.v_proj, rows=entries(kept, size))
        keep(attention.o_proj, columns=queries)
        keep(mlp.gate_proj, rows=width)
        keep(mlp.up_proj, rows=width)
        keep(mlp.down_proj, columns=width)


def export_onnx(
    model: nn.Module, path: Path, outputs: list[str], **options: Any
) -> Path:
    """The model as an ONNX file with dynamic batch and sequence."""
    ids = torch.randint(0, 100, (2, 8), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    exported = torch.onnx.export(
        model,
        (),
        kwargs=inputs,
        dynamic_shapes=dict.fromkeys(inputs, dims),
        output_names=outputs,
        dynamo=True,
        verbose=False,
        **options,
    )
    assert exported is not None
    exported.save(path, external_data=options.get("external_data", False))
    return path
