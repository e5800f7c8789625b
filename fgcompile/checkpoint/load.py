"""Loading what `save` wrote."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from torch import nn

from fgcompile.capture.state import silence
from fgcompile.checkpoint.foreign import (
    SAFE,
    bounded,
    check_config,
    check_folder,
    foreign,
    named_class,
)
from fgcompile.checkpoint.manifest import Manifest
from fgcompile.errors import FormatError
from fgcompile.targets.module import (
    History,
    apply_attributes,
    remember,
    resize_parameter,
)


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The model that was saved in `folder`, of its original class, in eval mode.

    Args:
        folder: Written by `fgcompile.save`.
        model: For models that are not from transformers: one with the sizes of the
            dense model, which becomes the smaller one, in place.

    Returns:
        The model.

    Raises:
        FormatError: If the folder is damaged, incomplete or of an unknown version, or
            needs `model`.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    manifest.check_files(folder)
    check_folder(folder)
    with foreign(
        f"{folder} does not fit {manifest.model}",
        "Its files contradict each other. Save the model again.",
    ):
        if model is None:
            model = _load_transformers(folder, manifest)
        else:
            shrink(model, manifest)
            load_model(model, str(folder / "model.safetensors"))
        remember(model, _history(manifest))
        return model.eval()


def shrink(model: nn.Module, manifest: Manifest) -> None:
    """Gives `model` the shapes and attributes of the manifest, in place.

    The values of parameters that change their shape are undefined afterwards.

    Raises:
        FormatError: If a shape is not contained in the dense one.
    """
    for name, shape in manifest.shapes.items():
        old = model.get_parameter(name)
        # Looked at first: sizes that no memory holds fail in the allocator.
        if len(shape) != old.dim() or any(map(operator.gt, shape, old.shape)):
            raise FormatError(
                f"{name} of {list(old.shape)} cannot become {shape}\n"
                "  The manifest is damaged, or not that of this model. Save it again."
            )
        resize_parameter(model, name, old.new_empty(shape))
    apply_attributes(model, manifest.attributes)


def _history(manifest: Manifest) -> History:
    kept = {
        name: {int(dim): torch.tensor(index) for dim, index in dims.items()}
        for name, dims in manifest.kept.items()
    }
    return History(kept, manifest.attributes)


def _load_transformers(folder: Path, manifest: Manifest) -> nn.Module:
    cls = _class(manifest.model, folder)
    text = json.loads((folder / "config.json").read_text("utf-8"))
    check_config(text)
    # Classes of today cannot build layers that differ: the manifest says how.
    text.pop("per_layer_config", None)
    config = cls.config_class.from_dict(text)
    resized: Any = type(cls.__name__, (cls,), {"__init__": _resizing(cls, manifest)})
    resized.__module__ = cls.__module__
    with silence(), torch.no_grad(), bounded(folder):
        model, info = resized.from_pretrained(
            *(folder,),
            config=config,
            local_files_only=True,
            output_loading_info=True,
            **SAFE,
        )
    model.__class__ = cls
    wrong = [*info["missing_keys"], *info["mismatched_keys"], *info["unexpected_keys"]]
    if wrong:
        raise FormatError(
            f"{folder} has no fitting weights for {len(wrong)} parameters of "
            f"{manifest.model}, among them {wrong[0]}\n  Save the model again."
        )
    loaded: nn.Module = model
    return loaded


def _resizing(cls: Any, manifest: Manifest) -> Callable[..., None]:
    """A constructor that makes the dense model, and then shrinks it."""

    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, *args, **kwargs)
        shrink(self, manifest)

    return construct


def _class(name: str, folder: Path) -> Any:
    """A model class of transformers; nothing that a file names is imported."""
    cls = named_class(name)
    if cls is None:
        raise FormatError(
            f"{folder} holds a {name}, which is no model class of the installed "
            "transformers\n"
            f"  Pass one to fill: fgcompile.load({str(folder)!r}, model={name}(...))."
        )
    return cls
