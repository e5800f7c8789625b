"""Saving a smaller model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from fgcompile.capture.inputs import is_transformers_model
from fgcompile.capture.state import silence
from fgcompile.checkpoint.config import Pairs, fit_config, with_entries
from fgcompile.checkpoint.manifest import Manifest, sha256
from fgcompile.targets.module import LoweredModule
from fgcompile.targets.verify import outputs_of

Shapes = dict[str, tuple[int, ...]]


def save_module(folder: Path, lowered: LoweredModule, inputs: dict[str, Any]) -> None:
    """Writes the model of `lowered` into `folder`, so that `load` gives it back.

    A transformers model gets its configuration beside it: with the new sizes if all
    layers agree and the class builds just this model from them, so that
    `from_pretrained` loads it without fgcompile; else with `per_layer_config`.

    Args:
        folder: An empty folder.
        lowered: The smaller model.
        inputs: Example inputs, on which a model built from the configuration is
            compared.
    """
    model: Any = lowered.model
    if is_transformers_model(model):
        with silence():
            model.save_pretrained(folder)
            _write_configuration(folder, lowered, inputs)
    else:
        save_model(model, str(folder / "model.safetensors"))
    write_manifest(folder, lowered)


def write_manifest(folder: Path, lowered: LoweredModule) -> None:
    """Writes what `lowered` differs in from its class, beside its weights."""
    model, kept = lowered.model, lowered.history.kept
    Manifest(
        model=type(model).__name__,
        files={f.name: sha256(f) for f in sorted(folder.glob("*.safetensors"))},
        shapes={n: list(p.shape) for n, p in model.named_parameters() if n in kept},
        kept={name: _texts(kept[name]) for name in sorted(kept)},
        attributes=lowered.history.attributes,
    ).write(folder)


def _texts(dims: Mapping[int, Tensor]) -> dict[str, list[int]]:
    return {str(dim): index.tolist() for dim, index in sorted(dims.items())}


def _write_configuration(
    folder: Path, lowered: LoweredModule, inputs: dict[str, Any]
) -> None:
    """The configuration that says most among those that its own class accepts."""
    config = with_entries(lowered.history.config, {})
    config.architectures = [type(lowered.model).__name__]
    for candidate in (_uniform(lowered, config, inputs), _per_layer(lowered, config)):
        if candidate is not None and _accepted(candidate, folder):
            return
    config.save_pretrained(folder)


def _accepted(config: Any, folder: Path) -> bool:
    """Whether `config` was written and reads: classes reject sizes that they forbid.

    LlamaConfig, for one, wants a number of heads that divides the hidden size.
    """
    try:
        config.save_pretrained(folder)
        type(config).from_pretrained(folder)
    except Exception:
        return False
    return True


def _uniform(lowered: LoweredModule, config: Any, inputs: dict[str, Any]) -> Any:
    """The configuration that builds just this model, None if there is none."""
    pairs = {pair for pairs in lowered.history.sizes.values() for pair in pairs}
    entries = fit_config(config, type(lowered.model), pairs, _shapes(lowered.model))
    if entries is None:
        return None
    found = with_entries(config, entries)
    return found if _computes_the_same(lowered, found, inputs) else None


def _shapes(model: nn.Module, prefix: str = "") -> Shapes:
    named = model.named_parameters(remove_duplicate=False)
    return {n: tuple(p.shape) for n, p in named if n.startswith(prefix)}


def _computes_the_same(
    lowered: LoweredModule, config: Any, inputs: dict[str, Any]
) -> bool:
    """Whether what `config` builds gives the same outputs with the same weights."""
    model: Any = lowered.model
    try:
        with silence():
            stock = type(model)(config).to(next(model.parameters()).dtype).eval()
            stock.load_state_dict(model.state_dict())
        want, got = (outputs_of(m, inputs) for m in (model, stock))
    except Exception:
        return False
    return len(want) == len(got) and all(
        w.shape == g.shape and torch.allclose(w, g, rtol=1e-5, atol=1e-6)
        for w, g in zip(want, got, strict=True)
    )


def _per_layer(lowered: LoweredModule, config: Any) -> Any | None:
    """`config` with the entries of each layer, if those explain its shapes."""
    count = getattr(config, "num_hidden_layers", None)
    for path, module in lowered.model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            layers = _layer_entries(lowered, config, path, len(module))
            if layers:
                found = with_entries(config, {})
                found.per_layer_config = layers
                return found
    return None


def _layer_entries(
    lowered: LoweredModule, config: Any, path: str, count: int
) -> dict[int, dict[str, int]]:
    layers = {}
    for layer in range(count):
        prefix = f"{path}.{layer}."
        wanted = _shapes(lowered.model, prefix)
        pairs = _pairs_below(lowered, prefix)
        entries = fit_config(config, type(lowered.model), pairs, wanted)
        if entries is None:
            return {}
        if entries:
            layers[layer] = entries
    return layers


def _pairs_below(lowered: LoweredModule, prefix: str) -> Pairs:
    return {
        pair
        for path, pairs in lowered.history.sizes.items()
        if f"{path}.".startswith(prefix)
        for pair in pairs
    }
