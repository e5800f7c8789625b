"""A language model with its cache -> one ONNX graph for prefill and decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fgcompile.capture.state import tracing_state
from fgcompile.errors import ExportError
from fgcompile.targets.decoder.cached import CachedModel, CacheLayer, token_names
from fgcompile.targets.extras import cause, quiet, require
from fgcompile.targets.onnx import OPSET, save_onnx, settle_views

_BATCH, _SEQUENCE, _PAST = 2, 3, 5
"""Sizes that are traced: distinct, and not 0 or 1, which are never symbols."""

_AXES = ("batch_size", "sequence_length", "past_sequence_length")
_TOTAL = "total_sequence_length"


def write_decoder(
    model: nn.Module, layers: Sequence[CacheLayer], path: Path, opset: int = OPSET
) -> None:
    """Writes `model` with its cache to `path`; above 2 GB, weights lie beside it.

    Args:
        model: A transformers model that returns logits and a cache.
        layers: What it caches; see `cache_layers`.
        path: The file.
        opset: ONNX opset.

    Raises:
        ExportError: If the exporter fails, or the extra `onnx` is not installed.
    """
    require("onnx", "onnx", "onnxscript")
    try:
        with quiet():
            exported = _exported(model, layers)
            settle_views(exported)
            converted = torch.onnx.export(
                exported,
                dynamo=True,
                input_names=input_names(model, layers),
                output_names=output_names(layers),
                opset_version=opset,
                verbose=False,
            )
            assert converted is not None
            _name_axes(converted)
            save_onnx(converted, path)
    except Exception as error:
        raise ExportError(
            f"torch.onnx cannot export {type(model).__name__} with a cache: "
            f"{cause(error)}\n"
            f"  to {path.name}, opset {opset}\n"
            "  Check that the dense model exports, or lower without cache."
        ) from error


def input_names(model: nn.Module, layers: Sequence[CacheLayer]) -> list[str]:
    """Names of the graph's inputs, in order."""
    return [*token_names(model), *cache_names(layers, "past")]


def output_names(layers: Sequence[CacheLayer]) -> list[str]:
    """Names of the graph's outputs, in order."""
    return ["logits", *cache_names(layers, "present")]


def cache_names(layers: Sequence[CacheLayer], side: str) -> list[str]:
    """Names of all keys and values, "past" or "present", layer by layer.

    Loaders count from 0 without gaps, so layers that cache nothing have no number.
    """
    prefix = "past_key_values" if side == "past" else side
    return [
        f"{prefix}.{number}.{part}"
        for number in range(len(layers))
        for part in ("key", "value")
    ]


def _exported(
    model: nn.Module, layers: Sequence[CacheLayer]
) -> torch.export.ExportedProgram:
    tokens = torch.ones(_BATCH, _SEQUENCE, dtype=torch.long)
    auto = torch.export.Dim.AUTO
    given = {
        "input_ids": tokens,
        "attention_mask": torch.ones(_BATCH, _PAST + _SEQUENCE, dtype=torch.long),
        "position_ids": _PAST + torch.arange(_SEQUENCE).expand(_BATCH, -1),
    }
    given = {name: given[name] for name in token_names(model)}
    past = [layer.empty(_BATCH, _PAST) for layer in layers]
    cached = {0: auto, 2: auto}
    shapes = (
        {name: {0: auto, 1: auto} for name in given},
        [(cached, cached)] * len(past),
    )
    with tracing_state(model):
        return torch.export.export(
            CachedModel(model, layers),
            (given, past),
            dynamic_shapes=shapes,
            strict=False,
        )


def _name_axes(converted: Any) -> None:
    names: dict[str, str] = {}
    for value in converted.model.graph.inputs:
        for size, name in zip(value.shape, _axes_of(value.name), strict=True):
            symbol = getattr(size, "value", None)
            if isinstance(symbol, str):
                names.setdefault(symbol, name)
    converted.rename_axes(names)
    for value in converted.model.graph.outputs[1:]:
        batch, heads, _, size = value.shape
        value.shape = type(value.shape)([batch, heads, _TOTAL, size])


def _axes_of(name: str) -> Iterator[str]:
    batch, sequence, past = _AXES
    if name == "attention_mask":
        yield from (batch, _TOTAL)
    elif name.startswith("past_key_values"):
        yield from (batch, "", past, "")
    else:
        yield from (batch, sequence)
