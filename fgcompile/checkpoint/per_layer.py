"""`per_layer_config`: what layers differ in, as transformers defines it."""

from __future__ import annotations

from typing import Any

from torch import nn

from fgcompile.targets.module import LoweredModule
from fgcompile.targets.module.configuration import (
    Facts,
    Pairs,
    Variants,
    explains,
    fit_config,
    with_entries,
)

Entries = dict[str, int]


def per_layer_config(lowered: LoweredModule, config: Any) -> Any | None:
    """`config` with the entries of each layer, if those explain the whole model.

    A model may have several stacks of layers (an encoder and a decoder): an entry
    that is not true of the layers of all stacks is none.
    """
    variants = Variants(type(lowered.model), config)
    dense = variants({}, read=False)
    count = getattr(config, "num_hidden_layers", None)
    stacks = _stacks(lowered.model, count) if isinstance(count, int) else []
    layers = [_entries(lowered, variants, stacks, k) for k in range(count or 0)]
    if dense is None or not any(layers):
        return None
    found: dict[int, Entries] = {}
    for k, entries in enumerate(layers):
        if entries is None:
            return None
        if entries:
            found[k] = entries
    outside = Facts.of(lowered.model).without([f"{path}." for path in stacks])
    if not explains(dense, outside):
        return None
    result = with_entries(config, {})
    result.per_layer_config = found
    return result


def _stacks(model: nn.Module, count: int) -> list[str]:
    """Paths of all outermost lists of so many modules."""
    found: list[str] = []
    for path, module in model.named_modules():
        inner = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == count and not inner:
            found.append(path)
    return found


def _entries(
    lowered: LoweredModule, variants: Variants, stacks: list[str], layer: int
) -> Entries | None:
    """What is true of that layer of all stacks; None if nothing is."""
    prefixes = [f"{path}.{layer}." for path in stacks]
    parts = {prefix: Facts.of(lowered.model, prefix) for prefix in prefixes}
    merged: Entries = {}
    for prefix, wanted in parts.items():
        pairs = _pairs_below(lowered, prefix)
        fit = fit_config(variants, pairs, wanted, read=False)
        if fit is None or fit.left:
            return None
        merged |= fit.entries
    built = variants(merged, read=False)
    if built is None or not all(explains(built, part) for part in parts.values()):
        return None
    return merged


def _pairs_below(lowered: LoweredModule, prefix: str) -> Pairs:
    return {
        pair
        for path, pairs in lowered.history.sizes.items()
        if f"{path}.".startswith(prefix)
        for pair in pairs
    }
