"""Models by the name that a user gives on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from fgcompile.capture.state import silence
from fgcompile.checkpoint import MANIFEST, load
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
    with silence():
        if weights:
            model: nn.Module = cls.from_pretrained(name, config=config)
        else:
            with torch.device("meta"):
                model = cls(config)
    return model.eval()


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
    try:
        with silence():
            config = transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise FormatError(
            f"cannot open model {name}: {first}\n"
            "  Give a folder with config.json, or a name on the hub."
        ) from error
    names = config.architectures or []
    cls = getattr(transformers, names[0], None) if names else None
    return cls or transformers.AutoModel, config
