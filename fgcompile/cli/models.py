"""Models by the name that a user gives on the command line."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from fgcompile.capture.state import silence
from fgcompile.checkpoint import MANIFEST, load
from fgcompile.checkpoint.foreign import (
    SAFE,
    bounded,
    check_config,
    check_folder,
    foreign,
    named_class,
)
from fgcompile.errors import FormatError

ModelName = Annotated[
    str,
    typer.Argument(
        help="A folder with config.json and weights, as save_pretrained or fgcompile "
        "wrote it, or the name of a model on the hub.",
        metavar="MODEL",
    ),
]


def open_model(name: str, weights: bool = True) -> nn.Module:
    """The model called `name`, in eval mode.

    Args:
        name: A folder, or a name on the hub.
        weights: Without, its parameters are on the meta device; only its configuration
            is read.

    Raises:
        FormatError: If there is no such model, or it is none of transformers.
    """
    if (Path(name) / MANIFEST).is_file():
        return load(name)
    cls, config = model_class(name)
    with silence(), bounded(Path(name)), _opening(name):
        if weights:
            model: nn.Module = cls.from_pretrained(name, config=config, **SAFE)
        else:
            with torch.device("meta"):
                model = _built(cls, config)
    return model.eval()


def _built(cls: Any, config: Any) -> nn.Module:
    make = getattr(cls, "from_config", cls)  # Auto classes are not called
    model: nn.Module = make(config)
    return model


def model_class(name: str) -> tuple[Any, Any]:
    """Class and configuration of the model called `name`.

    Raises:
        FormatError: If there is no such model, or transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise FormatError(
            "the command line opens models of transformers, which is not installed\n"
            '  Install it: pip install "fgcompile[hf]".'
        ) from error
    if Path(name).is_dir():
        check_folder(Path(name))
    with silence(), _opening(name):
        check_config(transformers.PreTrainedConfig.get_config_dict(name)[0])
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        names = list(config.architectures or ())
    cls = named_class(names[0]) if names else None
    return cls or transformers.AutoModel, config


def _opening(name: str) -> AbstractContextManager[None]:
    remedy = "Give a folder with config.json and safetensors, or a name on the hub."
    if not Path(name).exists():
        remedy += " If it is the right name, try again when the hub can be reached."
    return foreign(f"cannot open model {name}", remedy)
