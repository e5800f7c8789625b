"""Torch-Pruning, with the settings of its examples for transformers models.

Its pruner ranks by magnitude, so it takes the units that are zero. What writes the
residual stream is left alone, and the number of heads is corrected afterwards, both as
its examples do. It is also run on feed-forward channels alone, with the matrices of
queries, keys and values ignored, as its search for coupled heads does not end where
queries share keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.models import (
    CUT,
    NAMES,
    export,
    heads_of,
    inputs_of,
    layers_of,
    load,
)
from benchmarks.peers.with_script import set_heads


def prepare(folder: Path) -> Any:
    """The model."""
    return load(folder)


def prune(prepared: Any, folder: Path, heads: bool = True) -> str:
    """Prunes heads, unless told not to, and channels in all layers, and exports."""
    import torch_pruning

    model, facts = prepared
    names = NAMES[facts["model"]]
    queries, kv, size = heads_of(model)
    number_of: dict[Any, int] = {}
    ignored: list[Any] = []
    for layer in layers_of(model, names):
        if heads:
            number_of[layer.get_submodule(names.q)] = queries
            for part in {names.k, names.v} - {names.q}:
                number_of[layer.get_submodule(part)] = kv
        else:
            ignored += [layer.get_submodule(n) for n in (names.q, names.k, names.v)]
        ignored += [layer.get_submodule(names.o), layer.get_submodule(names.down)]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        inputs_of(model, 2, 16),
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=CUT,
        ignored_layers=ignored,
        num_heads=number_of,
        prune_num_heads=heads,
        prune_head_dims=False,
        head_pruning_ratio=CUT,
        output_transform=lambda output: output.last_hidden_state.sum(),
    )
    pruner.step()
    for layer in layers_of(model, names):
        rows = layer.get_submodule(names.o)
        width = getattr(rows, "in_features", None) or rows.weight.shape[0]
        set_heads(layer.get_submodule(names.attention), width // size)
    export(model, folder / "model.onnx")
    return "" if heads else "feed-forward channels only"
