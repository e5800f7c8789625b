"""Saving a smaller model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import Tensor

from fgcompile.capture.inputs import is_transformers_model
from fgcompile.capture.state import silence
from fgcompile.checkpoint.load import shrink
from fgcompile.checkpoint.manifest import Manifest, sha256
from fgcompile.checkpoint.per_layer import per_layer_config
from fgcompile.targets.module import LoweredModule
from fgcompile.targets.module.configuration import Variants, with_entries
from fgcompile.targets.module.stock import computes_the_same, whole_fit

Same = Callable[[Any, bool], bool]
"""Whether a configuration builds a model that computes the same.

The flag tells whether the model gets the shapes of the manifest, as `load` does it.
"""


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
        small = partial(shrink, manifest=manifest_of(lowered))

        def same(config: Any, shrunk: bool) -> bool:
            prepare = {"prepare": small} if shrunk else {}
            return computes_the_same(model, config, inputs, **prepare)

        with silence():
            model.save_pretrained(folder)
            write_configuration(folder, lowered, same)
    else:
        save_model(model, str(folder / "model.safetensors"))
    write_manifest(folder, lowered)


def write_manifest(folder: Path, lowered: LoweredModule) -> None:
    """Writes what `lowered` differs in from its class, beside its weights."""
    files = {f.name: sha256(f) for f in sorted(folder.glob("*.safetensors"))}
    manifest_of(lowered, files).write(folder)


def manifest_of(
    lowered: LoweredModule, files: Mapping[str, str] | None = None
) -> Manifest:
    """What `lowered` differs in from its class; the digests of its files are given."""
    model, kept = lowered.model, lowered.history.kept
    return Manifest(
        model=type(model).__name__,
        files=dict(files or {}),
        shapes={n: list(p.shape) for n, p in model.named_parameters() if n in kept},
        kept={name: _texts(kept[name]) for name in sorted(kept)},
        attributes=lowered.history.attributes,
    )


def _texts(dims: Mapping[int, Tensor]) -> dict[str, list[int]]:
    return {str(dim): index.tolist() for dim, index in sorted(dims.items())}


def write_configuration(folder: Path, lowered: LoweredModule, same: Same) -> None:
    """Writes the configuration that says most of the model, among those that are true.

    Args:
        folder: Where `config.json` goes.
        lowered: The smaller model, of transformers.
        same: Decides which are true.
    """
    cls, config = type(lowered.model), with_entries(lowered.history.config, {})
    config.architectures = [cls.__name__]
    fit = whole_fit(lowered, Variants(cls, config))
    candidates: list[Any] = [per_layer_config(lowered, config)]
    if fit is not None and fit.entries:
        found = with_entries(config, fit.entries)
        if not fit.left and same(found, False):
            candidates.insert(0, found)
        elif same(found, True):
            candidates.append(found)
    for candidate in candidates:
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
