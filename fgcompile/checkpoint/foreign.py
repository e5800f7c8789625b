"""Models that others wrote: nothing that their files name is run, fetched or trusted.

A configuration decides what its library imports, allocates and opens. So it is looked
at before the library sees it, and what the library then raises becomes a FormatError.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fgcompile.errors import FgcompileError, FormatError

INDEX = "model.safetensors.index.json"
SAFE = {"use_safetensors": True, "trust_remote_code": False}
"""What `from_pretrained` is called with: no pickle, and no code of the checkpoint."""

_MOST = {"layer": 10_000, "position": 1 << 26}
"""Largest numbers under keys with these words; tables and lists are made of them."""
_MOST_PARAMETERS = 200_000
_LARGEST_DIM = 1 << 24


@contextlib.contextmanager
def foreign(what: str, remedy: str) -> Iterator[None]:
    """Whatever a library raises inside becomes a FormatError: `what` failed."""
    try:
        yield
    except FgcompileError:
        raise
    except Exception as error:
        raise FormatError(f"{what}: {_reason(error)}\n  {remedy}") from error


def _reason(error: BaseException) -> str:
    """What a library says, and on a line of its own what was behind that.

    A library may take a lost connection for a wrong name; the first error knows.
    """
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    root = chain[-1]
    first, behind = _first_line(error), _first_line(root)
    if behind in first:
        return first
    return f"{first}\n  Behind it: {type(root).__name__}: {behind}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:300]


def named_class(name: Any) -> Any:
    """The model class of transformers that is called so; None if there is none.

    Nothing is imported: a file may name a class, but not a module.
    """
    try:
        import transformers as library
    except ImportError:
        return None
    cls = getattr(library, name, None) if isinstance(name, str) else None
    models = library.PreTrainedModel
    return cls if isinstance(cls, type) and issubclass(cls, models) else None


def check_config(text: Any, place: str = "config.json") -> None:
    """Refuses a configuration that would fetch code or fill the memory.

    Raises:
        FormatError: If it is no table, names code on the hub, or counts more layers
            than any model has.
    """
    if not isinstance(text, dict):
        raise FormatError(f"{place} is damaged: it holds no table\n  Save it again.")
    for key, value in text.items():
        if isinstance(value, dict):
            check_config(value, f"{place}, {key}")
        # Such a name makes transformers fetch a kernel and run it.
        if "implementation" in key and "/" in str(value):
            raise FormatError(
                f"{place} asks for code from elsewhere: {key} is {value!r}\n"
                f"  Remove {key} from it; the code of the installed library will do."
            )
        most = min((m for word, m in _MOST.items() if word in key), default=None)
        if most is not None and isinstance(value, int | float) and value > most:
            raise FormatError(
                f"{place} is damaged: {key} is {value:.6g}\n  No model has that many."
            )


def check_folder(folder: Path) -> None:
    """Refuses a folder whose files lead a loader elsewhere.

    Raises:
        FormatError: If a list of shards names a file outside of the folder, or an
            adapter names another model.
    """
    if (folder / "adapter_config.json").exists():
        raise FormatError(
            f"{folder} holds an adapter, which names its base model by a path\n"
            "  Merge it into the model, save that, and give the folder."
        )
    for name in shards_of(folder):
        if not isinstance(name, str) or Path(name).name != name:
            raise FormatError(
                f"{folder / INDEX} names a file outside of its folder: {name!r}\n"
                "  Move the weights beside it; other places are never read."
            )


def shards_of(folder: Path) -> list[Any]:
    """Names of the files that the list of shards in `folder` gives; none without one.

    Raises:
        FormatError: If the list is damaged.
    """
    file = folder / INDEX
    if not file.exists():
        return []
    try:
        return list(json.loads(file.read_text("utf-8"))["weight_map"].values())
    except (*(OSError, ValueError, RecursionError, KeyError), *_WRONG_TYPE) as error:
        raise FormatError(
            f"{file} is damaged: {error!r:.200}\n  Fetch or save the model again."
        ) from error


def _stored_count(folder: Path) -> int:
    """Tensors in the safetensors files of `folder`; 0 if there are none to count."""
    if names := shards_of(folder):
        return len(names)
    file = folder / "model.safetensors"
    if not file.is_file():
        return 0
    try:
        with safe_open(file, "pt") as stream:
            return len(list(stream.keys()))
    except (OSError, SafetensorError):
        return 0  # whoever reads the weights tells


_WRONG_TYPE = (TypeError, AttributeError)


@contextlib.contextmanager
def bounded(folder: Path | None = None) -> Iterator[None]:
    """A model that is built inside has as many parameters as `folder` may hold.

    Args:
        folder: With the weights, if they are here.

    Raises:
        FormatError: If a constructor makes more of them, or larger ones than any
            model has, before they fill the memory.
    """
    stored = 0 if folder is None else _stored_count(folder)
    # Tied parameters are set several times but stored once.
    most = 4 * stored + 100 if stored else _MOST_PARAMETERS
    left = most

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal left
        left -= 1
        if parameter is not None and max(parameter.shape, default=0) > _LARGEST_DIM:
            raise FormatError(
                f"the configuration describes a parameter of {list(parameter.shape)}\n"
                "  It is damaged: no model has so large a dim. Fetch it again."
            )
        if left < 0:
            raise FormatError(
                f"the configuration describes more than {most:,} parameters\n"
                "  It is damaged, or not that of these weights. Fetch it again."
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
