"""Torch-Pruning on a fine-tuned MiniLM, with the settings of its examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch_pruning
from torch import nn

from benchmarks.glue.training import Run
from benchmarks.peers.models import NAMES, heads_of, layers_of
from benchmarks.peers.with_script import set_heads

CALIBRATION = 32
"""Batches whose gradients Taylor's criterion adds up."""


def magnitude(run: Run, model: nn.Module) -> Any:
    """Units with the smallest weights go; nothing has to be run for it."""
    return torch_pruning.importance.GroupMagnitudeImportance()


def taylor(run: Run, model: Any) -> Any:
    """Units whose removal changes the loss least go, by gradients of some batches."""
    generator = torch.Generator().manual_seed(run.seed)
    for _, inputs in zip(range(CALIBRATION), run.data.batches(generator), strict=False):
        model(**inputs).loss.backward()
    return torch_pruning.importance.GroupTaylorImportance()


CRITERIA = {"magnitude": magnitude, "taylor": taylor}


def prune(run: Run, model: Any, criterion: Callable[[Run, nn.Module], Any]) -> None:
    """Removes heads and channels in place, the same number in every layer.

    Whole heads go first; channels make up for what that is short of `run.removed`.
    What writes the residual stream is left alone, as in the examples.
    """
    names, base = NAMES["bert"], model.base_model
    heads, _, size = heads_of(base)
    layers = list(layers_of(base, names))
    gone = round(run.removed * heads)
    attention = _elements(layers[0], (names.q, names.k, names.v, names.o))
    channels = _elements(layers[0], (*names.up, names.down))
    rest = run.removed * (attention + channels) - attention * gone / heads
    queries = [layer.get_submodule(names.q) for layer in layers]
    keys = [layer.get_submodule(n) for layer in layers for n in (names.k, names.v)]
    writers = [
        layer.get_submodule(n) for layer in layers for n in (names.o, names.down)
    ]
    pruner = torch_pruning.pruner.BasePruner(
        model.eval(),
        next(run.data.batches(torch.Generator().manual_seed(0))),
        importance=criterion(run, model),
        pruning_ratio=rest / channels,
        ignored_layers=[*writers, base.pooler.dense, model.classifier],
        num_heads=dict.fromkeys([*queries, *keys], heads),
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=gone / heads,
        output_transform=lambda output: output.logits.sum(),
    )
    pruner.step()
    model.zero_grad(set_to_none=True)
    for layer in layers:
        rows: Any = layer.get_submodule(names.o)
        set_heads(layer.get_submodule(names.attention), rows.in_features // size)


def _elements(layer: nn.Module, names: tuple[str, ...]) -> int:
    weights = [layer.get_submodule(name).get_parameter("weight") for name in names]
    return sum(weight.numel() for weight in weights)
